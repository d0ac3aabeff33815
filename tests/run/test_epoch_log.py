"""Console lines, means and VisualDL points of an epoch, by hand-written values in the official form."""

import math
import re
import time

import pytest

from util.run import epoch_log
from util.run.epoch_log import EpochLog
from util.run.epoch_timer import EpochTimer
from util.system import console, distributed

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
    """The log of an epoch with these losses and rates, and what each update returned."""
    log = EpochLog(epoch, len(losses), **options)
    bad = [
        log.update(step, Loss(losses[step]), lrs[step]) for step, _ in log.batches([(Batch(),)] * len(losses))
    ]
    return log, bad


def test_say_has_the_time_in_front_and_nothing_to_say_about_nothing(capsys):
    console.say("hello")
    console.say("")
    assert re.fullmatch(STAMP + "hello\n", capsys.readouterr().out)


def test_only_the_first_process_speaks(capsys, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    console.say("hello")
    log, _ = run_epoch([1.0, 2.0], [0.1, 0.1])
    assert log.means()["loss"] == 1.5
    assert list(console.progress([1, 2], "evaluating")) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_lines_of_an_epoch(capsys):
    run_epoch([4.0, 1.0, 2.0, 8.0, 5.0], [0.0, 1e-7, 2.5e-4, 1e-3, 6.4], epoch=3, print_freq=2)
    lines = capsys.readouterr().out.splitlines()
    number = r"\d+\.\d{4}"
    # Step, then the latest lr, the lower median of the last 20 losses, and the mean of all.
    for line, step, rest in zip(
        lines,
        (0, 2, 4),
        (
            r"lr: 0\.000e\+00  loss: 4\.0000 \(4\.0000\)",
            r"lr: 2\.500e-04  loss: 2\.0000 \(2\.3333\)",
            r"lr: 6\.400e\+00  loss: 4\.0000 \(4\.0000\)",
        ),
        strict=True,
    ):
        assert re.fullmatch(
            STAMP + rf"Epoch: \[3\]  \[{step}/5\]  eta: 0:00:00  {rest}  time: {number}  data: {number}", line
        ), line


def test_the_median_is_the_lower_of_the_middle_two_and_of_the_last_20(capsys):
    run_epoch([100.0] * 30 + [1.0] * 10 + [3.0] * 10, [0.1] * 50, print_freq=100)
    assert "loss: 1.0000 (60.8000)" in capsys.readouterr().out.splitlines()[-1]


def test_means_of_an_epoch(capsys):
    log, _ = run_epoch([1.0, 2.0, 6.0], [0.0, 1e-4, 2e-4])
    assert "grad_norm" not in log.means()  # there were no updates
    capsys.readouterr()
    means = log.means()
    assert means["lr"] == pytest.approx(1e-4) and means["loss"] == 3.0 and means["images_per_s"] > 0
    total, averaged, *_ = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        STAMP + r"Epoch: \[0\] Total time: 0:00:00 \(\d+\.\d{4} s / it, \d+\.\d % waiting "
        r"for data\)",
        total,
    )
    assert re.fullmatch(STAMP + r"Averaged stats: lr: 1\.000e-04  loss: 3\.0000", averaged)


def test_images_per_second_counts_all_processes(monkeypatch):
    log, _ = run_epoch([1.0] * 5, [0.1] * 5)
    assert log.timer.images == 20
    monkeypatch.setattr(distributed, "world_size", lambda: 8)
    monkeypatch.setattr(distributed, "all_sum", lambda values: [8 * value for value in values])
    log, _ = run_epoch([1.0] * 5, [0.1] * 5)
    assert log.timer.images == 160 and log.losses == [1.0] * 5


# Waiting for data


class Clock:
    """Runs only while a batch is waited for or a step is computed."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


class Loader:
    """Yields a batch after each of `waits`, in seconds of a Clock."""

    def __init__(self, clock, waits, **attributes):
        self.clock, self.waits = clock, waits
        vars(self).update(attributes)

    def __iter__(self):
        for seconds in self.waits:
            self.clock.now += seconds
            yield (Batch(),)


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
    assert scalars.points[-2:] == [("data_wait", 33.3, 2), ("images_per_s", 2.7, 2)]  # 16 images in 6 s
    said = capsys.readouterr().out
    assert "Epoch: [2] Total time: 0:00:06 (1.5000 s / it, 33.3 % waiting for data)\n" in said
    # Without the first batch it is 1 s of 5 s: more workers would help.
    assert said.endswith(
        "] waited for data 33 % of the time: raise --num_workers (now 3), pack the images "
        "with tools/pack_dataset.py, or use --image_backend fast\n"
    )


def test_waiting_for_the_workers_to_start(monkeypatch, capsys):
    means = wait(monkeypatch, [5.0, 0.1, 0.1, 0.1], 1.0, num_workers=3)
    assert means["data_wait"] == 57.0  # 5.3 s of 9.3 s; later 0.3 s of 4.3 s
    assert capsys.readouterr().out.endswith(
        "] waited for data 57 % of the time, mostly for the first batch, "
        "when the workers start (longer epochs wait less)\n"
    )


@pytest.mark.parametrize("later", [0.10, 0.12])
def test_a_hint_above_ten_per_cent_only(monkeypatch, capsys, later):
    wait(monkeypatch, [0.0] + [later] * 9, 1 - later)  # the first step waits for nothing
    assert ("waited for data" in capsys.readouterr().out) == (later > 0.11)


def test_an_epoch_of_one_step(monkeypatch, capsys):
    assert wait(monkeypatch, [3.0], 0.0)["data_wait"] == 100.0
    assert "mostly for the first batch" in capsys.readouterr().out


def test_the_process_that_waits_most_counts(monkeypatch, capsys):
    """The other two of three processes waited for 20 and 60 % in all, 30 and 0 % after the first batch."""
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    monkeypatch.setattr(distributed, "is_main", lambda: True)
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    told = []

    def all_sum(values):
        if len(values) == 4:  # a loss, two wishes, and how many unreadable pictures
            return [3 * value for value in values]
        told.append(values)
        return [mine + other for mine, other in zip(values, [0.2, 0.0, 0.6, 0.3, 0.0, 0.0], strict=True)]

    monkeypatch.setattr(distributed, "all_sum", all_sum)
    assert wait(monkeypatch, [1.0, 0.0], 1.5, num_workers=4)["data_wait"] == 60.0
    assert told == [[0.0, 0.25, 0.0, 0.0, 0.0, 0.0]]
    assert "waited for data 60 % of the time: raise --num_workers (now 4)" in capsys.readouterr().out


@pytest.mark.parametrize("value", [math.nan, math.inf])
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
    monkeypatch.setattr("paddle.device.cuda.max_memory_allocated", lambda: 3 * 2**20)
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
        ("train_loss", 1.0, 2000),
        ("lr", 0.1, 2000),
        ("train_loss", 2.0, 2333),
        ("lr", 0.2, 2333),
        ("train_loss", 3.0, 2666),
        ("lr", 0.3, 2666),
    ]


def run_updates(norms, *, accum_iter=1, **options):
    """The log of an epoch with an update every `accum_iter` steps, whose gradients have these norms."""
    log = EpochLog(2, accum_iter * len(norms), **options)
    for step, _ in log.batches([(Batch(),)] * log.steps):
        log.update(step, Loss(1.0), 0.1)
        if step % accum_iter == accum_iter - 1:
            log.update_made(step, Loss(norms[step // accum_iter]))
    return log


def test_norms_of_gradients(capsys):
    """Their mean is over updates, without those that loss scaling leaves out."""
    scalars = Scalars()
    log = run_updates([3.0, math.inf, math.nan, 5.0], accum_iter=2, scalars=scalars)
    assert log.means()["grad_norm"] == 4.0 and log.grad_norms == [(1, 3.0), (7, 5.0)]
    assert [point for point in scalars.points if point[0] == "grad_norm"] == [
        ("grad_norm", 3.0, 2125),
        ("grad_norm", 5.0, 2875),
    ]  # 1 and 7 eighths of the epoch are done


def test_norms_wait_on_a_device_until_losses_are_read(monkeypatch):
    monkeypatch.setattr("paddle.get_device", lambda: "gpu:0")
    monkeypatch.setattr("paddle.device.cuda.max_memory_allocated", lambda: 0)
    Loss.reads, reads = 0, []
    log = EpochLog(0, 6, print_freq=3)
    for step, _ in log.batches([(Batch(),)] * 6):
        log.update(step, Loss(1.0), 0.1)
        log.update_made(step, Loss(2.0))
        reads.append(Loss.reads)
    assert reads == [1, 1, 1, 7, 7, 11]  # step 3: three losses and three norms; step 5: two and two
    assert log.means()["grad_norm"] == 2.0 and Loss.reads == 12


@pytest.mark.parametrize("done", [2, 4])
def test_norms_of_an_interrupted_epoch(done):
    whole, first = run_updates([1.0, 2.0, 3.0, 5.0]), run_updates([1.0, 2.0, 3.0, 5.0][:done])
    first.read()
    resumed = EpochLog(2, 4)
    resumed.restore(first.progress(done), done)
    for step, _ in resumed.batches([(Batch(),)] * (4 - done)):
        resumed.update(step, Loss(1.0), 0.1)
        resumed.update_made(step, Loss([1.0, 2.0, 3.0, 5.0][step]))
    assert resumed.means()["grad_norm"] == whole.means()["grad_norm"] == 2.75
    older = {name: value for name, value in first.progress(done).items() if name != "grad_norms"}
    EpochLog(2, 4).restore(older, done)  # of a checkpoint that knows of no norms


@pytest.mark.parametrize("epoch, steps", [(7, 25), (1599, 5004)])
def test_the_bar_fits_into_80_columns(monkeypatch, epoch, steps):
    """After half of the epoch and an hour and a half; tqdm cuts off what is too long."""
    monkeypatch.setattr(console, "shows_bars", lambda: True)
    monkeypatch.setattr(EpochTimer, "images_per_s", lambda timer: 12345.6)
    log = EpochLog(epoch, steps)
    step, _ = next(log.batches([(Batch(),)]))
    log.update(step, Loss(0.73149), 2.5e-4)
    seen = {**log.bar.format_dict, "n": steps // 2, "elapsed": 5000.0, "ncols": 79}
    shown = re.fullmatch(
        r"epoch (\d+) \|.+\| (\d+)/(\d+), ([\d:]+) left, loss 0.7315, lr 2.5e-04, 12346 "
        r"images/s",
        log.bar.format_meter(**seen),
    )
    assert shown and [int(number) for number in shown.groups()[:3]] == [epoch, steps // 2, steps]
    assert shown[4].startswith("1:")


def test_where_there_is_no_terminal_something_long_says_where_it_is(monkeypatch, capsys):
    now = iter([100.0, 105.0, 131.0, 140.0, 170.0])  # the beginning, and after each batch
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    assert list(console.progress([1, 2, 3, 4], "evaluating")) == [1, 2, 3, 4]
    said = [line.split("] ")[1] for line in capsys.readouterr().out.splitlines()]
    assert said == ["evaluating: 2 of 4 batches, eta: 0:00:31", "evaluating: 4 of 4 batches, eta: 0:00:00"]


def test_on_a_terminal_there_is_a_bar_instead_of_lines(capsys, monkeypatch):
    monkeypatch.setattr(console, "shows_bars", lambda: True)
    run_epoch([1.0] * 25, [0.1] * 25, epoch=7)
    said = capsys.readouterr()
    assert said.out == "" and "epoch 7" in said.err and "/25" in said.err
    assert list(console.progress([1, 2], "evaluating")) == [1, 2]
    assert "evaluating" in capsys.readouterr().err


def test_evaluation_line():
    """The published ViT-B result in the official form."""
    result = {"acc1": 83.6640, "acc5": 96.53, "loss": 0.73149, "images": 7, "left_out": 0}
    line = "* Acc@1 83.664 Acc@5 96.530 loss 0.731"
    assert epoch_log.evaluation(result) == line
    assert epoch_log.evaluation({**result, "left_out": 2}) == line + " (7 pictures; 2 unreadable, left out)"
