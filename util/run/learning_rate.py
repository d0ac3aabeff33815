"""Learning rate of a run: warm-up, then the schedule of --sched."""

from __future__ import annotations

from typing import TYPE_CHECKING

from util.optim import lr_sched
from util.run.settings import Schedule
from util.system import distributed

if TYPE_CHECKING:
    from util.optim.lr_sched import Plateau


class LearningRate:
    """Learning rate as a function of the fractional epoch.

    Args:
        schedule: settings.
        plateau: counts the reductions of --sched plateau; None for other schedules.

    Attributes:
        peak: --lr, or --blr scaled to the images of an update (linear rule).
        batch: images of an update, over all processes.

    Raises ValueError if there is less than one epoch.
    """

    def __init__(self, schedule: Schedule, plateau: Plateau | None = None) -> None:
        if schedule.epochs < 1:
            raise ValueError(f"--epochs {schedule.epochs}: expected at least 1")
        self.schedule, self.plateau = schedule, plateau
        self.batch = schedule.batch_size * schedule.accum_iter * distributed.world_size()
        self.peak = lr_sched.scaled_lr(schedule.blr, self.batch) if schedule.lr is None else schedule.lr

    def __call__(self, epoch: float) -> float:
        """Return the learning rate at a fractional epoch: 3.5 is the middle of the fourth."""
        schedule, lr = self.schedule, self.peak
        min_lr, warmup = schedule.min_lr, schedule.warmup_epochs
        if schedule.sched == "cosine":
            return lr_sched.warmup_cosine(
                epoch, lr=lr, min_lr=min_lr, warmup_epochs=warmup, epochs=schedule.epochs
            )
        assert schedule.decay_rate is not None
        if schedule.sched == "step":
            assert schedule.decay_epochs is not None
            return lr_sched.warmup_step(
                epoch,
                lr=lr,
                min_lr=min_lr,
                warmup_epochs=warmup,
                decay_epochs=schedule.decay_epochs,
                decay_rate=schedule.decay_rate,
            )
        return lr_sched.warmup_reduced(
            epoch,
            lr=lr,
            min_lr=min_lr,
            warmup_epochs=warmup,
            reductions=self.plateau.reductions if self.plateau else 0,
            decay_rate=schedule.decay_rate,
        )

    def __str__(self) -> str:
        schedule = self.schedule
        line = (
            f"batch {schedule.batch_size} x accum {schedule.accum_iter} x {distributed.world_size()} "
            f"processes = {self.batch}, lr {self.peak:.1e}"
        )
        if schedule.warmup_epochs >= schedule.epochs:
            line += (
                f", never reached: --warmup_epochs {schedule.warmup_epochs} is not less than --epochs "
                f"{schedule.epochs}"
            )
        return line
