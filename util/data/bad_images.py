"""Unreadable images of a run: their list over all processes, and the limit that ends the run.

util.images.decode raises UnreadableImage. util.data.loaders replaces such images or leaves them out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from util.images.decode import UnreadableImage
from util.system import distributed
from util.system.atomic_file import atomic_write

ACTIONS = ("error", "skip")
SHARE = 100  # one in SHARE images may be skipped
FEW = 3  # most names in a one-line summary
MORE = 20  # most names in the list at the end of a run


class BadImages:
    """Unreadable images of a split, each counted once.

    All processes exchange them at the same steps, so that they end together if there are too many. A single
    process ends at once.

    Args:
        action: "error" ends the run at the first one, "skip" at one more than `allowed` (--bad_images).
        split: "train" or "val", for messages.
        total: number of images of the split.
        folder: folder of the list of skipped images, bad_images_<split>.txt, which has a line "name, tab,
            reason" for each. "" for no list.
    """

    def __init__(self, action: str, split: str, total: int, folder: str = "") -> None:
        if action not in ACTIONS:
            raise ValueError(f"--bad_images {action}: unknown; choose from {', '.join(ACTIONS)}")
        self.action, self.split, self.total = action, split, total
        self.file = Path(folder, f"bad_images_{split}.txt") if folder and action == "skip" else None
        self.reasons: dict[str, str] = {}  # name -> reason, the same in all processes
        self.new: dict[str, str] = {}  # found by this process since the last exchange

    @property
    def allowed(self) -> int:
        """Number of images that may be skipped: 1 %, or one in a small data set, but never all."""
        return min(max(1, self.total // SHARE), self.total - 1) if self.action == "skip" else 0

    def add(self, found: Iterable[tuple[str, str]]) -> None:
        """Add [(name, reason), ...] that this process found.

        With a single process, raises ValueError if there are too many.
        """
        self.new.update((name, reason) for name, reason in found if name not in self.reasons)
        if self.new and distributed.world_size() == 1:
            self.share()

    def agree(self) -> None:
        """Exchange new images if any process has found some. Blocks until every process has called it."""
        if any(distributed.all_sum([len(self.new)])):
            self.share()

    def share(self) -> None:
        """Exchange the new images of all processes. Blocks until every process has called it.

        Raises ValueError in all processes if there are too many.
        """
        for part in distributed.all_bytes(json.dumps(self.new).encode()):
            self.reasons.update(json.loads(part))
        self.new = {}
        self.write()
        self._check_number()

    def restore(self, reasons: Mapping[str, str]) -> None:
        """Add the images of a checkpoint, {name: reason}. Raises ValueError if there are too many."""
        self.reasons.update(reasons)
        self._check_number()

    def _check_number(self):
        if len(self.reasons) > self.allowed:
            raise ValueError(self._too_many())

    def write(self) -> None:
        """Write the list in the folder."""
        if self.reasons and self.file and distributed.is_main():
            with atomic_write(self.file, "w") as f:
                f.writelines(f"{name}\t{reason}\n" for name, reason in sorted(self.reasons.items()))

    def summary(self) -> str:
        """Return one line about the skipped images, or ""."""
        return f"{self._skipped()}: {self._names()}{self._where()}" if self.reasons else ""

    def listing(self) -> str:
        """Return the lines about the skipped images for the end of a run, or ""."""
        if not self.reasons:
            return ""
        shown = [f"  {name}: {reason}" for name, reason in sorted(self.reasons.items())[:MORE]]
        more = [f"  and {len(self.reasons) - MORE} more"] if len(self.reasons) > MORE else []
        return "\n".join([self._skipped() + self._where(), *shown, *more])

    def _skipped(self):
        return f"{len(self.reasons)} of {self.total} {self.split} pictures cannot be read and were skipped"

    def _names(self):
        more = len(self.reasons) - FEW
        return ", ".join(sorted(self.reasons)[:FEW]) + (f" and {more} more" if more > 0 else "")

    def _where(self):
        return f" (with reasons in {self.file})" if self.file else ""

    def _too_many(self):
        if self.action == "error":
            name, reason = next(iter(self.reasons.items()))
            return f"{UnreadableImage(name, reason)} Or skip such pictures: --bad_images skip."
        return (
            f"{len(self.reasons)} of {self.total} {self.split} pictures cannot be read, and --bad_images "
            f"skip skips 1 % at most, here {self.allowed}: {self._names()}{self._where()}. Repair these "
            "pictures, or take them out of the data."
        )
