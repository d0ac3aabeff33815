"""Micro-batches: which items are computed together, and when."""

import asyncio
import threading

import pytest

from util.infer.serve.micro_batches import MicroBatches


class Gate:
    """Function `compute` that records its batches and blocks until the gate is opened."""

    def __init__(self):
        self.batches, self.opened, self.entered = [], threading.Event(), threading.Event()

    def __call__(self, items):
        self.batches.append(list(items))
        self.entered.set()
        assert self.opened.wait(5)
        return [10 * item for item in items]

    async def is_busy(self):
        await asyncio.to_thread(self.entered.wait, 5)


def run(test, **options):
    """Run the coroutine function `test` with MicroBatches and its Gate."""

    async def whole():
        gate = Gate()
        batches = MicroBatches(gate, **{"batch_size": 4, "wait": 0.0, **options})
        try:
            await asyncio.wait_for(test(batches, gate), 10)
        finally:
            gate.opened.set()
            batches.close()

    asyncio.run(whole())


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_waiting_items_are_computed_together_in_order():
    sizes = []

    async def test(batches, gate):
        first = asyncio.create_task(batches([1]))
        await gate.is_busy()
        others = [asyncio.create_task(batches(items)) for items in ([2, 3], [4], [5, 6, 7])]
        await settle()
        assert len(batches) == 6
        gate.opened.set()
        assert await asyncio.gather(first, *others) == [[10], [20, 30], [40], [50, 60, 70]]
        assert gate.batches == [[1], [2, 3, 4, 5], [6, 7]] and sizes == [1, 4, 2]

    run(test, observe=sizes.append)


def test_an_item_waits_until_the_batch_is_full_or_the_time_is_over():
    async def full(batches, gate):
        gate.opened.set()
        await asyncio.gather(batches([1, 2]), batches([3]), batches([4]))
        assert gate.batches == [[1, 2, 3, 4]]

    run(full, wait=60.0)

    async def over(batches, gate):
        gate.opened.set()
        loop = asyncio.get_running_loop()
        started = loop.time()
        assert await batches([1]) == [10]
        assert 0.15 <= loop.time() - started < 2

    run(over, wait=0.15)


def test_waiting_starts_at_the_arrival_of_an_item():
    async def test(batches, gate):
        first = asyncio.create_task(batches([1, 2, 3, 4]))
        await gate.is_busy()
        second = asyncio.create_task(batches([5]))
        await asyncio.sleep(0.35)
        gate.opened.set()
        await first
        started = asyncio.get_running_loop().time()
        await second
        assert asyncio.get_running_loop().time() - started < 0.2

    run(test, wait=0.3)


def test_cancelling_removes_waiting_items():
    async def test(batches, gate):
        first = asyncio.create_task(batches([1]))
        await gate.is_busy()
        gone, staying = asyncio.create_task(batches([2, 3])), asyncio.create_task(batches([4]))
        await settle()
        gone.cancel()
        await settle()
        assert len(batches) == 1
        first.cancel()  # is being computed: nobody waits for the result any more, and nothing else suffers
        gate.opened.set()
        assert await staying == [40] and gate.batches == [[1], [4]]

    run(test)


def test_an_error_fails_its_batch_and_not_the_next_one():
    async def test(batches, gate):
        gate.opened.set()
        batches.compute = lambda items: [1 // item for item in items]
        found = await asyncio.gather(batches([1, 0]), batches([1]), return_exceptions=True)
        assert [type(error) for error in found] == [ZeroDivisionError] * 2
        assert await batches([1]) == [1]

    run(test, wait=0.05)


def test_other_work_runs_in_turn_in_the_same_thread():
    async def test(batches, gate):
        first = asyncio.create_task(batches([1]))
        await gate.is_busy()
        names, order = [], []

        def work(number):
            names.append(threading.current_thread().name)
            order.append(len(gate.batches))
            return -number

        others = [
            asyncio.create_task(asked) for asked in (batches([2]), batches.alone(work, 7), batches([3]))
        ]
        await settle()
        gate.opened.set()
        assert await asyncio.gather(*others) == [[20], -7, [30]] and await first == [10]
        assert gate.batches == [[1], [2], [3]] and order == [2]
        assert names[0].startswith("compute") and names[0] != threading.current_thread().name

    run(test)


def test_an_error_of_other_work():
    async def test(batches, gate):
        def fail():
            raise LookupError("no such thing")

        with pytest.raises(LookupError, match="no such thing"):
            await batches.alone(fail)

    run(test)
