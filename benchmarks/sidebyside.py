"""Measure programs in turns in one run, because a machine's speed drifts between runs.

A benchmark script makes sides and lets them alternate:

    from benchmarks import sidebyside   # before cpu_runtime.prepare(), the opponent keeps its settings

    ours = sidebyside.Side("paddle", lambda: {"images_per_s": measure()})
    theirs = sidebyside.torch_side("torch", "torch_train_step.py", ["--batch_size", 8], args)
    results = sidebyside.alternate([ours, theirs], rounds=args.rounds, warmup=args.warmup)
    sidebyside.report("train_step", [ours, theirs], results, measure="images_per_s", settings=vars(args))

and the script of the other environment calls `sidebyside.serve(prepare)`. This module imports nothing but
Python's own modules, because the other environment imports it too.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from util.compute import cpu_runtime
from util.system.atomic_file import atomic_write

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")  # of the processor, for the record
LAST = "the last side"
ENVIRONMENT = dict(os.environ)  # of the user, for the other process

Results = Mapping[str, Sequence[Mapping[str, float]]]  # {name of a side: [measurements of a round, ...]}


class Side:
    """A program to measure in this process.

    Attributes:
        name: name in the table and the record.
        round: measures once; returns {name of a measurement: number}.
        about: facts for the record, for example versions.
    """

    def __init__(
        self, name: str, round: Callable[[], dict[str, float]], about: Mapping[str, Any] | None = None
    ) -> None:
        self.name, self.round, self.about = name, round, about or {}

    def close(self) -> None:
        """Release resources; this class has none."""


class OtherProcess(Side):
    """A side in a process of its own, which answers each line {"round": number} by a line of measurements.

    Its first line is {"about": ...}. {"error": sentence} may replace any line. See `serve`.
    """

    def __init__(self, name: str, command: Sequence[object]) -> None:
        """Start the process. Raises ValueError if it cannot start or reports an error."""
        self.command = [str(word) for word in command]
        try:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                env=ENVIRONMENT,
            )
        except OSError as error:
            raise ValueError(
                f"{self.command[0]}: cannot be started ({error.strerror}); "
                "give the Python of the other environment"
            ) from error
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.rounds = 0
        super().__init__(name, self._round, self._answer()["about"])

    def _round(self) -> dict[str, float]:
        self.rounds += 1
        try:
            self.stdin.write(json.dumps({"round": self.rounds}) + "\n")
            self.stdin.flush()
        except BrokenPipeError:  # the process has ended; its last line has the reason
            pass
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with code {self.process.wait()}"}
        if "error" in answer:
            self.close()
            raise ValueError(f"{' '.join(self.command)}: {answer['error']}")
        return answer

    def close(self) -> None:
        """End the process."""
        self.stdin.close()
        self.stdout.close()
        self.process.wait()


def serve(prepare: Callable[[], tuple[Callable[[], Mapping[str, float]], Mapping[str, Any]]]) -> None:
    """Answer an OtherProcess, from inside its process, until the input ends.

    Args:
        prepare: returns (round, about) for a Side; the user sees its ValueError or ImportError.
    """
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # output of libraries must not mix with the answers

    def answer(values: Mapping[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        round, about = prepare()
        answer({"about": about})
        for _ in sys.stdin:
            answer(round())
    except (ValueError, ImportError) as error:
        traceback.print_exc()
        answer({"error": str(error)})
        sys.exit(2)


def alternate(sides: Sequence[Side], *, rounds: int, warmup: int) -> dict[str, list[dict[str, float]]]:
    """Measure every side once a round, in turns from first to last and back.

    Args:
        warmup: rounds before those that count.

    Returns:
        {name of a side: [measurements of a round, ...]}.
    """
    from tqdm import tqdm  # missing in the environment of `serve`

    for name, value, least in (("rounds", rounds, 1), ("warmup", warmup, 0)):
        if value < least:
            raise ValueError(f"--{name} {value}: must be at least {least}")
    results: dict[str, list[dict[str, float]]] = {side.name: [] for side in sides}
    bar = tqdm(total=(warmup + rounds) * len(sides), disable=not sys.stderr.isatty(), leave=False)
    try:
        for number in range(-warmup, rounds):
            for side in sides if number % 2 == 0 else sides[::-1]:
                bar.set_description(
                    f"{side.name} {'warm-up' if number < 0 else f'round {number + 1}/{rounds}'}"
                )
                measured = side.round()
                if number >= 0:
                    results[side.name].append(measured)
                bar.update()
            if bar.disable:
                print(
                    "warm-up"
                    if number < 0
                    else f"round {number + 1}/{rounds}: "
                    + "; ".join(f"{name} {_numbers(measured[-1])}" for name, measured in results.items()),
                    flush=True,
                )
    finally:
        bar.close()
        for side in sides:
            side.close()
    return results


def medians(results: Results) -> dict[str, dict[str, float]]:
    """Take medians over the rounds: {name of a side: {name of a measurement: median}}."""
    return {
        name: {key: statistics.median(round[key] for round in rounds) for key in rounds[0]}
        for name, rounds in results.items()
    }


def ratios(results: Results, measure: str, against: str) -> dict[str, tuple[float, float, float]]:
    """Divide `measure` of each side by that of `against`, per round: {name: (median, lowest, highest)}."""
    found = {}
    for name in results.keys() - {against}:
        each = [
            ours[measure] / theirs[measure]
            for ours, theirs in zip(results[name], results[against], strict=True)
        ]
        found[name] = statistics.median(each), min(each), max(each)
    return {name: found[name] for name in results if name in found}


def report(
    benchmark: str,
    sides: Sequence[Side],
    results: Results,
    *,
    measure: str,
    settings: Mapping[str, Any],
    against: str | None = LAST,
    json_path: str = "",
) -> None:
    """Print medians and ratios, and write them with all rounds and the machine to `json_path` if it is given.

    Args:
        measure: name of the measurement for the ratios.
        settings: {option: value} of the sides.
        against: name of the side to compare with, or None; by default the last of several sides.
    """
    if against == LAST:
        against = sides[-1].name if len(sides) > 1 else None
    compared = ratios(results, measure, against) if against else {}
    width = max(len(side.name) for side in sides)
    for name, values in medians(results).items():
        line = f"{name:{width}}  {_numbers(values)}"
        if name in compared:
            line += "  {:.2f} x {} (rounds {:.2f} to {:.2f})".format(
                compared[name][0], against, *compared[name][1:]
            )
        print(line)
    if json_path:
        record = {
            "benchmark": benchmark,
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "command": [_portable(word) for word in sys.argv],
            "revision": revision(),
            "machine": machine(),
            "settings": {option: _portable(value) for option, value in settings.items()},
            "measure": measure,
            "against": against,
            "sides": {
                side.name: {
                    "about": side.about,
                    "median": medians(results)[side.name],
                    "rounds": results[side.name],
                }
                for side in sides
            },
            "ratios": {
                name: dict(zip(("median", "lowest", "highest"), values, strict=True))
                for name, values in compared.items()
            },
        }
        with atomic_write(json_path, "w") as f:
            json.dump(record, f, indent=2)
            f.write("\n")
        print(f"wrote {json_path}")


def machine() -> dict[str, Any]:
    """Describe the machine: processor, cores, instruction sets, memory in GB, operating system."""
    cpu_runtime.prepare()
    from util.compute import onednn  # needs Paddle, which the other environment lacks

    lines = _lines("/proc/cpuinfo")
    cpu = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        platform.processor(),
    )
    has = set(next((line for line in lines if line.startswith("flags")), "").split())
    kilobytes = next(
        (int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": cpu,
        "cores": cores,
        "instruction_set": onednn.instruction_set(),
        "flags": [flag for flag in FLAGS if flag in has],
        "memory_gb": round(kilobytes / 2**20, 1),
        "platform": platform.platform(),
    }


def versions(*packages: str) -> dict[str, str]:
    """List the versions of Python and of the installed ones among some packages."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def add_arguments(parser: argparse.ArgumentParser, *, rounds: int, warmup: int = 1) -> None:
    """Add the flags that all benchmarks share."""
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="measured rounds, over which medians are taken"
    )
    parser.add_argument("--warmup", type=int, default=warmup, help="rounds before those")
    parser.add_argument("--json", metavar="FILE", default="", help="write the record there")
    group = parser.add_argument_group("opponent")
    group.add_argument("--against", choices=["torch"], help="opponent, measured in turns with ours")
    group.add_argument(
        "--torch_python",
        metavar="FILE",
        default=sys.executable,
        help="Python of the environment with PyTorch",
    )
    group.add_argument(
        "--torch_path", metavar="FOLDER", default="", help="folder to add to that Python's sys.path"
    )
    group.add_argument(
        "--torch_import",
        metavar="MODULE",
        default="",
        help="module to import there first, for example one that lets torchvision load beside a PyTorch "
        "for which it was not compiled",
    )


def torch_side(name: str, script: str, options: Sequence[object], args: argparse.Namespace) -> OtherProcess:
    """Start a script of benchmarks/sides in the environment that the flags of `add_arguments` name."""
    return OtherProcess(
        name,
        [
            args.torch_python,
            Path(__file__).parent / "sides" / script,
            *options,
            "--torch_path",
            args.torch_path,
            "--torch_import",
            args.torch_import,
        ],
    )


def import_torch(args: argparse.Namespace) -> None:
    """Apply --torch_path and --torch_import inside the environment with PyTorch."""
    if args.torch_path:
        sys.path.insert(0, args.torch_path)
    if args.torch_import:
        importlib.import_module(args.torch_import)


def _numbers(values: Mapping[str, float]) -> str:
    return ", ".join(f"{value:.4g} {key}" for key, value in values.items())


def _portable(value: Any) -> Any:
    """Shorten a path for the record: relative to the project's root inside it, the file name outside."""
    if not isinstance(value, (str, Path)) or os.sep not in str(value):
        return value
    flag, equals, path = str(value).rpartition("=")  # --flag=path
    whole = Path(os.path.abspath(path))  # a link keeps its name
    return (
        flag + equals + (str(whole.relative_to(ROOT)) if whole.is_relative_to(ROOT) else f".../{whole.name}")
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return []


def revision() -> str | None:
    """Name the commit of this checkout, with a + if files differ from it; None without git."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")
