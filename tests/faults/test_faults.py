"""The programs of tests/faults: a part of each every day, and all of it with make test-long."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).resolve().parent


def lost_nothing(program, *flags, record):
    """The totals of a program of tests/faults; fails if one of its faults has lost something."""
    done = subprocess.run(
        [sys.executable, str(FAULTS / program), *map(str, flags), "--record", str(record)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    totals = json.loads(record.read_text(encoding="utf-8"))["totals"]
    assert totals["lost"] == []
    return totals


@pytest.mark.slow
def test_kills_between_file_operations(tmp_path):
    """At a few of them in each script: by loss of power, which is SIGKILL and more, and by SIGTERM."""
    totals = lost_nothing(
        "kill_runs.py",
        "--kills",
        0,
        "--operations",
        1,
        "--faults",
        "loss of power",
        "SIGTERM",
        "--cases",
        "0 workers, 1 processes, --save_steps 2$",
        record=tmp_path / "record.json",
    )
    assert totals["faults at operations"] == 3 * 2 * 1  # scripts, faults, operations
    assert totals["lives"] > totals["faults at operations"]


@pytest.mark.slow
def test_kills_of_processes(tmp_path):
    """Through the command line, at random moments."""
    totals = lost_nothing(
        "kill_runs.py",
        "--kills",
        2,
        "--cases",
        "finetune, 2 workers, 1 processes",
        record=tmp_path / "record.json",
    )
    assert totals["kills at random moments"] >= 2


@pytest.mark.slow
def test_a_disk_that_fills_up(tmp_path):
    totals = lost_nothing(
        "full_disk.py",
        "--only",
        "fills_up",
        "--operations",
        3,
        "--cases",
        "pretrain, 0 workers, 1 processes, --save_steps 4 --save_async",
        record=tmp_path / "record.json",
    )
    if "skipped" in totals:
        pytest.skip(f"no small disk can be made: {totals['skipped']}")
    assert totals["full disks"] == 3


@pytest.mark.slow
def test_broken_and_odd_pictures(tmp_path):
    totals = lost_nothing(
        "odd_images.py",
        "--only",
        "all_at_once",
        "odd",
        "--script",
        "main_pretrain",
        record=tmp_path / "record.json",
    )
    assert totals["kinds of broken pictures"] >= 25 and totals["kinds of odd ones"] >= 25


@pytest.mark.long
def test_a_hundred_kills_at_random_moments(tmp_path):
    totals = lost_nothing("kill_runs.py", "--kills", 100, record=tmp_path / "record.json")
    assert totals["kills at random moments"] >= 100


@pytest.mark.long
def test_every_file_operation(tmp_path):
    totals = lost_nothing(
        "kill_runs.py", "--kills", 0, "--operations", "all", record=tmp_path / "record.json"
    )
    assert totals["faults at operations"] >= 1000


@pytest.mark.long
def test_every_full_disk(tmp_path):
    totals = lost_nothing("full_disk.py", record=tmp_path / "record.json")
    if "skipped" in totals:
        pytest.skip(f"no small disk can be made: {totals['skipped']}")
    assert totals["full disks"] >= 300


@pytest.mark.long
def test_every_broken_picture(tmp_path):
    totals = lost_nothing("odd_images.py", record=tmp_path / "record.json")
    assert totals["pictures met"] >= 400
