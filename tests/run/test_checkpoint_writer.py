"""Saving within an epoch, in the background, and to a disk that is full."""

import os
import threading

import paddle
import pytest
from scripts import read_state
from training_runs import TRAINED, fail, result, saved, train

from util.system import distributed
from util.weights import sealed_pickle


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
    """At the first update after the time is over; then the time begins anew."""
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


def test_processes_that_read_losses_rarely_save_once_for_a_request(start, monkeypatch):
    """On GPUs: losses are read at steps 0 and 4, and the request of step 0 is met after step 2."""
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


@pytest.mark.parametrize("name", ["save_steps", "save_every_minutes", "start_epoch"])
def test_negative_numbers_are_refused(start, name):
    with pytest.raises(ValueError, match=f"--{name} -1: expected 0"):
        start(options={name: -1})


def test_the_end_of_an_epoch_is_not_saved_twice(start):
    run = start(options={"save_steps": 1}, evaluates=False)
    train(run, 0)
    assert saved(run) == (0, 4)
    run = start(options={"save_steps": 1})  # but before an evaluation
    train(run, 0)
    assert saved(run) == (0, 5)


@pytest.mark.parametrize("in_background", [False, True])
def test_a_full_disk_leaves_the_checkpoint_before(start, monkeypatch, in_background):
    run = start(options={"save_async": in_background})
    run.end_epoch(0, TRAINED, result(1.0))
    run.finish()
    monkeypatch.setattr(sealed_pickle, "dump", fail)
    with pytest.raises(ValueError, match="(?s)--output_dir .*No space left.*--resume auto"):
        run.end_epoch(1, TRAINED, result(2.0))
        run.finish()
    assert saved(run) == (1, 0) and not [
        name for name in os.listdir(run.saving.output_dir) if name.startswith(".")
    ]


def test_another_process_ends_with_the_first(start, monkeypatch):
    run = start()
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    monkeypatch.setattr(distributed, "all_sum", lambda values: [1] * len(values))
    with pytest.raises(ValueError, match="--output_dir .*the first process"):
        run.end_epoch(0, TRAINED, result(1.0))


def test_writing_in_the_background_does_not_wait_and_keeps_the_state_of_its_moment(start, monkeypatch):
    run = start(options={"save_async": True})
    go_on, dump = threading.Event(), sealed_pickle.dump

    def dump_late(state, file):
        go_on.wait(10)
        dump(state, file)

    monkeypatch.setattr(sealed_pickle, "dump", dump_late)
    before = run.state.model.weight.numpy().copy()
    run.end_epoch(0, TRAINED, result(1.0))
    assert saved(run) is None  # it went on
    run.state.model.weight.set_value(run.state.model.weight + 1)
    go_on.set()
    run.finish()
    found = read_state(os.path.join(run.saving.output_dir, "checkpoint-latest.pd"))
    assert (found["model"]["weight"] == before).all()


def test_too_little_space_is_an_error_before_anything_is_written(start, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(ValueError, match="--output_dir .*0.1 kB are free"):
        start()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_at_its_end_needs_no_space(start, monkeypatch):
    start().end_epoch(8, TRAINED, result(1.0))
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 0}))
    assert start("auto").state.start_epoch == 9
