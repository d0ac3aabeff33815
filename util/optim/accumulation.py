"""Which micro-batches make one update."""
from collections import namedtuple

Window = namedtuple("Window", "first last size")


def window(step, steps, accum_iter):
    """The update that micro-batch `step` of an epoch of `steps` belongs to.

    Returns:
        first, last: whether `step` opens or closes it; size: how many micro-batches it has. The window at the end of
        an epoch may be shorter than `accum_iter`; it makes an update of its own, weighted by its own size. (The
        official code computes those gradients and throws them away.)
    """
    start = step - step % accum_iter
    end = min(start + accum_iter, steps)
    return Window(first=step == start, last=step + 1 == end, size=end - start)


def check(accum_iter, steps):
    """Raise ValueError if an epoch cannot fill one window: the batch asked for would never exist."""
    if accum_iter < 1:
        raise ValueError(f"--accum_iter must be at least 1, got {accum_iter}")
    if steps < accum_iter:
        raise ValueError(f"--accum_iter {accum_iter}: an epoch has only {steps} micro-batches, so no update would see "
                         f"{accum_iter}; lower --accum_iter or --batch_size, or add images")
