"""Gradient accumulation: the micro-batches of one update."""

from typing import NamedTuple


class Window(NamedTuple):
    """Place of a micro-batch in its update: first or last, and the number of micro-batches."""

    first: bool
    last: bool
    size: int


def window(step: int, steps: int, accum_iter: int) -> Window:
    """Find the update that micro-batch `step` of an epoch of `steps` belongs to.

    The last window of an epoch may be shorter than `accum_iter`. It makes an update weighted by its own size.
    (The official code computes those gradients and discards them.)
    """
    start = step - step % accum_iter
    end = min(start + accum_iter, steps)
    return Window(first=step == start, last=step + 1 == end, size=end - start)


def check_accum_iter(accum_iter: int, steps: int) -> None:
    """Raise ValueError if an epoch of `steps` micro-batches cannot fill one window."""
    if accum_iter < 1:
        raise ValueError(f"--accum_iter {accum_iter}: expected at least 1")
    if steps < accum_iter:
        raise ValueError(
            f"--accum_iter {accum_iter}: an epoch has only {steps} micro-batches; lower "
            "--accum_iter or --batch_size, or add images"
        )
