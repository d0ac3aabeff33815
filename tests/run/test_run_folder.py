"""log.txt, options.yaml and environment.json, and files that are moved away."""

import json
import subprocess
import sys

import pytest
import yaml
from scripts import ROOT

from util.run import run_folder
from util.system import distributed, provenance


def test_log_has_one_json_object_an_epoch(tmp_path):
    run_folder.write_log(
        tmp_path, [{"train_lr": 1.5e-4, "train_loss": 1 / 3, "epoch": epoch} for epoch in range(3)]
    )
    lines = (tmp_path / "log.txt").read_text().split("\n")
    assert lines[0] == '{"train_lr": 0.00015, "train_loss": 0.3333333333333333, "epoch": 0}'
    assert [json.loads(line)["epoch"] for line in lines[:-1]] == [0, 1, 2] and lines[-1] == ""


def test_lines_of_earlier_epochs_can_be_read_again(tmp_path):
    assert run_folder.read_log(tmp_path, 3) == []
    lines = [{"train_loss": 0.1 * epoch, "epoch": epoch} for epoch in range(3)]
    run_folder.write_log(tmp_path, lines)
    assert run_folder.read_log(tmp_path, 2) == lines[:2] and run_folder.read_log(tmp_path, 0) == []


@pytest.mark.parametrize("damage", ['{"train_loss": 0.1, "ep', '{"train_loss": 0.1}'])
def test_a_damaged_line_is_named(tmp_path, damage):
    (tmp_path / "log.txt").write_text(f'{{"epoch": 0}}\n{damage}\n{{"epoch": 2}}\n')
    with pytest.raises(ValueError, match="log.txt: line 2 is damaged"):
        run_folder.read_log(tmp_path, 3)


def test_a_new_run_puts_those_before_aside(tmp_path):
    (tmp_path / "mine.txt").touch()
    for loss in (1.0, 2.0, 3.0):
        run_folder.start(tmp_path, {"lr": loss})
        assert {path.name for path in tmp_path.glob("*.*") if path.is_file()} == {
            "mine.txt",
            "options.yaml",
            "environment.json",
        }
        run_folder.write_log(tmp_path, [{"train_loss": loss, "epoch": 0}])
        for name in (
            "checkpoint-latest.pd",
            "checkpoint-0.pd",
            "bad_images_train.txt",
            "not_finite_1_2.json",
        ):
            (tmp_path / name).touch()
    # Continues in the same folder.
    run_folder.start(tmp_path, {"lr": 4.0}, aside=[], lines=[{"train_loss": 3.0, "epoch": 0}])
    for place, loss in (("earlier.1", 1.0), ("earlier.2", 2.0), (".", 3.0)):
        folder = tmp_path / place
        assert json.loads((folder / "log.txt").read_text())["train_loss"] == loss
        assert {
            "checkpoint-latest.pd",
            "checkpoint-0.pd",
            "bad_images_train.txt",
            "not_finite_1_2.json",
            "environment.json",
        } <= {path.name for path in folder.iterdir()}
    assert yaml.safe_load((tmp_path / "earlier.2" / "options.yaml").read_text()) == {"lr": 2.0}
    assert sorted(path.name for path in tmp_path.glob("earlier.*")) == ["earlier.1", "earlier.2"]


def test_single_files_can_be_put_aside_and_the_log_brought_to_its_place(tmp_path):
    for name in ("checkpoint-0.pd", "checkpoint-1.pd", "log.txt"):
        (tmp_path / name).write_text("old")
    run_folder.start(tmp_path, {}, aside=[tmp_path / "checkpoint-1.pd"], lines=[{"epoch": 0}])
    assert [path.name for path in (tmp_path / "earlier.1").iterdir()] == ["checkpoint-1.pd"]
    assert (tmp_path / "checkpoint-0.pd").exists() and (tmp_path / "log.txt").read_text() == '{"epoch": 0}\n'


def test_the_report_of_a_run_without_an_epoch_is_put_aside(tmp_path):
    (tmp_path / "not_finite_0_3.json").touch()
    run_folder.start(tmp_path, {})
    assert (tmp_path / "earlier.1" / "not_finite_0_3.json").exists()


def test_a_run_that_came_to_nothing_is_not_put_aside(tmp_path):
    for _ in range(2):
        run_folder.start(tmp_path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["environment.json", "options.yaml"]


def test_what_killed_writers_left_is_removed(tmp_path):
    (tmp_path / ".checkpoint-latest.pd.123.part").touch()
    run_folder.start(tmp_path, {}, aside=[])
    assert not list(tmp_path.glob(".*"))


def test_start_writes_options_and_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main_pretrain.py", "--seed", "3"])
    run_folder.start(tmp_path / "a" / "b", {"seed": 3, "config": "x.yaml", "lr": None})
    assert yaml.safe_load((tmp_path / "a" / "b" / "options.yaml").read_text()) == {"seed": 3, "lr": None}
    environment = json.loads((tmp_path / "a" / "b" / "environment.json").read_text())
    assert environment["command"] == ["main_pretrain.py", "--seed", "3"] and environment["processes"] == 1
    assert (
        environment["python"] == ".".join(map(str, sys.version_info[:3])) and environment["device"] == "cpu"
    )
    assert {
        "git_revision",
        "git_dirty",
        "paddle",
        "numpy",
        "platform",
        "cpu",
        "started",
    } <= environment.keys()


def test_an_environment_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(provenance, "git_state", provenance.git_state.__wrapped__)  # without its cache
    environment = run_folder.environment()
    assert environment["git_revision"] is None and environment["git_dirty"] is None


@pytest.mark.parametrize("output_dir, rank", [("", 0), ("out", 1)])
def test_start_writes_nothing_without_a_folder_or_on_another_process(tmp_path, monkeypatch, output_dir, rank):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    run_folder.start(output_dir, {})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match="--output_dir .*file: cannot be written to"):
        run_folder.start(str(tmp_path / "file"), {})


def test_two_runs_cannot_write_to_one_folder(tmp_path):
    """Locks are of processes: another one has to hold it. It goes with that process, however that ends."""
    code = (
        "import sys; from util.run import run_folder\nrun_folder.start(sys.argv[1], {})\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
    ) as other:
        while other.stdout.readline() not in (b"ready\n", b""):
            pass
        before = (tmp_path / "environment.json").read_bytes()
        with pytest.raises(ValueError, match="--output_dir .*another run is at work there"):
            run_folder.start(tmp_path, {}, aside=[])
        assert (tmp_path / "environment.json").read_bytes() == before
        other.kill()
    run_folder.start(tmp_path, {}, aside=[])
