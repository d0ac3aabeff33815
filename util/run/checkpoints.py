"""The checkpoints in a run's folder: writing them in an order that loses nothing, finding the newest, their space.

    checkpoint-latest.pd     the newest state, from the end of an epoch or from the middle of one
    checkpoint-previous.pd   the state before it, in case the newest file is damaged
    checkpoint-EPOCH.pd      from the end of that epoch
    checkpoint-best.pd       from the end of the epoch with the best accuracy, in pretraining with the least val loss

Names of the same state are hard links where the file system has them.
"""
import contextlib
import os
import re
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from util.system.atomic_file import alias, atomic_write, sync_folder
from util.weights import checkpoint, sealed_pickle

LATEST, PREVIOUS, BEST = (f"checkpoint-{name}.pd" for name in ("latest", "previous", "best"))
NEW = ".checkpoint-new.part"  # whole, but not yet the latest; goes with other parts if its writer is killed
MILESTONE = 20              # epochs; the checkpoint of every so many stays with --keep


@dataclass(frozen=True)
class Policy:
    """Which epochs keep a checkpoint under their number.

    every: epochs between such checkpoints, unless `keep` is given; the last epoch always has one. (The official code:
        20 in pretraining, 1 elsewhere.)
    keep: instead, the newest so many, every `milestone`-th and the last one; None: those of `every`, for ever.
    epochs: of the run.
    milestone: a checkpoint of an epoch that it divides is never removed.
    """

    every: int
    keep: int | None
    epochs: int
    milestone: int = MILESTONE

    def __post_init__(self):
        if self.keep is not None and self.keep < 0:
            raise ValueError(f"--keep {self.keep}: expected 0 or more checkpoints")
        if self.every < 1:
            raise ValueError(f"--save_every {self.every}: expected a number of epochs, at least 1")

    def numbers(self, epoch, newest):
        """Whether there is to be a checkpoint-EPOCH.pd once epoch `newest` has ended."""
        if epoch % self.milestone == 0 or epoch + 1 == self.epochs:
            return True
        return epoch % self.every == 0 if self.keep is None else epoch > newest - self.keep

    def most(self, start_epoch, *, best):
        """The largest number of different checkpoint files that will exist at once, from `start_epoch` to the end.

        Args:
            best: whether the run has a checkpoint-best.pd.
        """
        last = self.epochs - 1
        numbered = sum(self.numbers(epoch, last) for epoch in range(start_epoch, self.epochs))
        return numbered + best + 3  # latest, previous, and the one that is being written


def save(folder, state, *, number=None, best=False, policy=None):
    """Write `state` as the latest checkpoint, and under its other names.

    It becomes the latest at the very end: whoever is killed on the way finds the one before as the latest, repeats
    what followed it, and writes the other names once more with the same contents.

    Args:
        state: as `checkpoint.pack` makes it.
        number: the epoch whose number it also gets, or None.
        best: whether it is also to be the best.
        policy: a Policy; which numbered checkpoints go when this one is there.
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


def complete(folder, path, *, number=None, best=False):
    """Give the checkpoint at `path` in `folder` its names, the latest among them; arguments as for `save`.

    For one that a run continues though it is not the latest: its writer may have been killed amid its names.
    """
    for name in [numbered(number)] * (number is not None) + [BEST] * best + [LATEST]:
        if Path(path).name != name:
            alias(Path(folder) / Path(path).name, name)


def numbered(epoch):
    """The file name of the checkpoint from the end of `epoch`."""
    return f"checkpoint-{epoch}.pd"


def numbered_files(folder):
    """{epoch: path} of the checkpoints under a number."""
    found = {path: re.fullmatch(r"checkpoint-(\d+)\.pd", path.name) for path in Path(folder).glob("checkpoint-*.pd")}
    return {int(match[1]): path for path, match in found.items() if match}


def newest(folder, *, trusted=False):
    """(path, state, complaints): the newest whole checkpoint in `folder`, and what is wrong with newer ones.

    Path and state are None where there is no checkpoint at all. CheckpointError if there are some, but none whole.

    Args:
        trusted: as for `checkpoint.read_checkpoint`.
    """
    folder, complaints = Path(folder), []

    def read(path):
        try:
            return checkpoint.read_checkpoint(path, trusted=trusted, continues=True)
        except checkpoint.CheckpointError as error:
            complaints.append(str(error))
            return None

    named = [path for path in (folder / LATEST, folder / PREVIOUS, folder / BEST) if path.exists()]
    if named[:1] == [folder / LATEST] and (state := read(folder / LATEST)) is not None:
        return folder / LATEST, state, complaints  # nothing is newer, by the order in which `save` writes
    ranked = [((epoch + 1, 0), path) for epoch, path in numbered_files(folder).items()]  # known without reading
    for path in named:
        if path.name != LATEST and (state := read(path)) is not None:
            ranked.append((position(state), path))
        state = None  # one at a time in memory
    for _, path in sorted(ranked, reverse=True):
        if (state := read(path)) is not None:
            return path, state, complaints
    if complaints:
        raise checkpoint.CheckpointError("none of the checkpoints is whole:\n" + "\n".join(complaints))
    return None, None, complaints


def any_in(folder):
    """Whether there are checkpoints that --resume auto would look at."""
    return bool(numbered_files(folder)) or any((Path(folder) / name).exists() for name in (LATEST, PREVIOUS, BEST))


def position(state):
    """How far a checkpoint's run had got: (finished epochs, steps of the epoch under way)."""
    return state.get("epoch", -1) + 1, state.get("progress", {}).get("step", 0)


def beyond(folder, path, state, *, trusted=False):
    """The checkpoints in `folder` that are not of the past of `state`, which is from `path` there: later or damaged."""
    if Path(path).name == LATEST:
        return []  # by the order in which `save` writes
    files = [file for epoch, file in numbered_files(folder).items() if (epoch + 1, 0) > position(state)]
    for file in (Path(folder) / name for name in (LATEST, PREVIOUS, BEST)):
        with contextlib.suppress(checkpoint.CheckpointError):
            if not file.exists() or position(checkpoint.read_checkpoint(file, trusted=trusted, continues=True)) <= position(state):
                continue
        files.append(file)
    return files


def check_space(folder, size, policy, start_epoch, *, best, aside):
    """(bytes still to be written, bytes free) of a run with checkpoints of `size` bytes; ValueError for too little.

    Args:
        policy: a Policy; start_epoch: the first that is still to come; best: as for `Policy.most`.
        aside: files of the folder that stay, put aside, and are not written over; None: all.
    """
    folder, most = Path(folder), policy.most(start_epoch, best=best)
    free_later = list(folder.glob(".checkpoint-*.part"))  # of writers that were killed
    if aside is not None:
        free_later += [folder / name for name in (LATEST, PREVIOUS, BEST)]
        free_later += [path for epoch, path in numbered_files(folder).items()
                       if epoch >= start_epoch or (policy.keep is not None
                                                   and not policy.numbers(epoch, policy.epochs - 1))]
        free_later = [path for path in free_later if path not in aside]
    files = {(status.st_dev, status.st_ino): status for status in (path.stat() for path in free_later if path.exists())}
    staying = {path.stat().st_ino for path in folder.glob("checkpoint-*.pd") if path not in free_later}
    needed = max(0, most * size - sum(status.st_size for (_, file), status in files.items() if file not in staying))
    parent = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        fewer = replace(policy, keep=1).most(start_epoch, best=best)
        raise ValueError(
            f"--output_dir {folder}: {in_words(free)} are free, and this run needs {in_words(needed)} for up to "
            f"{most} checkpoints of {in_words(size)} each. Make room or name another folder"
            + (f", or keep {fewer} at most: --keep 1" if fewer < most else ""))
    return needed, free


def in_words(size):
    """Bytes in the largest unit of which there is one: "1.05 GB"."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size / 1e3:.3g} kB"
