"""Files in the folder of a run besides its checkpoints: log, options, environment and drawings."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import paddle
import yaml
from PIL import Image

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from util.compute import onednn, operations
from util.compute.cpu_runtime import LIMITS, VARIABLES
from util.look import curves
from util.system import distributed, provenance
from util.system.atomic_file import atomic_write, remove_parts
from util.system.console import say

# Files that a run writes into its folder, checkpoints included.
FILES = (
    "checkpoint-*.pd",
    "bad_images_*.txt",
    "not_finite_*.json",
    "options.yaml",
    "environment.json",
    "vdlrecords.*",
    "log.txt",
    "confusion.npz",
    "curves.png",
    "report.html",
    "reconstructions/epoch_*.png",
)


def start(
    output_dir: Path | str,
    options: Mapping[str, Any],
    *,
    aside: Sequence[Path] | None = None,
    lines: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Prepare the folder: options.yaml, which --config can load, environment.json and log.txt.

    Args:
        output_dir: the folder, or "" for none.
        options: {flag name: value}.
        aside: files that are not part of this run's past, and are moved into earlier.<number>; None: all
            files of a run.
        lines: lines of log.txt so far, one dict per epoch.

    Raises ValueError if another run is using the folder, or if it cannot be written.
    """
    if not output_dir or not distributed.is_main():
        return
    output_dir = Path(output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / ".writable").touch()
        (output_dir / ".writable").unlink()
    except OSError as error:
        raise ValueError(
            f"--output_dir {output_dir}: cannot be written to ({error}); name another folder"
        ) from error
    _lock(output_dir)
    remove_parts(output_dir)
    remove_parts(output_dir / "reconstructions")
    _put_aside(output_dir, aside)
    if lines or (output_dir / "log.txt").exists():
        write_log(output_dir, lines)
    with atomic_write(output_dir / "options.yaml", "w") as f:
        yaml.safe_dump(
            {name: value for name, value in options.items() if name != "config"}, f, sort_keys=True
        )
    with atomic_write(output_dir / "environment.json", "w") as f:
        json.dump(environment(), f, indent=2)
    _lock(output_dir)


def _lock(output_dir: Path) -> None:
    """Keep other runs out until this process ends: its environment.json stays open and locked."""
    path = output_dir / "environment.json"
    if fcntl is None or not path.exists():
        return
    file = os.open(path, os.O_RDWR)  # never closed, because that would release the lock
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike with flock, workers do not inherit the lock
    except (BlockingIOError, PermissionError) as error:
        raise ValueError(
            f"--output_dir {output_dir}: another run is at work there (see its "
            "environment.json); wait for its end or name another folder"
        ) from error
    except OSError:  # a file system without locks
        os.close(file)


def _put_aside(output_dir: Path, files: Sequence[Path] | None) -> None:
    whose = "what does not belong to this run's past"
    if files is None:
        whose = "an earlier run"
        files = [path for pattern in FILES for path in sorted(output_dir.glob(pattern))]
        if not any(path.suffix in (".pd", ".txt") or path.name.startswith("not_finite") for path in files):
            return  # that run has not saved anything
    if files:
        folder = next(folder for n in range(1, 10**6) if not (folder := output_dir / f"earlier.{n}").exists())
        folder.mkdir()
        for path in files:
            goal = folder / path.relative_to(output_dir)
            goal.parent.mkdir(exist_ok=True)
            path.rename(goal)
        say(f"{output_dir} holds {whose}: {', '.join(path.name for path in files)} now in {folder}")


def by_first_process(output_dir: str, write: Callable[[], Any]) -> None:
    """Call `write` in the first process, if there is an output folder; if it fails, all processes raise.

    Raises ValueError for a file that cannot be written, and passes on ValueError and FloatingPointError.
    """
    failure: Exception | None = None
    if output_dir and distributed.is_main():
        try:
            write()
        except (OSError, ValueError, FloatingPointError) as error:
            failure = error
    if not any(distributed.all_sum([failure is not None])):
        return
    if isinstance(failure, OSError):
        raise ValueError(
            f"--output_dir {output_dir}: could not be written to ({failure}). What was saved "
            "before is whole: make room and continue with --resume auto"
        ) from failure
    raise failure or ValueError(
        f"--output_dir {output_dir}: the first process, which writes there, has failed"
    )


def write_sheet(output_dir: Path | str, epoch: int, sheet: Image.Image) -> None:
    """Write reconstructions/epoch_EPOCH.png; names sort by epoch."""
    path = _sheet(output_dir, epoch)
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as f:
        sheet.save(f, format="PNG")


def write_curves(output_dir: Path | str, lines: Sequence[dict[str, Any]]) -> None:
    """Write curves.png from the lines of log.txt, one dict per epoch."""
    with atomic_write(Path(output_dir) / "curves.png") as f:
        curves.sheet(lines).save(f, format="PNG")


def drawn_from(output_dir: Path | str, epoch: int) -> list[Path]:
    """Return the drawings from `epoch` on: those of `write_sheet`, and curves.png."""
    found = {
        int(path.stem[6:]): path
        for path in Path(output_dir, "reconstructions").glob("epoch_*.png")
        if path.stem[6:].isdecimal()
    }
    drawn = Path(output_dir, "curves.png")
    return [
        *(found[number] for number in sorted(found) if number >= epoch),
        *([drawn] if drawn.exists() else []),
    ]


def _sheet(output_dir: Path | str, epoch: int) -> Path:
    return Path(output_dir, "reconstructions", f"epoch_{epoch:04d}.png")


def write_log(output_dir: Path | str, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write log.txt from `lines`, one dict per epoch."""
    with atomic_write(Path(output_dir) / "log.txt", "w") as f:
        f.writelines(json.dumps(line) + "\n" for line in lines)


def read_log(output_dir: Path | str, before: int) -> list[dict[str, Any]]:
    """Read the lines of log.txt about epochs before `before`, one dict per epoch.

    Raises ValueError for a damaged line.
    """
    log = Path(output_dir) / "log.txt"
    lines: list[dict[str, Any]] = []
    if before == 0 or not log.exists():
        return lines
    for number, text in enumerate(log.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            lines += [line] if line["epoch"] < before else []
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{log}: line {number} is damaged; take it out or move the file away") from error
    return lines


def environment() -> dict[str, Any]:
    """Return command, versions and machine of this process as plain values."""
    revision, dirty = provenance.git_state()
    return {
        "command": sys.argv,
        "git_revision": revision,
        "git_dirty": dirty,
        **provenance.versions(),
        "device": paddle.get_device(),
        "processes": distributed.world_size(),
        "cpu_runtime": {name: os.environ.get(name) for name in (*VARIABLES, *LIMITS)},
        "operations": operations.describe(),
        "instruction_set": onednn.instruction_set(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            name = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), "")
    except OSError:  # not Linux
        name = platform.processor()
    return name or platform.machine()  # Linux names no model for aarch64
