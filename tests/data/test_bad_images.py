"""Unreadable images: a zoo of them, their replacements, their lists, and the end of a run."""

import errno
import io
import os
import pickle
import re
import tarfile
import threading
from pathlib import Path

import numpy as np
import paddle
import pytest
from bad_pictures import ODD_BUT_READABLE, ZOO, noise
from PIL import Image
from scripts import launch, read_log, read_state, run, write_pictures

import engine_finetune
import main_finetune
import main_pretrain
from tools import extract_features
from util.compute.amp import autocast
from util.data.bad_images import BadImages
from util.data.loaders import Samples, eval_loader, make_loader, train_loader
from util.data.sampler import EpochSampler
from util.data.sources import open_source
from util.images import decode
from util.images.decode import UnreadableImage
from util.look import feature_file
from util.options import command_line
from util.run import epoch_log
from util.system import distributed
from util.system.keyed_random import IMAGE, keyed_generator


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Source of a folder of all of them, listed while they still were files."""
    folder = tmp_path_factory.mktemp("zoo")
    for name, (contents, _) in ZOO.items():
        Path(folder, name).write_bytes(contents if isinstance(contents, bytes) else noise("JPEG"))
    for name, contents in ODD_BUT_READABLE.items():
        Path(folder, name).write_bytes(contents)
    images = open_source(str(folder), "train", labelled=False)
    assert set(images.paths) == {*ZOO, *ODD_BUT_READABLE}
    for name, (change, _) in ZOO.items():
        if not isinstance(change, bytes):
            change(Path(folder, name))
    return images


@pytest.mark.filterwarnings("ignore:Truncated File Read")  # Pillow's, about TIFF
def test_unreadable_images_are_named_with_a_reason(zoo):
    assert len(ZOO) >= 25
    paths = list(zoo.paths)
    for name, (_, reason) in ZOO.items():
        with pytest.raises(UnreadableImage) as caught:
            zoo.open(paths.index(name)).decode()
        error = pickle.loads(pickle.dumps(caught.value))  # as it comes from a worker
        escaped = name.replace("\t", "\\t").replace("\n", "\\n").replace("\udce4", "\\udce4")
        assert error.name == os.path.join(zoo.root, escaped)
        assert re.search(reason, error.reason) and "\n" not in error.reason, name
        assert str(error).startswith(f"{error.name} cannot be read as a picture: {error.reason}. ")
        assert str(error).encode()  # it can be printed
        assert not re.search(r"Errno|Error\(\'\)|<_io", str(error))


def test_a_wrong_suffix_does_not_matter(zoo):
    for name in ODD_BUT_READABLE:
        assert zoo.open(list(zoo.paths).index(name)).decode().size == (64, 48)


def test_a_file_that_may_not_be_read(zoo, monkeypatch):
    """With a stub, because the user who runs the tests may read everything."""

    def refuse(path, flags, *more, **others):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UnreadableImage, match="there is no permission to read it"):
        zoo.open(0)


def test_an_error_of_the_machine_is_no_bad_image(zoo, monkeypatch):
    for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):

        def refuse(path, flags, *more, number=number, **others):
            raise OSError(number, os.strerror(number), path)

        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(OSError, match=re.escape(os.strerror(number))):
            zoo.open(0)


def test_a_bug_in_our_part_of_decoding_is_no_bad_picture(monkeypatch):
    def bug(image, mode):
        raise TypeError("a bug of ours")

    monkeypatch.setattr(decode, "_convert", bug)
    with pytest.raises(TypeError, match="a bug of ours"):
        decode.decode(noise("PNG"))


def test_a_decoder_that_says_nothing_is_quoted():
    assert decode._decoder_reason(KeyError(5)) == "its contents are damaged (KeyError(5))"
    assert decode._decoder_reason(OSError()) == "its contents are damaged (OSError())"


def test_tar_files(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg"):
            member = tarfile.TarInfo(name)
            member.size = len(noise("JPEG"))
            tar.addfile(member, io.BytesIO(noise("JPEG")))
    images = open_source(str(tmp_path), "train")
    size = len(noise("JPEG"))
    os.truncate(tmp_path / "train.tar", int(images.places[2, 1]) + 1000)
    assert images.open(1).decode().size == (64, 48)
    with pytest.raises(
        UnreadableImage, match=rf"train\.tar/b/3\.jpg .*its tar file ends after 1000 of its {size} byt"
    ):
        images.open(2)
    (tmp_path / "train.tar").unlink()
    for read in (images.open, images.read):
        with pytest.raises(UnreadableImage, match=r"train\.tar/a/1\.jpg .*there is no such file"):
            read(0)


# ---- replacements in a loader

COUNT, CLASSES = 40, 4
BAD = {"0/00.png", "1/13.png", "3/39.png"}


def make_data(root, bad=BAD):
    """ROOT/train/<class>/<number>.png, whose red is 6 times their number; 10 a class."""
    for number in range(COUNT):
        path = Path(root, "train", f"{number // 10}", f"{number:02d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.relative_to(root / "train").as_posix() in bad:
            path.write_bytes(b"no picture")
        else:
            Image.new("RGB", (2, 1), (6 * number, 0, 0)).save(path)
    return root


def number_and_draw(picture, rng):
    """Draws before it decodes, as a random crop does."""
    drawn = rng.random(2)
    return np.int64(picture.decode().getpixel((0, 0))[0] // 6), drawn


def lenient(allowed):
    """A record of COUNT pictures of which more than one in a hundred may be skipped."""
    return type("Lenient", (BadImages,), {"allowed": allowed})("skip", "train", COUNT)


def batches_of(root, num_workers, *, epoch=3, batch_size=4, allowed=3, seed=7):
    """(list of batches of numpy arrays, bad_images) of an epoch of training."""
    images = open_source(str(root), "train")
    found = lenient(allowed)
    loader = train_loader(images, number_and_draw, batch_size, num_workers, seed=seed, bad_images=found)
    loader.sampler.set_epoch(epoch)
    return [[part.numpy() for part in batch] for batch in loader], found


def names(root, paths=BAD):
    return {str(root / "train" / path) for path in paths}


def test_a_replacement_brings_its_label_and_takes_the_draws_of_the_place(tmp_path):
    make_data(tmp_path)
    batches, found = batches_of(tmp_path, 0)
    assert set(found.reasons) == names(tmp_path) and len(batches) == COUNT // 4
    sampler = EpochSampler(COUNT, 4, seed=7)
    sampler.set_epoch(3)
    for batch, places in zip(batches, sampler, strict=True):
        for number, drawn, label, (epoch, index) in zip(*batch, places, strict=True):
            np.testing.assert_array_equal(drawn, keyed_generator(7, IMAGE, epoch, index).random(2))
            assert label == number // 10
            if index in (0, 13, 39):
                assert number not in (0, 13, 39)
            else:
                assert number == index


def test_replacements_do_not_depend_on_the_workers(tmp_path):
    make_data(tmp_path)
    here, found_here = batches_of(tmp_path, 0)
    there, found_there = batches_of(tmp_path, 2)
    for ours, theirs in zip(here, there, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    assert found_here.reasons == found_there.reasons


def test_replacements_do_not_depend_on_the_processes(tmp_path, monkeypatch):
    bad = {f"{number // 10}/{number:02d}.png" for number in range(0, COUNT, 5)}
    make_data(tmp_path, bad)
    whole, _ = batches_of(tmp_path, 0, allowed=8)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    parts, met = [], set()
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        batches, found = batches_of(tmp_path, 0, batch_size=2)
        assert found.reasons == {} and 0 < len(found.new) < 8  # nobody has been told yet
        met |= found.new.keys()
        parts.append(batches)
    assert met == names(tmp_path, bad)
    for batch, first, second in zip(whole, *parts, strict=True):
        for together, one, other in zip(batch, first, second, strict=True):
            np.testing.assert_array_equal(together[0::2], one)
            np.testing.assert_array_equal(together[1::2], other)


def test_replacements_follow_from_seed_and_epoch(tmp_path):
    make_data(tmp_path)
    chosen = set()
    for seed, epoch in [(7, 3), (7, 4), (8, 3), (8, 4)]:
        batches, _ = batches_of(tmp_path, 0, seed=seed, epoch=epoch)
        seen = sorted(number for batch in batches for number in batch[0].tolist())
        assert len(seen) == COUNT
        chosen.add(tuple(number for number in range(COUNT) for _ in range(seen.count(number) - 1)))
    assert len(chosen) == 4 and all(len(more) == 3 for more in chosen)


def test_a_replacement_that_cannot_be_read_is_replaced(tmp_path):
    make_data(tmp_path, {f"{number // 10}/{number:02d}.png" for number in range(COUNT) if number % 10})
    batches, found = batches_of(tmp_path, 0, allowed=36)
    assert {number for batch in batches for number in batch[0].tolist()} == {0, 10, 20, 30}
    assert len(found.reasons) == 36


def test_a_readable_picture_is_opened_once(tmp_path):
    images, opened = open_source(str(make_data(tmp_path, set())), "train"), []
    inner = images.open
    images.open = lambda index: opened.append(index) or inner(index)
    list(train_loader(images, number_and_draw, 4, 0, seed=7, bad_images=lenient(3)))
    assert sorted(opened) == list(range(COUNT))


def test_one_is_an_error_unless_it_may_be_skipped(tmp_path):
    make_data(tmp_path, {"1/13.png"})
    source = open_source(str(tmp_path), "train")
    for num_workers in (0, 2):
        with pytest.raises(ValueError, match=r"train/1/13\.png cannot be read as .*--bad_images skip\.$"):
            list(train_loader(source, number_and_draw, 4, num_workers, seed=7))


def test_the_first_image_may_be_unreadable(tmp_path):
    """Its size tells how much shared memory batches need."""
    make_data(tmp_path, {"0/00.png"})
    batches, found = batches_of(tmp_path, 2)
    assert len(batches) == COUNT // 4 and set(found.reasons) == names(tmp_path, {"0/00.png"})


def buggy(picture, rng):
    raise ValueError("a bug of ours")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_other_errors_are_never_skipped(tmp_path, num_workers):
    make_data(tmp_path, set())
    found = lenient(3)
    samples = Samples(open_source(str(tmp_path), "train"), number_and_draw, 7)
    loader = make_loader(samples, EpochSampler(COUNT, 4, seed=7), num_workers, bad_images=found)
    samples.transform = buggy
    with pytest.raises(ValueError, match="^a bug of ours$"):
        list(loader)
    assert found.reasons == {}


def test_data_that_is_gone(tmp_path, monkeypatch):
    """With several processes their exchange would come too late: no batch can be made."""
    num_workers = 2
    images = open_source(str(make_data(tmp_path, set())), "train")
    for path in (tmp_path / "train").rglob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"--bad_images skip skips 1 % at most, here 1: .* and \d+ more"):
        list(
            train_loader(
                images, number_and_draw, 4, num_workers, seed=7, bad_images=BadImages("skip", "train", COUNT)
            )
        )
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(
        ValueError, match=r"cannot be read .*no such file.* Nor can 100 others .*Is the data still"
    ):
        list(
            train_loader(
                images, number_and_draw, 4, num_workers, seed=7, bad_images=BadImages("skip", "train", COUNT)
            )
        )


# ---- evaluation


class Scores(paddle.nn.Layer):
    def forward(self, x):
        # right for 0, 11, 22, 33 and those like them
        return paddle.nn.functional.one_hot(x % CLASSES, CLASSES)


def only_number(picture, rng):
    return (np.int64(picture.decode().getpixel((0, 0))[0] // 6),)


@pytest.mark.parametrize("num_workers, batch_size", [(0, 1), (2, 7), (0, 64)])
def test_evaluation_leaves_them_out(tmp_path, num_workers, batch_size):
    images = open_source(str(make_data(tmp_path)), "train")
    loader = eval_loader(images, only_number, batch_size, num_workers, shared=False, bad_images=lenient(3))
    result = engine_finetune.evaluate(Scores(), loader, autocast=autocast(None), shared=False)
    readable = [number for number in range(COUNT) if number not in (0, 13, 39)]
    right = sum(number % 4 == number // 10 for number in readable)
    assert result["images"] == 37 and result["left_out"] == 3
    assert result["acc1"] == pytest.approx(100 * right / 37, rel=1e-12)
    assert set(loader.bad_images.reasons) == names(tmp_path)


def test_of_a_picture_alone_there_is_nothing_left(tmp_path):
    images = open_source(str(make_data(tmp_path, BAD)), "train")
    with pytest.raises(ValueError, match="1 of 1 val pictures cannot be read.*here 0: "):
        engine_finetune.evaluate(
            Scores(),
            eval_loader(images, only_number, 4, 0, shared=False, bad_images=BadImages("skip", "val", 1)),
            autocast=autocast(None),
            shared=False,
        )


# ---- number and lists


def test_one_in_a_hundred_may_be_skipped():
    for total, allowed in (
        (1, 0),
        (2, 1),
        (7, 1),
        (100, 1),
        (199, 1),
        (200, 2),
        (1000, 10),
        (1_281_167, 12_811),
    ):
        assert BadImages("error", "train", total).allowed == 0
        found = BadImages("skip", "train", total)
        assert found.allowed == allowed
        found.add([(f"{number:05d}.jpg", "it is empty") for number in range(allowed)])
        with pytest.raises(ValueError, match=rf"^{allowed + 1} of {total} train .*, here {allowed}: 0+\.jpg"):
            # The first is known already, except for a total of 1.
            found.add([("00000.jpg", "it is empty"), (f"{allowed:05d}.jpg", "it is empty")])


def test_an_unknown_action():
    with pytest.raises(ValueError, match="--bad_images stop: .*error, skip"):
        BadImages("stop", "train", 5)


def test_each_is_counted_and_listed_once(tmp_path):
    found = BadImages("skip", "train", 1000, tmp_path)
    assert found.summary() == found.listing() == "" and not list(tmp_path.iterdir())
    found.add([("b.jpg", "it is empty"), ("a.jpg", "there is no such file")])
    found.add([])
    found.add([("b.jpg", "it is empty")])
    file = tmp_path / "bad_images_train.txt"
    assert file.read_text() == "a.jpg\tthere is no such file\nb.jpg\tit is empty\n"
    assert found.summary() == (
        f"2 of 1000 train pictures cannot be read and were skipped: a.jpg, b.jpg (with reasons in {file})"
    )
    assert found.listing() == (
        "2 of 1000 train pictures cannot be read and were skipped (with reasons in "
        f"{file})\n  a.jpg: there is no such file\n  b.jpg: it is empty"
    )
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_long_lists_are_cut_but_in_the_file(tmp_path):
    found = BadImages("skip", "val", 10_000, tmp_path)
    found.add([(f"{number:02d}.jpg", "it is empty") for number in range(23)])
    assert found.summary().startswith(
        "23 of 10000 val pictures cannot be read and were skipped: 00.jpg, 01.jpg, 02.jpg and 20 more (with"
    )
    assert found.listing().splitlines()[-2:] == ["  19.jpg: it is empty", "  and 3 more"]
    assert len((tmp_path / "bad_images_val.txt").read_text().splitlines()) == 23


class Processes:
    """Threads in place of processes."""

    def __init__(self, monkeypatch, size):
        self.me, self.values = threading.local(), [None] * size
        self.barrier = threading.Barrier(size, timeout=10)
        monkeypatch.setattr(distributed, "world_size", lambda: size)
        monkeypatch.setattr(distributed, "rank", lambda: self.me.rank)
        monkeypatch.setattr(distributed, "all_sum", self.all_sum)

    def all_sum(self, values):
        self.values[self.me.rank] = list(values)
        self.barrier.wait()
        sums = [float(sum(column)) for column in zip(*self.values, strict=True)]
        self.barrier.wait()
        return sums

    def run(self, part):
        """Return what part(rank) returns or raises, for each rank."""
        results = [None] * len(self.values)

        def process(rank):
            self.me.rank = rank
            try:
                results[rank] = part(rank)
            except (ValueError, AssertionError, threading.BrokenBarrierError) as error:
                results[rank] = error

        threads = [threading.Thread(target=process, args=(rank,)) for rank in range(len(self.values))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def test_all_bytes(monkeypatch):
    texts = [b"\xff\x00a", b"", b"longer than the others"]
    assert distributed.all_bytes(texts[0]) == [texts[0]]
    assert Processes(monkeypatch, 3).run(lambda rank: distributed.all_bytes(texts[rank])) == [texts] * 3


def test_processes_tell_each_other_and_the_first_one_writes(monkeypatch, tmp_path):
    def part(rank):
        found = BadImages("skip", "train", 500, tmp_path / f"{rank}")
        (tmp_path / f"{rank}").mkdir()
        for met in [["a.jpg"], ["b.jpg", "\u00e4 \u56fe.jpg"]][rank], [], [["b.jpg", "c.jpg"], []][rank]:
            found.add([(name, f"{name} is empty") for name in met])
            found.agree()
            assert not found.new
        return found.reasons

    first, second = Processes(monkeypatch, 2).run(part)
    assert (
        first
        == second
        == {name: f"{name} is empty" for name in ("a.jpg", "b.jpg", "\u00e4 \u56fe.jpg", "c.jpg")}
    )
    assert (tmp_path / "0" / "bad_images_train.txt").read_text(encoding="utf-8").splitlines() == [
        f"{name}\t{name} is empty" for name in sorted(first)
    ]
    assert not list((tmp_path / "1").iterdir())


class Loss:
    def __init__(self, value):
        self.value = value

    def item(self):
        return self.value


@pytest.mark.parametrize(
    "action, sentence",
    [
        ("error", r"^1/0\.jpg cannot be read as a picture: it is empty.*--bad_images skip\.$"),
        (
            "skip",
            r"^3 of 200 train .* 1 % at most, here 2: 1/0\.jpg, 1/1\.jpg, 1/2\.jpg\.",
        ),
    ],
)
def test_one_process_meets_them_and_all_end_together(monkeypatch, capsys, action, sentence):
    """They end in the step in which one of them meets the first or the third."""

    class Loader(list):
        num_workers = 0

        def __iter__(self):
            for step, batch in enumerate(super().__iter__()):
                if distributed.rank() == 1:
                    self.bad_images.add([(f"1/{step}.jpg", "it is empty")])
                yield batch

    steps = [[], [], []]

    def part(rank):
        loader = Loader([(np.zeros([2, 1]),)] * 6)
        loader.bad_images = BadImages(action, "train", 200)
        log = epoch_log.EpochLog(0, 6)
        for step, _ in log.batches(loader):
            steps[rank].append(step)
            log.update(step, Loss(float(rank)), 0.1)
        return log

    results = Processes(monkeypatch, 3).run(part)
    assert [str(error) for error in results] == [str(results[0])] * 3 and re.search(sentence, str(results[0]))
    assert steps == [[0] if action == "error" else [0, 1, 2]] * 3


def test_losses_are_means_of_the_processes_as_before(monkeypatch, capsys):
    def part(rank):
        log = epoch_log.EpochLog(0, 2)
        for step, _ in log.batches([(np.zeros([2, 1]),)] * 2):
            log.update(step, Loss(step + 10.0 * rank), 0.1)
        return log.losses

    assert Processes(monkeypatch, 2).run(part) == [[5.0, 6.0]] * 2


def test_a_shared_evaluation_adds_the_counts_of_the_processes(monkeypatch):
    """Three processes, one without any image."""

    def part(rank):
        logits = [[[9.0, 0, 0], [0, 9, 0]], [[0, 0, 9.0], [0, 9, 0]], []][rank]
        loader = [(paddle.to_tensor([row]), paddle.to_tensor([1])) for row in logits]
        return engine_finetune.evaluate(paddle.nn.Identity(), loader, autocast=autocast(None), shared=True)

    processes = Processes(monkeypatch, 3)
    monkeypatch.setattr(engine_finetune, "all_sum", processes.all_sum)
    for result in processes.run(part):
        assert result["confusion"].tolist() == [[0, 0, 0], [1, 2, 1], [0, 0, 0]]
        assert result["images"] == 4 and result["acc1"] == 50


def test_an_evaluation_that_met_too_many_ends_on_all_processes(monkeypatch):
    class Loader(list):
        bad_images = None

    def part(rank):
        # as sharing may have it
        loader = Loader([(paddle.zeros([2, 4]), paddle.zeros([2], "int64"))] * (2 - rank))
        loader.bad_images = BadImages("skip", "val", 100)
        if rank == 1:
            loader.bad_images.add([("a.jpg", "it is empty"), ("b.jpg", "it is empty")])
        return engine_finetune.evaluate(paddle.nn.Identity(), loader, autocast=autocast(None), shared=True)

    results = Processes(monkeypatch, 2).run(part)
    assert [str(error) for error in results] == [str(results[0])] * 2
    assert str(results[0]).startswith("2 of 100 val pictures cannot be read, and --bad_images skip")


# ---- the scripts

TINY = ["--input_size", 8, "--batch_size", 4, "--device", "cpu", "--log_dir", "", "--warmup_epochs", 0]
MAE = ["--model", "mae_vit_tiny_patch4", *TINY]
VIT = ["--model", "vit_tiny_patch4", "--nb_classes", 2, *TINY]


def spoil(data, *pictures):
    for name in pictures:
        (data / name).write_bytes((data / name).read_bytes()[:60])
    return [str(data / name) for name in pictures]


def call(main, words, monkeypatch, capsys, code=0):
    """Run a script as its last line does, and return its output, or its error if it ends with `code`."""
    monkeypatch.setattr("sys.argv", ["main.py", *map(str, words)])
    if not code:
        command_line.run(main.main, main.get_args_parser())
        return capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        command_line.run(main.main, main.get_args_parser())
    said = capsys.readouterr().err
    assert stop.value.code == code and "Traceback" not in said and said.count("error:") == 1
    return said.partition("error: ")[2]


def weights(folder):
    return {
        name: value.tobytes() for name, value in read_state(folder / "checkpoint-latest.pd")["model"].items()
    }


def test_pretraining_goes_on_and_repeats_itself(tmp_path, monkeypatch, capsys):
    """Same weights with and without workers, and after a resume."""
    data = write_pictures(tmp_path / "data", train=12)
    (bad,) = spoil(data, "train/cat/002.png")
    words = [*MAE, "--data_path", data, "--epochs", 2, "--bad_images", "skip", "--lr", 1e-3]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    said = call(main_pretrain, [*words, "--num_workers", 0, "--output_dir", whole], monkeypatch, capsys)
    line = "1 of 12 train pictures cannot be read and were skipped"
    listed = whole / "bad_images_train.txt"
    assert said.count(f"{line}: {bad} (with reasons in {listed})") == 2  # epochs
    assert said.count(f"{line} (with reasons in {listed})\n  {bad}: ") == 1
    ((name, reason),) = [entry.split("\t") for entry in listed.read_text().splitlines()]
    assert name == bad and "truncated" in reason.lower() or "broken" in reason
    call(
        main_pretrain,
        [*words, "--num_workers", 2, "--output_dir", resumed, "--resume", whole / "checkpoint-0.pd"],
        monkeypatch,
        capsys,
    )
    assert weights(whole) == weights(resumed)
    assert read_log(whole)[1]["train_loss"] == read_log(resumed)[1]["train_loss"]
    assert (resumed / "bad_images_train.txt").read_text() == listed.read_text()


def test_a_classifier_is_evaluated_on_the_others(tmp_path, monkeypatch, capsys):
    main = main_finetune
    data = write_pictures(tmp_path / "data", train=12, val=5)
    bad = spoil(data, "train/dog/003.png", "val/cat/002.png")
    words = [*VIT, "--data_path", data, "--epochs", 1, "--bad_images", "skip", "--num_workers", 0]
    out = tmp_path / "out"
    said = call(main, [*words, "--output_dir", out], monkeypatch, capsys)
    left_out = "(4 pictures; 1 unreadable, left out)"
    assert left_out in said
    for name, total, split in zip(bad, (12, 5), ("train", "val"), strict=True):
        file = out / f"bad_images_{split}.txt"
        skipped = f"1 of {total} {split} pictures cannot be read and were skipped"
        assert f"{skipped} (with reasons in {file})\n  {name}: " in said
        assert file.read_text().startswith(f"{name}\t")
    (line,) = read_log(out)
    assert line["test_left_out"] == 1 and line["test_acc1"] in (0, 25, 50, 75, 100)
    evaluate = [*words, "--eval", "--resume", out / "checkpoint-latest.pd", "--output_dir", tmp_path / "none"]
    alone = call(main, evaluate, monkeypatch, capsys)
    assert f"1 of 5 val pictures cannot be read and were skipped\n  {bad[1]}: " in alone
    (result,) = re.findall(r"\* Acc@1.*", alone)
    assert f"{result}   Max" in said and not (tmp_path / "none").exists()
    (data / "val/cat/002.png").unlink()  # then it is not even listed
    (fewer,) = re.findall(r"\* Acc@1.*", call(main, evaluate, monkeypatch, capsys))
    assert f"{fewer} {left_out}" == result


def test_without_unreadable_pictures_nothing_is_said_or_left(tmp_path, monkeypatch, capsys):
    data = write_pictures(tmp_path / "data")
    said = call(
        main_finetune,
        [
            *VIT,
            "--data_path",
            data,
            "--epochs",
            1,
            "--num_workers",
            0,
            "--bad_images",
            "skip",
            "--output_dir",
            tmp_path / "out",
        ],
        monkeypatch,
        capsys,
    )
    assert "cannot be read" not in said and "left out" not in said
    assert not list((tmp_path / "out").glob("bad_*")) and "test_left_out" not in read_log(tmp_path / "out")[0]


def test_too_many_end_the_run_and_are_listed(tmp_path, monkeypatch, capsys):
    data = write_pictures(tmp_path / "data", train=12)
    bad = spoil(data, "train/cat/002.png", "train/dog/007.png")
    said = call(
        main_pretrain,
        [
            *MAE,
            "--data_path",
            data,
            "--epochs",
            1,
            "--num_workers",
            0,
            "--bad_images",
            "skip",
            "--output_dir",
            tmp_path / "out",
        ],
        monkeypatch,
        capsys,
        code=2,
    )
    assert said.startswith("2 of 12 train pictures cannot be read")
    assert f"here 1: {bad[0]}, {bad[1]} (with reasons in {tmp_path}/out/bad_images_train.txt). Repair" in said
    assert [
        line.split("\t")[0] for line in (tmp_path / "out/bad_images_train.txt").read_text().splitlines()
    ] == bad
    assert not list((tmp_path / "out").glob("checkpoint*"))


def test_features_of_the_readable(tmp_path, monkeypatch, capsys):
    """Names, labels and features of a row are those of one picture, with workers, too."""
    data = write_pictures(tmp_path / "data", train=12, val=5)
    call(
        main_pretrain,
        [*MAE, "--data_path", data, "--epochs", 1, "--num_workers", 0, "--output_dir", tmp_path],
        monkeypatch,
        capsys,
    )
    words = [
        "--resume",
        tmp_path / "checkpoint-latest.pd",
        "--data_path",
        data,
        "--split",
        "train",
        "--device",
        "cpu",
        "--batch_size",
        5,
    ]
    call(
        extract_features, [*words, "--num_workers", 0, "--output", tmp_path / "all.npz"], monkeypatch, capsys
    )
    (bad,) = spoil(data, "train/cat/002.png")
    words += ["--num_workers", 2, "--output", tmp_path / "some.npz"]
    assert bad in call(extract_features, words, monkeypatch, capsys, code=2)
    assert not (tmp_path / "some.npz").exists()
    said = call(extract_features, [*words, "--bad_images", "skip"], monkeypatch, capsys)
    assert f"1 of 12 train pictures cannot be read and were skipped\n  {bad}: " in said
    whole, some = (feature_file.read(tmp_path / name) for name in ("all.npz", "some.npz"))
    kept = whole["names"] != bad
    assert kept.sum() == 11
    assert all((whole[name][kept] == some[name]).all() for name in ("names", "labels"))
    for kind in ("mean", "cls"):  # other batches, which Paddle 2.6 rounds otherwise
        np.testing.assert_allclose(some[kind], whole[kind][kept], atol=1e-5)


def test_an_error_through_the_command_line(tmp_path):
    """Exit code 2, one sentence and no traceback, with workers."""
    data = write_pictures(tmp_path / "data", train=12)
    (bad,) = spoil(data, "train/dog/005.png")
    said = run(
        "main_pretrain.py",
        *MAE,
        "--data_path",
        data,
        "--epochs",
        1,
        "--num_workers",
        2,
        "--output_dir",
        tmp_path / "out",
        code=2,
    )
    (line,) = [line for line in said.splitlines() if "error" in line]
    assert line.startswith(f"main_pretrain.py: error: {bad} cannot be read as a picture: ")
    assert line.endswith("--bad_images skip.") and "Traceback" not in said
    assert not list((tmp_path / "out").glob("bad_*")) and not list((tmp_path / "out").glob("checkpoint*"))


@pytest.mark.slow
def test_two_processes_skip_and_count_as_one(tmp_path):
    """One of 12 and one of 7 images; the accuracy is that of a single process on the other 6."""
    data = write_pictures(tmp_path / "data", train=12, val=7)
    bad = spoil(data, "train/cat/002.png", "val/dog/003.png")
    words = [*VIT, "--batch_size", 2, "--data_path", data, "--num_workers", 0, "--bad_images", "skip"]
    said, other = launch(
        "main_finetune.py",
        *words,
        "--epochs",
        1,
        "--dist_eval",
        "--output_dir",
        tmp_path / "out",
        logs=tmp_path / "logs",
    )
    for name, total, split in zip(bad, (12, 7), ("train", "val"), strict=True):
        assert (
            f"1 of {total} {split} pictures cannot be read and were skipped (with" in said and bad[0] in said
        )
        assert (tmp_path / "out" / f"bad_images_{split}.txt").read_text().startswith(f"{name}\t")
    assert "skipped" not in other
    (result,) = re.findall(r"\* Acc@1 .*left out\)", said)
    assert "(6 pictures; 1 unreadable, left out)" in result
    assert result in run(
        "main_finetune.py", *words, "--eval", "--resume", tmp_path / "out/checkpoint-latest.pd"
    )


@pytest.mark.slow
def test_two_processes_end_together(tmp_path):
    """The picture belongs to a worker of one of them; both say the sentence."""
    data = write_pictures(tmp_path / "data", train=16)
    (bad,) = spoil(data, "train/dog/005.png")
    printed = launch(
        "main_pretrain.py",
        *MAE,
        "--data_path",
        data,
        "--epochs",
        1,
        "--num_workers",
        1,
        "--output_dir",
        tmp_path / "out",
        logs=tmp_path / "logs",
        code=2,
    )
    for said in printed:
        assert (
            f"main_pretrain.py: error: {bad} cannot be read as a picture: " in said
            and "Traceback" not in said
        )
