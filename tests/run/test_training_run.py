"""What a training run leaves in its folder, when it saves within an epoch, and what it may continue."""
import json
import os
import signal
import threading

import numpy as np
import paddle
import pytest
from scripts import read_log, read_state

from util.compute import amp
from util.data.bad_images import BadImages
from util.data.loaders import train_loader
from util.optim.ema import EMA
from util.optim.lr_sched import Plateau
from util.run import checkpoints, confusion, resume_rules
from util.run.resume import brings_weights, continue_run
from util.run.run_state import RunState
from util.run.settings import Saving, Schedule
from util.run.training_run import TrainingRun
from util.system import distributed, signals
from util.weights import checkpoint, sealed_pickle

OPTIONS = {"start_epoch": 0, "val_every": 1, "epochs": 9, "print_freq": 20, "seed": 5, "lr": None, "batch_size": 2,
           "accum_iter": 2, "keep": None, "save_every": None, "save_steps": 0, "save_every_minutes": 0.0,
           "save_async": False, "on_nan": "stop", "allow_changes": None, "trust_checkpoint": False, "resume": "",
           "decay_rate": 0.5}
TRAINED = {"lr": 1e-4, "loss": 0.5, "images_per_s": 9.0}


def result(acc1, left_out=0):
    return {"loss": 2.0, "acc1": acc1, "acc5": 99.0, "images": 7, "left_out": left_out,
            "confusion": np.array([[round(acc1), 3], [2, 300]])}


class Ones:
    """A source of images, all of which are ones."""

    labels = None

    def __init__(self, names):
        self.names = names

    def __len__(self):
        return len(self.names)

    def name(self, index):
        return f"/data/{self.names[index]}.jpg"

    def open(self, index):
        return np.ones([2], "float32")


def ones_loader(batch_size, names="abcdefghij"):
    return train_loader(Ones(names), lambda image, rng: (image,), batch_size, 0, seed=5)


@pytest.fixture
def start(tmp_path):
    """A function that starts a run of a new model in tmp_path / "run"; its options are OPTIONS with `options`."""
    def start(resume=None, *, options=(), names="abcdefghij", evaluates=True, bad_images="error", **changes):
        options = {**OPTIONS, **dict(options)}
        model = paddle.nn.Linear(2, 3)
        model.bias.stop_gradient = True
        optimizer = paddle.optimizer.AdamW(0.1, parameters=[model.weight])
        model(paddle.ones([1, 2])).sum().backward()
        optimizer.step()
        optimizer.clear_grad()
        loader = ones_loader(options["batch_size"], names)
        loader.bad_images = BadImages(bad_images, "train", len(names))
        if changes.pop("averages", False):
            changes["ema"] = EMA(model, optimizer, 0.75)
        kept = {"options": options, "classes": ["cat", "dog"], "save_freq": 20, "architecture": {"name": "tiny"},
                "normalization": {"mean": [0.5], "std": [0.5]}, "output_dir": str(tmp_path / "run"), "log_dir": "",
                "ema": None, "plateau": None, **changes}
        options |= {name: kept[name] for name in ("output_dir", "log_dir")}
        saving, schedule = Saving.of(options), Schedule.of(options)
        described = {name: kept[name] for name in ("architecture", "normalization", "classes")}
        state = RunState(model, optimizer, amp.grad_scaler(None), options=options, ema=kept["ema"], plateau=kept["plateau"],
                         facts=resume_rules.facts(loader, schedule.batch_size * schedule.accum_iter, **described))
        run = TrainingRun(state, loader, loader if evaluates else None, saving=saving, schedule=schedule,
                          save_freq=kept["save_freq"])
        if resume:
            continue_run(run, resume)
        run.begin()
        return run
    return start


def train(run, epoch, *, stop_after=None, losses=None):
    """The steps of an epoch, each of which adds 1 to the weights; returns those that were done."""
    done = []
    log = run.begin_epoch(epoch, tag="loss")
    for step, _ in log.batches(run.loader):
        loss = float(step) if losses is None else losses[step]
        log.update(step, paddle.to_tensor(loss), 0.1 * step)
        done.append(step)
        if step % 2 == 1 or step + 1 == log.steps:
            run.state.model.weight.set_value(run.state.model.weight + 1)
            run.after_update(step + 1, skipped=False)
        if step == stop_after:
            return done
    return done


def epochs_of(folder):
    return {path.name.removeprefix("checkpoint-").removesuffix(".pd"): read_state(path)["epoch"]
            for path in folder.glob("checkpoint-*.pd")}


def test_an_epoch_of_pretraining(start, tmp_path):
    run = start(classes=None, evaluates=False)
    run.end_epoch(0, TRAINED)
    run.end_epoch(1, TRAINED)
    assert epochs_of(tmp_path / "run") == {"0": 0, "latest": 1, "previous": 0}
    assert read_log(tmp_path / "run")[1] == {"train_lr": 1e-4, "train_loss": 0.5, "train_images_per_s": 9.0, "epoch": 1}
    state = read_state(tmp_path / "run" / "checkpoint-latest.pd")
    assert {"model", "optimizer", "scaler", "epoch", "args", "architecture", "normalization"} <= state.keys()
    assert "progress" not in state and "max_accuracy" not in state and state["images_an_update"] == 4
    assert state["data"] == "10 images (a, b, c, d, e, f, g, h, i, j)" and state["args"].items() >= OPTIONS.items() and state["architecture"] == {"name": "tiny"}
    assert (state["model"]["weight"] == run.state.model.weight.numpy()).all() and state["optimizer"].keys() == {"weight"}


def test_an_epoch_of_a_classifier(start, tmp_path):
    start().end_epoch(0, TRAINED, result(40.0))
    assert read_log(tmp_path / "run") == [{
        "train_lr": 1e-4, "train_loss": 0.5, "train_images_per_s": 9.0, "test_loss": 2.0, "test_acc1": 40.0,
        "test_acc5": 99.0, "n_parameters": 6, "epoch": 0}]  # 2 x 3 trained weights; the 3 biases are frozen
    state = read_state(tmp_path / "run" / "checkpoint-best.pd")
    assert state["classes"] == ["cat", "dog"] and state["max_accuracy"] == 40.0


def test_best_follows_the_accuracy(start, tmp_path, capsys):
    run, best, greatest = start(), [], []
    for epoch, acc1 in enumerate([50.0, 40.0, 60.0, 60.0, 59.0]):
        run.end_epoch(epoch, TRAINED, result(acc1))
        best.append(epochs_of(tmp_path / "run")["best"])
        greatest.append(read_state(tmp_path / "run" / "checkpoint-latest.pd")["max_accuracy"])
    assert best == [0, 0, 2, 2, 2] and greatest == [50.0, 50.0, 60.0, 60.0, 60.0]
    assert "* Acc@1 59.000 Acc@5 99.000 loss 2.000   Max accuracy: 60.00%" in capsys.readouterr().out


def test_in_pretraining_the_best_is_that_of_the_least_val_loss(start, tmp_path, capsys):
    run, best = start(classes=None), []
    for epoch, loss in enumerate([3.0, 2.0, None, 2.5]):
        run.end_epoch(epoch, TRAINED, *([] if loss is None else [{"loss": loss, "images": 7, "left_out": 0}]))
        best.append(epochs_of(tmp_path / "run")["best"])
    assert best == [0, 1, 1, 1]
    assert "* val loss 2.5000   Min loss: 2.0000" in capsys.readouterr().out
    assert [line.get("test_loss") for line in read_log(tmp_path / "run")] == [3.0, 2.0, None, 2.5]
    assert "n_parameters" not in read_log(tmp_path / "run")[0]
    resumed = start(classes=None, resume="auto")
    resumed.end_epoch(4, TRAINED, {"loss": 2.2, "images": 7, "left_out": 0})
    assert epochs_of(tmp_path / "run")["best"] == 1
    resumed.end_epoch(5, TRAINED, {"loss": 1.9, "images": 7, "left_out": 0})
    assert epochs_of(tmp_path / "run")["best"] == 5


def test_the_best_is_that_of_the_averaged_weights(start, tmp_path):
    run = start(averages=True)
    for epoch, (plain, averaged) in enumerate([(50.0, 20.0), (40.0, 30.0), (90.0, 25.0)]):
        run.end_epoch(epoch, TRAINED, result(plain), result(averaged))
    assert epochs_of(tmp_path / "run")["best"] == 1 and run.state.max_accuracy == 30.0
    assert confusion.read(tmp_path / "run")[0][0, 0] == 30
    assert [(line["test_acc1"], line["test_ema_acc1"]) for line in read_log(tmp_path / "run")] == [
        (50.0, 20.0), (40.0, 30.0), (90.0, 25.0)]


def test_a_plateau_follows_what_chooses_the_best_and_is_resumed(start, capsys):
    def go_on(resume=None, **changes):
        return start(resume, plateau=Plateau(0), averages=True, **changes)

    run = go_on()
    run.end_epoch(0, TRAINED, result(10.0), result(50.0))
    run.end_epoch(1, TRAINED, result(20.0), result(40.0))
    assert run.state.plateau.reductions == 1
    assert "no better evaluation in 1 epoch(s): the learning rate falls to 0.5 of what it was" in capsys.readouterr().out
    resumed = go_on("auto")
    assert resumed.state.plateau.state() == run.state.plateau.state() == {"best": 50.0, "since": 1, "reductions": 1}
    resumed.end_epoch(2, TRAINED, result(30.0), result(45.0))
    assert resumed.state.plateau.reductions == 2
    pretraining = go_on(classes=None, output_dir="")
    for epoch, loss in enumerate([2.0, 1.0, 3.0]):
        pretraining.end_epoch(epoch, TRAINED, *[{"loss": loss, "images": 7, "left_out": 0}] * 2)
    assert pretraining.state.plateau.state() == {"best": -1.0, "since": 2, "reductions": 1}


def test_an_average_follows_updates_and_not_those_left_out(start):
    run = start(averages=True)
    before = run.state.model.weight.numpy()
    train(run, 0)  # three updates, each of which adds 1
    expected = before + np.float32(0.25 * 3 + 0.75 * (0.25 * 2 + 0.75 * 0.25))
    np.testing.assert_allclose(run.state.ema.arrays()["weight"], expected, rtol=1e-5)
    run.after_update(5, skipped=True)
    np.testing.assert_allclose(run.state.ema.arrays()["weight"], expected, rtol=1e-5)


def test_the_confusion_matrix_is_that_of_the_best(start, tmp_path, monkeypatch):
    run = start(options={"keep": 9})
    for epoch, acc1 in enumerate([10.0, 50.0, 40.0, 60.0]):
        run.end_epoch(epoch, TRAINED, result(acc1))
    counts, classes, epoch = confusion.read(tmp_path / "run")
    assert counts.tolist() == [[60, 3], [2, 300]] and classes == ["cat", "dog"] and epoch == 3
    # Whoever goes on from before it has that of the best of then, ...
    start(resume=tmp_path / "run" / "checkpoint-2.pd", options={"keep": 9})
    counts, _, epoch = confusion.read(tmp_path / "run")
    assert counts.tolist() == [[50, 3], [2, 300]] and epoch == 1
    # ... as has one who was killed between writing it and the checkpoint ...
    monkeypatch.setattr(checkpoints, "save", fail)
    with pytest.raises(ValueError, match="could not be written to"):
        start(resume="auto", options={"keep": 9}).end_epoch(3, TRAINED, result(70.0))
    assert confusion.read(tmp_path / "run")[2] == 3
    start(resume="auto", options={"keep": 9})
    assert confusion.read(tmp_path / "run")[2] == 1
    # ... and a new run has none.
    start()
    assert confusion.read(tmp_path / "run") is None and confusion.read(tmp_path / "run" / "earlier.2")[2] == 1


def test_an_accuracy_over_fewer_images_says_so(start, tmp_path, capsys):
    run = start()
    run.end_epoch(0, TRAINED, result(40.0, left_out=2))
    run.end_epoch(1, TRAINED, result(40.0))
    assert [line.get("test_left_out") for line in read_log(tmp_path / "run")] == [2, None]
    assert "(7 pictures; 2 left out that cannot be read)   Max accuracy" in capsys.readouterr().out


def test_who_was_killed_amid_the_names_of_the_first_checkpoint_gets_them_all(start, tmp_path, monkeypatch):
    """That is under its number, and neither the best nor the latest yet."""
    start().end_epoch(0, TRAINED, result(50.0))
    for name in ("latest", "best"):
        (tmp_path / "run" / f"checkpoint-{name}.pd").unlink()
    assert start(resume="auto").state.start_epoch == 1
    assert epochs_of(tmp_path / "run") == {"0": 0, "best": 0, "latest": 0}


def test_a_step_back_brings_the_best_of_its_time_back(start, tmp_path):
    run = start(options={"keep": 9})
    for epoch, acc1 in enumerate([10.0, 50.0, 40.0, 60.0]):
        run.end_epoch(epoch, TRAINED, result(acc1))
    assert start(resume=tmp_path / "run" / "checkpoint-1.pd", options={"keep": 9}).state.max_accuracy == 50.0
    assert epochs_of(tmp_path / "run") == {"0": 0, "1": 1, "best": 1, "latest": 1}


def test_there_is_a_best_even_where_nothing_is_right(start, tmp_path):
    start().end_epoch(0, TRAINED, result(0.0))
    assert epochs_of(tmp_path / "run") == {"best": 0, "latest": 0, "0": 0}


def test_a_resumed_run_remembers_the_best(start, tmp_path, capsys):
    run = start()
    run.end_epoch(0, TRAINED, result(50.0))
    run.end_epoch(1, TRAINED, result(40.0))
    resumed = start(resume=tmp_path / "run" / "checkpoint-latest.pd")
    assert resumed.state.start_epoch == 2 and "continuing with epoch 2" in capsys.readouterr().out
    assert (resumed.state.model.weight.numpy() == run.state.model.weight.numpy()).all()
    resumed.end_epoch(2, TRAINED, result(45.0))
    assert epochs_of(tmp_path / "run") == {"best": 0, "latest": 2, "previous": 1, "0": 0}
    assert [line["epoch"] for line in read_log(tmp_path / "run")] == [0, 1, 2]
    resumed.end_epoch(3, TRAINED, result(55.0))
    assert epochs_of(tmp_path / "run") == {"best": 3, "latest": 3, "previous": 2, "0": 0}


def test_bare_weights_start_at_the_epoch_that_was_asked_for(start, tmp_path, capsys):
    weights = {"weight": np.full([2, 3], 7, "float32"), "bias": np.zeros([3], "float32")}
    paddle.save(weights, str(tmp_path / "bare.pd"))
    run = start(resume=tmp_path / "bare.pd", options={"start_epoch": 4})
    assert run.state.start_epoch == 4 and (run.state.model.weight.numpy() == 7).all()
    assert "bare weights" in capsys.readouterr().out


def test_resuming_on_other_classes_is_refused(start, tmp_path):
    start().end_epoch(0, TRAINED, result(1.0))
    with pytest.raises(checkpoint.CheckpointError, match=r"only in the file \['dog'\], only in the data \['eel'\]"):
        start(resume=tmp_path / "run" / "checkpoint-latest.pd", classes=["cat", "eel"])


@pytest.mark.parametrize("changes, rank", [({"output_dir": ""}, 0), ({}, 1)])
def test_nothing_is_written_without_a_folder_or_by_another_process(start, tmp_path, monkeypatch, changes, rank):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distributed, "is_main", lambda: rank == 0)
    start(**changes).end_epoch(0, TRAINED, result(1.0))
    assert list(tmp_path.iterdir()) == []


# ---- within an epoch: 10 images, 5 steps of 2, updates after the steps 2, 4 and 5

def saved(run):
    """What the latest checkpoint says about where it is: (epoch, step of the next one or None)."""
    path = os.path.join(run.saving.output_dir, "checkpoint-latest.pd")
    return checkpoints.position(read_state(path)) if os.path.exists(path) else None


def test_saving_every_few_updates_of_the_run(start):
    """3 updates an epoch: the 4th of the run is the first of epoch 1."""
    run = start(options={"save_steps": 4})
    train(run, 0)
    assert saved(run) is None
    run.end_epoch(0, TRAINED, result(1.0))
    train(run, 1, stop_after=1)
    assert saved(run) == (1, 2)
    train(run, 2)
    assert saved(run) == (2, 4)


def test_saving_by_the_clock(start, monkeypatch):
    """The first update after the time is over; and then the time begins anew."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    run = start(options={"save_every_minutes": 2.0})
    train(run, 0, stop_after=1)
    assert saved(run) is None
    now[0] += 120.0
    train(run, 0, stop_after=3)
    assert saved(run) == (0, 2)
    now[0] += 119.0
    train(run, 1, stop_after=3)
    assert saved(run) == (0, 2)


def test_where_losses_are_read_now_and_then_it_saves_once_for_a_wish(start, monkeypatch):
    """As by several processes with GPUs: read at the steps 0 and 4; the wish of step 0 is granted after step 2, and is
    over then."""
    run, saves = start(options={"save_every_minutes": 2.0}), []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "all_sum", list)
    run.writer.last_saved -= 120.0
    monkeypatch.setattr(run.writer, "_write", lambda *args: saves.append(len(run.log.losses)))
    log = run.begin_epoch(0, tag="loss")
    log.sync.read_every = 4
    for step, _ in log.batches(run.loader):
        log.update(step, paddle.to_tensor(float(step)), 0.1)
        if step % 2 == 1 or step + 1 == log.steps:
            run.after_update(step + 1, skipped=False)
    assert saves == [2]  # every loss until then had been read


def test_a_single_process_hears_a_wish_in_the_next_step(start, listening):
    """Though losses are read now and then only, as on a GPU."""
    run = start()
    log = run.begin_epoch(0, tag="loss")
    log.sync.read_every = 100
    with pytest.raises(signals.Stopped, match="after step 4 of 5"):
        for step, _ in log.batches(run.loader):
            if step == 3:
                signal.raise_signal(signal.SIGTERM)
            log.update(step, paddle.to_tensor(float(step)), 0.1)
            if step % 2 == 1:
                run.after_update(step + 1, skipped=False)


def test_a_loss_that_a_gpu_had_not_told_is_not_saved(start, tmp_path):
    run = start(options={"save_steps": 1})
    log = run.begin_epoch(0, tag="loss")
    log.sync.read_every = 100
    with pytest.raises(FloatingPointError, match="epoch 0 step 1 is not finite.*not_finite_0_1.json"):
        for step, _ in log.batches(run.loader):
            log.update(step, paddle.to_tensor([0.5, float("nan"), 0.5][step]), 0.1)
            if step % 2 == 1:
                run.after_update(step + 1, skipped=False)
    assert saved(run) is None


@pytest.mark.parametrize("name", ["save_steps", "save_every_minutes"])
def test_negative_intervals_are_refused(start, name):
    with pytest.raises(ValueError, match=f"--{name} -1: expected 0"):
        start(options={name: -1})


def test_a_run_that_is_at_its_end_needs_no_space(start, monkeypatch):
    start().end_epoch(8, TRAINED, result(1.0))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 0}))
    assert start(resume="auto").state.start_epoch == 9


def test_the_end_of_an_epoch_is_not_saved_twice(start):
    run = start(options={"save_steps": 1}, evaluates=False)
    train(run, 0)
    assert saved(run) == (0, 4)
    run = start(options={"save_steps": 1})  # but before an evaluation
    train(run, 0)
    assert saved(run) == (0, 5)


def test_a_resumed_epoch_goes_on_with_its_next_step_and_has_the_means_of_all(start, tmp_path):
    losses = [1 / 3, 0.2, 0.7, 1 / 7, 0.1]
    whole = start(output_dir=str(tmp_path / "whole"))
    assert train(whole, 0, losses=losses) == [0, 1, 2, 3, 4]
    first = start(options={"save_steps": 1})
    train(first, 0, losses=losses, stop_after=2)
    second = start(resume="auto")
    assert second.state.start_epoch == 0
    assert train(second, 0, losses=losses) == [2, 3, 4]
    assert {name: second.log.means()[name] for name in ("lr", "loss")} == {
        name: whole.log.means()[name] for name in ("lr", "loss")}
    assert second.log.timer.images == 10
    assert train(second, 1) == [0, 1, 2, 3, 4]  # the next one is whole


def test_an_epoch_that_only_lacks_its_evaluation(start):
    first = start(options={"save_steps": 3})
    train(first, 0, losses=[1.0, 2.0, 3.0, 4.0, 5.0])
    second = start(resume="auto")
    assert train(second, 0) == [] and second.log.means()["loss"] == 3.0


@pytest.mark.parametrize("batch_size, accum_iter, steps, loss", [
    (4, 1, [1], 1.75), (1, 4, [4, 5, 6, 7, 8, 9], 4.7)])
def test_another_division_of_the_same_batch(start, batch_size, accum_iter, steps, loss):
    """4 images had been seen, with a mean loss of 0.5; the steps that follow have losses equal to their number, but for
    the first case, whose only one has 3. (The last 2 of 10 images do not fill a batch of 4.)"""
    train(start(options={"save_steps": 1}), 0, stop_after=1)
    run = start(resume="auto", options={"batch_size": batch_size, "accum_iter": accum_iter})
    assert train(run, 0, losses=[9, 3.0] if batch_size == 4 else list(map(float, range(10)))) == steps
    means = run.log.means()
    assert means["loss"] == pytest.approx((0.5 + 3.0) / 2 if batch_size == 4 else (4 * 0.5 + sum(range(4, 10))) / 10)


@pytest.mark.parametrize("changed, complaint", [
    ({"lr": 0.5}, r"--lr: None in the checkpoint, 0\.5 now"), ({"seed": 6}, "--seed: 5 in the checkpoint, 6 now"),
    ({"batch_size": 1}, "--batch_size: 4 images in an update in the checkpoint, 2 images in an update now"),
    ({"epochs": 10, "seed": 1}, r"(?s)--epochs: 9 in .*, 10 now.*--seed: 5 in .*--allow_changes epochs seed$")])
def test_what_may_not_change_is_refused_with_both_values(start, changed, complaint):
    start().end_epoch(0, TRAINED, result(1.0))
    with pytest.raises(ValueError, match=complaint):
        start(resume="auto", options=changed)
    start(resume="auto", options={**changed, "allow_changes": list(changed)})


def test_other_pictures_are_refused_although_as_many(start):
    start().end_epoch(0, TRAINED, result(1.0))
    with pytest.raises(ValueError, match=r"--data_path: 10 images \(a, b, .*\) in the checkpoint, 10 images \(x, b"):
        start(resume="auto", names="xbcdefghij")


def test_what_may_change(start):
    start().end_epoch(0, TRAINED, result(1.0))
    run = start(resume="auto", options={"print_freq": 1, "on_nan": "skip", "keep": 3, "batch_size": 1, "accum_iter": 4})
    assert run.state.start_epoch == 1


def test_names_that_cannot_be_allowed(start):
    with pytest.raises(ValueError, match="--allow_changes epoch keep: expected"):
        start(resume="auto", options={"allow_changes": ["keep", "epoch", "lr"]})


def test_within_an_epoch_the_batch_cannot_change(start):
    train(start(options={"save_steps": 1}), 0, stop_after=1)
    with pytest.raises(ValueError, match="written within an epoch"):
        start(resume="auto", options={"batch_size": 3, "accum_iter": 2, "allow_changes": ["batch_size"]})


@pytest.mark.parametrize("name, then, now", [
    ("architecture", {"name": "tiny", "img_size": 8}, {"name": "tiny", "img_size": [8, 8]}),
    ("normalization", {"mean": [0.5], "std": [1]}, {"mean": (0.5,), "std": (1.0,)})])
def test_the_same_written_otherwise_is_the_same(start, name, then, now):
    start(**{name: then}).end_epoch(0, TRAINED, result(1.0))
    assert start(resume="auto", **{name: now}).state.start_epoch == 1


@pytest.mark.parametrize("start_epoch", [0, 1])  # a checkpoint knows it better
def test_a_checkpoint_from_elsewhere_begins_its_log_here_and_puts_aside_what_there_is(start, tmp_path, start_epoch):
    start(output_dir=str(tmp_path / "a")).end_epoch(0, {**TRAINED, "loss": 7.0}, result(10.0))
    start().end_epoch(0, TRAINED, result(90.0))
    run = start(resume=tmp_path / "a" / "checkpoint-latest.pd", options={"start_epoch": start_epoch})
    run.end_epoch(1, TRAINED, result(5.0))
    assert [line["train_loss"] for line in read_log(tmp_path / "run")] == [7.0, 0.5]
    assert epochs_of(tmp_path / "run") == {"latest": 1}  # and not the best of the other one
    assert epochs_of(tmp_path / "run" / "earlier.1") == {"latest": 0, "best": 0, "0": 0}


def test_a_torn_log_is_written_anew_from_the_checkpoint(start, tmp_path):
    start().end_epoch(0, TRAINED, result(1.0))
    (tmp_path / "run" / "log.txt").write_text('{"train_lo')
    start(resume="auto").end_epoch(1, TRAINED, result(1.0))
    assert [line["epoch"] for line in read_log(tmp_path / "run")] == [0, 1]


def test_pictures_that_were_skipped_are_an_error_to_a_run_that_skips_none(start):
    run = start()
    run.loader.bad_images.action = "skip"
    run.loader.bad_images.reasons["a.jpg"] = "it is empty"
    run.end_epoch(0, TRAINED, result(1.0))
    with pytest.raises(ValueError, match="a.jpg cannot be read"):
        start(resume="auto")


def test_unreadable_pictures_are_remembered(start):
    run = start()
    run.loader.bad_images.reasons["a.jpg"] = "it is empty"
    run.end_epoch(0, TRAINED, result(1.0))
    assert start(resume="auto", bad_images="skip").loader.bad_images.reasons == {"a.jpg": "it is empty"}


def test_whether_a_brings_weights(start, tmp_path):
    assert not brings_weights("", tmp_path) and not brings_weights("auto", tmp_path / "run")
    start().end_epoch(0, TRAINED, result(1.0))
    assert brings_weights("auto", tmp_path / "run") and brings_weights("x.pd", tmp_path)


@pytest.mark.parametrize("name, value", [("epoch", "3"), ("args", [1]), ("progress", 5), ("log", {}), ("scaler", 1)])
def test_entries_of_another_type_are_a_sentence(start, tmp_path, name, value):
    start().end_epoch(0, TRAINED, result(1.0))
    path = tmp_path / "run" / "checkpoint-latest.pd"
    state = checkpoint.read_checkpoint(path)
    with open(path, "wb") as f:
        sealed_pickle.dump({**state, name: value}, f)
    with pytest.raises(checkpoint.CheckpointError, match=f"'{name}'"):
        start(resume=path)


def test_auto_without_a_checkpoint_is_a_new_run(start, capsys):
    assert start(resume="auto").state.start_epoch == 0
    assert "there is no checkpoint in" in capsys.readouterr().out


def test_auto_needs_a_folder(start):
    with pytest.raises(ValueError, match="--resume auto: .*--output_dir"):
        start(resume="auto", output_dir="")


# ---- signals

@pytest.fixture
def listening():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signals.listen()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signals._wish, signals._patient = "", False


def test_a_signal_ends_the_run_after_the_update(start, listening, capfd):
    run = start(options={"resume": "auto"})
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # Paddle's launcher sends three
    assert "SIGTERM: the run will be saved" in capfd.readouterr().err
    with pytest.raises(signals.Stopped, match="in epoch 0 after step 2 of 5; the same command continues there"):
        train(run, 0)
    assert saved(run) == (0, 2)


def test_a_signal_in_an_evaluation(start, listening):
    run = start()
    train(run, 0)
    run.stop_in_evaluation()
    assert saved(run) is None
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(signals.Stopped, match="in the evaluation of epoch 0, .*with --resume auto continues"):
        run.stop_in_evaluation()
    assert saved(run) == (0, 5)


def test_a_signal_while_averaged_weights_are_evaluated(start, listening):
    """What is saved are the weights and the average, each as what it is."""
    run = start(averages=True)
    train(run, 0)
    weight, average = run.state.model.weight.numpy(), run.state.ema.arrays()["weight"]
    calls = []

    def evaluate(after_batch):
        calls.append(run.state.model.weight.numpy())
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        after_batch()

    with pytest.raises(signals.Stopped, match="in the evaluation of epoch 0"):
        run.evaluate(0, evaluate)
    assert (calls[0] == weight).all() and (calls[1] == average).all() and (weight != average).any()
    state = read_state(os.path.join(run.saving.output_dir, "checkpoint-latest.pd"))
    assert (state["model"]["weight"] == weight).all() and (state["model_ema"]["weight"] == average).all()


@pytest.mark.parametrize("epoch, ends", [(7, True), (8, False)])
def test_a_signal_between_epochs(start, listening, epoch, ends):
    """Of nine epochs, the last one is the end anyway."""
    run = start()
    signal.raise_signal(signal.SIGTERM)
    if ends:
        with pytest.raises(signals.Stopped, match="after epoch 7"):
            run.end_epoch(epoch, TRAINED, result(1.0))
    else:
        run.end_epoch(epoch, TRAINED, result(1.0))
    assert saved(run) == (epoch + 1, 0)


def test_a_signal_before_the_training_is_an_exception(listening):
    with pytest.raises(signals.Stopped, match="nothing to save"):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # while that one is under way
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_second_interrupt_ends_at_once(start, listening):
    start()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


# ---- when it cannot be written

def fail(*args, **options):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("in_background", [False, True])
def test_a_full_disk_is_a_sentence_and_leaves_the_checkpoint_before(start, monkeypatch, in_background):
    run = start(options={"save_async": in_background})
    run.end_epoch(0, TRAINED, result(1.0))
    run.finish()
    monkeypatch.setattr(sealed_pickle, "dump", fail)
    with pytest.raises(ValueError, match="(?s)--output_dir .*could not be written .*No space left.*--resume auto"):
        run.end_epoch(1, TRAINED, result(2.0))
        run.finish()
    assert saved(run) == (1, 0) and not [name for name in os.listdir(run.saving.output_dir) if name.startswith(".")]


def test_another_process_ends_with_the_first(start, monkeypatch):
    run = start()
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    monkeypatch.setattr(distributed, "all_sum", lambda values: [1] * len(values))
    with pytest.raises(ValueError, match="the first process, which writes there, has failed"):
        run.end_epoch(0, TRAINED, result(1.0))


def test_a_full_disk_does_not_hide_a_loss_that_is_not_finite(start, monkeypatch):
    run = start()
    monkeypatch.setattr("util.run.nan_guard.atomic_write", fail)
    with pytest.raises(FloatingPointError, match="report could not be written .*No space left"):
        loss_is_nan(run)


def test_weights_that_are_not_finite_are_not_saved(start):
    run = start()
    run.end_epoch(0, TRAINED, result(1.0))
    run.state.model.weight.set_value(paddle.full([2, 3], float("nan")))
    with pytest.raises(FloatingPointError, match="weight"):
        run.end_epoch(1, TRAINED, result(1.0))
    assert saved(run) == (1, 0)


def test_writing_in_the_background_does_not_wait_and_keeps_the_state_of_its_moment(start, monkeypatch):
    run = start(options={"save_async": True})
    go_on, dump = threading.Event(), sealed_pickle.dump

    def dump_late(state, file):
        go_on.wait(10)
        dump(state, file)
    monkeypatch.setattr(sealed_pickle, "dump", dump_late)
    before = run.state.model.weight.numpy().copy()
    run.end_epoch(0, TRAINED, result(1.0))
    assert saved(run) is None  # and yet it went on
    run.state.model.weight.set_value(run.state.model.weight + 1)
    go_on.set()
    run.finish()
    assert (read_state(os.path.join(run.saving.output_dir, "checkpoint-latest.pd"))["model"]["weight"] == before).all()


def test_too_little_space_is_said_before_anything_is_written(start, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(ValueError, match="--output_dir .*0.1 kB are free, and this run needs"):
        start()
    assert list(tmp_path.iterdir()) == []


# ---- losses that are not finite

def loss_is_nan(run, step=1):
    log = run.begin_epoch(0, tag="loss")
    log.lrs, log.losses, log.sync.own_losses = [0.1] * (step + 1), [0.5] * step + [float("nan")], [float("nan")]
    run.nan_guard.handle(log, step, run.state.model, (paddle.to_tensor([[float("inf"), 1.0]]),))


def test_the_report_names_what_there_is_to_know(start, tmp_path):
    run = start(evaluates=False)
    run.state.model = paddle.nn.Sequential(run.state.model)
    with pytest.raises(FloatingPointError, match=r"epoch 0 step 1 .*layer .* is 0 .*not_finite_0_1\.json.*--on_nan skip"):
        loss_is_nan(run)
    report = json.loads((tmp_path / "run" / "not_finite_0_1.json").read_text())
    sampler = run.loader.sampler
    sampler.set_epoch(0)
    second = list(sampler)[1]
    assert report["epoch"] == 0 and report["step"] == 1 and report["lr"] == 0.1 and "scaler" in report
    process, = report["processes"]
    assert process["pictures"] == [f"/data/{'abcdefghij'[index]}.jpg" for _, index in second]
    assert process["first_not_finite"] == {
        "layer": "0", "inputs": [{"shape": [1, 2], "min": 1.0, "max": 1.0, "not_finite": 1}]}
    assert process["loss"] == "nan" and not (tmp_path / "run" / "checkpoint-latest.pd").exists()


def test_skipping_ends_after_a_few_in_a_row(start, capsys):
    run = start(options={"on_nan": "skip"})
    loss_is_nan(run)
    assert "This update is left out" in capsys.readouterr().out
    run.after_update(2, skipped=True)
    loss_is_nan(run)
    run.after_update(2, skipped=False)
    for _ in range(2):
        loss_is_nan(run)
        run.after_update(2, skipped=True)
    with pytest.raises(FloatingPointError, match="leaves out 2 updates in a row, and this would be one more"):
        loss_is_nan(run)


def nothing_but_nan(run, until):
    """Steps of an epoch whose every loss is NaN, so that every update is left out."""
    log = run.begin_epoch(0, tag="loss")
    for step, _ in log.batches(run.loader):
        bad = log.update(step, paddle.to_tensor(float("nan")), 0.1)
        run.nan_guard.handle(log, bad, run.state.model, (paddle.ones([1, 2]),))
        if step % 2 == 1:
            run.after_update(step + 1, skipped=True)
        if step == until:
            return


def test_a_resumed_run_remembers_how_many_it_has_skipped_in_a_row(start):
    nothing_but_nan(start(options={"on_nan": "skip", "save_steps": 1}), until=3)
    again = start(resume="auto", options={"on_nan": "skip"})
    with pytest.raises(FloatingPointError, match="step 4 .*2 updates in a row, and this would be one more"):
        nothing_but_nan(again, until=4)
    assert again.log.skipped == 2


def test_skipping_does_not_help_weights_that_are_lost(start):
    run = start(options={"on_nan": "skip"})
    run.state.model.weight.set_value(paddle.full([2, 3], float("nan")))
    with pytest.raises(FloatingPointError, match="--on_nan skip cannot help, since these are affected already: weight"):
        loss_is_nan(run)


def test_scalars_can_be_read_by_visualdl(start, tmp_path):
    from visualdl import LogReader
    run = start(log_dir=str(tmp_path / "vdl"))
    run.end_epoch(0, TRAINED, result(40.0))
    run.end_epoch(1, TRAINED, result(60.0))
    run.scalars.close()
    log, = (tmp_path / "vdl").iterdir()
    reader = LogReader(file_path=str(log))
    assert {tag: [(point.id, point.value) for point in reader.get_data("scalar", tag)]
            for tag in ("perf/test_acc1", "perf/test_acc5", "perf/test_loss")} == {
        "perf/test_acc1": [(0, 40.0), (1, 60.0)], "perf/test_acc5": [(0, 99.0), (1, 99.0)],
        "perf/test_loss": [(0, 2.0), (1, 2.0)]}
