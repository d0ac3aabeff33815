"""Epochs of a run: its log and checkpoints, resuming within an epoch, and stopping on a signal."""

import os
import signal

import numpy as np
import paddle
import pytest
from scripts import read_log, read_state
from training_runs import OPTIONS, TRAINED, epochs_of, result, saved, train

from util.run import checkpoints
from util.system import distributed, signals


def test_an_epoch_of_pretraining(start, tmp_path):
    run = start(classes=None, evaluates=False)
    run.end_epoch(0, TRAINED)
    run.end_epoch(1, TRAINED)
    assert epochs_of(tmp_path / "run") == {"0": 0, "latest": 1, "previous": 0}
    assert read_log(tmp_path / "run")[1] == {
        "train_lr": 1e-4,
        "train_loss": 0.5,
        "train_images_per_s": 9.0,
        "epoch": 1,
    }
    state = read_state(tmp_path / "run" / "checkpoint-latest.pd")
    assert {"model", "optimizer", "scaler", "epoch", "args", "architecture", "normalization"} <= state.keys()
    assert "progress" not in state and "max_accuracy" not in state and state["images_an_update"] == 4
    assert state["data"] == "10 images (a, b, c, d, e, f, g, h, i, j)"
    assert state["architecture"] == {"name": "tiny"} and state["optimizer"].keys() == {"weight"}
    assert state["args"].items() >= OPTIONS.items()
    assert (state["model"]["weight"] == run.state.model.weight.numpy()).all()


def test_an_epoch_of_a_classifier(start, tmp_path):
    start().end_epoch(0, TRAINED, result(40.0))
    assert read_log(tmp_path / "run") == [
        {
            "train_lr": 1e-4,
            "train_loss": 0.5,
            "train_images_per_s": 9.0,
            "test_loss": 2.0,
            "test_acc1": 40.0,
            "test_acc5": 99.0,
            "n_parameters": 6,
            "epoch": 0,
        }
    ]  # 2 x 3 trained weights; the 3 biases are frozen
    state = read_state(tmp_path / "run" / "checkpoint-best.pd")
    assert state["classes"] == ["cat", "dog"] and state["max_accuracy"] == 40.0


def test_an_average_follows_updates_and_not_skipped_ones(start):
    run = start(averages=True)
    before = run.state.model.weight.numpy()
    train(run, 0)  # three updates, each of which adds 1
    expected = before + np.float32(0.25 * 3 + 0.75 * (0.25 * 2 + 0.75 * 0.25))
    np.testing.assert_allclose(run.state.ema.arrays()["weight"], expected, rtol=1e-5)
    run.after_update(5, skipped=True)
    np.testing.assert_allclose(run.state.ema.arrays()["weight"], expected, rtol=1e-5)


@pytest.mark.parametrize("folder, rank", [("", 0), ("run", 1)])
def test_nothing_is_written_without_a_folder_or_by_another_process(
    start, tmp_path, monkeypatch, folder, rank
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distributed, "is_main", lambda: rank == 0)
    start(folder=folder).end_epoch(0, TRAINED, result(1.0))
    assert list(tmp_path.iterdir()) == []


def test_scalars_can_be_read_by_visualdl(start, tmp_path):
    from visualdl import LogReader

    run = start(options={"log_dir": str(tmp_path / "vdl")})
    run.end_epoch(0, TRAINED, result(40.0))
    run.end_epoch(1, TRAINED, result(60.0))
    run.finish()
    (log,) = (tmp_path / "vdl").iterdir()
    reader = LogReader(file_path=str(log))
    found = {
        tag: [(point.id, point.value) for point in reader.get_data("scalar", f"perf/test_{tag}")]
        for tag in ("acc1", "acc5", "loss")
    }
    assert found == {
        "acc1": [(0, 40.0), (1, 60.0)],
        "acc5": [(0, 99.0), (1, 99.0)],
        "loss": [(0, 2.0), (1, 2.0)],
    }


# ---- resuming


def test_a_resumed_run_remembers_the_best(start, tmp_path, capsys):
    run = start()
    run.end_epoch(0, TRAINED, result(50.0))
    run.end_epoch(1, TRAINED, result(40.0))
    resumed = start(tmp_path / "run" / "checkpoint-latest.pd")
    assert resumed.state.start_epoch == 2 and "continuing with epoch 2" in capsys.readouterr().out
    assert (resumed.state.model.weight.numpy() == run.state.model.weight.numpy()).all()
    resumed.end_epoch(2, TRAINED, result(45.0))
    assert epochs_of(tmp_path / "run") == {"best": 0, "latest": 2, "previous": 1, "0": 0}
    assert [line["epoch"] for line in read_log(tmp_path / "run")] == [0, 1, 2]
    resumed.end_epoch(3, TRAINED, result(55.0))
    assert epochs_of(tmp_path / "run") == {"best": 3, "latest": 3, "previous": 2, "0": 0}


def test_auto_without_a_checkpoint_is_a_new_run(start, capsys):
    assert start("auto").state.start_epoch == 0
    assert "there is no checkpoint in" in capsys.readouterr().out
    with pytest.raises(ValueError, match="--resume auto: .*--output_dir"):
        start("auto", folder="")


def test_bare_weights_start_at_start_epoch(start, tmp_path, capsys):
    weights = {"weight": np.full([2, 3], 7, "float32"), "bias": np.zeros([3], "float32")}
    paddle.save(weights, str(tmp_path / "bare.pd"))
    run = start(str(tmp_path / "bare.pd"), options={"start_epoch": 4})
    assert run.state.start_epoch == 4 and (run.state.model.weight.numpy() == 7).all()
    assert "bare weights" in capsys.readouterr().out


def test_a_step_back_brings_the_best_of_its_time_back(start, tmp_path):
    run = start(options={"keep": 9})
    for epoch, acc1 in enumerate([10.0, 50.0, 40.0, 60.0]):
        run.end_epoch(epoch, TRAINED, result(acc1))
    resumed = start(tmp_path / "run" / "checkpoint-1.pd", options={"keep": 9})
    assert resumed.state.max_accuracy == 50.0
    assert epochs_of(tmp_path / "run") == {"0": 0, "1": 1, "best": 1, "latest": 1}


def test_a_run_killed_while_naming_its_first_checkpoint_gets_all_names(start, tmp_path):
    """It has its number by then, and is neither the best nor the latest."""
    start().end_epoch(0, TRAINED, result(50.0))
    for name in ("latest", "best"):
        (tmp_path / "run" / f"checkpoint-{name}.pd").unlink()
    assert start("auto").state.start_epoch == 1
    assert epochs_of(tmp_path / "run") == {"0": 0, "best": 0, "latest": 0}


@pytest.mark.parametrize("start_epoch", [0, 1])  # the checkpoint's own counts
def test_a_checkpoint_from_elsewhere_begins_its_log_here_and_moves_other_files_away(
    start, tmp_path, start_epoch
):
    start(folder=tmp_path / "a").end_epoch(0, {**TRAINED, "loss": 7.0}, result(10.0))
    start().end_epoch(0, TRAINED, result(90.0))
    run = start(tmp_path / "a" / "checkpoint-latest.pd", options={"start_epoch": start_epoch})
    run.end_epoch(1, TRAINED, result(5.0))
    assert [line["train_loss"] for line in read_log(tmp_path / "run")] == [7.0, 0.5]
    assert epochs_of(tmp_path / "run") == {"latest": 1}  # the best of the other run is no more
    assert epochs_of(tmp_path / "run" / "earlier.1") == {"latest": 0, "best": 0, "0": 0}


def test_a_torn_log_is_written_anew_from_the_checkpoint(start, tmp_path):
    start().end_epoch(0, TRAINED, result(1.0))
    (tmp_path / "run" / "log.txt").write_text('{"train_lo')
    start("auto").end_epoch(1, TRAINED, result(1.0))
    assert [line["epoch"] for line in read_log(tmp_path / "run")] == [0, 1]


def test_a_resumed_epoch_continues_with_its_next_step_and_has_the_means_of_all(start, tmp_path):
    losses = [1 / 3, 0.2, 0.7, 1 / 7, 0.1]
    whole = start(folder=tmp_path / "whole")
    assert train(whole, 0, losses=losses) == [0, 1, 2, 3, 4]
    train(start(options={"save_steps": 1}), 0, losses=losses, stop_after=2)
    second = start("auto")
    assert second.state.start_epoch == 0
    assert train(second, 0, losses=losses) == [2, 3, 4]
    assert {name: second.log.means()[name] for name in ("lr", "loss")} == {
        name: whole.log.means()[name] for name in ("lr", "loss")
    }
    assert second.log.timer.images == 10
    assert train(second, 1) == [0, 1, 2, 3, 4]  # the next one is whole


def test_an_epoch_that_lacks_only_its_evaluation(start):
    train(start(options={"save_steps": 3}), 0, losses=[1.0, 2.0, 3.0, 4.0, 5.0])
    second = start("auto")
    assert train(second, 0) == [] and second.log.means()["loss"] == 3.0


@pytest.mark.parametrize(
    "batch_size, accum_iter, steps, loss",
    [(4, 1, [1], (0.5 + 3.0) / 2), (1, 4, [4, 5, 6, 7, 8, 9], (4 * 0.5 + sum(range(4, 10))) / 10)],
)
def test_another_division_of_the_same_batch(start, batch_size, accum_iter, steps, loss):
    """4 images had been seen, with a mean loss of 0.5. (The last 2 of 10 images do not fill a batch of 4.)"""
    train(start(options={"save_steps": 1}), 0, stop_after=1)
    run = start("auto", options={"batch_size": batch_size, "accum_iter": accum_iter})
    assert train(run, 0, losses=[9, 3.0] if batch_size == 4 else list(map(float, range(10)))) == steps
    assert run.log.means()["loss"] == pytest.approx(loss)


@pytest.mark.parametrize("batch_size, accum_iter", [(3, 2), (2, 3)])
def test_within_an_epoch_the_batch_cannot_change(start, batch_size, accum_iter):
    """After 4 images, a batch of 3 does not begin, nor an update of 3 batches of 2."""
    train(start(options={"save_steps": 1}), 0, stop_after=1)
    with pytest.raises(ValueError, match="--resume .*checkpoint-EPOCH.pd"):
        start(
            "auto",
            options={"batch_size": batch_size, "accum_iter": accum_iter, "allow_changes": ["batch_size"]},
        )


def test_unreadable_images_are_remembered_and_an_error_to_a_run_that_skips_none(start):
    run = start(bad_images="skip")
    run.loader.bad_images.reasons["a.jpg"] = "it is empty"
    run.end_epoch(0, TRAINED, result(1.0))
    assert start("auto", bad_images="skip").loader.bad_images.reasons == {"a.jpg": "it is empty"}
    with pytest.raises(ValueError, match="a.jpg"):
        start("auto")


# ---- signals


def test_a_signal_ends_the_run_after_the_update(start, listening, capfd):
    run = start(options={"resume": "auto"})
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # Paddle's launcher sends three
    assert "SIGTERM" in capfd.readouterr().err
    with pytest.raises(
        signals.Stopped, match="in epoch 0 after step 2 of 5; the same command continues there"
    ):
        train(run, 0)
    assert saved(run) == (0, 2)


def test_a_single_process_stops_at_the_next_update_though_it_reads_losses_rarely(start, listening):
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


def test_a_signal_in_an_evaluation_of_averaged_weights(start, listening):
    """Weights and average are saved, each as what it is."""
    run = start(averages=True)
    train(run, 0)
    run.stop_in_evaluation()
    assert saved(run) is None
    weight, average = run.state.model.weight.numpy(), run.state.ema.arrays()["weight"]
    calls = []

    def evaluate(after_batch):
        calls.append(run.state.model.weight.numpy())
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        after_batch()

    with pytest.raises(signals.Stopped, match="in the evaluation of epoch 0, .*with --resume auto continues"):
        run.evaluate(0, evaluate)
    assert (calls[0] == weight).all() and (calls[1] == average).all() and (weight != average).any()
    path = os.path.join(run.saving.output_dir, "checkpoint-latest.pd")
    state = read_state(path)
    assert (state["model"]["weight"] == weight).all() and (state["model_ema"]["weight"] == average).all()
    assert checkpoints.position(state) == (0, 5)


def test_a_signal_between_epochs(start, listening):
    """Of nine epochs, the last one is the end anyway."""
    run = start()
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(signals.Stopped, match="after epoch 7"):
        run.end_epoch(7, TRAINED, result(1.0))
    run.end_epoch(8, TRAINED, result(1.0))
    assert saved(run) == (9, 0)


def test_a_signal_before_training_is_an_exception_and_a_second_interrupt_ends_at_once(start, listening):
    with pytest.raises(signals.Stopped, match="nothing to save"):
        signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)  # while that one is under way
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    start()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
