"""Loading: from a source of images (util.data.sources) to batches for training and evaluation.

In training, an unreadable image is replaced by another one, drawn by a generator keyed by epoch and index. It
brings its own label and takes the random draws of the position. So batches keep their size, and a run stays
repeatable. In evaluation an unreadable image is left out, because a replacement would count twice.
util.data.bad_images keeps the list.
"""

from __future__ import annotations

import gc
import os
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import paddle

from util.data.bad_images import BadImages
from util.data.sampler import EpochSampler
from util.data.shuffle_buffer import ShuffleBuffer
from util.data.sources import ImageSource
from util.data.tar_source import TarSource
from util.images.decode import UnreadableImage
from util.system import distributed, signals
from util.system.keyed_random import EVALUATION, IMAGE, REPLACEMENT, keyed_generator

TRIES = 100  # replacements of one unreadable image, before the whole data set is assumed to be gone
Transform = Callable[[Any, np.random.Generator], tuple]


def train_loader(
    source: ImageSource,
    transform: Transform,
    batch_size: int,
    num_workers: int,
    *,
    seed: int,
    shuffle_buffer: int = 0,
    pin_memory: bool = True,
    bad_images: BadImages | None = None,
) -> Loader:
    """Return shuffled full batches of this process's share of the images.

    Call `sampler.set_epoch` before each epoch.

    Args:
        source: images.
        transform: as for `Samples`.
        batch_size: images in a batch of one process.
        num_workers: processes that load.
        seed: of the run.
        shuffle_buffer: images in the buffer that mixes tar files, which are read from beginning to end; 0:
            any order is equally likely.
        pin_memory: as for `make_loader`.
        bad_images: as for `make_loader`.
    """
    buffer = None
    if shuffle_buffer:
        if not isinstance(source, TarSource):
            raise ValueError(
                f"--shuffle_buffer {shuffle_buffer}: needs tar files, and {source.name(0)} is "
                "not in one; pack the images with tools/pack_dataset.py, or leave it out"
            )
        buffer = ShuffleBuffer(source.shards(), shuffle_buffer, source.announce)
    sampler = EpochSampler(
        len(source),
        batch_size,
        seed=seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        buffer=buffer,
    )
    return make_loader(
        Samples(source, transform, seed), sampler, num_workers, pin_memory=pin_memory, bad_images=bad_images
    )


def eval_loader(
    source: ImageSource,
    transform: Transform,
    batch_size: int,
    num_workers: int,
    *,
    shared: bool,
    pin_memory: bool = True,
    bad_images: BadImages | None = None,
) -> Loader:
    """Return every image once, in order. Unreadable ones are left out, so a batch may be smaller or missing.

    Args:
        source: images.
        transform: as for `Samples`.
        batch_size: images in a batch of one process.
        num_workers: processes that load.
        shared: whether the processes divide the images among them (--dist_eval); otherwise each loads all of
            them.
        pin_memory: as for `make_loader`.
        bad_images: as for `make_loader`.
    """
    rank, world_size = (distributed.rank(), distributed.world_size()) if shared else (0, 1)
    sampler = EpochSampler(
        len(source), batch_size, seed=0, rank=rank, world_size=world_size, shuffle=False, drop_last=False
    )
    return make_loader(
        Samples(source, transform, seed=0, stream=EVALUATION),
        sampler,
        num_workers,
        pin_memory=pin_memory,
        bad_images=bad_images,
        replace=False,
    )


class Samples(paddle.io.Dataset):
    """Transformed images; `samples[epoch, index]` is the same in any process.

    An item is what `transform` returns, followed by the int64 label if the source has labels.

    Args:
        source: images.
        transform: (image, numpy Generator) -> tuple of numpy arrays of fixed shapes and of other objects.
        seed: of the random draws.
        stream: purpose of the random draws, of util.system.keyed_random.
    """

    def __init__(self, source: ImageSource, transform: Transform, seed: int, stream: int = IMAGE) -> None:
        self.source, self.transform, self.seed, self.stream = source, transform, seed, stream

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, position: tuple[int, int]) -> tuple:  # type: ignore[override]  # not an int
        return self.at(position, position[1])

    def at(self, position: tuple[int, int], index: int) -> tuple:
        """Return image `index` with its label and with the random draws of `position`, (epoch, index)."""
        item = self.transform(self.source.open(index), keyed_generator(self.seed, self.stream, *position))
        return tuple(item) if self.source.labels is None else (*item, self.source.labels[index])


def make_loader(
    samples: Samples,
    sampler: EpochSampler,
    num_workers: int,
    *,
    pin_memory: bool = True,
    bad_images: BadImages | None = None,
    replace: bool = True,
) -> Loader:
    """Return a loader of the batches of `sampler`, each a list. It raises exceptions of loading.

    A batch has a Tensor for each array of an item, and a list for each other object. If the transform has a
    method `finish`, this process applies it to each batch.

    Workers pass batches on in /dev/shm. Containers often have only 64 MB there, and a worker that runs out of
    it is killed by a bus error. So one sample is loaded to compute the need; if it does not fit, slower pipes
    are used.

    Batches are loaded ahead, and on a GPU copied ahead, by Paddle's reader in a thread and stream of its own.

    Args:
        samples: transformed images.
        sampler: positions of each batch.
        num_workers: processes that load; 0: this process.
        pin_memory: copy to a GPU from page-locked memory, beside the computation; without effect on a CPU.
        bad_images: list of unreadable images; None: the first one is an error.
        replace: whether another image replaces an unreadable one; otherwise it is left out.
    """
    use_shared_memory = (
        num_workers == 0
        or not os.path.isdir("/dev/shm")
        or _fits_shared_memory(samples, sampler.batch_size, num_workers)
    )
    unchecked: Any = {"batch_sampler": sampler, "collate_fn": _collate}  # its stubs allow less than it does
    loader = Loader(
        _Guarded(samples, replace),
        num_workers=num_workers,
        worker_init_fn=_begin_worker,
        use_shared_memory=use_shared_memory,
        use_buffer_reader=True,
        **unchecked,
    )
    loader.pin_memory = pin_memory
    loader.bad_images = BadImages("error", "given", len(samples)) if bad_images is None else bad_images
    return loader


def _fits_shared_memory(samples: Samples, batch_size: int, num_workers: int) -> bool:
    prefetch_factor = 2  # the DataLoader's own default, for at least two workers
    # One more is in the making, and one at the training step.
    in_flight = prefetch_factor * max(num_workers, 2) + 2
    needed = in_flight * batch_size * _bytes_of_a_sample(samples)
    free = _free_bytes("/dev/shm") // max(1, int(os.environ.get("PADDLE_LOCAL_SIZE", 1)))
    if needed > free:
        print(
            f"/dev/shm has {free >> 20} MB free, and {num_workers} worker(s) need about {-(-needed >> 20)} "
            "MB: "
            "batches go through pipes, which is slower. Give more (docker run --shm-size) or less "
            "--num_workers."
        )
    return needed <= free


def _begin_worker(number: int) -> None:
    # Freeze inherited objects: freeing one of Paddle's readers would wait forever for the parent's threads.
    gc.freeze()
    signals.spare_worker(number)


class Loader(paddle.io.DataLoader):
    """Batches of a Samples; raises what loading raised, and ends its workers when an epoch is left early.

    Paddle's own loader waits forever without workers, hides the message with them, and keeps workers of an
    unfinished epoch.
    """

    bad_images: BadImages

    @property
    def samples(self) -> Samples:
        """Transformed images, one by one."""
        return self.dataset.samples  # type: ignore[attr-defined]

    @property
    def source(self) -> ImageSource:
        """Images as they are stored."""
        return self.samples.source

    @property
    def transform(self) -> Transform:
        """Transform of each image."""
        return self.samples.transform

    @property
    def sampler(self) -> EpochSampler:
        """Positions of the images in each batch."""
        return self.batch_sampler  # type: ignore[return-value]

    def __iter__(self) -> Iterator[list]:  # type: ignore[override]
        finish = getattr(self.transform, "finish", list)
        for *batch, notes in self._batches():
            self.bad_images.add(notes.unreadable)
            if notes.error is not None:
                raise notes.error
            if not notes.empty:
                yield finish([part.objects if isinstance(part, _Column) else part for part in batch])

    def _batches(self) -> Iterator[list]:
        # A generator of its own, so that no traceback holds Paddle's iterator: a worker forked later would
        # free the iterator's locks, and wait forever for threads that it does not have.
        batches = super().__iter__()
        try:
            yield from batches
        except GeneratorExit:  # the loop over this generator was left
            self.sampler.stop()
            # Paddle cleans up only at the end of an epoch; a few batches are still in flight
            for _ in batches:
                pass
            raise


class _Guarded(paddle.io.Dataset):
    """Samples as _Loaded: unreadable images are replaced or left out, and exceptions are passed on."""

    def __init__(self, samples: Samples, replace: bool) -> None:
        self.samples, self.replace = samples, replace

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, position: tuple[int, int]) -> _Loaded:  # type: ignore[override]  # not an int
        unreadable: list[tuple[str, str]] = []
        try:
            for index in self._candidates(position):
                try:
                    return _Loaded(self.samples.at(position, index), unreadable)
                except UnreadableImage as error:
                    unreadable.append((error.name, error.reason))
        except Exception as error:  # raised again in the training process; some exceptions cannot be pickled
            return _Loaded(error=error if type(error) is ValueError else RuntimeError(traceback.format_exc()))
        return _Loaded(None, unreadable, self._gone(unreadable) if self.replace else None)

    def _candidates(self, position: tuple[int, int]) -> Iterator[int]:
        """Yield the index of `position`, then those of replacements."""
        yield position[1]
        if self.replace:
            rng = keyed_generator(self.samples.seed, REPLACEMENT, *position)
            for _ in range(TRIES):
                yield int(rng.integers(len(self.samples)))

    @staticmethod
    def _gone(unreadable: list[tuple[str, str]]) -> ValueError:
        return ValueError(
            f"{UnreadableImage(*unreadable[0])} Nor can {TRIES} others that were drawn in its "
            f"place, such as {unreadable[-1][0]}. Is the data still there?"
        )


class _Loaded:
    """An item or None, (name, reason) of each unreadable image on the way to it, and an exception or None."""

    def __init__(
        self, item: tuple | None = None, unreadable: Any = (), error: Exception | None = None
    ) -> None:
        self.item, self.unreadable, self.error = item, unreadable, error


class _Column:
    """Objects of a batch that are not arrays. Paddle passes an instance on as it is, unlike a list."""

    def __init__(self, objects: list) -> None:
        self.objects = objects


class _Notes:
    """Facts about a batch: whether it is empty, its unreadable images, and an exception or None."""

    def __init__(self, empty: bool, unreadable: list[tuple[str, str]], error: Exception | None) -> None:
        self.empty, self.unreadable, self.error = empty, unreadable, error


def _collate(loaded: list[_Loaded]) -> list:
    """Return [array or _Column, ..., _Notes], with a placeholder in an empty batch: Paddle needs arrays."""
    items = [one.item for one in loaded if one.item is not None]
    notes = _Notes(
        not items,
        [image for one in loaded for image in one.unreadable],
        next((one.error for one in loaded if one.error is not None), None),
    )
    if notes.empty or notes.error is not None:
        return [np.zeros(1), notes]
    if len({part.dtype for part in next(zip(*items, strict=True)) if hasattr(part, "nbytes")}) > 1:
        notes.error = ValueError(
            "--data_path: some images have 8-bit pixels, which are scaled to 0 to 1, "
            "and some "
            "have wider numbers, which are taken as they are; save all of them as one "
            "type"
        )
        return [np.zeros(1), notes]
    columns = zip(*items, strict=True)
    return [
        *(np.stack(column) if hasattr(column[0], "nbytes") else _Column(list(column)) for column in columns),
        notes,
    ]


def _bytes_of_a_sample(samples: Samples) -> int:
    loaded = _Guarded(samples, replace=True)[0, 0]
    # An error comes with its batch.
    return sum(part.nbytes for part in loaded.item or () if hasattr(part, "nbytes"))


def _free_bytes(folder: str) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize
