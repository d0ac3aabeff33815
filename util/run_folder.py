"""The files of a run's folder besides its checkpoints: log.txt, and what the run was started with."""
import datetime
import json
import os
import platform
import sys
from pathlib import Path

import paddle
import yaml

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from util import curve_sheet, distributed, onednn, operations, provenance
from util.atomic_file import atomic_write, remove_parts
from util.cpu_runtime import LIMITS, VARIABLES
from util.run_log import say

# What a run writes into its folder, checkpoints included.
FILES = ("checkpoint-*.pd", "bad_images_*.txt", "not_finite_*.json", "options.yaml", "environment.json", "vdlrecords.*",
         "log.txt", "confusion.npz", "curves.png", "report.html", "reconstructions/epoch_*.png")


def start(output_dir, args, *, aside=None, lines=()):
    """Prepare the folder: options.yaml (loadable by --config), environment.json and log.txt.

    Args:
        args: the options.
        aside: files in the folder that are not of this run's past, and are moved into earlier.<number>; None: all that
            a run writes.
        lines: of log.txt so far, a dict an epoch.
    ValueError if another run is at work there, or it cannot be written.
    """
    if not output_dir or not distributed.is_main():
        return
    output_dir = Path(output_dir)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        (output_dir / ".writable").touch()
        (output_dir / ".writable").unlink()
    except OSError as error:
        raise ValueError(f"--output_dir {output_dir}: cannot be written to ({error}); name another folder") from error
    _lock(output_dir)
    remove_parts(output_dir)
    remove_parts(output_dir / "reconstructions")
    _put_aside(output_dir, aside)
    if lines or (output_dir / "log.txt").exists():
        write_log(output_dir, lines)
    with atomic_write(output_dir / "options.yaml", "w") as f:
        yaml.safe_dump({name: value for name, value in args.items() if name != "config"}, f, sort_keys=True)
    with atomic_write(output_dir / "environment.json", "w") as f:
        json.dump(environment(), f, indent=2)
    _lock(output_dir)


def _lock(output_dir):
    """Keep other runs out until this process ends: its environment.json stays open and locked."""
    path = output_dir / "environment.json"
    if fcntl is None or not path.exists():
        return
    file = os.open(path, os.O_RDWR)  # never closed, that would give the lock up
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock's it is not inherited by DataLoader workers
    except (BlockingIOError, PermissionError) as error:
        raise ValueError(f"--output_dir {output_dir}: another run is at work there (its environment.json says which); "
                         "wait for its end or name another folder") from error
    except OSError:  # a file system without locks
        os.close(file)


def _put_aside(output_dir, files):
    whose = "what does not belong to this run's past"
    if files is None:
        whose = "an earlier run"
        files = [path for pattern in FILES for path in sorted(output_dir.glob(pattern))]
        if not any(path.suffix in (".pd", ".txt") or path.name.startswith("not_finite") for path in files):
            return  # that run had not come to anything
    if files:
        folder = next(folder for n in range(1, 10 ** 6) if not (folder := output_dir / f"earlier.{n}").exists())
        folder.mkdir()
        for path in files:
            goal = folder / path.relative_to(output_dir)
            goal.parent.mkdir(exist_ok=True)
            path.rename(goal)
        say(f"{output_dir} holds {whose}: {', '.join(path.name for path in files)} now in {folder}")


def write_sheet(output_dir, epoch, sheet):
    """Write reconstructions/epoch_EPOCH.png from a PIL image; sorted by name they are sorted by time."""
    path = _sheet(output_dir, epoch)
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as f:
        sheet.save(f, format="PNG")


def write_curves(output_dir, lines):
    """Write curves.png from the lines of log.txt, a dict an epoch."""
    with atomic_write(Path(output_dir) / "curves.png") as f:
        curve_sheet.draw(lines).save(f, format="PNG")


def drawn_from(output_dir, epoch):
    """The files of `write_sheet` of that epoch and later ones, and of `write_curves`."""
    found = {int(path.stem[6:]): path for path in Path(output_dir, "reconstructions").glob("epoch_*.png")
             if path.stem[6:].isdecimal()}
    curves = Path(output_dir, "curves.png")
    return [*(found[number] for number in sorted(found) if number >= epoch), *([curves] if curves.exists() else [])]


def _sheet(output_dir, epoch):
    return Path(output_dir, "reconstructions", f"epoch_{epoch:04d}.png")


def write_log(output_dir, lines):
    """log.txt from `lines`, a dict an epoch."""
    with atomic_write(Path(output_dir) / "log.txt", "w") as f:
        f.writelines(json.dumps(line) + "\n" for line in lines)


def read_log(output_dir, before):
    """The lines of log.txt about epochs before `before`, as dicts; ValueError for a line that is damaged."""
    log, lines = Path(output_dir) / "log.txt", []
    if before == 0 or not log.exists():
        return lines
    for number, text in enumerate(log.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = json.loads(text)
            lines += [line] if line["epoch"] < before else []
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{log}: line {number} is damaged; take it out or move the file away") from error
    return lines


def environment():
    """Command, versions and machine of this process, as a dict of plain values."""
    revision, dirty = provenance.git_state()
    return {"command": sys.argv, "git_revision": revision, "git_dirty": dirty, **provenance.versions(),
            "device": paddle.get_device(), "processes": distributed.world_size(),
            "cpu_runtime": {name: os.environ.get(name) for name in (*VARIABLES, *LIMITS)},
            "operations": operations.describe(), "instruction_set": onednn.instruction_set(),
            "platform": platform.platform(), "cpu": _cpu_name(), "cores": os.cpu_count(),
            "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds")}


def _cpu_name():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            name = next((line.split(":", 1)[1].strip() for line in f if line.startswith("model name")), "")
    except OSError:  # not Linux
        name = platform.processor()
    return name or platform.machine()  # Linux names no model of an aarch64
