"""Time of an epoch: of each step, and the part of it that was spent waiting for data."""

from __future__ import annotations

import datetime
import statistics
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from util.system import distributed

KEPT = ("images", "seconds", "waited", "waited_first")  # in a checkpoint within an epoch
RECENT = 20  # steps that a line of the log averages over


class EpochTimer:
    """Measures steps and the waiting for their batches.

    Waiting lasts until the loader returns a batch, and includes the start of the workers before the first
    one. On a GPU it is an upper bound, because earlier steps may still be running.

    Attributes:
        images: images so far, over all processes.
        waited, waited_first: seconds of waiting for all batches, and for the first one.
        seconds: duration of the epoch so far; updated by `stop`.
    """

    def __init__(self) -> None:
        self.step_time: deque[float] = deque(maxlen=RECENT)
        self.data_time: deque[float] = deque(maxlen=RECENT)
        self.waited = self.waited_first = 0.0
        self.seconds, self.images = 0.0, 0
        self._began = self._last = 0.0
        self._running = False

    def start(self) -> None:
        """Start the clock, after the `seconds` of an earlier part of the epoch."""
        self._last = time.perf_counter()
        self._began, self._running = self._last - self.seconds, True

    def loaded(self, images: int, *, first: bool) -> None:
        """Add a batch of this process that has arrived; `first` marks the first one after `start`."""
        waited = time.perf_counter() - self._last
        self.data_time.append(waited)
        self.waited += waited
        if first:
            self.waited_first += waited
        self.images += images * distributed.world_size()

    def done(self) -> None:
        """Note that the step with this batch is over."""
        now = time.perf_counter()
        self.step_time.append(now - self._last)
        self._last = now

    def stop(self) -> None:
        """Stop the clock."""
        self.seconds, self._running = self.elapsed(), False

    def elapsed(self) -> float:
        """Return the seconds that the epoch has taken so far."""
        return time.perf_counter() - self._began if self._running else self.seconds

    def images_per_s(self) -> float:
        """Return the images per second so far, over all processes."""
        return self.images / self.elapsed()

    def remaining(self, step: int, steps: int) -> datetime.timedelta:
        """Return the estimated time for what follows `step` in an epoch of `steps` steps."""
        return datetime.timedelta(seconds=int(self.elapsed() / (step + 1) * (steps - step - 1)))

    def recent(self) -> tuple[float, float]:
        """Return the mean seconds of recent steps, and of the waiting for their data."""
        return statistics.fmean(self.step_time), statistics.fmean(self.data_time)

    def shares_waited(self) -> tuple[float, float]:
        """Return the fraction of the epoch spent waiting for data, and the same without the first batch.

        Both are those of the process that waited most, because the others wait for it. Blocks until every
        process has called it.
        """
        later = self.seconds - self.waited_first
        mine = [self.waited / self.seconds, (self.waited - self.waited_first) / later if later > 0 else 0.0]
        rank, size = distributed.rank(), distributed.world_size()
        every = distributed.all_sum(
            [share if process == rank else 0.0 for share in mine for process in range(size)]
        )
        return max(every[:size]), max(every[size:])

    def progress(self) -> dict[str, float]:
        """Return what `restore` needs."""
        return {**{name: getattr(self, name) for name in KEPT}, "seconds": self.elapsed()}

    def restore(self, progress: Mapping[str, Any]) -> None:
        """Continue from the result of `progress`."""
        for name in KEPT:
            setattr(self, name, progress[name])


def advice(share: float, share_later: float, num_workers: int | None) -> str:
    """Return a hint if more than a tenth of the time was spent waiting for data, else "".

    Args:
        share: fraction of the epoch spent waiting for data.
        share_later: the same without the first batch.
        num_workers: number of workers of the loader; None if unknown.
    """
    if share <= 0.1:
        return ""
    if share_later <= 0.1:
        return (
            f"waited for data {100 * share:.0f} % of the time, mostly for the first batch, when the "
            "workers start (longer epochs wait less)"
        )
    now = "" if num_workers is None else f" (now {num_workers})"
    return (
        f"waited for data {100 * share:.0f} % of the time: raise --num_workers{now}, pack the images "
        "with tools/pack_dataset.py, or use --image_backend fast"
    )
