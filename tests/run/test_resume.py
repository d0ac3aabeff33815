"""A run that is stopped and resumed in a new process ends bit for bit like one that is not."""

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scripts import ROOT, flat, read_log, read_state, run, signalled, write_pictures

SHORT = ["--input_size", 8, "--batch_size", 4, "--device", "cpu", "--log_dir", "", "--print_freq", 1]
PRETRAIN = [
    "main_pretrain.py",
    "--model",
    "mae_vit_tiny_patch4",
    "--epochs",
    3,
    "--warmup_epochs",
    2,
    "--accum_iter",
    2,
    "--norm_pix_loss",
    "--blr",
    0.1,
]
FINETUNE = [
    "main_finetune.py",
    "--model",
    "vit_tiny_patch4",
    "--epochs",
    4,
    "--warmup_epochs",
    1,
    "--nb_classes",
    2,
    "--mixup",
    0.8,
    "--cutmix",
    1.0,
    "--drop_path",
    0.5,
    "--clip_grad",
    1.0,
    "--blr",
    0.05,
]
LINPROBE = [
    "main_linprobe.py",
    "--model",
    "vit_tiny_patch4",
    "--epochs",
    3,
    "--warmup_epochs",
    1,
    "--nb_classes",
    2,
    "--accum_iter",
    2,
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data"), train=20, val=7, size=(12, 12))


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A function that returns the folder of an uninterrupted run of a command; each runs once."""
    folders = {}

    def whole(command):
        if command[0] not in folders:
            folders[command[0]] = tmp_path_factory.mktemp("whole")
            run(
                *command, *SHORT, "--data_path", data, "--num_workers", 0, "--output_dir", folders[command[0]]
            )
        return folders[command[0]]

    return whole


def assert_same_runs(whole, resumed):
    a, b = (flat({**read_state(folder / "checkpoint-latest.pd"), "args": {}}) for folder in (whole, resumed))
    for state in (a, b):
        for name in [name for name in state if name == "checksum" or name.split("/")[0] == "log"]:
            del state[name]  # of the options and the speed, too
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == b[name].dtype and value.tobytes() == b[name].tobytes(), name
        else:
            assert value == b[name], name
    # Speed aside, the logs agree to the last digit, and no epoch is in them twice.
    logs = [
        [
            {
                name: value
                for name, value in line.items()
                if name not in ("train_images_per_s", "train_data_wait")
            }
            for line in read_log(folder)
        ]
        for folder in (whole, resumed)
    ]
    assert logs[0] == logs[1] and [line["epoch"] for line in logs[0]] == list(range(a["epoch"] + 1))
    bests = [folder / "checkpoint-best.pd" for folder in (whole, resumed)]
    assert bests[0].exists() == bests[1].exists()
    if bests[0].exists():
        assert read_state(bests[0])["epoch"] == read_state(bests[1])["epoch"]


@pytest.mark.parametrize(
    "command, after, workers",
    [
        # Everything that is random: crops, RandAugment, erasing, Mixup, CutMix and drop path
        pytest.param(FINETUNE, 1, 2, marks=pytest.mark.isa),
        (LINPROBE, 0, 0),
    ],
)
def test_from_the_end_of_an_epoch(tmp_path, data, whole, command, after, workers):
    """In a folder in which the run had got further: its later files are moved away."""
    resumed = tmp_path / "resumed"
    shutil.copytree(whole(command), resumed)
    said = run(
        *command,
        *SHORT,
        "--data_path",
        data,
        "--num_workers",
        workers,
        "--output_dir",
        resumed,
        "--resume",
        resumed / f"checkpoint-{after}.pd",
    )
    assert (resumed / "earlier.1" / "checkpoint-latest.pd").exists()
    assert f"continuing with epoch {after + 1}" in said and f"Epoch: [{after}]" not in said
    assert_same_runs(whole(command), resumed)
    state = read_state(resumed / "checkpoint-latest.pd")
    assert state["max_accuracy"] == max(line["test_acc1"] for line in read_log(resumed))
    if command is LINPROBE:  # the running statistics of its BatchNorm are part of the state
        first, last = (read_state(whole(command) / f"checkpoint-{epoch}.pd")["model"] for epoch in (0, 2))
        assert (first["head.0._mean"] != last["head.0._mean"]).any()


@pytest.mark.parametrize(
    "command, at, number, workers, place",
    [
        (PRETRAIN, "Epoch: [1]  [1/5]", signal.SIGTERM, 0, r"in epoch 1 after step [45] of 5"),
        (FINETUNE, "Epoch: [1]  [1/5]", signal.SIGINT, 2, r"in epoch 1 after step [345] of 5"),
    ],
)
def test_a_signal_saves_the_run(tmp_path, data, whole, command, at, number, workers, place):
    flags = [
        *command,
        *SHORT,
        "--data_path",
        data,
        "--num_workers",
        workers,
        "--output_dir",
        tmp_path / "run",
        "--resume",
        "auto",
    ]
    code, said = signalled(*flags, at=at, signal=number)
    assert code == 75 and re.search(f"stopped by {number.name} {place}", said) and "Traceback" not in said, (
        said
    )
    assert ("progress" in read_state(tmp_path / "run" / "checkpoint-latest.pd")) is ("step" in place)
    said = run(*flags)
    assert "continuing with epoch 1" in said or "continuing with epoch 0 step" in said
    assert_same_runs(whole(command), tmp_path / "run")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere workers look after themselves")
def test_workers_go_with_a_process_that_is_killed(tmp_path, data):
    """They ignore SIGTERM, and would wait for work forever."""
    command = [
        *PRETRAIN,
        *SHORT,
        "--data_path",
        data,
        "--epochs",
        500,
        "--num_workers",
        2,
        "--output_dir",
        tmp_path,
    ]
    with subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        next(line for line in process.stdout if "Epoch: [1]  [0/5]" in line)
        workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    assert len(workers) >= 2
    for _ in range(100):
        alive = [
            pid
            for pid in workers
            if Path(f"/proc/{pid}/stat").exists()
            and Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        ]
        if not alive:
            return
        time.sleep(0.05)
    pytest.fail(f"still there after 5 seconds: {alive}")
