"""Evaluations of a run: the best epoch, the plateau schedule and the confusion matrix."""

import pytest
from scripts import read_log, read_state
from training_runs import TRAINED, epochs_of, fail, result

from util.optim.lr_sched import Plateau
from util.run import checkpoints, confusion


def loss_of(value):
    return {"loss": value, "images": 7, "left_out": 0}


def test_best_follows_the_accuracy(start, tmp_path, capsys):
    run, best, greatest = start(), [], []
    for epoch, acc1 in enumerate([0.0, 50.0, 40.0, 60.0, 60.0, 59.0]):
        run.end_epoch(epoch, TRAINED, result(acc1))
        best.append(epochs_of(tmp_path / "run")["best"])
        greatest.append(read_state(tmp_path / "run" / "checkpoint-latest.pd")["max_accuracy"])
    assert best == [0, 1, 1, 3, 3, 3] and greatest == [0.0, 50.0, 50.0, 60.0, 60.0, 60.0]
    assert "* Acc@1 59.000 Acc@5 99.000 loss 2.000   Max accuracy: 60.00%" in capsys.readouterr().out


def test_in_pretraining_the_best_has_the_least_val_loss(start, tmp_path, capsys):
    run, best = start(classes=None), []
    for epoch, loss in enumerate([3.0, 2.0, None, 2.5]):
        run.end_epoch(epoch, TRAINED, *([] if loss is None else [loss_of(loss)]))
        best.append(epochs_of(tmp_path / "run")["best"])
    assert best == [0, 1, 1, 1]
    assert "* val loss 2.5000   Min loss: 2.0000" in capsys.readouterr().out
    assert [line.get("test_loss") for line in read_log(tmp_path / "run")] == [3.0, 2.0, None, 2.5]
    resumed = start("auto", classes=None)
    resumed.end_epoch(4, TRAINED, loss_of(2.2))
    assert epochs_of(tmp_path / "run")["best"] == 1
    resumed.end_epoch(5, TRAINED, loss_of(1.9))
    assert epochs_of(tmp_path / "run")["best"] == 5


def test_the_best_is_that_of_the_averaged_weights(start, tmp_path):
    run = start(averages=True)
    for epoch, (plain, averaged) in enumerate([(50.0, 20.0), (40.0, 30.0), (90.0, 25.0)]):
        run.end_epoch(epoch, TRAINED, result(plain), result(averaged))
    assert epochs_of(tmp_path / "run")["best"] == 1 and run.state.max_accuracy == 30.0
    assert confusion.read(tmp_path / "run")[0][0, 0] == 30
    assert [(line["test_acc1"], line["test_ema_acc1"]) for line in read_log(tmp_path / "run")] == [
        (50.0, 20.0),
        (40.0, 30.0),
        (90.0, 25.0),
    ]


def test_a_plateau_follows_the_averaged_weights_and_is_resumed(start, capsys):
    run = start(plateau=Plateau(0), averages=True)
    run.end_epoch(0, TRAINED, result(10.0), result(50.0))
    run.end_epoch(1, TRAINED, result(20.0), result(40.0))
    assert run.state.plateau.reductions == 1
    assert "the learning rate falls to 0.5 of what it was" in capsys.readouterr().out
    resumed = start("auto", plateau=Plateau(0), averages=True)
    assert (
        resumed.state.plateau.state()
        == run.state.plateau.state()
        == {"best": 50.0, "since": 1, "reductions": 1}
    )
    resumed.end_epoch(2, TRAINED, result(30.0), result(45.0))
    assert resumed.state.plateau.reductions == 2
    pretraining = start(plateau=Plateau(0), averages=True, classes=None, folder="")
    for epoch, loss in enumerate([2.0, 1.0, 3.0]):
        pretraining.end_epoch(epoch, TRAINED, loss_of(loss), loss_of(loss))
    assert pretraining.state.plateau.state() == {"best": -1.0, "since": 2, "reductions": 1}


def test_the_confusion_matrix_is_that_of_the_best(start, tmp_path, monkeypatch):
    run = start(options={"keep": 9})
    for epoch, acc1 in enumerate([10.0, 50.0, 40.0, 60.0]):
        run.end_epoch(epoch, TRAINED, result(acc1))
    counts, classes, epoch = confusion.read(tmp_path / "run")
    assert counts.tolist() == [[60, 3], [2, 300]] and classes == ["cat", "dog"] and epoch == 3
    # A run resumed from an earlier epoch has the matrix of its best, ...
    start(tmp_path / "run" / "checkpoint-2.pd", options={"keep": 9})
    counts, _, epoch = confusion.read(tmp_path / "run")
    assert counts.tolist() == [[50, 3], [2, 300]] and epoch == 1
    # ... and so has one that was killed between writing the matrix and the checkpoint.
    monkeypatch.setattr(checkpoints, "save", fail)
    with pytest.raises(ValueError, match="--output_dir"):
        start("auto", options={"keep": 9}).end_epoch(3, TRAINED, result(70.0))
    assert confusion.read(tmp_path / "run")[2] == 3
    start("auto", options={"keep": 9})
    assert confusion.read(tmp_path / "run")[2] == 1
    start()  # a new run has none
    assert confusion.read(tmp_path / "run") is None and confusion.read(tmp_path / "run" / "earlier.2")[2] == 1


def test_an_accuracy_over_fewer_images_says_so(start, tmp_path, capsys):
    run = start()
    run.end_epoch(0, TRAINED, result(40.0, left_out=2))
    run.end_epoch(1, TRAINED, result(40.0))
    assert [line.get("test_left_out") for line in read_log(tmp_path / "run")] == [2, None]
    assert "2 unreadable, left out" in capsys.readouterr().out
