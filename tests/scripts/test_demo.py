"""The demo, whole: what it promises is what comes out."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_the_demo_shows_what_pretraining_is_worth(tmp_path):
    """Six minutes on two cores. Chance is 10 %; the margins are half of those of the record."""
    copy = tmp_path / "project"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "outputs", "__pycache__"))
    done = subprocess.run(
        [sys.executable, "tools/demo.py"], cwd=copy, capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stderr
    output = copy / "outputs" / "demo"

    def accuracy(name):
        return json.loads((output / name / "log.txt").read_text().splitlines()[-1])["test_acc1"]

    losses = [
        json.loads(line)["train_loss"] for line in (output / "pretrain" / "log.txt").read_text().splitlines()
    ]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.7
    assert accuracy("finetune") > accuracy("scratch") + 8
    assert accuracy("linprobe") > 55
    assert float(done.stdout.split("k-NN Acc@1 ")[1].split()[0]) > 65
    assert float(done.stdout.split("* linear Acc@1 ")[1].split()[0]) > 70
    for name in (
        "pretrain/report.html",
        "classifiers.html",
        "ankle-boot_reconstruction.png",
        "ankle-boot_attention.png",
        "summary.md",
    ):
        assert (output / name).stat().st_size > 0, name
