"""Checkpoints in the folder of a run: safe writing, finding the newest one, and disk space.

    checkpoint-latest.pd     newest state, from the end of an epoch or from within one
    checkpoint-previous.pd   state before it, in case the newest file is damaged
    checkpoint-EPOCH.pd      from the end of that epoch
    checkpoint-best.pd       from the end of the epoch with the best accuracy (or least val loss)

Names of the same state are hard links if the file system supports them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from util.system.atomic_file import alias, atomic_write, sync_folder
from util.weights import checkpoint, sealed_pickle

LATEST, PREVIOUS, BEST = (f"checkpoint-{name}.pd" for name in ("latest", "previous", "best"))
# The newest state while it gets its other names; if its writer is killed, the next run removes it.
NEW = ".checkpoint-new.part"
MILESTONE = 20  # epochs; --keep never removes the checkpoint of every MILESTONE-th epoch


@dataclass(frozen=True)
class Policy:
    """Rule for numbered checkpoints.

    Attributes:
        every: epochs between numbered checkpoints, without `keep`; the last epoch always has one. (The
            official code has 20 in pretraining, and 1 elsewhere.)
        keep: number of newest checkpoints kept, besides milestones and the last epoch; None: `every`
            decides instead.
        epochs: number of epochs of the run.
        milestone: the checkpoints of epochs divisible by it are never removed.

    Raises ValueError for numbers out of range.
    """

    every: int
    keep: int | None
    epochs: int
    milestone: int = MILESTONE

    def __post_init__(self) -> None:
        if self.keep is not None and self.keep < 0:
            raise ValueError(f"--keep {self.keep}: expected 0 or more checkpoints")
        if self.every < 1:
            raise ValueError(f"--save_every {self.every}: expected a number of epochs, at least 1")

    def numbers(self, epoch: int, newest: int) -> bool:
        """Return whether checkpoint-EPOCH.pd exists after epoch `newest`."""
        if epoch % self.milestone == 0 or epoch + 1 == self.epochs:
            return True
        return epoch % self.every == 0 if self.keep is None else epoch > newest - self.keep

    def most(self, start_epoch: int, *, best: bool) -> int:
        """Return the largest number of different checkpoint files at any time from `start_epoch` on.

        Args:
            start_epoch: first epoch.
            best: whether the run has a checkpoint-best.pd.
        """
        last = self.epochs - 1
        numbered_epochs = sum(self.numbers(epoch, last) for epoch in range(start_epoch, self.epochs))
        return numbered_epochs + best + 3  # latest, previous, and the one that is being written


def save(
    folder: Path | str,
    state: Mapping[str, Any],
    *,
    number: int | None = None,
    best: bool = False,
    policy: Policy | None = None,
) -> None:
    """Write `state` as the latest checkpoint, and under its other names.

    It becomes the latest at the very end. A run that is killed earlier resumes from the one before. It then
    writes the other names once more, with the same contents.

    Args:
        folder: of the run.
        state: result of `checkpoint.pack`.
        number: epoch for an additional numbered name, or None.
        best: whether it also becomes the best.
        policy: which numbered checkpoints are removed afterwards.
    """
    folder = Path(folder)
    new, latest = folder / NEW, folder / LATEST
    try:
        with atomic_write(new) as f:
            sealed_pickle.dump(state, f)
        if number is not None:
            alias(new, numbered(number))
        if best:
            alias(new, BEST)
        if latest.exists():
            alias(latest, PREVIOUS)
        os.replace(new, latest)
        sync_folder(folder)
    finally:
        new.unlink(missing_ok=True)
    if number is not None and policy is not None and policy.keep is not None:
        for epoch, path in numbered_files(folder).items():
            if epoch < number and not policy.numbers(epoch, number):
                path.unlink()


def complete(folder: Path | str, path: Path | str, *, number: int | None = None, best: bool = False) -> None:
    """Give the checkpoint at `path` all its names; used when a run resumes from it.

    Its writer may have been killed between creating the file and its hard links. Arguments are those of
    `save`.
    """
    for name in [numbered(number)] * (number is not None) + [BEST] * best + [LATEST]:
        if Path(path).name != name:
            alias(Path(folder) / Path(path).name, name)


def numbered(epoch: int | None) -> str:
    """Return the file name of the checkpoint from the end of `epoch`."""
    return f"checkpoint-{epoch}.pd"


def numbered_files(folder: Path | str) -> dict[int, Path]:
    """Return {epoch: path} of the numbered checkpoints."""
    found = {
        path: re.fullmatch(r"checkpoint-(\d+)\.pd", path.name)
        for path in Path(folder).glob("checkpoint-*.pd")
    }
    return {int(match[1]): path for path, match in found.items() if match}


def newest(
    folder: Path | str, *, trusted: bool = False
) -> tuple[Path | None, dict[str, Any] | None, list[str]]:
    """Find the newest undamaged checkpoint in `folder`.

    Args:
        folder: of the run.
        trusted: as for `checkpoint.read_checkpoint`.

    Returns path and contents, both None if there is no checkpoint, and messages about newer but damaged
    files. Raises CheckpointError if all checkpoints are damaged.
    """
    folder = Path(folder)
    complaints: list[str] = []

    def read(path: Path) -> dict[str, Any] | None:
        try:
            return checkpoint.read_checkpoint(path, trusted=trusted, continues=True)
        except checkpoint.CheckpointError as error:
            complaints.append(str(error))
            return None

    named = [path for path in (folder / LATEST, folder / PREVIOUS, folder / BEST) if path.exists()]
    if named[:1] == [folder / LATEST] and (state := read(folder / LATEST)) is not None:
        return folder / LATEST, state, complaints  # nothing is newer, by the order in which `save` writes
    # The positions of numbered checkpoints are known without reading them.
    ranked = [((epoch + 1, 0), path) for epoch, path in numbered_files(folder).items()]
    for path in named:
        if path.name != LATEST and (state := read(path)) is not None:
            ranked.append((position(state), path))
        state = None  # keeps one at a time in memory
    for _, path in sorted(ranked, reverse=True):
        if (state := read(path)) is not None:
            return path, state, complaints
    if complaints:
        raise checkpoint.CheckpointError("none of the checkpoints is whole:\n" + "\n".join(complaints))
    return None, None, complaints


def any_in(folder: Path | str) -> bool:
    """Return whether there are checkpoints for --resume auto."""
    named = (Path(folder, name) for name in (LATEST, PREVIOUS, BEST))
    return bool(numbered_files(folder)) or any(path.exists() for path in named)


def position(state: Mapping[str, Any]) -> tuple[int, int]:
    """Return the position of a checkpoint: finished epochs, and steps of the epoch under way."""
    return state.get("epoch", -1) + 1, state.get("progress", {}).get("step", 0)


def beyond(
    folder: Path | str, path: Path | str, state: Mapping[str, Any], *, trusted: bool = False
) -> list[Path]:
    """Find the checkpoints in `folder` that are later than the one at `path` there, or damaged.

    Args:
        folder: of the run.
        path: checkpoint that is resumed.
        state: its contents.
        trusted: as for `checkpoint.read_checkpoint`.
    """
    if Path(path).name == LATEST:
        return []  # by the order in which `save` writes
    files = [file for epoch, file in numbered_files(folder).items() if (epoch + 1, 0) > position(state)]
    for file in (Path(folder) / name for name in (LATEST, PREVIOUS, BEST)):
        with contextlib.suppress(checkpoint.CheckpointError):
            if not file.exists():
                continue
            if position(checkpoint.read_checkpoint(file, trusted=trusted, continues=True)) <= position(state):
                continue
        files.append(file)
    return files


def check_space(
    folder: Path | str,
    size: int,
    policy: Policy,
    start_epoch: int,
    *,
    best: bool,
    aside: Collection[Path] | None,
) -> tuple[int, int]:
    """Compute the disk space for the rest of a run.

    Args:
        folder: of the run.
        size: bytes of a checkpoint.
        policy: which numbered checkpoints the run keeps.
        start_epoch: first epoch that is not finished.
        best: whether the run has a checkpoint-best.pd.
        aside: files of the folder that are moved away, and so not overwritten; None: all.

    Returns the bytes still to be written, and the free bytes. Raises ValueError if they do not fit.
    """
    folder, most = Path(folder), policy.most(start_epoch, best=best)
    free_later = list(folder.glob(".checkpoint-*.part"))  # of writers that were killed
    if aside is not None:
        free_later += [folder / name for name in (LATEST, PREVIOUS, BEST)]
        free_later += [
            path
            for epoch, path in numbered_files(folder).items()
            if epoch >= start_epoch
            or (policy.keep is not None and not policy.numbers(epoch, policy.epochs - 1))
        ]
        free_later = [path for path in free_later if path not in aside]
    found = [path.stat() for path in free_later if path.exists()]
    files = {(status.st_dev, status.st_ino): status for status in found}
    staying = {path.stat().st_ino for path in folder.glob("checkpoint-*.pd") if path not in free_later}
    needed = max(
        0, most * size - sum(status.st_size for (_, file), status in files.items() if file not in staying)
    )
    parent = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        fewer = replace(policy, keep=1).most(start_epoch, best=best)
        raise ValueError(
            f"--output_dir {folder}: {in_words(free)} are free, and this run needs {in_words(needed)} for up "
            f"to {most} checkpoints of {in_words(size)} each; make room or name another folder"
            + (f", or keep {fewer} at most: --keep 1" if fewer < most else "")
        )
    return needed, free


def in_words(size: float) -> str:
    """Format bytes in the largest unit of which there is at least one: "1.05 GB"."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1e3:.3g} kB"
