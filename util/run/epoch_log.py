"""Log of an epoch: console lines or a progress bar, means for log.txt, and VisualDL points."""

from __future__ import annotations

import datetime
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from util.run import visualdl_writer
from util.run.epoch_timer import EpochTimer, advice
from util.run.step_sync import StepSync
from util.system import console, distributed
from util.system.console import say

# Fits into 80 columns; tqdm's own format would be cut off before the images/s.
BAR = "{desc} |{bar}| {n_fmt}/{total_fmt}, {remaining} left{postfix}"


def evaluation(result: Mapping[str, Any], *, ema: bool = False) -> str:
    """Format the result of an evaluation as in the official code; an autoencoder has only a loss.

    Args:
        result: what the engine's `evaluate` returns.
        ema: whether the averaged weights were evaluated.
    """
    line = "* EMA " if ema else "* "
    if "acc1" in result:
        line += f"Acc@1 {result['acc1']:.3f} Acc@5 {result['acc5']:.3f} loss {result['loss']:.3f}"
    else:
        line += f"val loss {result['loss']:.4f}"
    if result["left_out"]:
        line += f" ({result['images']} pictures; {result['left_out']} unreadable, left out)"
    return line


class EpochLog:
    """Shows the progress of an epoch, and computes its means.

    Args:
        epoch: number of the epoch.
        steps: steps of a whole epoch.
        print_freq: steps between console lines.
        scalars: VisualDL writer, or None. Gets `tag`, lr and grad_norm at thousandths of an epoch, so that
            runs with different batch sizes can be compared; and the speed at the end.
        tag: VisualDL name of the loss.
        sync: reads the losses and shares them with other processes; None: a StepSync that requests nothing.

    Attributes:
        losses, lrs: loss (mean over the processes) and learning rate of each step.
        grad_norms: (step, norm) of each update.
        skipped: number of updates skipped because of a NaN loss.
    """

    def __init__(
        self,
        epoch: int,
        steps: int,
        *,
        print_freq: int = 20,
        scalars: Any = None,
        tag: str = "train_loss",
        sync: StepSync | None = None,
    ) -> None:
        self.epoch, self.steps, self.print_freq = epoch, steps, print_freq
        self.scalars, self.tag = scalars, tag
        self.sync = sync or StepSync(print_freq=print_freq)
        self.timer = EpochTimer()
        self.first_step = 0
        self.losses: list[float] = []
        self.lrs: list[float] = []
        self.grad_norms: list[tuple[int, float]] = []
        self.pending_norms: list[tuple[int, paddle.Tensor]] = []
        self.skipped = 0
        self.num_workers: int | None = None
        self.bar: tqdm | None = None

    # ---- resuming within an epoch

    def progress(self, step: int) -> dict[str, Any]:
        """Return the state after the first `step` steps as plain values, for `restore`."""
        return {
            "epoch": self.epoch,
            "step": step,
            "losses": np.array(self.losses),
            "lrs": np.array(self.lrs),
            "grad_norms": np.array(self.grad_norms).reshape(-1, 2),
            "skipped": self.skipped,
            **self.timer.progress(),
        }

    def restore(self, progress: Mapping[str, Any], step: int) -> None:
        """Continue the epoch of `progress` from step `step` on.

        If the epoch was divided into a different number of steps then, each step gets the mean of its losses
        and learning rates.
        """
        for name in ("losses", "lrs"):
            values = progress[name].tolist()
            if len(values) != step:
                finite = [value for value in values if math.isfinite(value)]
                values = [statistics.fmean(finite or [math.nan])] * step
            setattr(self, name, values)
        norms = progress.get("grad_norms", np.empty([0, 2]))  # unknown to checkpoints of early versions
        self.grad_norms = [(int(at), norm) for at, norm in norms.tolist()]
        self.skipped = progress["skipped"]
        self.timer.restore(progress)
        self.first_step = step

    # ---- one epoch

    def batches(self, loader: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """Yield (step, batch) of each batch of `loader`, timing it and showing the progress."""
        self.num_workers = getattr(loader, "num_workers", None)
        self.sync.bad_images = getattr(loader, "bad_images", None)
        if console.shows_bars() and distributed.is_main():
            self.bar = tqdm(
                total=self.steps,
                initial=self.first_step,
                desc=f"epoch {self.epoch}",
                leave=False,
                bar_format=BAR,
            )
        self.timer.start()
        for step, batch in enumerate(loader, self.first_step):
            self.timer.loaded(batch[0].shape[0], first=step == self.first_step)
            yield step, batch
            self.timer.done()
            if self.bar:
                self.bar.update()
            elif step % self.print_freq == 0 or step + 1 == self.steps:
                say(self._line(step))
        self.timer.stop()
        if self.bar:
            self.bar.close()

    def update(self, step: int, loss: paddle.Tensor, lr: float) -> int | None:
        """Record the loss of a step, before the backward pass.

        `loss` is a 0-D tensor: the mean over this process's images. Returns the first step whose loss is NaN
        or infinite on some process, among the losses read so far, or None. Raises ValueError if there are too
        many unreadable images.
        """
        self.lrs.append(lr)
        return self.read() if self.sync.add(loss, step=step, last=step + 1 == self.steps) else None

    def update_made(self, step: int, norm: paddle.Tensor) -> None:
        """Add the gradient norm (0-D tensor, the same on every process) of the update that ends in `step`."""
        self.pending_norms.append((step, norm))

    def read(self) -> int | None:
        """Read the losses that are still on the device.

        Returns and raises as `update` does; all processes must call it.
        """
        first, read = len(self.losses), self.sync.read()
        self.losses += read
        for step, value in enumerate(read, first):
            self._point(self.tag, step, value)
            self._point("lr", step, self.lrs[step])
        self._read_norms()
        if self.bar and read:
            self.bar.set_postfix_str(
                f"loss {read[-1]:.4f}, lr {self.lrs[-1]:.1e}, {self.timer.images_per_s():.0f} images/s",
                refresh=False,
            )
        return next((step for step, value in enumerate(read, first) if not math.isfinite(value)), None)

    def own_loss(self, step: int) -> float:
        """Return the loss of this process alone in a step of the last `read`."""
        return self.sync.own_losses[step - len(self.losses)]

    def means(self) -> dict[str, float]:
        """Return the means of the epoch under the names of log.txt, and print them.

        Contains "lr", "loss", "images_per_s" and "data_wait", the percentage of time spent waiting for data;
        also "grad_norm" (mean over the updates) and "skipped_updates" if there are any. The loss is the mean
        over the steps with a finite loss. Blocks until every process has called it.
        """
        timer = self.timer
        share, share_later = timer.shares_waited()
        data_wait, images_per_s = round(100 * share, 1), round(timer.images_per_s(), 1)
        say(
            f"Epoch: [{self.epoch}] Total time: {datetime.timedelta(seconds=int(timer.seconds))} "
            f"({timer.seconds / self.steps:.4f} s / it, {data_wait:.1f} % waiting for data)"
        )
        means = {
            "lr": statistics.fmean(self.lrs),
            "loss": statistics.fmean([loss for loss in self.losses if math.isfinite(loss)] or [math.nan]),
        }
        self._read_norms()  # of the last update, which was made after the last loss was read
        if self.grad_norms:
            means["grad_norm"] = statistics.fmean(norm for _, norm in self.grad_norms)
        say(f"Averaged stats: lr: {means['lr']:.3e}  loss: {means['loss']:.4f}")
        say(advice(share, share_later, self.num_workers))
        say("" if self.sync.bad_images is None else self.sync.bad_images.summary())
        if self.scalars:
            self.scalars.add_scalar("data_wait", data_wait, self.epoch)
            self.scalars.add_scalar("images_per_s", images_per_s, self.epoch)
        skipped = {"skipped_updates": self.skipped} if self.skipped else {}
        return {**means, **skipped, "images_per_s": images_per_s, "data_wait": data_wait}

    # ---- console lines and VisualDL points

    def _read_norms(self) -> None:
        """Read the norms on the device; infinite norms belong to updates that loss scaling skipped."""
        for step, tensor in self.pending_norms:
            norm: Any = tensor.item()
            if math.isfinite(norm):
                self.grad_norms.append((step, norm))
                self._point("grad_norm", step, norm)
        self.pending_norms = []

    def _point(self, tag: str, step: int, value: float) -> None:
        if self.scalars:
            self.scalars.add_scalar(tag, value, visualdl_writer.thousandth(self.epoch, step / self.steps))

    def _line(self, step: int) -> str:
        width = len(str(self.steps))
        parts = [
            f"Epoch: [{self.epoch}]",
            f"[{step:{width}d}/{self.steps}]",
            f"eta: {self.timer.remaining(step, self.steps)}",
        ]
        if self.losses:
            recent = statistics.median_low(self.losses[-20:])
            parts += [f"lr: {self.lrs[-1]:.3e}", f"loss: {recent:.4f} ({statistics.fmean(self.losses):.4f})"]
        step_time, data_time = self.timer.recent()
        parts += [f"time: {step_time:.4f}", f"data: {data_time:.4f}"]
        if paddle.get_device() != "cpu":
            parts.append(f"max mem: {paddle.device.cuda.max_memory_allocated() / 2**20:.0f}")
        return "  ".join(parts)
