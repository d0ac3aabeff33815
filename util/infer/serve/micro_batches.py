"""Micro-batches: items of concurrent requests are computed together in one thread.

A MicroBatches object belongs to an event loop and never blocks it: only `compute` runs in the other thread.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Sequence
from typing import Any


class MicroBatches:
    """Async callable that maps items to results.

    A batch starts when the thread is free and either `batch_size` items wait or the oldest has waited `wait`
    seconds. Items are computed in the order of their arrival. The caller limits the number of waiting items.

    Args:
        compute: called in the thread with 1 to `batch_size` items; returns a result for each, in their order.
        observe: called with the size of each batch.
    """

    def __init__(
        self,
        compute: Callable[[list[Any]], Sequence[Any]],
        *,
        batch_size: int,
        wait: float,
        observe: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.compute, self.batch_size, self.wait, self.observe = compute, batch_size, wait, observe
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._waiting: collections.deque[_Job] = collections.deque()
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return the number of waiting items, without those being computed."""
        return len(self._waiting)

    async def __call__(self, items: Iterable[Any]) -> list[Any]:
        """Return the results of `items`, in their order. Cancelling removes items that have not started."""
        return await self._results([_Job(item) for item in items])

    async def alone(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function in the compute thread when its turn comes, and return its result."""
        return (await self._results([_Job(lambda: function(*arguments), alone=True)]))[0]

    def close(self) -> None:
        """Release the thread. Nothing may be called afterwards."""
        self._thread.shutdown(wait=False)

    async def _results(self, jobs):
        self._waiting.extend(jobs)
        self._consider()
        try:
            return await asyncio.gather(*(job.result for job in jobs))
        finally:  # cancelled, or one of the jobs failed
            for job in jobs:
                if not job.result.done() or job.result.cancelled():
                    self._drop(job)

    def _drop(self, job):
        job.result.cancel()
        if job in self._waiting:
            self._waiting.remove(job)

    def _consider(self):
        """Start a batch if one is due, else set a timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._busy or not self._waiting:
            return
        loop = asyncio.get_running_loop()
        due = self._waiting[0].since + self.wait
        if len(self._waiting) >= self.batch_size or self._waiting[0].alone or loop.time() >= due:
            self._start(loop)
        else:
            self._timer = loop.call_at(due, self._consider)

    def _start(self, loop):
        batch = [self._waiting.popleft()]
        while (
            not batch[0].alone
            and len(batch) < self.batch_size
            and self._waiting
            and not self._waiting[0].alone
        ):
            batch.append(self._waiting.popleft())
        self._busy = True
        if batch[0].alone:
            computed = loop.run_in_executor(self._thread, lambda: [batch[0].item()])
        else:
            self.observe(len(batch))
            computed = loop.run_in_executor(self._thread, self.compute, [job.item for job in batch])
        computed.add_done_callback(lambda computed: self._finish(batch, computed))

    def _finish(self, batch, computed):
        self._busy = False
        error = computed.exception()
        for number, job in enumerate(batch):
            if job.result.done():  # cancelled
                continue
            if error is not None:
                job.result.set_exception(error)
            else:
                job.result.set_result(computed.result()[number])
        self._consider()


class _Job:
    def __init__(self, item: Any, *, alone: bool = False) -> None:
        loop = asyncio.get_running_loop()
        self.item, self.alone, self.since = item, alone, loop.time()
        self.result: asyncio.Future[Any] = loop.create_future()
