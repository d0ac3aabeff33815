"""Run folder as a report reads it: all readable parts, and a list of the damaged ones."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from util.run import confusion

PARTS = ("log.txt", "options.yaml", "environment.json")  # a run's folder has at least one of them
ENDLESS = 1e30  # larger numbers count as infinite

Point = tuple[int, float]  # epoch, value


@dataclass
class RunRecord:
    """A run, read from its folder. Missing parts are empty.

    Attributes:
        name: name in the report.
        lines: of log.txt, one dict per epoch in order; numbers are floats and may be NaN or Inf.
        bad_images: {split: [(name, reason), ...]}.
        not_finite: reports about NaN or Inf losses.
        earlier: names of folders with earlier runs.
        reconstructions: pictures in the order of time.
        confusion: (counts [C, C], class names, epoch), see util.run.confusion.
        damaged: [(file, number of unreadable lines, or None for the whole file), ...].
    """

    folder: Path
    name: str
    lines: list[dict[str, Any]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    bad_images: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    not_finite: list[dict[str, Any]] = field(default_factory=list)
    earlier: list[str] = field(default_factory=list)
    reconstructions: list[Path] = field(default_factory=list)
    confusion: tuple[np.ndarray, Sequence[str], int] | None = None
    damaged: list[tuple[str, int | None]] = field(default_factory=list)

    def points(self, name: str) -> list[Point]:
        """List the finite values of a number in log.txt: [(epoch, value), ...]."""
        return [(line["epoch"], line[name]) for line in self.lines if abs(line.get(name, math.nan)) < ENDLESS]

    def last(self, name: str) -> float | None:
        """Return the newest finite value of a number in log.txt, or None."""
        points = self.points(name)
        return points[-1][1] if points else None

    def best(self) -> Point | None:
        """Return the best epoch and its accuracy in per cent (ties: the first); None without accuracies.

        Accuracies of the averaged weights count if there are any, because they decide checkpoint-best.pd.
        """
        return max(
            self.points("test_ema_acc1") or self.points("test_acc1"), key=lambda point: point[1], default=None
        )

    @property
    def pretraining(self) -> bool:
        """True for a masked autoencoder, False for a classifier."""
        return "mask_ratio" in self.options or not ("nb_classes" in self.options or self.points("test_acc1"))

    @property
    def batch(self) -> int | None:
        """Effective batch size over all processes; None if it is unknown."""
        parts = [
            self.option("batch_size", int),
            self.option("accum_iter", int),
            self.environment.get("processes", 1),
        ]
        return math.prod(parts) if all(isinstance(part, int) for part in parts) else None

    def option(self, name: str, kind: type | tuple[type, ...]) -> Any:
        """Return the value of an option; None if it is missing or of another type."""
        value = self.options.get(name)
        right = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        return value if right else None


def read(folder: Path | str) -> RunRecord:
    """Read the folder of a run. Raises ValueError if it is not one."""
    folder = Path(folder)
    try:
        there = folder.is_dir()
    except OSError as error:
        raise ValueError(f"{folder}: {error.strerror}") from error
    if not there:
        raise ValueError(f"{folder}: no such folder; give the --output_dir of a training run")
    if not any((folder / name).exists() for name in PARTS):
        below = sorted({path.parent.as_posix() for name in PARTS for path in folder.glob(f"*/{name}")})
        raise ValueError(
            f"{folder}: not the folder of a run, because it has none of {', '.join(PARTS)}"
            + (
                f"; there are runs in {', '.join(below[:5])}"
                if below
                else "; give the --output_dir of a training run"
            )
        )
    record = RunRecord(folder, folder.resolve().name)
    _read_log(record)
    record.options = _mapping(record, "options.yaml", yaml.safe_load)
    record.environment = _mapping(record, "environment.json", json.loads)
    for path in sorted(folder.glob("bad_images_*.txt")):
        rows = [text.partition("\t")[::2] for text in _text(record, path.name).splitlines() if text]
        record.bad_images[path.stem.removeprefix("bad_images_")] = rows
    reports = [_mapping(record, path.name, json.loads) for path in sorted(folder.glob("not_finite_*.json"))]
    record.not_finite = sorted(
        filter(None, reports), key=lambda one: (str(one.get("epoch")), str(one.get("step")))
    )
    record.earlier = sorted((path.name for path in folder.glob("earlier.*") if path.is_dir()), key=_by_number)
    record.reconstructions = sorted((folder / "reconstructions").glob("*.png"), key=_by_digits)
    try:
        record.confusion = confusion.read(folder)
    except ValueError:
        record.damaged.append((confusion.FILE, None))
    return record


def read_log_only(path: Path | str, name: str, options: dict[str, Any]) -> RunRecord:
    """Read a log under any name, without the other files of a run."""
    record = RunRecord(Path(path).parent, name, options=options)
    _read_log(record, Path(path).name)
    return record


def read_all(folders: Sequence[Path | str]) -> list[RunRecord]:
    """Read several folders and give the runs distinct names. Raises ValueError if a folder is given twice."""
    records = [read(folder) for folder in folders]
    paths = [record.folder.resolve() for record in records]
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise ValueError(f"{twice}: given twice")
    parts = 1
    while len({path.parts[-parts:] for path in paths}) < len(paths):
        parts += 1
    for record, path in zip(records, paths, strict=True):
        record.name = "/".join(path.parts[-parts:])
    return records


def _read_log(record: RunRecord, name: str = "log.txt") -> None:
    """Read the lines of a log; if an epoch has several, the last one counts."""
    by_epoch: dict[int, dict[str, Any]] = {}
    damaged = 0
    for text in _text(record, name).split(
        "\n"
    ):  # splitlines would also split at other characters inside names
        try:
            line = json.loads(text)
            numbers = {
                name: float(value)
                for name, value in line.items()
                if isinstance(value, (int, float)) and not isinstance(value, bool)
            }
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


def _mapping(record: RunRecord, name: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    """Read the dict in a file; {} if the file is missing or damaged."""
    text = _text(record, name)
    try:
        content = parse(text) if text else {}
    except (ValueError, yaml.YAMLError, RecursionError):
        content = None
    if isinstance(content, dict):
        return {str(key): _tame(value) for key, value in content.items()}
    record.damaged.append((name, None))
    return {}


def _tame(value: Any) -> Any:
    """Keep plain values, and lists or dicts of them; turn all else into text (edited files)."""
    plain = (str, int, float, bool, type(None))
    tame = (
        isinstance(value, plain)
        or isinstance(value, (list, dict))
        and all(isinstance(item, plain) for item in (value.values() if isinstance(value, dict) else value))
    )
    return value if tame else str(value)


def _text(record: RunRecord, name: str) -> str:
    path = record.folder / name
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace") if path.exists() else ""
    except OSError:
        record.damaged.append((name, None))
        return ""


def _by_digits(path: Path) -> list[tuple[int, str]]:
    """Sort key that puts epoch_9999 before epoch_10000."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _by_number(name: str) -> list[int]:
    return [int(part) if part.isdecimal() else -1 for part in re.split(r"\.", name)[1:]]
