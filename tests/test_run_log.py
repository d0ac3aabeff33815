"""What a run prints and writes: the official forms, by hand-written values."""
import json
import math
import re
import sys
import time

import pytest
import yaml

from util import distributed, run_log
from util.run_log import EpochLog

STAMP = r"\[\d\d:\d\d:\d\d\.\d{6}\] "


class Loss:
    """A loss on a device: counts how often it is read."""
    reads = 0

    def __init__(self, value):
        self.value = value

    def item(self):
        Loss.reads += 1
        return self.value


class Scalars:
    def __init__(self):
        self.points = []

    def add_scalar(self, tag, value, step):
        self.points.append((tag, value, step))


class Batch:
    shape = [4, 3, 8, 8]


def run_epoch(losses, lrs, *, epoch=0, **options):
    """An epoch log that was told `losses` and `lrs`, step by step, and what each update returned."""
    log = EpochLog(epoch, len(losses), **options)
    bad = [log.update(step, Loss(losses[step]), lrs[step]) for step, _ in log.batches([(Batch(),)] * len(losses))]
    return log, bad


def test_say_has_the_time_in_front_and_nothing_to_say_about_nothing(capsys):
    run_log.say("hello")
    run_log.say("")
    assert re.fullmatch(STAMP + "hello\n", capsys.readouterr().out)


def test_only_the_first_process_speaks(capsys, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    run_log.say("hello")
    log, _ = run_epoch([1.0, 2.0], [0.1, 0.1])
    assert log.means()["loss"] == 1.5
    assert list(run_log.progress([1, 2], "evaluating")) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_lines_of_an_epoch(capsys):
    run_epoch([4.0, 1.0, 2.0, 8.0, 5.0], [0.0, 1e-7, 2.5e-4, 1e-3, 6.4], epoch=3, print_freq=2)
    lines = capsys.readouterr().out.splitlines()
    number = r"\d+\.\d{4}"
    # Step, then the latest lr, the lower median of the last 20 losses, and the mean of all.
    for line, step, rest in zip(lines, (0, 2, 4), (
            r"lr: 0\.000e\+00  loss: 4\.0000 \(4\.0000\)", r"lr: 2\.500e-04  loss: 2\.0000 \(2\.3333\)",
            r"lr: 6\.400e\+00  loss: 4\.0000 \(4\.0000\)"), strict=True):
        assert re.fullmatch(
            STAMP + rf"Epoch: \[3\]  \[{step}/5\]  eta: 0:00:00  {rest}  time: {number}  data: {number}", line), line


def test_the_median_is_the_lower_of_the_middle_two_and_of_the_last_20(capsys):
    run_epoch([100.0] * 30 + [1.0] * 10 + [3.0] * 10, [0.1] * 50, print_freq=100)
    assert "loss: 1.0000 (60.8000)" in capsys.readouterr().out.splitlines()[-1]


def test_the_step_number_is_as_wide_as_the_last_one(capsys):
    run_epoch([1.0] * 101, [0.1] * 101, print_freq=50)
    steps = re.findall(r"\[ *\d+/101\]", capsys.readouterr().out)
    assert steps == ["[  0/101]", "[ 50/101]", "[100/101]"]


def test_means_of_an_epoch(capsys):
    log, _ = run_epoch([1.0, 2.0, 6.0], [0.0, 1e-4, 2e-4])
    capsys.readouterr()
    means = log.means()
    assert means["lr"] == pytest.approx(1e-4) and means["loss"] == 3.0 and means["images_per_s"] > 0
    total, averaged, *_ = capsys.readouterr().out.splitlines()
    assert re.fullmatch(STAMP + r"Epoch: \[0\] Total time: 0:00:00 \(\d+\.\d{4} s / it, \d+\.\d % waiting for data\)",
                        total)
    assert re.fullmatch(STAMP + r"Averaged stats: lr: 1\.000e-04  loss: 3\.0000", averaged)


def test_images_per_second_counts_all_processes(monkeypatch):
    log, _ = run_epoch([1.0] * 5, [0.1] * 5)
    assert log.images == 20
    monkeypatch.setattr(distributed, "world_size", lambda: 8)
    monkeypatch.setattr(distributed, "all_sum", lambda values: [8 * value for value in values])
    log, _ = run_epoch([1.0] * 5, [0.1] * 5)
    assert log.images == 160 and log.losses == [1.0] * 5


# Waiting for data

class Clock:
    """Stands still except while somebody waits for a batch or computes a step."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


class Loader:
    """Hands out a batch after each of the `waits`, in seconds of a Clock."""

    def __init__(self, clock, waits, **attributes):
        self.clock, self.waits = clock, waits
        vars(self).update(attributes)

    def __iter__(self):
        for seconds in self.waits:
            self.clock.now += seconds
            yield Batch(),


def wait(monkeypatch, waits, compute, **options):
    """Means of an epoch of steps that take `compute` seconds, each after waiting for its batch."""
    attributes = {name: options.pop(name) for name in ("num_workers",) if name in options}
    clock = Clock(monkeypatch)
    log = EpochLog(2, len(waits), **options)
    for step, _ in log.batches(Loader(clock, waits, **attributes)):
        log.update(step, Loss(1.0), 0.1)
        clock.now += compute
    return log.means()


def test_the_share_of_time_that_steps_wait_for_data(monkeypatch, capsys):
    scalars = Scalars()
    means = wait(monkeypatch, [1.0, 0.5, 0.5, 0.0], 1.0, num_workers=3, scalars=scalars)
    assert means["data_wait"] == 33.3  # 2 s of 6 s
    assert scalars.points[-1] == ("data_wait", 33.3, 3000)
    said = capsys.readouterr().out
    assert "Epoch: [2] Total time: 0:00:06 (1.5000 s / it, 33.3 % waiting for data)\n" in said
    # Without the first batch it is 1 s of 5 s: more workers would help.
    assert said.endswith("] waited for data 33 % of the time: raise --num_workers (now 3), pack the images with "
                         "tools/pack_dataset.py, or use --image_backend fast\n")


def test_a_loader_that_does_not_know_its_workers(monkeypatch, capsys):
    wait(monkeypatch, [0.0, 1.0], 1.0)
    assert "raise --num_workers, pack the images" in capsys.readouterr().out


def test_waiting_for_the_workers_to_start(monkeypatch, capsys):
    means = wait(monkeypatch, [5.0, 0.1, 0.1, 0.1], 1.0, num_workers=3)
    assert means["data_wait"] == 57.0  # 5.3 s of 9.3 s; later 0.3 s of 4.3 s
    assert capsys.readouterr().out.endswith("] waited for data 57 % of the time, mostly for the first batch, when the "
                                            "workers start (longer epochs wait less)\n")


@pytest.mark.parametrize("later", [0.10, 0.12])
def test_words_above_ten_per_cent_only(monkeypatch, capsys, later):
    wait(monkeypatch, [0.0] + [later] * 9, 1 - later)  # the first step waits for nothing
    assert ("waited for data" in capsys.readouterr().out) == (later > 0.11)


def test_an_epoch_of_one_step(monkeypatch, capsys):
    assert wait(monkeypatch, [3.0], 0.0)["data_wait"] == 100.0
    assert "mostly for the first batch" in capsys.readouterr().out


def test_the_process_that_waits_most_counts(monkeypatch, capsys):
    """Of three processes, the others having waited for 20 and 60 % in all, 30 and 0 % behind the first batch."""
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "is_main", lambda: True)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    told = []

    def all_sum(values):
        if len(values) == 2:  # a loss, and how many unreadable pictures
            return [3 * value for value in values]
        told.append(values)
        return [mine + other for mine, other in zip(values, [0.2, 0.0, 0.6, 0.3, 0.0, 0.0], strict=True)]

    monkeypatch.setattr(distributed, "all_sum", all_sum)
    assert wait(monkeypatch, [1.0, 0.0], 1.5, num_workers=4)["data_wait"] == 60.0
    assert told == [[0.0, 0.25, 0.0, 0.0, 0.0, 0.0]]
    assert "waited for data 60 % of the time: raise --num_workers (now 4)" in capsys.readouterr().out


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_told_at_once_on_a_cpu(value):
    _, bad = run_epoch([1.0, value, 1.0], [0.1] * 3)
    assert bad == [None, 1, None]


def test_a_loss_that_is_not_finite_elsewhere_is_told_to_every_process(monkeypatch):
    """Or one process would stop, and the others wait for its gradients forever."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    others = iter([1.0, math.nan, 1.0])
    monkeypatch.setattr(distributed, "all_sum", lambda values: [values[0] + next(others), *values[1:]])
    log, bad = run_epoch([3.0, 3.0, 3.0], [0.1] * 3)
    assert bad == [None, 1, None] and (log.losses[0], log.losses[2]) == (2.0, 2.0)


def test_a_device_is_read_when_a_line_is_due_only(monkeypatch):
    monkeypatch.setattr("paddle.get_device", lambda: "gpu:0")
    monkeypatch.setattr("paddle.device.cuda.max_memory_allocated", lambda: 3 * 2 ** 20)
    Loss.reads, reads = 0, []
    log = EpochLog(0, 6, print_freq=3)
    for step, _ in log.batches([(Batch(),)] * 6):
        bad = log.update(step, Loss(math.nan if step in (2, 5) else 1.0), 0.1)
        reads.append((Loss.reads, bad))
    # Steps 0 and 3 print and read what has gathered; so does the last. The first bad step is named.
    assert reads == [(1, None), (1, None), (1, None), (4, 2), (4, None), (6, 5)]


def test_scalars_stand_at_thousandths_of_an_epoch():
    scalars = Scalars()
    run_epoch([1.0, 2.0, 3.0], [0.1, 0.2, 0.3], epoch=2, scalars=scalars, tag="train_loss")
    assert scalars.points == [
        ("train_loss", 1.0, 2000), ("lr", 0.1, 2000), ("train_loss", 2.0, 2333), ("lr", 0.2, 2333),
        ("train_loss", 3.0, 2666), ("lr", 0.3, 2666)]


def test_on_a_terminal_there_is_a_bar_instead_of_lines(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run_epoch([1.0] * 25, [0.1] * 25, epoch=7)
    said = capsys.readouterr()
    assert said.out == "" and "epoch 7" in said.err and "/25" in said.err
    assert list(run_log.progress([1, 2], "evaluating")) == [1, 2]
    assert "evaluating" in capsys.readouterr().err


def test_evaluation_line():
    """The published ViT-B result in the official form."""
    result = {"acc1": 83.6640, "acc5": 96.53, "loss": 0.73149, "images": 7, "left_out": 0}
    line = "* Acc@1 83.664 Acc@5 96.530 loss 0.731"
    assert run_log.evaluation(result) == line
    assert run_log.evaluation({**result, "left_out": 2}) == line + " (7 pictures; 2 left out that cannot be read)"


# log.txt and what lies beside it

def test_log_has_one_json_object_an_epoch(tmp_path):
    for epoch in range(3):
        run_log.append(tmp_path, train_lr=1.5e-4, train_loss=1 / 3, epoch=epoch)
    lines = (tmp_path / "log.txt").read_text().split("\n")
    assert lines[0] == '{"train_lr": 0.00015, "train_loss": 0.3333333333333333, "epoch": 0}'
    assert [json.loads(line)["epoch"] for line in lines[:-1]] == [0, 1, 2] and lines[-1] == ""


def test_a_resumed_run_replaces_the_epochs_that_it_repeats(tmp_path):
    for epoch, loss in [(0, 9.0), (1, 8.0), (2, 7.0), (3, 6.0), (1, 5.0), (2, 4.0)]:
        run_log.append(tmp_path, train_loss=loss, epoch=epoch)
    lines = [json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert [(line["epoch"], line["train_loss"]) for line in lines] == [(0, 9.0), (1, 5.0), (2, 4.0)]


def test_a_new_run_keeps_the_logs_of_those_before(tmp_path):
    for loss in (1.0, 2.0, 3.0):
        run_log.start(tmp_path, {}, start_epoch=0)
        assert not (tmp_path / "log.txt").exists()
        run_log.append(tmp_path, train_loss=loss, epoch=0)
    run_log.start(tmp_path, {}, start_epoch=1)  # goes on in the same one
    losses = {path.name: json.loads(path.read_text())["train_loss"] for path in tmp_path.glob("log*.txt")}
    assert losses == {"log.1.txt": 1.0, "log.2.txt": 2.0, "log.txt": 3.0}


@pytest.mark.parametrize("start_epoch", [0, 1])
def test_only_a_run_that_goes_on_keeps_its_list_of_unreadable_pictures(tmp_path, start_epoch):
    for split in ("train", "val"):
        (tmp_path / f"bad_images_{split}.txt").touch()
    run_log.start(tmp_path, {}, start_epoch=start_epoch)
    assert len(list(tmp_path.glob("bad_images_*.txt"))) == 2 * start_epoch


def test_start_writes_options_and_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main_pretrain.py", "--seed", "3"])
    run_log.start(tmp_path / "a" / "b", {"seed": 3, "config": "x.yaml", "lr": None}, start_epoch=0)
    assert yaml.safe_load((tmp_path / "a" / "b" / "options.yaml").read_text()) == {"seed": 3, "lr": None}
    environment = json.loads((tmp_path / "a" / "b" / "environment.json").read_text())
    assert environment["command"] == ["main_pretrain.py", "--seed", "3"] and environment["processes"] == 1
    assert environment["python"] == ".".join(map(str, sys.version_info[:3])) and environment["device"] == "cpu"
    assert {"git_revision", "git_dirty", "paddle", "numpy", "platform", "cpu", "started"} <= environment.keys()


def test_an_environment_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(run_log.provenance, "git_state", run_log.provenance.git_state.__wrapped__)  # without its cache
    environment = run_log.environment()
    assert environment["git_revision"] is None and environment["git_dirty"] is None


@pytest.mark.parametrize("output_dir, rank", [("", 0), ("out", 1)])
def test_start_writes_nothing_without_a_folder_or_on_another_process(tmp_path, monkeypatch, output_dir, rank):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    run_log.start(output_dir, {}, start_epoch=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("log_dir, rank", [("", 0), (None, 0), ("vdl", 1)])
def test_no_scalars_without_a_folder_or_on_another_process(tmp_path, monkeypatch, log_dir, rank):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    assert run_log.scalar_writer(log_dir) is None and list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ValueError, match="--output_dir .*file: cannot be written to"):
        run_log.start(str(tmp_path / "file"), {}, start_epoch=0)
