"""What a run has left in its folder, read for a report: whatever is whole of it, and what is wrong with the rest."""
import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from util.run import confusion

PARTS = ("log.txt", "options.yaml", "environment.json")  # a folder with none of them is no run's
ENDLESS = 1e30  # beyond it a number counts as not finite


@dataclass
class RunRecord:
    """A run as its files tell it. Whatever is missing is empty.

    name: what a report calls it. lines: of log.txt, a dict an epoch in their order, the numbers as floats, which may
    not be finite. damaged: [(file, lines that cannot be read, or None for all of it)].
    bad_images: {split: [(name, reason)]}. not_finite: the reports, dicts. earlier: folders of runs put aside.
    reconstructions: pictures in the order of time. confusion: as `util.run.confusion.read` gives it.
    """

    folder: Path
    name: str
    lines: list = field(default_factory=list)
    options: dict = field(default_factory=dict)
    environment: dict = field(default_factory=dict)
    bad_images: dict = field(default_factory=dict)
    not_finite: list = field(default_factory=list)
    earlier: list = field(default_factory=list)
    reconstructions: list = field(default_factory=list)
    confusion: tuple | None = None
    damaged: list = field(default_factory=list)

    def points(self, name):
        """[(epoch, value)] of a number in log.txt, without those that are not finite."""
        return [(line["epoch"], line[name]) for line in self.lines if abs(line.get(name, math.nan)) < ENDLESS]

    def last(self, name):
        """The newest finite value, or None."""
        points = self.points(name)
        return points[-1][1] if points else None

    def best(self):
        """(epoch, accuracy in per cent) of the best epoch, the first of several; None without accuracies.

        Of averaged weights, where the run has evaluated those: checkpoint-best.pd is chosen by them.
        """
        return max(self.points("test_ema_acc1") or self.points("test_acc1"), key=lambda point: point[1], default=None)

    @property
    def pretraining(self):
        return "mask_ratio" in self.options or not ("nb_classes" in self.options or self.points("test_acc1"))

    @property
    def batch(self):
        """Images of an update over all processes, or None where that is not known."""
        parts = [self.option("batch_size", int), self.option("accum_iter", int), self.environment.get("processes", 1)]
        return math.prod(parts) if all(isinstance(part, int) for part in parts) else None

    def option(self, name, kind):
        """The value of an option, or None if it is missing or of another type."""
        value = self.options.get(name)
        right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        return value if right else None


def read(folder):
    """The RunRecord of a run's folder; ValueError if it is no such folder."""
    folder = Path(folder)
    try:
        there = folder.is_dir()
    except OSError as error:
        raise ValueError(f"{folder}: {error.strerror}") from error
    if not there:
        raise ValueError(f"{folder}: there is no such folder; give the --output_dir of a training run")
    if not any((folder / name).exists() for name in PARTS):
        below = sorted({path.parent.as_posix() for name in PARTS for path in folder.glob(f"*/{name}")})
        raise ValueError(f"{folder}: not the folder of a run, none of {', '.join(PARTS)} is in it"
                         + (f"; there are runs in {', '.join(below[:5])}" if below
                            else "; give the --output_dir of a training run"))
    record = RunRecord(folder, folder.resolve().name)
    _read_log(record)
    record.options = _mapping(record, "options.yaml", yaml.safe_load)
    record.environment = _mapping(record, "environment.json", json.loads)
    for path in sorted(folder.glob("bad_images_*.txt")):
        rows = [text.partition("\t")[::2] for text in _text(record, path.name).splitlines() if text]
        record.bad_images[path.stem.removeprefix("bad_images_")] = rows
    reports = [_mapping(record, path.name, json.loads) for path in sorted(folder.glob("not_finite_*.json"))]
    record.not_finite = sorted(filter(None, reports), key=lambda one: (str(one.get("epoch")), str(one.get("step"))))
    record.earlier = sorted((path.name for path in folder.glob("earlier.*") if path.is_dir()), key=_by_number)
    record.reconstructions = sorted((folder / "reconstructions").glob("*.png"), key=_by_digits)
    try:
        record.confusion = confusion.read(folder)
    except ValueError:
        record.damaged.append((confusion.FILE, None))
    return record


def read_log_only(path, name, options):
    """The RunRecord of a log.txt that lies elsewhere under another name."""
    record = RunRecord(Path(path).parent, name, options=options)
    _read_log(record, Path(path).name)
    return record


def read_all(folders):
    """RunRecords of several folders, with names that tell them apart."""
    records = [read(folder) for folder in folders]
    paths = [record.folder.resolve() for record in records]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"{twice}: given twice")
    parts = 1
    while len({path.parts[-parts:] for path in paths}) < len(paths):
        parts += 1
    for record, path in zip(records, paths):
        record.name = "/".join(path.parts[-parts:])
    return records


def _read_log(record, name="log.txt"):
    """Lines of the log; of two about the same epoch the later one counts."""
    by_epoch, damaged = {}, 0
    for text in _text(record, name).split("\n"):  # a name in a line may hold what splitlines takes for an end
        try:
            line = json.loads(text)
            numbers = {name: float(value) for name, value in line.items()
                       if isinstance(value, (int, float)) and not isinstance(value, bool)}
            epoch = numbers["epoch"]
            if not 0 <= epoch == int(epoch) < 1e9:
                raise ValueError(epoch)
        except (ValueError, AttributeError, KeyError, OverflowError, RecursionError):
            damaged += bool(text.strip())
            continue
        by_epoch[int(epoch)] = {**numbers, "epoch": int(epoch)}
    record.lines = [by_epoch[epoch] for epoch in sorted(by_epoch)]
    if damaged:
        record.damaged.append((name, damaged))


def _mapping(record, name, parse):
    """The dict in a file; {} where there is none."""
    text = _text(record, name)
    try:
        content = parse(text) if text else {}
    except (ValueError, yaml.YAMLError, RecursionError):
        content = None
    if isinstance(content, dict):
        return {str(key): _tame(value) for key, value in content.items()}
    record.damaged.append((name, None))
    return {}


def _tame(value):
    """A plain value, or a list or dict of such, as it is, all else as text: files may have been edited."""
    plain = (str, int, float, bool, type(None))
    tame = isinstance(value, plain) or isinstance(value, (list, dict)) and all(
        isinstance(item, plain) for item in (value.values() if isinstance(value, dict) else value))
    return value if tame else str(value)


def _text(record, name):
    path = record.folder / name
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace") if path.exists() else ""
    except OSError:
        record.damaged.append((name, None))
        return ""


def _by_digits(path):
    """epoch_9999 before epoch_10000."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _by_number(name):
    return [int(part) if part.isdecimal() else -1 for part in re.split(r"\.", name)[1:]]
