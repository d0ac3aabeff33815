"""Small training runs for fault injection, and their comparison with an undisturbed run."""

import json
import pickle
import re
import sys
from pathlib import Path

import numpy as np

ROOT_FOLDER = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT_FOLDER), str(ROOT_FOLDER / "tests" / "helpers")]

from scripts import read_log, read_state, write_pictures

PAUSED = 75  # the exit code of a run that a signal has ended: saved, and to be continued
USER_ERROR = 2  # that of a run that ended with a sentence

TRAINING = [
    "--input_size",
    "8",
    "--batch_size",
    "4",
    "--device",
    "cpu",
    "--log_dir",
    "",
    "--print_freq",
    "1",
    "--warmup_epochs",
    "1",
]
CLASSIFIER = ["--model", "vit_tiny_patch4", "--nb_classes", "2", *TRAINING]
# What is random in a step, and gradients that outlive one: 11 steps of 44 pictures, in windows of 2 or 3, the
# last window shorter.
SCRIPTS = {
    "pretrain": [
        "main_pretrain.py",
        "--model",
        "mae_vit_tiny_patch4",
        *TRAINING,
        "--accum_iter",
        "2",
        "--norm_pix_loss",
        "--blr",
        "0.1",
    ],
    "finetune": [
        "main_finetune.py",
        *CLASSIFIER,
        "--accum_iter",
        "3",
        "--mixup",
        "0.8",
        "--cutmix",
        "1.0",
        "--drop_path",
        "0.5",
        "--clip_grad",
        "1.0",
        "--blr",
        "0.05",
    ],
    "linprobe": ["main_linprobe.py", *CLASSIFIER, "--accum_iter", "2", "--blr", "1.0"],
}

# Of a checkpoint, what may differ between a run that was broken off and one that was not.
MAY_DIFFER = ("args", "checksum", "log")  # the log has speeds in it, and is compared as log.txt
# Of a line of log.txt: the speed.
SPEED = ("train_images_per_s", "train_data_wait")
# Written in the middle of an epoch by some runs, so that what stands there depends on where a run was broken
# off.
INTERMEDIATE = ("checkpoint-previous.pd",)
SHOWN = 2  # differences of a checkpoint that are told
SHOWN_LOST = 8  # lines of what a case has lost


class Case:
    """A run under a name.

    Args:
        script: a key of SCRIPTS.
        policy: the flags that say when and how checkpoints are written.
    """

    def __init__(self, script, *, workers=0, processes=1, policy=(), more=()):
        self.script, self.workers, self.processes = script, workers, processes
        self.policy, self.more = [str(word) for word in policy], [str(word) for word in more]

    @property
    def name(self):
        return f"{self.script}, {self.workers} workers, {self.processes} processes, {' '.join(self.policy) or 'epochs'}"

    def words(self, data, output_dir, *, epochs):
        """Return the command line after `python`, which starts and resumes a run."""
        return [
            *SCRIPTS[self.script],
            *self.policy,
            *self.more,
            "--num_workers",
            str(self.workers),
            "--epochs",
            str(epochs),
            "--data_path",
            str(data),
            "--output_dir",
            str(output_dir),
            "--resume",
            "auto",
        ]


def make_data(root):
    """Write 44 pictures for training and 7 for evaluation, of two classes."""
    return write_pictures(root, train=44, val=7, size=(12, 12))


def whole_checkpoints(folder):
    """{file name: state} of the checkpoints that plain pickle can read to their end."""
    states = {}
    for path in sorted(Path(folder).glob("checkpoint*.pd")):
        try:
            states[path.name] = read_state(path)
        except (
            pickle.UnpicklingError,
            EOFError,
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            ImportError,
            MemoryError,
        ):
            continue
    return states


def progress(folder):
    """Return (epoch, step in it) of the newest undamaged checkpoint; (-1, 0) without one."""
    return max((position(state) for state in whole_checkpoints(folder).values()), default=(-1, 0))


def position(state):
    """Return the last finished epoch of a state, and the steps of the next one."""
    return state["epoch"], state.get("progress", {}).get("step", 0)


def differences(whole, resumed):
    """Return the differences of an interrupted run (folder `resumed`) from an undisturbed one (`whole`), as lines."""
    if not Path(resumed).exists():
        return [f"missing: all of {resumed}"]
    found = []
    names = [
        {
            path.name
            for path in Path(folder).iterdir()
            if path.name not in INTERMEDIATE and not _is_aside(path)
        }
        for folder in (whole, resumed)
    ]
    found += [f"missing: {name}" for name in sorted(names[0] - names[1])]
    found += [f"left behind: {name}" for name in sorted(names[1] - names[0])]
    for name in sorted(name for name in names[0] & names[1] if re.fullmatch(r"checkpoint-.*\.pd", name)):
        lines = _differences(
            *(
                {key: value for key, value in read_state(Path(folder, name)).items() if key not in MAY_DIFFER}
                for folder in (whole, resumed)
            )
        )
        found += [f"{name}: {line}" for line in lines[:SHOWN]]
        if len(lines) > SHOWN:
            found.append(f"{name}: and {len(lines) - SHOWN} more")
    if "log.txt" in names[0] & names[1]:
        found += _log_differences(whole, resumed)
    return found


def _is_aside(path):
    """Return True if a run left this that did not reach its first checkpoint."""
    return path.name.startswith("earlier.") and not list(path.glob("*.pd"))


def _log_differences(whole, resumed):
    try:
        ours, theirs = (
            [{key: value for key, value in line.items() if key not in SPEED} for line in read_log(folder)]
            for folder in (whole, resumed)
        )
    except json.JSONDecodeError as error:
        return [f"log.txt: {error}"]
    epochs = [[line["epoch"] for line in lines] for lines in (ours, theirs)]
    if epochs[0] != epochs[1]:
        return [f"log.txt: epochs {epochs[1]} instead of {epochs[0]}"]
    return [
        f"log.txt, epoch {one['epoch']}: {other} instead of {one}"
        for one, other in zip(ours, theirs)
        if one != other
    ]


def _differences(one, other, name=""):
    """Return the places where two trees of dicts, lists, tuples, arrays and plain values differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        if one.keys() != other.keys():
            return [
                f"{name or 'its entries'}: {sorted(map(str, one.keys() ^ other.keys()))} on one side only"
            ]
        return [
            line for key in one for line in _differences(one[key], other[key], f"{name}/{key}".lstrip("/"))
        ]
    if isinstance(one, (list, tuple)) and type(one) is type(other) and len(one) == len(other):
        return [
            line for at, pair in enumerate(zip(one, other)) for line in _differences(*pair, f"{name}/{at}")
        ]
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        same = one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
        return [] if same else [f"{name}: arrays differ"]
    return (
        []
        if type(one) is type(other) and repr(one) == repr(other)
        else [f"{name}: {other!r} instead of {one!r}"]
    )


def write_record(path, record):
    """Write the results of a program as JSON, with machine and versions, and print the totals."""
    from util.run.run_folder import (
        environment,  # imports Paddle, which a program that only starts others does without
    )

    record = {"environment": environment(), **record}
    if path:
        Path(path).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, value in record["totals"].items():
        if name != "lost":
            print(f"{name}: {json.dumps(value, ensure_ascii=False)}", flush=True)
    print(f"lost: {told(record['totals']['lost'])}", flush=True)


def told(lost):
    """Return a list of losses for the console."""
    more = [f"and {len(lost) - SHOWN_LOST} more"] if len(lost) > SHOWN_LOST else []
    return "\n  ".join(["", *lost[:SHOWN_LOST], *more]) or "nothing"
