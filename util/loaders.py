"""From a source of images (util.datasets) to batches for training and for evaluation."""
import os
import traceback

import numpy as np
import paddle

from util import distributed
from util.keyed_random import IMAGE, keyed_generator
from util.sampler import EpochSampler


def train_loader(images, transform, batch_size, num_workers, *, seed, pin_memory=True):
    """Shuffled full batches of this process's share of the images; call `batch_sampler.set_epoch` before each epoch.

    Args:
        pin_memory: as for `make_loader`.
    """
    sampler = EpochSampler(len(images), batch_size, seed=seed, rank=distributed.rank(),
                           world_size=distributed.world_size())
    return make_loader(Samples(images, transform, seed), sampler, num_workers, pin_memory=pin_memory)


def eval_loader(images, transform, batch_size, num_workers, *, shared, pin_memory=True):
    """Every image once, in order.

    Args:
        shared: whether the processes divide the images among them (--dist_eval); otherwise each has all of them.
        pin_memory: as for `make_loader`.
    """
    rank, world_size = (distributed.rank(), distributed.world_size()) if shared else (0, 1)
    sampler = EpochSampler(len(images), batch_size, seed=0, rank=rank, world_size=world_size, shuffle=False,
                           drop_last=False)
    return make_loader(Samples(images, transform, seed=0), sampler, num_workers, pin_memory=pin_memory)


class Samples(paddle.io.Dataset):
    """Transformed images, drawn at random by what the draw is for: `samples[epoch, index]` is the same in any process.

    Args:
        images: a source.
        transform: (picture, numpy Generator) -> tuple of numpy arrays of fixed shapes and of other objects. An item is
            this tuple, and behind it the int64 label if the source has labels.
    """

    def __init__(self, images, transform, seed):
        self.images, self.transform, self.seed = images, transform, seed

    def __len__(self):
        return len(self.images)

    def __getitem__(self, place):
        epoch, index = place
        item = self.transform(self.images.open(index), keyed_generator(self.seed, IMAGE, epoch, index))
        return tuple(item) if self.images.labels is None else (*item, self.images.labels[index])


def make_loader(samples, sampler, num_workers, *, pin_memory=True):
    """paddle.io.DataLoader over the batches of an EpochSampler; each is a list. Passes errors on.

    Of an item's arrays a batch has Tensors; of its other objects, lists. If the transform of `samples` has a method
    `finish`, this process puts each batch through it.

    Workers hand batches over in /dev/shm, or, slower, through pipes where that is too small for the batches under way:
    containers often have 64 MB, and running out of it kills a worker with a bus error. Loads one sample to know.

    Batches are loaded ahead, and on a GPU copied ahead: Paddle's reader does so in a thread and a stream of its own.

    Args:
        pin_memory: whether those copies come from page-locked memory, and run beside the computation; on a CPU there
            are none.
    """
    use_shared_memory = True
    if num_workers > 0 and os.path.isdir("/dev/shm"):
        prefetch_factor = 2  # the DataLoader's own default, for at least two workers
        under_way = prefetch_factor * max(num_workers, 2) + 2  # and one in the making, one at the training step
        needed = under_way * sampler.batch_size * sum(part.nbytes for part in samples[0, 0] if hasattr(part, "nbytes"))
        free = _free_bytes("/dev/shm")
        use_shared_memory = needed <= free
        if not use_shared_memory:
            print(f"/dev/shm has {free >> 20} MB free, and {num_workers} worker(s) need about {-(-needed >> 20)} MB: "
                  "batches go through pipes, which is slower. Give more (docker run --shm-size) or less --num_workers.")
    loader = _Loader(_Guarded(samples), batch_sampler=sampler, num_workers=num_workers, collate_fn=_collate,
                     use_shared_memory=use_shared_memory, use_buffer_reader=True)
    loader.pin_memory = pin_memory
    return loader


class _Loader(paddle.io.DataLoader):
    """Finishes batches, raises what loading an image raised, and ends its workers when an epoch is left early.

    Paddle's own waits forever without workers, hides the message with them, and keeps those of an unfinished epoch.
    """

    def __iter__(self):
        finish = getattr(self.dataset.samples.transform, "finish", list)
        for batch in self._batches():
            if isinstance(batch[-1], Exception):
                raise batch[-1]
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
    """`samples`, with an exception in the place of an item that raised one."""

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, place):
        try:
            return self.samples[place]
        except Exception as error:  # any: it is raised again where training can see it; not all can be pickled
            return error if type(error) is ValueError else RuntimeError(traceback.format_exc())


class _Column:
    """What the items of a batch have in one place and is no array. Paddle carries it along as it is, unlike a list."""

    def __init__(self, objects):
        self.objects = objects


def _collate(items):
    """[array or _Column, ...] of a batch, or [a placeholder, the exception]: Paddle wants at least one array."""
    error = next((item for item in items if isinstance(item, Exception)), None)
    if error is not None:
        return [np.zeros(1), error]
    return [np.stack(column) if hasattr(column[0], "nbytes") else _Column(list(column)) for column in zip(*items)]


def _free_bytes(folder):
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize
