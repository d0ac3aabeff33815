"""From a source of images (util.data.sources) to batches for training and for evaluation.

In training, a picture that cannot be read is replaced by another one, which a generator keyed by its epoch and index
draws, with that one's label and the draws of the place: batches keep their size, and a run its repeatability. In
evaluation it is left out, since another one would count twice. util.data.bad_images is told.
"""
import gc
import os
import traceback

import numpy as np
import paddle

from util.data.bad_images import BadImages
from util.data.sampler import EpochSampler
from util.data.shuffle_buffer import ShuffleBuffer
from util.data.tar_source import TarSource
from util.images.decode import UnreadableImage
from util.system import distributed, signals
from util.system.keyed_random import EVALUATION, IMAGE, REPLACEMENT, keyed_generator

TRIES = 100     # to replace a picture, before all of the data is taken for gone


def train_loader(images, transform, batch_size, num_workers, *, seed, shuffle_buffer=0, pin_memory=True,
                 bad_images=None):
    """Shuffled full batches of this process's share of the images; call `batch_sampler.set_epoch` before each epoch.

    Args:
        shuffle_buffer: pictures in a buffer by which tar files, read one after the other, are mixed; 0: any order is as
            likely as another.
        pin_memory: as for `make_loader`.
        bad_images: as for `make_loader`.
    """
    buffer = None
    if shuffle_buffer:
        if not isinstance(images, TarSource):
            raise ValueError(f"--shuffle_buffer {shuffle_buffer}: it is for tar files, which it lets be read from "
                             f"beginning to end, and {images.name(0)} is in none. Pack the images with "
                             "tools/pack_dataset.py, or leave it out.")
        buffer = ShuffleBuffer(images.shards(), shuffle_buffer, images.announce)
    sampler = EpochSampler(len(images), batch_size, seed=seed, rank=distributed.rank(),
                           world_size=distributed.world_size(), buffer=buffer)
    return make_loader(Samples(images, transform, seed), sampler, num_workers, pin_memory=pin_memory,
                       bad_images=bad_images)


def eval_loader(images, transform, batch_size, num_workers, *, shared, pin_memory=True, bad_images=None):
    """Every image once, in order; without those that cannot be read, so that a batch may be smaller or missing.

    Args:
        shared: whether the processes divide the images among them (--dist_eval); otherwise each has all of them.
        pin_memory: as for `make_loader`.
        bad_images: as for `make_loader`.
    """
    rank, world_size = (distributed.rank(), distributed.world_size()) if shared else (0, 1)
    sampler = EpochSampler(len(images), batch_size, seed=0, rank=rank, world_size=world_size, shuffle=False,
                           drop_last=False)
    return make_loader(Samples(images, transform, seed=0, stream=EVALUATION), sampler, num_workers,
                       pin_memory=pin_memory, bad_images=bad_images, replace=False)


class Samples(paddle.io.Dataset):
    """Transformed images, drawn at random by what the draw is for: `samples[epoch, index]` is the same in any process.

    Args:
        images: a source.
        transform: (picture, numpy Generator) -> tuple of numpy arrays of fixed shapes and of other objects. An item is
            this tuple, and behind it the int64 label if the source has labels.
        stream: of util.system.keyed_random.
    """

    def __init__(self, images, transform, seed, stream=IMAGE):
        self.images, self.transform, self.seed, self.stream = images, transform, seed, stream

    def __len__(self):
        return len(self.images)

    def __getitem__(self, place):
        return self.at(place, place[1])

    def at(self, place, index):
        """The item at `place` (epoch, index), with its draws, but of the picture `index` and with the label of that."""
        item = self.transform(self.images.open(index), keyed_generator(self.seed, self.stream, *place))
        return tuple(item) if self.images.labels is None else (*item, self.images.labels[index])


def make_loader(samples, sampler, num_workers, *, pin_memory=True, bad_images=None, replace=True):
    """paddle.io.DataLoader over the batches of an EpochSampler; each is a list. Passes errors on.

    Of an item's arrays a batch has Tensors; of its other objects, lists. If the transform of `samples` has a method
    `finish`, this process puts each batch through it.

    Workers hand batches over in /dev/shm, or, slower, through pipes where that is too small for the batches under way:
    containers often have 64 MB, and running out of it kills a worker with a bus error. Loads one sample to know.

    Batches are loaded ahead, and on a GPU copied ahead: Paddle's reader does so in a thread and a stream of its own.

    Args:
        pin_memory: whether those copies come from page-locked memory, and run beside the computation; on a CPU there
            are none.
        bad_images: util.data.bad_images.BadImages, which is told of the pictures that cannot be read; None: the first one
            is an error. Kept as `bad_images` of the loader.
        replace: whether another picture stands in for such a one; else it is left out.
    """
    use_shared_memory = True
    if num_workers > 0 and os.path.isdir("/dev/shm"):
        prefetch_factor = 2  # the DataLoader's own default, for at least two workers
        under_way = prefetch_factor * max(num_workers, 2) + 2  # and one in the making, one at the training step
        needed = under_way * sampler.batch_size * _bytes_of_a_sample(samples)
        launched_together = int(os.environ.get("PADDLE_LOCAL_SIZE", 1))
        free = _free_bytes("/dev/shm") // max(1, launched_together)
        use_shared_memory = needed <= free
        if not use_shared_memory:
            print(f"/dev/shm has {free >> 20} MB free, and {num_workers} worker(s) need about {-(-needed >> 20)} MB: "
                  "batches go through pipes, which is slower. Give more (docker run --shm-size) or less --num_workers.")
    loader = _Loader(_Guarded(samples, replace), batch_sampler=sampler, num_workers=num_workers, collate_fn=_collate,
                     worker_init_fn=_begin_worker, use_shared_memory=use_shared_memory,
                     use_buffer_reader=True)
    loader.pin_memory = pin_memory
    loader.bad_images = BadImages("error", "given", len(samples)) if bad_images is None else bad_images
    return loader


def _begin_worker(number):
    # What is garbage in the process that was forked is not this one's to collect: freeing a reader of Paddle's waits
    # for ever for threads that exist there only.
    gc.freeze()
    signals.spare_worker(number)


class _Loader(paddle.io.DataLoader):
    """Finishes batches, raises what loading an image raised, and ends its workers when an epoch is left early.

    Paddle's own waits forever without workers, hides the message with them, and keeps those of an unfinished epoch.
    """

    def __iter__(self):
        finish = getattr(self.dataset.samples.transform, "finish", list)
        for *batch, notes in self._batches():
            self.bad_images.add(notes.unreadable)
            if notes.error is not None:
                raise notes.error
            if not notes.empty:
                yield finish([part.objects if isinstance(part, _Column) else part for part in batch])

    def _batches(self):
        # A generator of its own, so that no traceback keeps Paddle's iterator: a worker forked later, freeing the
        # iterator's locks, would wait forever for threads that it does not have.
        batches = super().__iter__()
        try:
            yield from batches
        except GeneratorExit:  # the loop over this generator was left
            self.batch_sampler.stop()
            for _ in batches:  # Paddle cleans up at the end of an epoch only; a few batches are under way
                pass
            raise


class _Guarded(paddle.io.Dataset):
    """`samples` as _Loaded, with the item of another picture, or None, for a picture that cannot be read."""

    def __init__(self, samples, replace):
        self.samples, self.replace = samples, replace

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, place):
        unreadable = []
        try:
            for index in self._pictures(place):
                try:
                    return _Loaded(self.samples.at(place, index), unreadable)
                except UnreadableImage as error:
                    unreadable.append((error.name, error.reason))
        except Exception as error:  # any: it is raised again where training can see it; not all can be pickled
            return _Loaded(error=error if type(error) is ValueError else RuntimeError(traceback.format_exc()))
        return _Loaded(None, unreadable, self._gone(unreadable) if self.replace else None)

    def _pictures(self, place):
        """Indices of the picture of `place` and of those to take if it cannot be read."""
        yield place[1]
        if self.replace:
            rng = keyed_generator(self.samples.seed, REPLACEMENT, *place)
            for _ in range(TRIES):
                yield int(rng.integers(len(self.samples)))

    @staticmethod
    def _gone(unreadable):
        return ValueError(f"{UnreadableImage(*unreadable[0])} Nor can {TRIES} others that were drawn in its place, "
                          f"such as {unreadable[-1][0]}. Is the data still there?")


class _Loaded:
    """An item or None, the (name, reason) of each unreadable picture on the way to it, and an exception or None."""

    def __init__(self, item=None, unreadable=(), error=None):
        self.item, self.unreadable, self.error = item, unreadable, error


class _Column:
    """What the items of a batch have in one place and is no array. Paddle carries it along as it is, unlike a list."""

    def __init__(self, objects):
        self.objects = objects


class _Notes:
    """What is to be known about a batch beside its contents: whether it has any, and what each `_Loaded` says."""

    def __init__(self, empty, unreadable, error):
        self.empty, self.unreadable, self.error = empty, unreadable, error


def _collate(loaded):
    """[array or _Column, ..., _Notes] of a batch; without items, a placeholder: Paddle wants at least one array."""
    items = [one.item for one in loaded if one.item is not None]
    notes = _Notes(not items, [picture for one in loaded for picture in one.unreadable],
                   next((one.error for one in loaded if one.error is not None), None))
    if notes.empty or notes.error is not None:
        return [np.zeros(1), notes]
    if len({part.dtype for part in next(zip(*items)) if hasattr(part, "nbytes")}) > 1:
        notes.error = ValueError("--data_path: some pictures have 8-bit pixels, which count from 0 to 1, and some "
                                 "wider numbers, which count as they are; save all of them as one type")
        return [np.zeros(1), notes]
    return [*(np.stack(column) if hasattr(column[0], "nbytes") else _Column(list(column)) for column in zip(*items)),
            notes]


def _bytes_of_a_sample(samples):
    loaded = _Guarded(samples, replace=True)[0, 0]
    return sum(part.nbytes for part in loaded.item or () if hasattr(part, "nbytes"))  # an error comes with its batch


def _free_bytes(folder):
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize
