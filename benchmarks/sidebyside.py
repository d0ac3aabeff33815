"""Programs measured in turns, in one run: a machine's speed drifts, so only ratios taken side by side mean anything.

A benchmark script makes sides and lets them alternate:

    from benchmarks import sidebyside       # before cpu_runtime.prepare(), whose settings are not for the opponent

    ours = sidebyside.Side("paddle", lambda: {"images_per_s": measure()}, about=sidebyside.versions("paddlepaddle"))
    theirs = sidebyside.torch_side("torch", "torch_train_step.py", ["--batch_size", 8], args)
    results = sidebyside.alternate([ours, theirs], rounds=args.rounds, warmup=args.warmup)
    sidebyside.report("train_step", [ours, theirs], results, measure="images_per_s", settings=vars(args),
                      json_path=args.json)

and the script of the other environment calls `sidebyside.serve(prepare)`. This module needs nothing but Python, because
it is imported there too.
"""
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
from pathlib import Path

from util.compute import cpu_runtime
from util.system.atomic_file import atomic_write

ROOT = Path(__file__).resolve().parent.parent
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")    # of the processor, if it has them
LAST = "the last side"
ENVIRONMENT = dict(os.environ)      # as the user made it, for the other process


class Side:
    """Something to measure in this process.

    Args:
        name: in the table and the record.
        round: measures once; returns {name of a measurement: number}, larger or smaller being better as it may.
        about: {what: value} for the record, versions for example.
    """

    def __init__(self, name, round, about=None):
        self.name, self.round, self.about = name, round, about or {}

    def close(self):
        pass


class OtherProcess(Side):
    """The same in a process of its own, which answers each line `{"round": number}` by a line of measurements.

    Its first line is {"about": ...}; `{"error": sentence}` may stand in the place of any line. See `serve`.
    """

    def __init__(self, name, command):
        self.command = [str(word) for word in command]
        try:
            self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                            encoding="utf-8", env=ENVIRONMENT)
        except OSError as error:
            raise ValueError(f"{self.command[0]} cannot be started ({error.strerror}); "
                             "name the Python of the other environment") from error
        self.rounds = 0
        super().__init__(name, self._round, self._answer()["about"])

    def _round(self):
        self.rounds += 1
        try:
            self.process.stdin.write(json.dumps({"round": self.rounds}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:     # it has ended; what it said last tells more
            pass
        return self._answer()

    def _answer(self):
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with code {self.process.wait()}"}
        if "error" in answer:
            self.close()
            raise ValueError(f"{' '.join(self.command)}: {answer['error']}")
        return answer

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


def serve(prepare):
    """The other process's end of OtherProcess, until its input ends.

    Args:
        prepare: returns (round, about) as Side takes them; a ValueError or ImportError of it is for the user.
    """
    sys.stdout.flush()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)    # what libraries print must not get among the answers

    def answer(values):
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


def alternate(sides, *, rounds, warmup):
    """{name: [measurements of a round, ...]}: every side once a round, in turns from first to last and back.

    Args:
        warmup: rounds before those that count.
    """
    from tqdm import tqdm  # not in `serve`'s environment
    for name, value, least in (("rounds", rounds, 1), ("warmup", warmup, 0)):
        if value < least:
            raise ValueError(f"--{name} must be at least {least}, got {value}")
    results = {side.name: [] for side in sides}
    bar = tqdm(total=(warmup + rounds) * len(sides), disable=not sys.stderr.isatty(), leave=False)
    try:
        for number in range(-warmup, rounds):
            for side in sides if number % 2 == 0 else sides[::-1]:
                bar.set_description(f"{side.name} {'warm-up' if number < 0 else f'round {number + 1}/{rounds}'}")
                measured = side.round()
                if number >= 0:
                    results[side.name].append(measured)
                bar.update()
            if bar.disable:
                print("warm-up" if number < 0 else f"round {number + 1}/{rounds}: " + "; ".join(
                    f"{name} {_numbers(measured[-1])}" for name, measured in results.items()), flush=True)
    finally:
        bar.close()
        for side in sides:
            side.close()
    return results


def medians(results):
    """{name: {measurement: median over the rounds}} of what `alternate` returns."""
    return {name: {key: statistics.median(round[key] for round in rounds) for key in rounds[0]}
            for name, rounds in results.items()}


def ratios(results, measure, against):
    """{name: (median, lowest, highest)}: `measure` of each other side over that of `against`, round by round."""
    found = {}
    for name in results.keys() - {against}:
        each = [ours[measure] / theirs[measure] for ours, theirs in zip(results[name], results[against], strict=True)]
        found[name] = statistics.median(each), min(each), max(each)
    return {name: found[name] for name in results if name in found}


def report(benchmark, sides, results, *, measure, settings, against=LAST, json_path=""):
    """Print medians and ratios, and write them with all rounds and the machine to `json_path` if it is given.

    Args:
        measure: the measurement that ratios are taken of.
        settings: {option: value} that the sides were made with.
        against: name of the side that the others are compared with, or None; the last one if there are several, by
            default.
    """
    if against == LAST:
        against = sides[-1].name if len(sides) > 1 else None
    compared = ratios(results, measure, against) if against else {}
    width = max(len(side.name) for side in sides)
    for name, values in medians(results).items():
        line = f"{name:{width}}  {_numbers(values)}"
        if name in compared:
            line += "  {:.2f} x {} (rounds {:.2f} to {:.2f})".format(compared[name][0], against, *compared[name][1:])
        print(line)
    if json_path:
        record = {"benchmark": benchmark, "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
                  "command": [_portable(word) for word in sys.argv], "revision": revision(), "machine": machine(),
                  "settings": {option: _portable(value) for option, value in settings.items()},
                  "measure": measure, "against": against,
                  "sides": {side.name: {"about": side.about, "median": medians(results)[side.name],
                                        "rounds": results[side.name]} for side in sides},
                  "ratios": {name: dict(zip(("median", "lowest", "highest"), values))
                             for name, values in compared.items()}}
        with atomic_write(json_path, "w") as f:
            json.dump(record, f, indent=2)
            f.write("\n")
        print(f"wrote {json_path}")


def machine():
    """Processor, cores that this process may use, instruction sets of note and the one that our side computes with,
    memory in GB, operating system."""
    cpu_runtime.prepare()
    from util.compute import onednn  # needs Paddle, which the other environment has not
    lines = _lines("/proc/cpuinfo")
    cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    has = set(next((line for line in lines if line.startswith("flags")), "").split())
    kilobytes = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": cpu, "cores": cores, "instruction_set": onednn.instruction_set(), "flags": [flag for flag in FLAGS if flag in has],
            "memory_gb": round(kilobytes / 2 ** 20, 1), "platform": platform.platform()}


def versions(*packages):
    """{"python": version, package: version, ...} of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def add_arguments(parser, *, rounds, warmup=1):
    """The flags that all benchmarks share."""
    parser.add_argument("--rounds", type=int, default=rounds, help="rounds that count; medians are taken over them")
    parser.add_argument("--warmup", type=int, default=warmup, help="rounds before them")
    parser.add_argument("--json", metavar="FILE", default="", help="write the record there")
    group = parser.add_argument_group("opponent")
    group.add_argument("--against", choices=["torch"], help="measure it in turns with ours")
    group.add_argument("--torch_python", metavar="FILE", default=sys.executable,
                       help="the Python of the environment that has PyTorch")
    group.add_argument("--torch_path", metavar="FOLDER", default="", help="put on that Python's sys.path")
    group.add_argument("--torch_import", metavar="MODULE", default="",
                       help="imported there before anything else; for example one that lets torchvision load beside a "
                            "PyTorch for which its compiled half was not made")


def torch_side(name, script, options, args):
    """The OtherProcess of benchmarks/SCRIPT in the environment that the flags of `add_arguments` name."""
    return OtherProcess(name, [args.torch_python, Path(__file__).parent / "sides" / script, *options,
                               "--torch_path", args.torch_path, "--torch_import", args.torch_import])


def import_torch(args):
    """In that environment: do what --torch_path and --torch_import say."""
    if args.torch_path:
        sys.path.insert(0, args.torch_path)
    if args.torch_import:
        importlib.import_module(args.torch_import)


def _numbers(values):
    return ", ".join(f"{value:.4g} {key}" for key, value in values.items())


def _portable(value):
    """A path as it means something elsewhere: inside the project from its root, outside by its name; else the value."""
    if not isinstance(value, (str, Path)) or os.sep not in str(value):
        return value
    flag, equals, path = str(value).rpartition("=")  # --flag=path
    path = Path(os.path.abspath(path))  # a link keeps its name
    return flag + equals + (str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else f".../{path.name}")


def _lines(path):
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:     # not Linux
        return []


def revision():
    """The commit of this checkout, with a + if files differ from it; None where git does not tell."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+" if changed else "")
