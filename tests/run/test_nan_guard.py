"""Losses that are NaN: the report, and updates that --on_nan skip leaves out."""

import json

import paddle
import pytest
from training_runs import TRAINED, fail, result, saved


def loss_is_nan(run, step=1):
    log = run.begin_epoch(0, tag="loss")
    log.lrs, log.losses, log.sync.own_losses = (
        [0.1] * (step + 1),
        [0.5] * step + [float("nan")],
        [float("nan")],
    )
    run.nan_guard.handle(log, step, run.state.model, (paddle.to_tensor([[float("inf"), 1.0]]),))


def test_the_report_names_what_there_is_to_know(start, tmp_path):
    run = start(evaluates=False)
    run.state.model = paddle.nn.Sequential(run.state.model)
    with pytest.raises(
        FloatingPointError,
        match=r"epoch 0 step 1 .*layer .* is 0 "
        r".*not_finite_0_1\.json.*--on_nan skip",
    ):
        loss_is_nan(run)
    report = json.loads((tmp_path / "run" / "not_finite_0_1.json").read_text())
    run.loader.sampler.set_epoch(0)
    second = list(run.loader.sampler)[1]
    assert report["epoch"] == 0 and report["step"] == 1 and report["lr"] == 0.1 and "scaler" in report
    (process,) = report["processes"]
    assert process["pictures"] == [f"/data/{'abcdefghij'[index]}.jpg" for _, index in second]
    assert process["first_not_finite"] == {
        "layer": "0",
        "inputs": [{"shape": [1, 2], "min": 1.0, "max": 1.0, "not_finite": 1}],
    }
    assert process["loss"] == "nan" and not (tmp_path / "run" / "checkpoint-latest.pd").exists()


def test_a_full_disk_does_not_hide_the_loss(start, monkeypatch):
    run = start()
    monkeypatch.setattr("util.run.nan_guard.atomic_write", fail)
    with pytest.raises(FloatingPointError, match="report could not be written .*No space left"):
        loss_is_nan(run)


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
    with pytest.raises(FloatingPointError, match="leaves out 2 updates in a row"):
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
    again = start("auto", options={"on_nan": "skip"})
    with pytest.raises(FloatingPointError, match="step 4 .*2 updates in a row"):
        nothing_but_nan(again, until=4)
    assert again.log.skipped == 2


def test_skipping_does_not_help_weights_that_are_nan(start):
    run = start(options={"on_nan": "skip"})
    run.state.model.weight.set_value(paddle.full([2, 3], float("nan")))
    with pytest.raises(FloatingPointError, match="--on_nan skip cannot help.*: weight"):
        loss_is_nan(run)


def test_weights_that_are_nan_are_not_saved(start):
    run = start()
    run.end_epoch(0, TRAINED, result(1.0))
    run.state.model.weight.set_value(paddle.full([2, 3], float("nan")))
    with pytest.raises(FloatingPointError, match="weight"):
        run.end_epoch(1, TRAINED, result(1.0))
    assert saved(run) == (1, 0)


def test_a_nan_that_is_still_on_a_gpu_is_not_saved(start):
    run = start(options={"save_steps": 1})
    log = run.begin_epoch(0, tag="loss")
    log.sync.read_every = 100
    with pytest.raises(FloatingPointError, match="epoch 0 step 1 is not finite.*not_finite_0_1.json"):
        for step, _ in log.batches(run.loader):
            log.update(step, paddle.to_tensor([0.5, float("nan"), 0.5][step]), 0.1)
            if step % 2 == 1:
                run.after_update(step + 1, skipped=False)
    assert saved(run) is None
