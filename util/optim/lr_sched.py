"""Learning-rate schedules.

Each schedule begins with a linear warm-up from 0 to `lr` over `warmup_epochs`. The first update of a run has
a learning rate of exactly 0, as in the official code. `epoch` is fractional: 3.5 is the middle of the fourth
epoch.
"""

import math
from typing import Any


def warmup_cosine(epoch: float, *, lr: float, min_lr: float, warmup_epochs: float, epochs: float) -> float:
    """Warm-up, then half a cosine from `lr` down to `min_lr` at `epochs`."""
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup_step(
    epoch: float, *, lr: float, min_lr: float, warmup_epochs: float, decay_epochs: float, decay_rate: float
) -> float:
    """Warm-up, then `lr` times `decay_rate` for every `decay_epochs` since the start; at least `min_lr`."""
    return warmup_reduced(
        epoch,
        lr=lr,
        min_lr=min_lr,
        warmup_epochs=warmup_epochs,
        reductions=int(epoch // decay_epochs),
        decay_rate=decay_rate,
    )


def warmup_reduced(
    epoch: float, *, lr: float, min_lr: float, warmup_epochs: float, reductions: int, decay_rate: float
) -> float:
    """Warm-up, then `lr` times `decay_rate` for each of the `reductions` so far; at least `min_lr`."""
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    return max(min_lr, lr * decay_rate**reductions)


def scaled_lr(blr: float, effective_batch: int) -> float:
    """Linear scaling rule: `blr` is the learning rate for 256 images per update (paper, appendix A.1)."""
    return blr * effective_batch / 256


class Plateau:
    """State of the schedule `plateau`: reduce if the score has not improved for more than `patience` epochs.

    The rule is that of PyTorch's ReduceLROnPlateau with a threshold of 0. Any larger score is better, and
    each reduction restarts the count. Epochs of the warm-up are ignored.
    """

    def __init__(self, patience: int, warmup_epochs: float = 0) -> None:
        if patience < 0:
            raise ValueError(f"--patience_epochs {patience}: expected 0 or more")
        self.patience, self.warmup_epochs = patience, warmup_epochs
        self.best: float | None = None
        self.since = 0  # epoch of the best score, or of the last reduction if that is later
        self.reductions = 0

    def observe(self, epoch: int, score: float) -> bool:
        """Record the score after `epoch`, the larger the better. Returns True if it reduces the rate."""
        if epoch < self.warmup_epochs:
            return False
        if self.best is None or score > self.best:
            self.best, self.since = score, epoch
        elif epoch - self.since > self.patience:
            self.since = epoch
            self.reductions += 1
            return True
        return False

    def state(self) -> dict[str, Any]:
        """Return plain values for `restore`."""
        return {"best": self.best, "since": self.since, "reductions": self.reductions}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from the values that `state` returned."""
        self.best, self.since, self.reductions = state["best"], state["since"], state["reductions"]
