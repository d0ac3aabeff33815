"""Pictures that cannot be read: which they are, over all processes, and from how many on the run ends.

What cannot be read is for image_io to say (UnreadableImage); what stands in its place, for loaders.
"""
import json
from pathlib import Path

from util.images.decode import UnreadableImage
from util.system import distributed
from util.system.atomic_file import atomic_write

ACTIONS = ("error", "skip")
SHARE = 100     # one of so many may be skipped
FEW = 3         # names in a line
MORE = 20       # names in the list at the end of a run


class BadImages:
    """The unreadable pictures of a split, each once however often it was met.

    All processes learn of them at the same moments, and so end together if they must; a single one ends at once.

    Args:
        action: "error": the first one ends the run. "skip": one more than `allowed` does.
        split: what messages call the pictures: "train" or "val".
        total: pictures of the split.
        folder: where skipped ones are listed in bad_images_<split>.txt, a line each: name, tab, reason; "" for nowhere.
    """

    def __init__(self, action, split, total, folder=""):
        if action not in ACTIONS:
            raise ValueError(f"--bad_images {action}: choose from {', '.join(ACTIONS)}.")
        self.action, self.split, self.total = action, split, total
        self.file = Path(folder, f"bad_images_{split}.txt") if folder and action == "skip" else None
        self.reasons = {}   # name -> reason, the same in all processes
        self.new = {}       # what this process has met since they last told each other

    @property
    def allowed(self):
        """Pictures that may be skipped: 1 %, in a small data set one, but never all."""
        return min(max(1, self.total // SHARE), self.total - 1) if self.action == "skip" else 0

    def add(self, found):
        """Take note of [(name, reason), ...] of this process."""
        self.new.update((name, reason) for name, reason in found if name not in self.reasons)
        if self.new and distributed.world_size() == 1:
            self.share()

    def agree(self):
        """Share what any process has met. Blocks until every process has called it."""
        if any(distributed.all_sum([len(self.new)])):
            self.share()

    def share(self):
        """Tell every process what each has met; ValueError, on all of them, if that is too much.

        Blocks until every process has called it.
        """
        for part in distributed.all_bytes(json.dumps(self.new).encode()):
            self.reasons.update(json.loads(part))
        self.new = {}
        self.write()
        self.check()

    def restore(self, reasons):
        """Take over those of a checkpoint, {name: reason}; ValueError if that is too much already."""
        self.reasons.update(reasons)
        self.check()

    def check(self):
        """ValueError if there are too many."""
        if len(self.reasons) > self.allowed:
            raise ValueError(self._too_many())

    def write(self):
        """Bring the list in the folder up to date."""
        if self.reasons and self.file and distributed.is_main():
            with atomic_write(self.file, "w") as f:
                f.writelines(f"{name}\t{reason}\n" for name, reason in sorted(self.reasons.items()))

    def summary(self):
        """A line about them, or ""."""
        return f"{self._skipped()}: {self._names()}{self._where()}" if self.reasons else ""

    def listing(self):
        """The lines for the end of a run, or ""."""
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
            return f"{UnreadableImage(name, reason)} Or go on without such pictures: --bad_images skip."
        return (f"{len(self.reasons)} of {self.total} {self.split} pictures cannot be read, and --bad_images skip goes "
                f"on without 1 % at most, here {self.allowed}: {self._names()}{self._where()}. "
                "Repair these pictures, or take them out of the data.")
