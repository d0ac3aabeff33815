import gc
import multiprocessing
import os

import numpy as np
import paddle
import pytest
from data_files import contents, make_folder, make_tar
from PIL import Image
from training_runs import Ones

from util.data import loaders
from util.data.loaders import Samples, eval_loader, make_loader
from util.data.sampler import EpochSampler
from util.data.sources import open_source
from util.images.transforms import MaskedEvalTransform
from util.system import distributed
from util.system.keyed_random import EVALUATION, IMAGE, keyed_generator


def draws(image, rng):
    return np.asarray(image.decode(), np.float32), rng.random(3, np.float32)


def folder_samples(root):
    make_folder(root / "train", contents())
    return Samples(open_source(str(root), "train"), draws, seed=7)


def test_a_sample_draws_from_its_own_place(tmp_path):
    samples = folder_samples(tmp_path)
    image, drawn, label = samples[2, 4]
    assert image.tolist() == [[[50, 0, 0], [50, 0, 0]]] and label == 2
    np.testing.assert_array_equal(drawn, keyed_generator(7, IMAGE, 2, 4).random(3, np.float32))
    assert len({samples[epoch, index][1].tobytes() for epoch in range(3) for index in range(6)}) == 18


def test_unlabelled_samples_are_what_the_transform_gives(tmp_path):
    make_folder(tmp_path, contents())
    sample = Samples(open_source(str(tmp_path), "train", labelled=False), draws, seed=7)[0, 0]
    assert [array.shape for array in sample] == [(1, 2, 3), (3,)]


def all_batches(samples, num_workers, epoch=3):
    sampler = EpochSampler(len(samples), 2, seed=7)
    sampler.set_epoch(epoch)
    loader = make_loader(samples, sampler, num_workers)
    assert len(loader) == 3
    return [[tensor.numpy() for tensor in batch] for batch in loader]


@pytest.mark.parametrize("num_workers, free", [(0, 0), (1, 1 << 40), (2, 0), (2, 1 << 40)])
def test_batches_do_not_depend_on_the_workers(tmp_path, monkeypatch, num_workers, free):
    monkeypatch.setattr(loaders, "_free_bytes", lambda folder: free)
    samples = folder_samples(tmp_path)
    sampler = EpochSampler(6, 2, seed=7)
    sampler.set_epoch(3)
    expected = [
        [np.stack(column) for column in zip(*(samples[place] for place in places), strict=True)]
        for places in sampler
    ]
    got = all_batches(samples, num_workers)
    assert [[array.dtype for array in batch] for batch in got] == [[np.float32, np.float32, np.int64]] * 3
    for batch, wanted in zip(got, expected, strict=True):
        for array, reference in zip(batch, wanted, strict=True):
            np.testing.assert_array_equal(array, reference)


class Boxes:
    """Sends boxes beside a picture, another number of them for each, and finishes a batch by doubling it."""

    def __call__(self, picture, rng):
        value = picture.decode().getpixel((1, 0))[0]
        return np.full(3, value, np.uint8), [(box, np.arange(box)) for box in range(value // 10)]

    def finish(self, batch):
        values, boxes, labels = batch
        assert isinstance(values, paddle.Tensor)
        return [2.0 * values.astype("float32"), boxes, labels]


@pytest.mark.parametrize("num_workers, free", [(0, 0), (2, 0), (2, 1 << 40)])
def test_batches_are_finished_here_and_objects_come_as_they_are(tmp_path, monkeypatch, num_workers, free):
    monkeypatch.setattr(loaders, "_free_bytes", lambda folder: free)
    samples = folder_samples(tmp_path)
    samples.transform = Boxes()
    sampler = EpochSampler(6, 2, seed=7)
    places = list(sampler)
    for batch, expected in zip(make_loader(samples, sampler, num_workers), places, strict=True):
        values, boxes, labels = batch
        items = [samples[place] for place in expected]
        np.testing.assert_array_equal(values.numpy(), [2.0 * item[0] for item in items])
        assert str(boxes) == str([item[1] for item in items])
        np.testing.assert_array_equal(labels.numpy(), [item[2] for item in items])
    assert len({len(samples[0, index][1]) for index in range(6)}) > 2


def test_an_epoch_that_is_left_early_loads_no_more_than_is_in_flight():
    class Counted(Ones):
        opened = 0

        def open(self, index):
            Counted.opened += 1
            return super().open(index)

    loader = loaders.train_loader(Counted(range(400)), lambda image, rng: (image,), 4, 0, seed=7)
    for _ in loader:
        break
    assert 0 < Counted.opened < 100


def test_a_loader_can_be_used_for_many_epochs_and_left_in_the_middle(tmp_path):
    samples = folder_samples(tmp_path)
    sampler = EpochSampler(6, 2, seed=7)
    loader = make_loader(samples, sampler, 2)
    for batch in loader:
        break
    assert multiprocessing.active_children() == []
    for epoch in (1, 2):
        loader.sampler.set_epoch(epoch)
        got = [batch[1].numpy() for batch in loader]
        np.testing.assert_array_equal(got, [batch[1] for batch in all_batches(samples, 0, epoch)])
    loader.sampler.set_epoch(2, start_batch=2)
    np.testing.assert_array_equal([batch[1].numpy() for batch in loader], got[2:])
    assert len(loader) == 3


@pytest.mark.parametrize(
    "free, processes, shared",
    [
        (6 * 2 * 44 - 1, None, False),
        (6 * 2 * 44, None, True),
        (2 * 6 * 2 * 44 - 1, "2", False),
        (2 * 6 * 2 * 44, "2", True),
    ],
)
def test_small_shared_memory_is_not_used(tmp_path, monkeypatch, capsys, free, processes, shared):
    if processes:  # launched together: they share it
        monkeypatch.setenv("PADDLE_LOCAL_SIZE", processes)
    # 2 * 3 + 3 float32 and an int64: 44 bytes; 2 batches for each worker, and 2
    samples = folder_samples(tmp_path)
    monkeypatch.setattr(loaders, "_free_bytes", lambda folder: free)
    loader = make_loader(samples, EpochSampler(6, 2, seed=7), 2)
    assert loader.use_shared_memory == shared
    assert capsys.readouterr().out.count("/dev/shm has 0 MB free") == (not shared)
    make_loader(samples, EpochSampler(6, 2, seed=7), 0)
    assert capsys.readouterr().out == ""


def buggy(image, rng):
    raise KeyError("a bug of ours")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_goes_wrong_in_loading_reaches_the_caller(tmp_path, num_workers):
    make_folder(tmp_path / "train", {**contents(), "bee/10.png": b"no picture"})
    images = open_source(str(tmp_path), "train")
    with pytest.raises(ValueError, match=r"^/.*bee/10\.png cannot be read as a picture"):
        all_batches(Samples(images, draws, seed=7), num_workers)
    assert multiprocessing.active_children() == []
    samples = Samples(images, draws, seed=7)
    make_folder(tmp_path / "train", contents())
    loader = make_loader(samples, EpochSampler(6, 2, seed=7), num_workers)
    samples.transform = buggy
    with pytest.raises(RuntimeError, match="a bug of ours"):
        next(iter(loader))
    assert multiprocessing.active_children() == []


class Garbage:
    """Leaves a file where it is freed in another process than it was made in."""

    def __init__(self, path):
        self.path, self.made_in, self.itself = path, os.getpid(), self

    def __del__(self):
        if os.getpid() != self.made_in:
            self.path.touch()


def collected(image, rng):
    gc.collect()
    return draws(image, rng)


def test_workers_leave_the_garbage_of_the_process_that_forked_them(tmp_path):
    samples = folder_samples(tmp_path)
    samples.transform = collected
    sampler = EpochSampler(6, 2, seed=7, rank=0, world_size=1)
    gc.disable()
    try:
        loader = make_loader(samples, sampler, num_workers=1)
        Garbage(tmp_path / "freed")  # a circle, which only a collection frees
        assert len(list(loader)) == 3
    finally:
        gc.enable()
    gc.collect()
    assert not (tmp_path / "freed").exists()


def test_masks_of_an_evaluation_are_a_function_of_the_image(monkeypatch):
    """Batches, epoch and number of processes do not matter; training draws other masks."""

    class Greys:
        labels = None

        def __len__(self):
            return 7

        def name(self, index):
            return str(index)

        def open(self, index):
            return Image.new("L", (8, 8), index)

    transform = MaskedEvalTransform(
        (8, 8), draw_noise=lambda rng: rng.random(4, dtype="float32"), mean=[0.0], std=[1.0]
    )
    expected = {
        index: keyed_generator(0, EVALUATION, 0, index).random(4, dtype="float32").tolist()
        for index in range(7)
    }
    for processes, batch_size in ((1, 3), (1, 7), (2, 2)):
        found = {}
        for rank in range(processes):
            monkeypatch.setattr(distributed, "world_size", lambda: processes)
            monkeypatch.setattr(distributed, "rank", lambda: rank)
            for _ in range(2):
                for images, noise in eval_loader(Greys(), transform, batch_size, 0, shared=True):
                    found.update(
                        zip(
                            (images[:, 0, 0, 0] * 255).round().astype("int64").tolist(),
                            noise.tolist(),
                            strict=True,
                        )
                    )
        assert found == expected
    assert expected[0] != keyed_generator(0, IMAGE, 0, 0).random(4, dtype="float32").tolist()


def test_a_shuffle_buffer_is_for_tar_files(tmp_path):
    make_folder(tmp_path / "folder" / "train", contents())
    make_tar(tmp_path / "tar" / "train.tar", contents())
    folder, tar = (open_source(str(tmp_path / name), "train") for name in ("folder", "tar"))
    with pytest.raises(ValueError, match=r"--shuffle_buffer 5: .*ant/1\.png"):
        loaders.train_loader(folder, draws, 2, 0, seed=7, shuffle_buffer=5)
    sampler = loaders.train_loader(tar, draws, 2, 0, seed=7, shuffle_buffer=1).sampler
    # As they lie in the tar file; with a buffer of 1 the only one is not mixed.
    assert [index for batch in sampler for _, index in batch] == tar.shards()[0].tolist() != [*range(6)]
    assert loaders.train_loader(tar, draws, 2, 0, seed=7).sampler.buffer is None
