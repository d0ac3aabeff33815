"""Agreement between processes after each step, by a single all-reduce."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import paddle

from util.system import distributed

if TYPE_CHECKING:
    from util.data.bad_images import BadImages

MOST_UNREAD = 20  # losses; other processes see a stop request only when losses are read

Requests = Callable[[], tuple[float, float]]


class StepSync:
    """Averages losses over the processes, and shares stop requests and unreadable images along with them.

    A loss stays on the device until several are read together, because reading waits for the device. On a CPU
    there is nothing to wait for, so each loss is read at once. All processes get the same averages, and so
    see a NaN together.

    Args:
        print_freq: steps between lines of the log, at which losses are read on a GPU.
        read_every: steps between readings; None: 1 on a CPU, else `print_freq`, at most MOST_UNREAD.
        requests: returns (stop, save) of this process, as numbers; None: it requests nothing.

    Attributes:
        requested: (stop, save), summed over the processes; with one process after each step, otherwise
            after each reading.
        own_losses: losses of this process in the last reading.
        bad_images: unreadable images that the processes share, or None.
    """

    def __init__(
        self, *, print_freq: int = 20, read_every: int | None = None, requests: Requests | None = None
    ) -> None:
        self.read_every = read_every or (min(print_freq, MOST_UNREAD) if paddle.get_device() != "cpu" else 1)
        self.requests: Requests = requests or (lambda: (0, 0))
        self.requested: tuple[float, float] = (0, 0)
        self.pending: list[paddle.Tensor] = []
        self.own_losses: list[float] = []
        self.bad_images: BadImages | None = None

    def add(self, loss: paddle.Tensor, *, step: int, last: bool) -> bool:
        """Add the loss of a step, a 0-D tensor.

        Returns whether it is time to `read`; the last step always is.
        """
        self.pending.append(loss)
        if step % self.read_every == 0 or last:
            return True
        if distributed.world_size() == 1:  # nobody else has to agree, and no device has to be waited for
            self.requested = self.requests()
        return False

    def read(self) -> list[float]:
        """Return the losses added since the last reading, averaged over the processes.

        Blocks until every process has called it. Raises ValueError if there are too many unreadable images.
        """
        self.own_losses = [loss.item() for loss in self.pending]  # type: ignore[misc]  # real
        *sums, stop, save, unreadable = distributed.all_sum(
            [*self.own_losses, *self.requests(), 0 if self.bad_images is None else len(self.bad_images.new)]
        )
        self.requested = stop, save
        self.pending = []
        if unreadable and self.bad_images is not None:
            self.bad_images.share()
        return [value / distributed.world_size() for value in sums]
