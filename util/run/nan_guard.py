"""Policy for NaN losses (--on_nan): report them, then stop the run or skip the update."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle

from util.run import nonfinite
from util.run.epoch_log import EpochLog
from util.run.run_state import RunState
from util.run.settings import Saving
from util.system import console, distributed
from util.system.atomic_file import atomic_write
from util.weights import checkpoint

if TYPE_CHECKING:
    from util.data.loaders import Loader

MOST_SKIPPED = 2  # consecutive updates that --on_nan skip may skip, as in DINOv3


class NanGuard:
    """Handles losses that are NaN or infinite, and counts the updates that were skipped in a row.

    Args:
        state: of the run.
        loader: training batches; names the images of a step in the report.
        saving: settings; `on_nan` and the folder of the report are used.
    """

    def __init__(self, state: RunState, loader: Loader, saving: Saving) -> None:
        self.state, self.loader, self.saving = state, loader, saving

    def handle(
        self, log: EpochLog, step: int, model: paddle.nn.Layer, inputs: tuple[Any, ...] | None
    ) -> None:
        """Write a report of the loss in `step`, and return if its update is to be skipped.

        The report, not_finite_EPOCH_STEP.json, holds the findings of each process. Blocks until every process
        has called it. Arguments are those of `util.run.nonfinite.stop`.

        Raises FloatingPointError with --on_nan stop, after MOST_SKIPPED skipped updates in a row, or if the
        weights are affected already.
        """
        found = nonfinite.first_non_finite(model, None if inputs is None else lambda: model(*inputs))
        lost = [name for name, p in model.named_parameters() if not paddle.isfinite(p).all().item()]
        source, sampler = self.loader.source, self.loader.sampler
        mine = {
            "not_finite": lost,
            "loss": str(log.own_loss(step)),
            "first_not_finite": found,
            "pictures": [source.name(index) for index in sampler.indices(log.epoch, step)],
        }
        processes = [json.loads(part) for part in distributed.all_bytes(json.dumps(mine).encode())]
        # The error quotes the first process with a finding; the values of the others may all be finite.
        error = nonfinite.error(
            log, step, next((one["first_not_finite"] for one in processes if one["first_not_finite"]), {})
        )
        report = self._report(log, step, str(error), processes)
        if self.saving.on_nan == "stop":
            raise FloatingPointError(
                f"{error}{report}. No checkpoint was written after it. Go on without "
                "such updates: --on_nan skip"
            )
        if self.state.skipped_in_a_row >= MOST_SKIPPED:
            raise FloatingPointError(
                f"{error}{report}. --on_nan skip leaves out {MOST_SKIPPED} updates in a "
                "row, and this would be one more"
            )
        lost = sorted({name for one in processes for name in one["not_finite"]})
        if lost:
            raise FloatingPointError(
                f"{error}{report}. --on_nan skip cannot help, since these are affected "
                f"already: {', '.join(lost[:3])}{', ...' if lost[3:] else ''}"
            )
        console.say(f"{error}{report}. This update is left out")

    def count(self, *, skipped: bool) -> None:
        """Count an update; `skipped` says whether it was skipped."""
        self.state.skipped_in_a_row = self.state.skipped_in_a_row + 1 if skipped else 0

    def _report(self, log: EpochLog, step: int, message: str, processes: list[dict[str, Any]]) -> str:
        """Write the report, and return the clause that says where it is."""
        if not self.saving.output_dir:
            return ""
        file = Path(self.saving.output_dir, f"not_finite_{log.epoch}_{step}.json")
        try:
            if distributed.is_main():
                with atomic_write(file, "w") as f:
                    json.dump(
                        {
                            "epoch": log.epoch,
                            "step": step,
                            "lr": log.lrs[step],
                            "scaler": checkpoint.plain(self.state.scaler.state_dict()),
                            "message": message,
                            "processes": processes,
                        },
                        f,
                        indent=2,
                        default=np.ndarray.tolist,
                    )
        except OSError as error:
            return f"; its report could not be written ({error})"
        return f"; more in {file}"
