"""What a training run leaves in its folder after each epoch."""
import numpy as np
import paddle
import pytest
from scripts import read_log, read_state

from util import amp, checkpoint, distributed
from util.training_run import TrainingRun

OPTIONS = {"start_epoch": 0, "epochs": 9, "print_freq": 20, "seed": 5, "lr": None}
TRAINED = {"lr": 1e-4, "loss": 0.5, "images_per_s": 9.0}


def result(acc1, left_out=0):
    return {"loss": 2.0, "acc1": acc1, "acc5": 99.0, "images": 7, "left_out": left_out}


@pytest.fixture
def start(tmp_path):
    """A function that starts a run of a new model in tmp_path / "run"."""
    def start(resume=None, **changes):
        model = paddle.nn.Linear(2, 3)
        model.bias.stop_gradient = True
        optimizer = paddle.optimizer.AdamW(0.1, parameters=[model.weight])
        model(paddle.ones([1, 2])).sum().backward()
        optimizer.step()
        optimizer.clear_grad()
        run = TrainingRun(model, optimizer, amp.grad_scaler(None), **{
            "output_dir": str(tmp_path / "run"), "log_dir": "", "options": OPTIONS, "classes": ["cat", "dog"],
            "architecture": {"name": "tiny"}, "normalization": {"mean": [0.5], "std": [0.5]}, **changes})
        if resume:
            run.resume(resume)
        run.begin()
        return run
    return start


def epochs_of(folder):
    return {path.name.removeprefix("checkpoint-").removesuffix(".pd"): read_state(path)["epoch"]
            for path in folder.glob("checkpoint-*.pd")}


def test_an_epoch_of_pretraining(start, tmp_path):
    run = start(classes=None)
    run.end_epoch(0, TRAINED, numbered=True)
    run.end_epoch(1, TRAINED, numbered=False)
    assert epochs_of(tmp_path / "run") == {"0": 0, "latest": 1}
    assert read_log(tmp_path / "run")[1] == {"train_lr": 1e-4, "train_loss": 0.5, "train_images_per_s": 9.0, "epoch": 1}
    state = read_state(tmp_path / "run" / "checkpoint-latest.pd")
    assert state.keys() == {"model", "optimizer", "scaler", "epoch", "args", "architecture", "normalization"}
    assert state["args"] == OPTIONS and state["architecture"] == {"name": "tiny"}
    assert (state["model"]["weight"] == run.model.weight.numpy()).all() and state["optimizer"].keys() == {"weight"}


def test_an_epoch_of_a_classifier(start, tmp_path):
    start().end_epoch(0, TRAINED, result(40.0), numbered=True)
    assert read_log(tmp_path / "run") == [{
        "train_lr": 1e-4, "train_loss": 0.5, "train_images_per_s": 9.0, "test_loss": 2.0, "test_acc1": 40.0,
        "test_acc5": 99.0, "n_parameters": 6, "epoch": 0}]  # 2 x 3 trained weights; the 3 biases are frozen
    state = read_state(tmp_path / "run" / "checkpoint-best.pd")
    assert state["classes"] == ["cat", "dog"] and state["max_accuracy"] == 40.0


def test_best_follows_the_accuracy(start, tmp_path, capsys):
    run, best, greatest = start(), [], []
    for epoch, acc1 in enumerate([50.0, 40.0, 60.0, 60.0, 59.0]):
        run.end_epoch(epoch, TRAINED, result(acc1), numbered=False)
        best.append(epochs_of(tmp_path / "run")["best"])
        greatest.append(read_state(tmp_path / "run" / "checkpoint-latest.pd")["max_accuracy"])
    assert best == [0, 0, 2, 2, 2] and greatest == [50.0, 50.0, 60.0, 60.0, 60.0]
    assert "* Acc@1 59.000 Acc@5 99.000 loss 2.000   Max accuracy: 60.00%" in capsys.readouterr().out


def test_an_accuracy_over_fewer_images_says_so(start, tmp_path, capsys):
    run = start()
    run.end_epoch(0, TRAINED, result(40.0, left_out=2), numbered=False)
    run.end_epoch(1, TRAINED, result(40.0), numbered=False)
    assert [line.get("test_left_out") for line in read_log(tmp_path / "run")] == [2, None]
    assert "(7 pictures; 2 left out that cannot be read)   Max accuracy" in capsys.readouterr().out


def test_there_is_a_best_even_where_nothing_is_right(start, tmp_path):
    start().end_epoch(0, TRAINED, result(0.0), numbered=False)
    assert epochs_of(tmp_path / "run") == {"best": 0, "latest": 0}


def test_a_resumed_run_remembers_the_best(start, tmp_path, capsys):
    run = start()
    run.end_epoch(0, TRAINED, result(50.0), numbered=False)
    run.end_epoch(1, TRAINED, result(40.0), numbered=False)
    resumed = start(resume=tmp_path / "run" / "checkpoint-latest.pd")
    assert resumed.start_epoch == 2 and "continuing with epoch 2" in capsys.readouterr().out
    assert (resumed.model.weight.numpy() == run.model.weight.numpy()).all()
    resumed.end_epoch(2, TRAINED, result(45.0), numbered=False)
    assert epochs_of(tmp_path / "run") == {"best": 0, "latest": 2}
    assert [line["epoch"] for line in read_log(tmp_path / "run")] == [0, 1, 2]
    resumed.end_epoch(3, TRAINED, result(55.0), numbered=False)
    assert epochs_of(tmp_path / "run") == {"best": 3, "latest": 3}


def test_bare_weights_start_at_the_epoch_that_was_asked_for(start, tmp_path, capsys):
    weights = {"weight": np.full([2, 3], 7, "float32"), "bias": np.zeros([3], "float32")}
    paddle.save(weights, str(tmp_path / "bare.pd"))
    run = start(resume=tmp_path / "bare.pd", options={**OPTIONS, "start_epoch": 4})
    assert run.start_epoch == 4 and (run.model.weight.numpy() == 7).all()
    assert "bare weights" in capsys.readouterr().out


def test_resuming_on_other_classes_is_refused(start, tmp_path):
    start().end_epoch(0, TRAINED, result(1.0), numbered=False)
    with pytest.raises(checkpoint.CheckpointError, match=r"only in the file \['dog'\], only in the data \['eel'\]"):
        start(resume=tmp_path / "run" / "checkpoint-latest.pd", classes=["cat", "eel"])


@pytest.mark.parametrize("changes, rank", [({"output_dir": ""}, 0), ({}, 1)])
def test_nothing_is_written_without_a_folder_or_by_another_process(start, tmp_path, monkeypatch, changes, rank):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    start(**changes).end_epoch(0, TRAINED, result(1.0), numbered=True)
    assert list(tmp_path.iterdir()) == []


def test_scalars_can_be_read_by_visualdl(start, tmp_path):
    from visualdl import LogReader
    run = start(log_dir=str(tmp_path / "vdl"))
    run.end_epoch(0, TRAINED, result(40.0), numbered=False)
    run.end_epoch(1, TRAINED, result(60.0), numbered=False)
    run.scalars.close()
    log, = (tmp_path / "vdl").iterdir()
    reader = LogReader(file_path=str(log))
    assert {tag: [(point.id, point.value) for point in reader.get_data("scalar", tag)]
            for tag in ("perf/test_acc1", "perf/test_acc5", "perf/test_loss")} == {
        "perf/test_acc1": [(0, 40.0), (1, 60.0)], "perf/test_acc5": [(0, 99.0), (1, 99.0)],
        "perf/test_loss": [(0, 2.0), (1, 2.0)]}
