"""A run that was stopped and goes on in a new process ends bit for bit as one that was not."""
import shutil

import numpy as np
import pytest
from scripts import flat, read_log, read_state, run, write_pictures

SHORT = ["--input_size", 8, "--batch_size", 4, "--device", "cpu", "--log_dir", ""]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data"), train=20, val=7, size=(12, 12))


def stopped_and_whole(tmp_path, script, flags, *, after, workers=(0, 0)):
    """Runs `script` whole, and then once more from its checkpoint of epoch `after`; returns both folders.

    The second run finds the log of a process that had got further than its last checkpoint.
    """
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    run(script, *SHORT, *flags, "--num_workers", workers[0], "--output_dir", whole)
    resumed.mkdir()
    shutil.copy(whole / "log.txt", resumed)
    said = run(script, *SHORT, *flags, "--num_workers", workers[1], "--output_dir", resumed,
               "--resume", whole / f"checkpoint-{after}.pd")
    assert f"continuing with epoch {after + 1}" in said and f"Epoch: [{after}]" not in said
    return whole, resumed


def assert_same_runs(whole, resumed, *, epochs):
    a, b = (flat({**read_state(folder / "checkpoint-latest.pd"), "args": {}}) for folder in (whole, resumed))
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == b[name].dtype and value.tobytes() == b[name].tobytes(), name
        else:
            assert value == b[name], name
    assert any(name.startswith("optimizer/") for name in a) and a["epoch"] == epochs - 1
    # Speed aside, the logs agree to the last digit, and no epoch is in them twice.
    logs = [[{name: value for name, value in line.items() if name not in ("train_images_per_s", "train_data_wait")}
             for line in read_log(folder)] for folder in (whole, resumed)]
    assert logs[0] == logs[1] and [line["epoch"] for line in logs[0]] == list(range(epochs))


def test_pretraining(tmp_path, data):
    """Accumulation with a shorter last window, the schedule in its warm-up, and workers only after the resume."""
    flags = ["--model", "mae_vit_tiny_patch4", "--data_path", data, "--epochs", 3, "--warmup_epochs", 2,
             "--accum_iter", 2, "--norm_pix_loss", "--blr", 0.1]
    whole, resumed = stopped_and_whole(tmp_path, "main_pretrain.py", flags, after=0, workers=(0, 2))
    assert_same_runs(whole, resumed, epochs=3)
    losses = [line["train_loss"] for line in read_log(whole)]
    assert losses[2] < losses[0]


def test_finetuning(tmp_path, data):
    """Everything that is random: crops, RandAugment, erasing, Mixup, CutMix and drop path; and the best accuracy."""
    flags = ["--model", "vit_tiny_patch4", "--data_path", data, "--epochs", 4, "--warmup_epochs", 1, "--nb_classes", 2,
             "--mixup", 0.8, "--cutmix", 1.0, "--drop_path", 0.5, "--clip_grad", 1.0, "--blr", 0.05]
    whole, resumed = stopped_and_whole(tmp_path, "main_finetune.py", flags, after=1, workers=(2, 0))
    assert_same_runs(whole, resumed, epochs=4)
    accuracies = [line["test_acc1"] for line in read_log(whole)]
    assert read_state(resumed / "checkpoint-latest.pd")["max_accuracy"] == max(accuracies)
    # A best checkpoint is written by the epoch that is better than all before, those before the resume included.
    best = resumed / "checkpoint-best.pd"
    assert best.exists() is (accuracies.index(max(accuracies)) > 1)


def test_linear_probe(tmp_path, data):
    """The running statistics of its BatchNorm are part of the state."""
    flags = ["--model", "vit_tiny_patch4", "--data_path", data, "--epochs", 3, "--warmup_epochs", 1, "--nb_classes", 2,
             "--accum_iter", 2]
    whole, resumed = stopped_and_whole(tmp_path, "main_linprobe.py", flags, after=0)
    assert_same_runs(whole, resumed, epochs=3)
    first, last = (read_state(whole / f"checkpoint-{epoch}.pd")["model"] for epoch in (0, 2))
    assert (first["head.0._mean"] != last["head.0._mean"]).any()
