"""Resuming a run (--resume): which checkpoint, at which step, and which files of the folder stay."""
from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from util.run import checkpoints, run_folder
from util.run.settings import Saving, Schedule
from util.system import console, distributed
from util.weights import checkpoint


def brings_weights(resume: str, output_dir: str) -> bool:
    """Return whether --resume finds a checkpoint, so that the one of --finetune is not needed and may be gone."""
    return bool(resume) and (resume != "auto" or checkpoints.any_in(output_dir))


def read(path: str, saving: Saving) -> tuple[str, dict[str, Any] | None]:
    """Read the checkpoint of --resume.

    Args:
        path: a file, or "auto" for the newest undamaged checkpoint in the output folder.
        saving: settings.

    Returns the path and its contents, which are None if "auto" finds no checkpoint. Raises CheckpointError if the file
    cannot be read, and ValueError if processes see different checkpoints.
    """
    if path != "auto":
        return path, checkpoint.read_checkpoint(path, trusted=saving.trust_checkpoint, continues=True)
    folder = saving.output_dir
    if not folder:
        raise ValueError("--resume auto: looks for checkpoints in --output_dir, which is empty; name a folder, or "
                         "the checkpoint")
    found, contents, complaints = checkpoints.newest(folder, trusted=saving.trust_checkpoint)
    for complaint in complaints:
        console.say(f"--resume auto passes over a checkpoint that it cannot use: {complaint}")
    place = json.dumps([found and found.name, contents and checkpoints.position(contents)])
    seen = [part.decode() for part in distributed.all_bytes(place.encode())]
    if len(set(seen)) > 1:
        raise ValueError(f"--resume auto: the processes see different checkpoints in {folder}: "
                         f"{', '.join(seen)}; it must be a folder that all of them share")
    return str(found), contents


def same_step(path: str, progress: Mapping[str, Any], *, steps: int, images_a_step: int, accum_iter: int) -> int:
    """Return the step of this run that follows as many images as `progress` has seen.

    Args:
        path: checkpoint, for the error.
        progress: position in its epoch, with `steps` and `images_a_step` of its run.
        steps, images_a_step: of this run, over all processes.
        accum_iter: micro-batches per update.

    Raises ValueError if no update begins there.
    """
    if progress["step"] == progress["steps"]:
        return steps
    step, rest = divmod(progress["step"] * progress["images_a_step"], images_a_step)
    if rest or step % accum_iter:
        raise ValueError(f"--resume {path}: it was written within an epoch, where an update must have as many "
                         "images as before; resume a checkpoint from the end of an epoch, checkpoint-EPOCH.pd")
    return min(step, steps)


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
            if self.aside:  # otherwise there is at most one drawing to replace, which this run will draw again
                self.aside += run_folder.drawn_from(folder, start_epoch)
            ended = "progress" not in contents and policy.numbers(contents["epoch"], contents["epoch"])
            self.complete = partial(checkpoints.complete, folder, path, number=contents["epoch"] if ended else None,
                                    best=contents.get("best", False))
        self.lines = contents["log"] if "log" in contents else run_folder.read_log(Path(path).parent, start_epoch)
