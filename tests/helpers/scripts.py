"""Runs the scripts through their command lines, on small generated pictures."""

import json
import os
import pickle
import signal as signals
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

# What util.compute.cpu_runtime set in this process; the scripts shall find out for themselves.
SET_HERE = ("FLAGS_use_stride_kernel", "OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE")


def write_pictures(root, *, train=12, val=5, classes=("cat", "dog"), size=(16, 16), mode="RGB"):
    """ROOT/{train,val}/<class>/<number>.png with `train` and `val` pictures in all, dealt out to the classes in turn.

    A class has its own brightness, so that it can be learned; all pixels differ.
    """
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            label = number % len(classes)
            folder = Path(root, split, classes[label])
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 100, [*size, len(mode)]) + 150 * label // max(1, len(classes) - 1)
            Image.fromarray(pixels.astype("uint8").squeeze()).save(folder / f"{number:03d}.png")
    return Path(root)


def run(script, *flags, code=0):
    """What the script printed to standard output; fails if it does not end with `code`, then returns standard error."""
    done = _run([sys.executable, str(ROOT / script), *map(str, flags)])
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stderr if code else done.stdout


def signalled(script, *flags, at, signal):
    """(exit code, what it printed to both streams) of a script that is sent `signal` when it prints `at`."""
    printed, sent = [], False
    with subprocess.Popen(
        [sys.executable, str(ROOT / script), *map(str, flags)],
        cwd=ROOT,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        for line in process.stdout:
            printed.append(line)
            if at in line and not sent:
                process.send_signal(signal)
                sent = True
    return process.returncode, "".join(printed)


def launch(script, *flags, logs, processes=2, code=0):
    """[what process 0 printed, what process 1 printed, ...], to both streams, by Paddle's launcher on CPUs."""
    done = _run(
        [
            sys.executable,
            "-m",
            "paddle.distributed.launch",
            "--nproc_per_node",
            str(processes),
            "--log_dir",
            str(logs),
            str(ROOT / script),
            *map(str, flags),
        ]
    )
    printed = [Path(logs, f"workerlog.{rank}").read_text(encoding="utf-8") for rank in range(processes)]
    # Where one process ends with an error the launcher signals the others, and may pass on the code of one of these.
    codes = {code, 256 - signals.SIGTERM} if code else {0}
    assert done.returncode in codes, "\n".join(
        [f"exit code {done.returncode}", done.stdout, done.stderr, *printed]
    )
    return printed


def _environment():
    return {name: value for name, value in os.environ.items() if name not in SET_HERE}


def _run(command):
    return subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, timeout=300)


def read_log(folder):
    """The lines of FOLDER/log.txt as dicts."""
    return [json.loads(line) for line in Path(folder, "log.txt").read_text(encoding="utf-8").splitlines()]


def read_state(path):
    """The dict in a checkpoint, by plain pickle."""
    with open(path, "rb") as f:
        return pickle.load(f)


def flat(tree, prefix=""):
    """{"a/b/c": leaf} of nested dicts."""
    leaves = {}
    for name, value in tree.items():
        leaves.update(
            flat(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
        )
    return leaves
