"""Updates of a dry run: a few are really made, and a few batches evaluated, to measure time and memory."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import paddle

from util.data.loaders import Loader
from util.optim.update_rule import UpdateRule
from util.run.checkpoints import in_words
from util.run.dry_run.memory import Memory, capped, local_processes, private_bytes
from util.run.dry_run.verdict import Verdict
from util.run.epoch_log import EpochLog
from util.run.training_run import TrainingRun
from util.system import distributed

MICRO_BATCHES = 4  # of an update, at most: more would need no more memory and say no more about time
QUICK, UPDATES = 0.3, 10  # updates of less than QUICK seconds are measured by UPDATES of them
EVAL_BATCHES = 3


class FirstBatches:
    """First batches of a loader, timed. Its length is that of the whole loader, because engines rely on it.

    Args:
        loader: batches.
        batches: how many to load.

    Attributes:
        waits: seconds of waiting for each batch.
        seconds: seconds of work on each batch, including the GPU's.
        workers: bytes of memory of the loader's workers when the last batch arrived.
    """

    def __init__(self, loader: Loader, batches: int) -> None:
        self.loader, self.count = loader, batches
        self.bad_images, self.num_workers = loader.bad_images, loader.num_workers
        self.waits: list[float] = []
        self.seconds: list[float] = []
        self.workers = 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        batches: Any = iter(self.loader)
        for number in range(self.count):
            asked = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            given = time.perf_counter()
            if number + 1 == self.count:
                self.workers = sum(
                    private_bytes(worker.pid)
                    for worker in multiprocessing.active_children()
                    if worker.pid is not None
                )
            yield batch
            if paddle.get_device() != "cpu":
                paddle.device.cuda.synchronize()
            self.waits.append(given - asked)
            self.seconds.append(time.perf_counter() - given)
        batches.close()


@dataclass(frozen=True)
class Measured:
    """Mean seconds of work on a batch and of waiting for it, and bytes of the workers."""

    seconds: float
    wait: float
    workers: int

    @classmethod
    def of(cls, batches: FirstBatches, warmup: int) -> Measured:
        """Average over `batches` without the first `warmup` of them."""
        return cls(
            statistics.fmean(batches.seconds[warmup:] or batches.seconds),
            statistics.fmean(batches.waits[warmup:] or batches.waits),
            batches.workers,
        )


class _QuietLog(EpochLog):
    """Log that reads every loss and prints nothing."""

    def batches(self, loader: Any) -> Iterator[tuple[int, Any]]:
        self.sync.bad_images = loader.bad_images
        yield from enumerate(loader)

    def means(self) -> dict[str, float]:
        return {}


def measure(
    verdict: Verdict,
    run: TrainingRun,
    train: Callable[..., Any],
    rule: UpdateRule,
    evaluate: Callable[..., Any] | None,
    memory: Memory,
) -> tuple[Measured | None, Measured | None]:
    """Make a few updates, and evaluate a few batches.

    Args:
        verdict: receives lines and reasons.
        run: its model and optimizer are changed.
        train: the engine's function (model, loader, *, log, rule).
        rule: update rule of the run.
        evaluate: the engine's function (model, loader), or None.
        memory: of the machine.

    Returns the measurements of training and of evaluation; None for either that was not reached.
    """
    trained = tested = None
    parallel = distributed.data_parallel(run.state.model)
    accum_iter = min(rule.accum_iter, MICRO_BATCHES)
    run.loader.sampler.set_epoch(run.state.start_epoch)
    losses: list[float] = []

    def make(updates: int) -> Measured:
        batches = FirstBatches(run.loader, updates * accum_iter)
        log = _QuietLog(run.state.start_epoch, len(run.loader), print_freq=1)
        train(parallel, batches, log=log, rule=replace(rule, accum_iter=accum_iter))
        losses.extend(log.losses)
        return Measured.of(batches, accum_iter)

    with out_of_memory(verdict, "training", memory):
        trained = make(2)
        # All processes must decide alike.
        seconds = distributed.all_sum([trained.seconds])[0] / distributed.world_size()
        if len(run.loader) <= accum_iter or accum_iter * seconds < QUICK:
            trained = make(UPDATES)
        asked = rule.accum_iter
        cut = "" if accum_iter == asked else f" (of {accum_iter} micro-batches, not {asked})"
        verdict.line(
            "updates",
            f"{len(losses) // accum_iter} made{cut}, loss {losses[0]:.4f} to "
            f"{losses[-1]:.4f}; "
            f"{trained.seconds:.3g} s for {run.images_a_step:,} pictures, "
            f"{run.images_a_step / trained.seconds:.3g} pictures/s",
        )
        if not all(map(math.isfinite, losses)):
            verdict.against(f"the loss of the first updates is not finite: {losses}")
        if evaluate is not None and run.val_loader is not None:
            batches = FirstBatches(run.val_loader, EVAL_BATCHES)
            evaluate(run.state.model, batches)
            if batches.seconds:  # in a shared evaluation a process may have none
                tested = Measured.of(batches, 1)
                verdict.line("evaluation", f"{tested.seconds:.3g} s a batch")
    return trained, tested


@contextlib.contextmanager
def out_of_memory(verdict: Verdict, where: str, memory: Memory) -> Iterator[None]:
    """Turn running out of memory, or a NaN loss, in the body into a reason against the run.

    Raises ValueError if a process of several runs out of memory, because the others wait for it.
    """
    try:
        with capped(memory.left / local_processes()):
            yield
        return
    except FloatingPointError as error:  # raised by all processes in the same step
        verdict.against(str(error))
        verdict.line("updates", "stopped by a loss that is not finite")
        return
    except (MemoryError, RuntimeError, SystemError) as error:
        if not isinstance(error, MemoryError) and "ResourceExhausted" not in str(error):
            raise
        reason = (
            f"{where} needs more memory than there is: {in_words(memory.left)} were left of {memory}, "
            f"for {local_processes()} process(es). Lower --batch_size and raise --accum_iter, or pass "
            "--recompute"
        )
        if paddle.get_device() != "cpu":
            reason = (
                f"{where} needs more memory than the GPU has. Lower --batch_size and raise "
                "--accum_iter, or pass --recompute"
            )
    if distributed.world_size() > 1:
        raise ValueError(reason)
    verdict.line("updates", "stopped for want of memory")
    verdict.against(reason)
