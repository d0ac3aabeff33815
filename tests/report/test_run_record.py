"""The folder of a run as a report reads it: readable parts, and a list of damaged ones."""

import json
import math

import numpy as np
import pytest

from util.report import run_record
from util.run import confusion

LINES = [
    {"train_loss": 0.9, "test_acc1": 40.0, "epoch": 0},
    {"train_loss": 0.8, "test_acc1": 45.5, "epoch": 1},
]


def write_log(folder, lines=LINES, more=""):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "log.txt").write_text(
        "".join(json.dumps(line) + "\n" for line in lines) + more, encoding="utf-8"
    )
    return folder


def test_a_whole_folder(tmp_path):
    folder = write_log(tmp_path / "猫")
    (folder / "options.yaml").write_text(
        "model: vit\nepochs: 3\nbatch_size: 4\naccum_iter: 2\nnb_classes: 2\n"
    )
    (folder / "environment.json").write_text('{"processes": 3}')
    (folder / "bad_images_val.txt").write_text("a\tb.jpg\tit is cut off\n", encoding="utf-8")
    (folder / "not_finite_3_1.json").write_text('{"epoch": 3, "step": 1, "message": "nan"}')
    for number in (10, 9):
        (folder / f"earlier.{number}").mkdir()
    (folder / "reconstructions").mkdir()
    for epoch in (12, 4):
        (folder / "reconstructions" / f"epoch_{epoch:04d}.png").touch()
    confusion.write(folder, confusion.pack(np.eye(2, dtype="int64"), 1), ["a", "b"])
    run = run_record.read(folder)
    assert run.name == "猫" and run.lines == LINES and run.points("train_loss") == [(0, 0.9), (1, 0.8)]
    assert run.best() == (1, 45.5) and run.last("train_loss") == 0.8 and run.last("test_loss") is None
    assert run.batch == 24 and not run.pretraining
    assert (
        run.bad_images == {"val": [("a", "b.jpg\tit is cut off")]} and run.not_finite[0]["message"] == "nan"
    )
    assert run.earlier == ["earlier.9", "earlier.10"] and run.confusion[1] == ["a", "b"]
    assert [path.name for path in run.reconstructions] == ["epoch_0004.png", "epoch_0012.png"]
    assert run.damaged == []


def test_the_best_is_that_of_the_averaged_weights(tmp_path):
    more = '\n{"epoch": 2, "test_acc1": 90.0, "test_ema_acc1": 50.0}\n'
    more += '{"epoch": 3, "test_acc1": 80.0, "test_ema_acc1": 60.0}'
    assert run_record.read(write_log(tmp_path / "run", more=more)).best() == (3, 60.0)


def test_what_is_whole_of_a_damaged_log(tmp_path):
    """A truncated line, lines without an epoch, one epoch twice, values that are not numbers."""
    more = (
        '\n[1]\n{"train_loss": 1}\n{"epoch": -1}\n{"epoch": 1e99}\n{"epoch": 7, "x": 1' + "0" * 400 + "}\n"
        '{"epoch": 2, "train_loss": NaN, "test_acc1": "high", "more": true}\n{"epoch": 1, "train_loss": 0.7}\n'
        '{"epoch": 3, "train_loss": 1e38}\n{"train_loss": 0.6, "ep'
    )
    run = run_record.read(write_log(tmp_path / "run", more=more))
    assert [line["epoch"] for line in run.lines] == [0, 1, 2, 3]
    assert run.points("train_loss") == [(0, 0.9), (1, 0.7)] and math.isnan(run.lines[2]["train_loss"])
    assert run.points("test_acc1") == [(0, 40.0)]  # the later line about epoch 1 has none
    assert run.damaged == [("log.txt", 6)] and run.options == {} and run.environment == {}


@pytest.mark.parametrize("content", [b"[1, 2]", b"{", b"\xff\xfe", b"a: b: c"])
def test_other_damaged_files_are_listed(tmp_path, content):
    folder = write_log(tmp_path / "run")
    for name in ("options.yaml", "environment.json", "not_finite_0_0.json", "confusion.npz"):
        (folder / name).write_bytes(content)
    run = run_record.read(folder)
    assert [name for name, lines in run.damaged] == [
        "options.yaml",
        "environment.json",
        "not_finite_0_0.json",
        "confusion.npz",
    ]
    assert run.lines == LINES and run.confusion is None


def test_a_folder_of_no_run_is_a_sentence_that_helps(tmp_path):
    with pytest.raises(ValueError, match="nowhere: "):
        run_record.read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="x: .+"):
        run_record.read(tmp_path / ("x" * 300))
    with pytest.raises(ValueError, match="not the folder of a run.*--output_dir"):
        run_record.read(tmp_path)
    write_log(tmp_path / "a")
    with pytest.raises(ValueError, match="there are runs in .*/a$"):
        run_record.read(tmp_path)


def test_names_tell_runs_apart(tmp_path):
    folders = [write_log(tmp_path / name) for name in ("x/a/run", "y/a/run", "y/b/run")]
    assert [run.name for run in run_record.read_all(folders[1:])] == ["a/run", "b/run"]
    assert [run.name for run in run_record.read_all(folders)] == ["x/a/run", "y/a/run", "y/b/run"]
    with pytest.raises(ValueError, match="given twice"):
        run_record.read_all([folders[0], folders[0] / ".." / "run"])
