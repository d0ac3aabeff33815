"""The learning rate as a function of time.

Each schedule begins with a warm-up, linear from 0 to `lr` over `warmup_epochs`: the first update of a run has a learning
rate of exactly 0, as in the official code. `epoch` is fractional: 3.5 is the middle of the fourth epoch.
"""
import math


def warmup_cosine(epoch, *, lr, min_lr, warmup_epochs, epochs):
    """After the warm-up half a cosine down to `min_lr` at `epochs`."""
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


def warmup_step(epoch, *, lr, min_lr, warmup_epochs, decay_epochs, decay_rate):
    """After the warm-up `lr`, times `decay_rate` once for every `decay_epochs` since the start; at least `min_lr`."""
    return warmup_reduced(epoch, lr=lr, min_lr=min_lr, warmup_epochs=warmup_epochs,
                          reductions=int(epoch // decay_epochs), decay_rate=decay_rate)


def warmup_reduced(epoch, *, lr, min_lr, warmup_epochs, reductions, decay_rate):
    """After the warm-up `lr`, times `decay_rate` for each of the `reductions` so far; at least `min_lr`."""
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    return max(min_lr, lr * decay_rate ** reductions)


def scaled_lr(blr, effective_batch):
    """The linear rule: `blr` is for 256 images an update (paper, appendix A.1)."""
    return blr * effective_batch / 256
