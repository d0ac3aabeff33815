"""Gathers what several requests ask for at the same time into batches for one thread that computes.

It lives on an event loop, which it never blocks: everything here but the computing happens in the loop's own thread.
"""
import asyncio
import collections
import concurrent.futures


class MicroBatches:
    """Awaited with items, it gives their results, computed together with other people's items that wait.

    A batch starts once the thread is free, and `batch_size` items wait or the oldest of them has waited `wait` seconds.
    Items are computed in the order in which they came. How many may wait is up to the caller.

    Args:
        compute: called in the thread with a list of 1 to `batch_size` items; returns a result for each, in their order.
        observe: called with the size of each batch.
    """

    def __init__(self, compute, *, batch_size, wait, observe=lambda size: None):
        self.compute, self.batch_size, self.wait, self.observe = compute, batch_size, wait, observe
        self._thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="compute")
        self._waiting = collections.deque()
        self._busy, self._timer = False, None

    def __len__(self):
        """How many wait; what is being computed does not."""
        return len(self._waiting)

    async def __call__(self, items):
        """The results of `items`, in their order. Whoever is cancelled takes along those of them that still wait."""
        return await self._results([_Job(item) for item in items])

    async def alone(self, function, *arguments):
        """What the function returns, called in the same thread when it is its turn."""
        return (await self._results([_Job(lambda: function(*arguments), alone=True)]))[0]

    def close(self):
        """Let go of the thread; nothing may be asked for any more."""
        self._thread.shutdown(wait=False)

    async def _results(self, jobs):
        self._waiting.extend(jobs)
        self._consider()
        try:
            return await asyncio.gather(*(job.result for job in jobs))
        finally:  # of one who is cancelled, or the rest of those of which one has failed
            for job in jobs:
                if not job.result.done() or job.result.cancelled():
                    self._drop(job)

    def _drop(self, job):
        job.result.cancel()
        if job in self._waiting:
            self._waiting.remove(job)

    def _consider(self):
        """Start a batch, or see to it that this is asked again when it is time for one."""
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
        while not batch[0].alone and len(batch) < self.batch_size and self._waiting and not self._waiting[0].alone:
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
            if job.result.done():  # whoever asked has gone
                continue
            if error is not None:
                job.result.set_exception(error)
            else:
                job.result.set_result(computed.result()[number])
        self._consider()


class _Job:
    def __init__(self, item, *, alone=False):
        loop = asyncio.get_running_loop()
        self.item, self.alone, self.since, self.result = item, alone, loop.time(), loop.create_future()
