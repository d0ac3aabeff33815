"""The learning rate as a function of time."""
import math


def warmup_cosine(epoch, *, lr, min_lr, warmup_epochs, epochs):
    """Linear from 0 to `lr` over `warmup_epochs`, then half a cosine down to `min_lr` at `epochs`.

    The first update of a run therefore has a learning rate of exactly 0, as in the official code.

    Args:
        epoch: fractional: 3.5 is the middle of the fourth epoch.
    """
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def scaled_lr(blr, effective_batch):
    """The linear rule: `blr` is for 256 images an update (paper, appendix A.1)."""
    return blr * effective_batch / 256
