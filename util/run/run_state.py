"""State of a training run: everything that a checkpoint keeps and that resuming restores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import paddle

from util.run import resume_rules
from util.system import console
from util.weights import architecture, checkpoint, loading

if TYPE_CHECKING:
    from util.data.bad_images import BadImages
    from util.optim.ema import EMA
    from util.optim.plateau import Plateau


class RunState:
    """Weights, optimizer state, progress and best scores of a run.

    A checkpoint is written between two updates, so there are no gradients to keep. All randomness is a
    function of seed and position (util.system.keyed_random), so only the position has to be kept.

    Args:
        model, optimizer, scaler: what is trained, and util.compute.amp.grad_scaler.
        options: {flag name: value} of the run; a checkpoint keeps them as "args".
        facts: the other entries of a checkpoint that describe the run, see `util.run.resume_rules.facts`.
        ema: moving average of the weights, or None.
        plateau: state of the plateau schedule, or None.

    Attributes:
        start_epoch: first epoch that is not finished.
        progress: position within that epoch, of the resumed checkpoint; None at the beginning of an epoch.
        lines: lines of log.txt so far, one dict per epoch.
        max_accuracy, min_loss: best evaluation so far, of a classifier in per cent and of an autoencoder.
        confusion: confusion matrix of the best epoch as packed by `util.run.confusion.pack`; {} if there is
            none.
        skipped_in_a_row: updates that --on_nan skip has skipped since the last one that was made.
        bad_images: lists of unreadable images, one per loader.
        evaluates: whether the run evaluates, and checkpoints therefore keep the best scores.
    """

    def __init__(
        self,
        model: paddle.nn.Layer,
        optimizer: paddle.optimizer.Optimizer,
        scaler: paddle.amp.GradScaler,
        *,
        options: Mapping[str, Any],
        facts: Mapping[str, Any],
        ema: EMA | None = None,
        plateau: Plateau | None = None,
    ) -> None:
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.ema, self.plateau = ema, plateau
        self.options = options
        self.facts = {**facts, "architecture": {**facts["architecture"], **architecture.num_heads(model)}}
        resume_rules.check_names(options["allow_changes"] or (), self.essentials)
        self.start_epoch: int = options["start_epoch"]
        self.progress: dict[str, Any] | None = None
        self.lines: list[dict[str, Any]] = []
        self.max_accuracy, self.min_loss = -1.0, math.inf  # worse than any
        self.confusion: dict[str, Any] = {}
        self.skipped_in_a_row = 0
        self.bad_images: Sequence[BadImages] = ()
        self.evaluates = False

    @property
    def essentials(self) -> dict[str, Any]:
        """Settings that must not change when the run is resumed."""
        return resume_rules.essentials(self.options, self.facts)

    @property
    def classes(self) -> list[str]:
        """Class names by label; [] in pretraining."""
        return self.facts.get("classes", [])

    def pack(
        self, epoch: int, *, progress: Mapping[str, Any] | None = None, best: bool = False
    ) -> dict[str, Any]:
        """Return the contents of a checkpoint.

        Args:
            epoch: last finished epoch.
            progress: position within the next epoch, or None at its beginning.
            best: whether this is the best epoch so far.
        """
        more: dict[str, Any] = {
            "log": self.lines,
            "skipped_in_a_row": self.skipped_in_a_row,
            "bad_images": {bad_images.split: dict(bad_images.reasons) for bad_images in self.bad_images},
        }
        if self.evaluates and "classes" in self.facts:
            more |= {"best": best, "max_accuracy": self.max_accuracy, "confusion": self.confusion}
        elif self.evaluates:
            more |= {"best": best, "min_loss": self.min_loss}
        if progress is not None:
            more["progress"] = dict(progress)
        state = checkpoint.pack(
            self.model, self.optimizer, self.scaler, epoch, self.options, **self.facts, **more
        )
        if self.ema is not None:
            state["model_ema"] = {**state["model"], **self.ema.arrays()}
        if self.plateau is not None:
            state["plateau"] = self.plateau.state()
        return state

    def restore(self, path: str, state: dict[str, Any]) -> bool:
        """Continue from a checkpoint.

        Args:
            path: of the checkpoint.
            state: its contents.

        Returns whether it is a whole checkpoint. Of bare weights only the weights are taken, with a new
        optimizer. Raises CheckpointError if the file does not fit, and ValueError if its run has other
        settings.
        """
        loading.check_classes(path, state, self.facts.get("classes"))
        loading.resume(path, self.model, self.optimizer, self.scaler, state=state)
        if self.ema is not None:
            self.ema.restore(path, state.get("model_ema", state["model"]))
            if "model_ema" not in state:
                console.say(f"{path} has no averaged weights, so --ema starts from its weights")
        if "optimizer" not in state or "epoch" not in state:
            return False
        resume_rules.check(
            path,
            resume_rules.essentials(state.get("args", {}), state),
            self.essentials,
            self.options["allow_changes"] or (),
        )
        self.start_epoch = state["epoch"] + 1
        self.progress = state.get("progress")
        self.max_accuracy = state.get("max_accuracy", self.max_accuracy)
        self.min_loss = state.get("min_loss", self.min_loss)
        self.confusion = state.get("confusion", {})
        self.skipped_in_a_row = state.get("skipped_in_a_row", 0)
        if self.plateau is not None and "plateau" in state:
            self.plateau.restore(state["plateau"])
        for bad_images in self.bad_images:
            bad_images.restore(state.get("bad_images", {}).get(bad_images.split, {}))
        return True

    def check_finite(self) -> None:
        """Raise FloatingPointError if a parameter or running statistic is NaN or infinite."""
        if bad := self.not_finite():
            raise FloatingPointError(
                f"the weights are not finite after an update ({', '.join(bad[:3])}, "
                "...): not saved, the last checkpoint is from before"
            )

    def not_finite(self) -> list[str]:
        """Return the names of parameters and running statistics with NaN or infinite values."""
        return [name for name, p in self.model.named_parameters() if not paddle.isfinite(p).all().item()]
