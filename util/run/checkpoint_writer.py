"""Writing checkpoints of a run: when one is due, what is written with it, and writing in the background."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from util.run import checkpoints, confusion, run_folder
from util.run.run_state import RunState
from util.run.settings import Saving, Schedule
from util.system import distributed, signals


class CheckpointWriter:
    """Decides when to save, and writes checkpoints.

    Only the first process writes; if it fails, all processes raise.

    Args:
        state: what is saved.
        saving, schedule: settings.
        updates_per_epoch: for --save_steps, which counts the updates of the whole run.
        save_freq: epochs between numbered checkpoints if --save_every and --keep are not given.

    Attributes:
        scalars: VisualDL writer or None; flushed before each checkpoint, so that its points do not lag.
    """

    def __init__(
        self, state: RunState, saving: Saving, schedule: Schedule, *, updates_per_epoch: int, save_freq: int
    ) -> None:
        self.state, self.saving = state, saving
        every = saving.save_every
        self.policy = checkpoints.Policy(
            save_freq if every is None else every,
            saving.keep,
            schedule.epochs,
            milestone=every or checkpoints.MILESTONE,
        )
        self.updates_per_epoch = updates_per_epoch
        self.last_saved = time.monotonic()
        self.scalars: Any = None
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None

    def start(self) -> None:
        """Start the clock of --save_every_minutes."""
        self.last_saved = time.monotonic()

    def check_space(self, size: int, aside: list[Path] | None) -> tuple[int, int]:
        """Return the bytes that checkpoints of `size` bytes still need, and the free bytes.

        Args:
            size: bytes of a checkpoint.
            aside: as for `checkpoints.check_space`.

        Raises ValueError if they do not fit.
        """
        return checkpoints.check_space(
            self.saving.output_dir,
            size,
            self.policy,
            self.state.start_epoch,
            best=self.state.evaluates,
            aside=aside,
        )

    def requests(self) -> tuple[bool, bool]:
        """Return whether this process asks to stop and asks to save; all processes then act together."""
        minutes = self.saving.save_every_minutes
        late = minutes and distributed.is_main() and time.monotonic() - self.last_saved >= 60 * minutes
        return bool(signals.wished()), bool(late)

    def due(self, epoch: int, updates: int) -> bool:
        """Return whether --save_steps saves after `updates` updates of `epoch`."""
        every = self.saving.save_steps
        return bool(every) and (epoch * self.updates_per_epoch + updates) % every == 0

    def save(
        self,
        epoch: int,
        *,
        progress: Mapping[str, Any] | None = None,
        line: Mapping[str, Any] | None = None,
        best: bool = False,
    ) -> None:
        """Write a checkpoint, preceded by log and confusion matrix.

        In this order, because a run killed in between then repeats the epoch and replaces both.

        Args:
            epoch: last finished epoch.
            progress: position within the next epoch, or None at its beginning.
            line: new line of log.txt, if `epoch` has just ended.
            best: whether the epoch is the best so far.
        """
        self.together(partial(self._write, epoch, progress, line, best))
        self.last_saved = time.monotonic()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written in the background, and raise its error."""
        self.together(self._wait)

    def together(self, write: Callable[[], Any]) -> None:
        """Call `write` in the first process; if it fails, all processes raise."""
        run_folder.by_first_process(self.saving.output_dir, write)

    def _write(
        self, epoch: int, progress: Mapping[str, Any] | None, line: Mapping[str, Any] | None, best: bool
    ) -> None:
        self._wait()
        self.state.check_finite()
        folder = self.saving.output_dir
        if line is not None:
            self.state.lines = [*self.state.lines, dict(line)]
            run_folder.write_log(folder, self.state.lines)
        if best:
            confusion.write(folder, self.state.confusion, self.state.classes)
        contents = self.state.pack(epoch, progress=progress, best=best)
        if self.scalars:
            self.scalars.flush()
        number = epoch if line is not None and self.policy.numbers(epoch, epoch) else None
        write = partial(checkpoints.save, folder, contents, number=number, best=best, policy=self.policy)
        if self.saving.save_async:
            self._writing = self._thread.submit(write)
        else:
            write()

    def _wait(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()
