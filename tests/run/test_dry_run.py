"""--dry_run: its report is right, it finds reasons against a run, and it leaves nothing behind."""

import math
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import paddle
import pytest
from scripts import ROOT, launch, run, write_pictures

import main_finetune
import main_linprobe
import main_pretrain
from util.images.decode import UnreadableImage
from util.run.dry_run import data as dry_data
from util.run.dry_run import memory as dry_memory
from util.run.dry_run import report, updates
from util.run.dry_run.verdict import Verdict

GOOD = "dry run:    nothing found that would stop this run"
COMMON = ["--input_size", 8, "--num_workers", 0, "--device", "cpu", "--dry_run"]
MAE = ["--model", "mae_vit_tiny_patch4", "--batch_size", 2, *COMMON]
VIT = ["--model", "vit_tiny_patch4", "--nb_classes", 2, "--batch_size", 2, *COMMON]


def tree(folder):
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.fixture
def call(tmp_path, monkeypatch, call_script):
    """A function that calls a script as its last line does and returns what it prints.

    Fails if the script does not end with `code`, or leaves or changes anything in the folder of the test.
    """
    monkeypatch.chdir(tmp_path)

    def call(main, *words, code=0):
        before = tree(tmp_path)
        said, errors = call_script(main, *words, code=code)
        assert tree(tmp_path) == before and (GOOD in said) == (code == 0)
        return errors.partition("error: ")[2] if code else said

    return call


def entry(said, title):
    """The line of the report under this title."""
    (line,) = [line for line in said.splitlines() if line[:12].strip() == title]
    return line[12:]


# ---- the parts


@pytest.mark.parametrize("total", [1, 10, 987, 1_281_167])
def test_a_spread_is_even_from_the_beginning(total):
    """Each number once; and of its first n, no two neighbours are further apart than 4 times the mean."""
    order = np.fromiter(dry_data.spread(total), int)
    assert (np.sort(order) == np.arange(total)).all()
    for n in (5, 30, 400):
        if n < total / 4:
            ends = np.sort(np.concatenate([[0], order[:n], [total]]))
            assert np.diff(ends).max() < 4 * total / n


def machine(folder, groups, **files):
    """Folders like /proc and /sys/fs/cgroup of a machine of 8 GB, of which 6 GB are left."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/meminfo").write_text("MemTotal:  8000000 kB\nMemFree:  1 kB\nMemAvailable:  6000000 kB\n")
    (folder / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = folder / "groups" / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))
    return dry_memory.Memory.now(folder / "proc", folder / "groups")


V2 = {
    "job__memory.max": 3 * 10**9,
    "job__memory.current": 2 * 10**9,
    "job__memory.stat": "a 1\ninactive_file 7\n",
    "job__part__memory.max": "max",
    "job__part__memory.current": 5,
    "job__part__memory.stat": "inactive_file 0\n",
}
V1 = {
    "memory__memory.limit_in_bytes": 2 * 10**9,
    "memory__memory.usage_in_bytes": 10**9,
    "memory__memory.stat": "inactive_file 1\ntotal_inactive_file 9\n",
}


def test_a_limit_of_the_group_above_counts(tmp_path):
    memory = machine(tmp_path, "0::/job/part\n", **V2)
    assert (memory.total, memory.left, memory.limit) == (3 * 10**9, 10**9 + 7, "the limit of cgroup v2")


def test_a_container_sees_its_own_group_as_the_root(tmp_path):
    memory = machine(tmp_path, "5:devices:/x\n4:cpu,memory:/name/outside\n0::/\n", **V1)
    assert (memory.total, memory.left, memory.limit) == (2 * 10**9, 10**9 + 9, "the limit of cgroup v1")


def test_no_limit_is_the_machines_memory(tmp_path):
    unlimited = {**V1, "memory__memory.limit_in_bytes": 9223372036854771712}
    memory = machine(tmp_path, "4:memory:/\n", **unlimited)
    assert (memory.total, memory.left, memory.limit) == (8192 * 10**6, 6144 * 10**6, "the machine's")
    assert dry_memory.Memory.now(tmp_path / "none", tmp_path).total == math.inf


def test_too_much_memory_is_an_error_and_not_the_end():
    wanted = 2**31
    with dry_memory.capped(2**28):
        paddle.empty([2**26 // 4])
        with pytest.raises(MemoryError):
            paddle.empty([wanted // 4])
        with pytest.raises(MemoryError):
            np.empty(wanted, np.uint8)
    assert np.empty(wanted, np.uint8).size == wanted


@pytest.mark.parametrize("error", [MemoryError("x"), RuntimeError("(ResourceExhausted) x")])
def test_one_of_several_processes_that_lacks_memory_ends_at_once(monkeypatch, error):
    """It cannot wait for the others to say so: they wait for it."""
    monkeypatch.setattr(updates.distributed, "world_size", lambda: 2)
    monkeypatch.setenv("PADDLE_LOCAL_SIZE", "2")
    with pytest.raises(
        ValueError,
        match=r"training needs .* 1 GB were left of 2 GB \(x\), for 2 "
        r"process\(es\)",
    ):
        with updates.out_of_memory(Verdict(), "training", dry_memory.Memory(2 * 10**9, 10**9, "x")):
            raise error


def test_what_loading_a_picture_takes():
    """By 4 threads, 60 pictures in 2 s: once computing all the time on 2 cores, once waiting for a drive."""
    busy = dry_data.Checked(100, 60, {}, seconds=2, threads=4, cpu=3.0)
    assert busy.loading_seconds(1, 2) == pytest.approx((0.025, 0.05))
    assert busy.loading_seconds(8, 2) == pytest.approx((0.025, 0.025))
    waiting = dry_data.Checked(100, 60, {}, seconds=2, threads=4, cpu=0.6)
    assert waiting.loading_seconds(1, 2) == pytest.approx((0.005, 8 / 60))
    assert waiting.loading_seconds(16, 2) == pytest.approx((0.005, 0.5 / 60))


@pytest.mark.parametrize(
    "total, tried, bad, action, expected",
    [
        (1000, 100, 0, "error", ""),
        (1000, 100, 2, "error", "val: a0 cannot be read: why (and 1 more)"),
        (1000, 100, 1, "skip", ""),  # 10 of 1000 are expected, and allowed
        (1000, 100, 2, "skip", "val: about 20 of 1,000 pictures"),
        (5, 5, 2, "skip", "val: 2 of 5 pictures"),
    ],
)
def test_how_many_unreadable_pictures_are_too_many(total, tried, bad, action, expected):
    checked = dry_data.Checked(
        total, tried, {f"a{number}": "why" for number in range(bad)}, seconds=1, threads=1, cpu=1
    )
    reason = checked.reason(action, "val")
    assert reason.startswith(expected) and bool(reason) == bool(expected)


class Slow:
    """Samples that take a tenth of a second each; every tenth is unreadable."""

    def __init__(self, total):
        self.total, self.asked = total, []

    def __len__(self):
        return self.total

    def __getitem__(self, place):
        epoch, index = place
        self.asked.append(index)
        time.sleep(0.1)
        if index % 10 == 0:
            raise UnreadableImage(f"{index}.jpg", "it is empty")


def test_pictures_are_looked_at_for_as_long_as_was_asked():
    samples = Slow(1000)
    checked = dry_data.check_images(samples, 0.45, 4)
    assert 4 * 4 <= checked.tried <= 4 * 5 and checked.seconds < 0.8
    # 619 is prime to 1000, and near to 0.618 of it
    assert sorted(samples.asked[:4]) == sorted([0, 619, 238, 857])
    assert checked.bad == {f"{index}.jpg": "it is empty" for index in samples.asked if index % 10 == 0}


# ---- whole reports


def test_pretraining(tmp_path, call):
    """13 pictures, 6 steps of 2, updates of 4 and of 2 micro-batches; 30 epochs, 5 of warm-up."""
    data = write_pictures(tmp_path / "data", train=13)
    words = ["--data_path", data, "--accum_iter", 4, "--epochs", 30, "--warmup_epochs", 5, "--lr", 0.01]
    said = call(main_pretrain, *MAE, *words, "--output_dir", "new/run")
    assert entry(said, "train") == "13 pictures"
    assert entry(said, "reading").startswith("checked 13 of 13 train pictures in ")
    assert entry(said, "reading").endswith("all can be read")
    assert entry(said, "an epoch") == (
        "6 steps, 2 updates of 8 pictures (batch 2 x accum 4 x 1 "
        "process(es)); pictures left out at its end: 1"
    )
    assert "its last update has 2 of 4 micro-batches" in said
    assert entry(said, "epochs") == "0 to 29, 60 updates"
    cosine = [0.01 * 0.5 * (1 + np.cos(np.pi * (epoch - 5) / 25)) for epoch in (15, 29 + 4 / 6)]
    assert entry(said, "lr") == (
        f"0 at first, 0.01 after warm-up, at epoch 5, {cosine[0]:.3g} at epoch 15, "
        f"{cosine[1]:.3g} at the last update"
    )
    assert re.match(
        r"\d+ made, loss [\d.]+ to [\d.]+; [\d.e-]+ s for 2 pictures, [\d.]+ pictures/s",
        entry(said, "updates"),
    )
    assert "(the machine's)" in entry(said, "memory") or "cgroup" in entry(said, "memory")
    assert re.match(
        r"an epoch takes about \d+ s \(training \d+ %, waiting for data \d+ %\), 30 of them \d",
        entry(said, "time"),
    )


def test_a_checkpoint_is_as_large_as_was_said(tmp_path, call):
    data = write_pictures(tmp_path / "data")
    words = [*MAE, "--data_path", data, "--epochs", 1, "--warmup_epochs", 0, "--output_dir", tmp_path / "run"]
    said = entry(call(main_pretrain, *words), "disk")
    main_pretrain.main(
        main_pretrain.get_args_parser().parse([str(word) for word in words if word != "--dry_run"])
    )
    size = (tmp_path / "run/checkpoint-latest.pd").stat().st_size
    assert said.startswith(
        f"a checkpoint takes {size / 1e6:.3g} MB, 4 at most: {4 * size / 1e6:.3g} MB to be written"
    )


def test_a_classifier(tmp_path, call):
    data = write_pictures(tmp_path / "data", train=7, val=5)
    said = call(
        main_linprobe, *VIT, "--data_path", data, "--nb_classes", 4, "--epochs", 2, "--warmup_epochs", 0
    )
    assert (
        entry(said, "train") == "7 pictures of 2 classes" and entry(said, "val") == "5 pictures of 2 classes"
    )
    assert (
        entry(said, "classes") == "the same in train and val; --nb_classes 4 leaves 2 outputs without a class"
    )
    assert "            cat  train 4  val 3\n            dog  train 3  val 2\n" in said and "hint" not in said
    assert [line[12:35] for line in said.splitlines() if line.startswith("reading")] == [
        "checked 7 of 7 train pi",
        "checked 5 of 5 val pict",
    ]
    assert re.match(r"[\d.e-]+ s a batch", entry(said, "evaluation"))
    assert ", 6 at most" in entry(said, "disk") and "evaluation " in entry(said, "time")


def test_many_classes_of_different_sizes(tmp_path, call):
    """22 classes of 1 picture each in val, and in train of 1, but 11 in the first and 2 in the second."""
    data = write_pictures(
        tmp_path / "data", train=22, val=22, classes=[f"c{number:02d}" for number in range(22)]
    )
    for number in range(10):
        shutil.copy(data / "train/c00/000.png", data / f"train/c00/more{number}.png")
    shutil.copy(data / "train/c01/001.png", data / "train/c01/more.png")
    said = call(
        main_finetune, *VIT, "--data_path", data, "--nb_classes", 22, "--epochs", 1, "--warmup_epochs", 0
    )
    assert "train: 1 to 11 pictures a class, median 1; smallest: c02 1, c03 1, c04 1\n" in said
    assert "val: 1 to 1 pictures a class, median 1; smallest: c00 1, c01 1, c02 1\n" in said
    assert entry(said, "hint").startswith(
        "the largest class has 11 times the training pictures of the smallest"
    )


def test_long_updates_are_cut_and_an_epoch_of_one_is_made_twice(tmp_path, call):
    data = write_pictures(tmp_path / "data", train=12)
    said = call(
        main_pretrain, *MAE, "--data_path", data, "--accum_iter", 6, "--epochs", 1, "--warmup_epochs", 0
    )
    assert "made (of 4 micro-batches, not 6), loss" in entry(said, "updates")
    said = call(
        main_pretrain, *MAE, "--batch_size", 12, "--data_path", data, "--epochs", 1, "--warmup_epochs", 0
    )
    assert entry(said, "updates").startswith("2 made, ")


def test_the_first_batches_of_a_loader():
    class Loader(list):
        bad_images, num_workers = "noted", 3

        def __iter__(self):
            yield from super().__iter__()

    first = updates.FirstBatches(Loader("abcde"), 3)
    taken = []
    for batch in first:
        time.sleep(0.02)
        taken.append(batch)
    assert (
        taken == ["a", "b", "c"] and len(first) == 5 and (first.bad_images, first.num_workers) == ("noted", 3)
    )
    assert len(first.waits) == 3 and max(first.waits) < 0.02 <= min(first.seconds)
    assert list(updates.FirstBatches(Loader("ab"), 3)) == ["a", "b"]


def test_a_resumed_run(tmp_path, call):
    """2 of 5 epochs are done, so 3 are left; a file that does not fit ends the dry run, too."""
    data = write_pictures(tmp_path / "data")
    words = [*MAE, "--data_path", data, "--warmup_epochs", 0]
    start = [
        str(word)
        for word in [*words, "--epochs", 2, "--output_dir", tmp_path / "run", "--log_dir", ""]
        if word != "--dry_run"
    ]
    main_pretrain.main(main_pretrain.get_args_parser().parse(start))
    latest = tmp_path / "run/checkpoint-latest.pd"
    said = call(main_pretrain, *words, "--epochs", 5, "--resume", latest, "--allow_changes", "epochs")
    assert entry(said, "epochs") == "2 to 4, 18 updates" and entry(said, "time").count(", 3 of them ") == 1
    assert re.search(r"resumed .* continuing with epoch 2", said) and ", 4 at most" in entry(said, "disk")
    said = call(main_pretrain, *words, "--epochs", 2, "--resume", latest)
    assert entry(said, "epochs").startswith("nothing is left to do: ")
    said = call(main_pretrain, *words, "--in_chans", 1, "--epochs", 2, "--resume", latest, code=2)
    assert "its weights do not fit this model" in said


# ---- reasons against a run

SHORT = ["--epochs", 1, "--warmup_epochs", 0]


def disk(free):
    """A function that says what shutil.disk_usage does of a disk of 1 GB."""
    return lambda path: shutil._ntuple_diskusage(10**9, 10**9 - free, free)


def spoil(data, *names):
    for name in names:
        (data / name).write_bytes((data / name).read_bytes()[:60])


def test_all_reasons_are_told_at_once(tmp_path, call):
    """A file where the folder should be, an unreadable picture, a learning rate that ends in infinities."""
    data = write_pictures(tmp_path / "data")
    spoil(data, "train/cat/002.png")
    (tmp_path / "file").touch()
    said = call(
        main_pretrain, *MAE, *SHORT, "--data_path", data, "--lr", 1e30, "--output_dir", "file/run", code=2
    )
    assert said.startswith("dry run: 3 problem(s) with this run:\n  1. the loss of epoch 0 step ")
    assert "is not finite" in said
    assert f"\n  2. --output_dir file/run: {tmp_path}/file is a file" in said
    assert f"\n  3. train: {data}/train/cat/002.png cannot be read: " in said and "--bad_images skip" in said


def test_unreadable_pictures_are_listed_and_may_be_skipped(tmp_path, call):
    data = write_pictures(tmp_path / "data", val=6)
    spoil(data, "train/cat/002.png", "val/dog/001.png")
    words = [*VIT, *SHORT, "--data_path", data, "--bad_images", "skip"]
    said = call(main_finetune, *words)
    for name in ("train/cat/002.png", "val/dog/001.png"):
        assert re.search(rf": 1 cannot be read:\n {{12}}{data}/{name}: \S", said)
    spoil(data, "val/dog/003.png")
    said = call(main_finetune, *words, code=2)
    assert said.startswith("dry run: 1 problem(s) with")
    assert "\n  1. val: 2 of 6 pictures cannot be read, such as " in said


def test_a_picture_that_only_training_meets_counts(tmp_path, call, monkeypatch):
    data = write_pictures(tmp_path / "data", train=8)
    spoil(data, "train/dog/007.png")
    looked_at = dry_data.check_images

    def at_the_first(samples, seconds, threads):
        monkeypatch.setattr(dry_data, "spread", lambda total: iter(range(2)))
        return looked_at(samples, seconds, threads)

    monkeypatch.setattr(dry_data, "check_images", at_the_first)
    monkeypatch.setattr(updates, "QUICK", 60)  # all updates, on a busy machine too
    said = call(main_pretrain, *MAE, *SHORT, "--data_path", data, code=2)
    assert f"1. train: {data}/train/dog/007.png cannot be read: " in said


def test_a_full_disk(tmp_path, call, monkeypatch):
    data = write_pictures(tmp_path / "data")
    monkeypatch.setattr(shutil, "disk_usage", disk(10**7))
    words = [*MAE, "--data_path", data, "--warmup_epochs", 0]
    said = call(main_pretrain, *words, "--epochs", 1, code=2)
    assert re.search(r"1\. --output_dir output_dir: 10 MB are free, .*[\d.]+ MB for up to 4 ", said)
    said = call(main_pretrain, *words, "--epochs", 1, "--output_dir", "")
    assert entry(said, "disk") == "--output_dir is empty: no checkpoint is written"


def test_a_folder_that_may_not_be_written_to(tmp_path, call, monkeypatch):
    data = write_pictures(tmp_path / "data")
    access = report.os.access
    monkeypatch.setattr(
        report.os,
        "access",
        lambda path, mode: access(path, mode) and not (path == tmp_path and mode & report.os.W_OK),
    )
    said = call(
        main_pretrain, *MAE, *SHORT, "--data_path", data, "--output_dir", "new/run", "--log_dir", "", code=2
    )
    assert said.rstrip().endswith(
        f"1. --output_dir new/run: there is no permission to write to {tmp_path}; name another folder"
    )


def test_memory_that_does_not_suffice(tmp_path, call, monkeypatch):
    """Used memory is compared with what there is, and running out of it ends the updates."""
    data = write_pictures(tmp_path / "data")
    monkeypatch.setattr(
        dry_memory.Memory, "now", lambda: dry_memory.Memory(10**7, math.inf, "the limit of cgroup v2")
    )
    said = call(main_pretrain, *MAE, *SHORT, "--data_path", data, code=2)
    assert re.search(
        r"1\. 1 process\(es\) and their workers need [\d.]+ [MG]B of memory, and there are 10 "
        r"MB "
        r"\(the limit of cgroup v2\)\. Lower --batch_size or --num_workers",
        said,
    )

    def out_of_memory(*args, **more):
        raise MemoryError("(ResourceExhausted) Fail to alloc memory")

    monkeypatch.setattr(main_pretrain, "train_one_epoch", out_of_memory)
    monkeypatch.setattr(
        dry_memory.Memory, "now", lambda: dry_memory.Memory(2 * 10**12, 10**12, "the machine's")
    )
    said = call(main_pretrain, *MAE, *SHORT, "--data_path", data, code=2)
    assert said.startswith(
        "dry run: 1 problem(s) with this run:\n  1. training needs more "
        "memory than "
        "there is: 1 TB were left of 2 TB (the machine's), for 1 process(es). Lower "
        "--batch_size"
    )


def test_a_loss_that_is_not_finite_and_did_not_stop_training(tmp_path, call, monkeypatch):
    data = write_pictures(tmp_path / "data")

    def engine(model, loader, *, log, **more):
        for step, _ in log.batches(loader):
            log.update(step, paddle.to_tensor(math.nan), 0.1)

    monkeypatch.setattr(main_pretrain, "train_one_epoch", engine)
    monkeypatch.setattr(report, "_checkpoint_size", lambda run: 1)
    said = call(main_pretrain, *MAE, *SHORT, "--data_path", data, code=2)
    assert "1. the loss of the first updates is not finite: [nan, nan, " in said


def test_classes_that_differ_are_listed(tmp_path, call):
    data = write_pictures(tmp_path / "data")
    (data / "val/cat").rename(data / "val/lion")
    said = call(main_finetune, *VIT, *SHORT, "--data_path", data, "--nb_classes", 3, code=2)
    assert "Only in train: cat. Only in val: lion." in said


def test_an_evaluation_is_refused(call):
    said = call(main_finetune, *VIT, "--eval", "--resume", "x.pd", code=2)
    assert "--dry_run" in said and "--eval" in said


# ---- command lines


@pytest.mark.slow
def test_through_the_command_line(tmp_path):
    """With workers, of which some memory is told."""
    data = write_pictures(tmp_path / "data")
    words = [
        "main_finetune.py",
        *VIT,
        "--num_workers",
        2,
        *SHORT,
        "--data_path",
        data,
        "--output_dir",
        tmp_path / "out",
    ]
    said = run(*words)
    assert GOOD in said and ", and workers " in entry(said, "memory") and not (tmp_path / "out").exists()
    spoil(data, "val/cat/000.png")
    said = run(*words, code=2)
    assert "main_finetune.py: error: dry run: 1 problem(s)" in said and "Traceback" not in said


@pytest.mark.slow
def test_a_batch_that_is_too_large_for_the_memory(tmp_path):
    """Of 300 MB that are said to be left, 512 pictures of 32 pixels need more."""
    data = write_pictures(tmp_path / "data", train=512)
    words = [
        "--model",
        "mae_vit_tiny_patch4",
        "--input_size",
        32,
        "--batch_size",
        512,
        "--num_workers",
        0,
        "--device",
        "cpu",
        "--dry_run",
        *SHORT,
        "--data_path",
        data,
        "--output_dir",
        tmp_path / "out",
    ]
    code = (
        "import main_pretrain\nfrom util.options import command_line\nfrom util.run.dry_run import "
        "memory\nmemory.Memory.now = lambda: memory.Memory(10 ** 9, 300 * 10 ** 6, 'said to be here')\n"
        "command_line.run(main_pretrain.main, main_pretrain.get_args_parser())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stdout + done.stderr
    assert "1. training needs more memory than there is: 300 MB were left of 1 GB" in done.stderr


@pytest.mark.slow
def test_two_processes(tmp_path):
    """The first one tells; both end alike. The unreadable picture is the second one's to look at."""
    data = write_pictures(tmp_path / "data", train=13, val=5)
    spoil(data, "train/dog/003.png")
    words = [
        "main_linprobe.py",
        *VIT,
        *SHORT,
        "--data_path",
        data,
        "--dist_eval",
        "--output_dir",
        tmp_path / "out",
    ]
    first, second = launch(*words, logs=tmp_path / "logs", code=2)
    assert entry(first, "an epoch") == (
        "3 steps, 3 updates of 4 pictures (batch 2 x accum 1 x 2 "
        "process(es)); pictures left out at its end: 1"
    )
    assert re.search("checked 13 of 13 train pictures .* 1 cannot be read:", first)
    assert entry(first, "evaluation") and entry(first, "time")
    assert "checked" not in second and not (tmp_path / "out").exists()
    for said in (first, second):
        assert "main_linprobe.py: error: dry run: 1 problem(s)" in said and "\n  1. train: " in said
        assert f"{data}/train/dog/003.png cannot be read: " in said and "Traceback" not in said
