"""Past of a run when it starts or resumes: its log, and which files of the output folder belong to it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from util.run import checkpoints, run_folder
from util.run.settings import Saving, Schedule


class Past:
    """Past of a run: its lines of log.txt, and its files among those in the output folder.

    Attributes:
        aside: files that are not part of this run's past and are moved away; None: all files of a run.
        complete: gives a resumed checkpoint the names that it may lack, or None.
        lines: lines of log.txt, one dict per epoch.
    """

    def __init__(self, saving: Saving, schedule: Schedule) -> None:
        self.saving = saving
        self.aside: list[Path] | None = None if schedule.start_epoch == 0 else []
        self.complete: partial[None] | None = None
        self.lines = run_folder.read_log(saving.output_dir, schedule.start_epoch)

    def continue_from(self, path: str, contents: Mapping[str, Any], policy: checkpoints.Policy) -> None:
        """Keep the past of the checkpoint at `path`, in this folder or in another one.

        Args:
            path: checkpoint that is resumed.
            contents: its entries.
            policy: which epochs have numbered checkpoints.
        """
        folder, start_epoch = self.saving.output_dir, contents["epoch"] + 1
        self.aside = None
        if folder and Path(path).resolve().parent == Path(folder).resolve():
            self.aside = checkpoints.beyond(folder, path, contents, trusted=self.saving.trust_checkpoint)
            if self.aside:  # otherwise there is at most one drawing, which this run will draw again
                self.aside += run_folder.drawn_from(folder, start_epoch)
            ended = "progress" not in contents and policy.numbers(contents["epoch"], contents["epoch"])
            number = contents["epoch"] if ended else None
            self.complete = partial(
                checkpoints.complete, folder, path, number=number, best=contents.get("best", False)
            )
        if "log" in contents:
            self.lines = contents["log"]
        else:
            self.lines = run_folder.read_log(Path(path).parent, start_epoch)
