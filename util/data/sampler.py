"""Order of the images in an epoch, as batches for any number of processes, starting at any batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from util.data.shuffle_buffer import ReadAhead, ShuffleBuffer
from util.system.keyed_random import EPOCH_ORDER, keyed_generator


class EpochSampler:
    """Sampler of batches as lists of (epoch, index) pairs; a `batch_sampler` for paddle.io.DataLoader.

    The order of an epoch depends only on (seed, epoch). Its k-th group of batch_size * world_size images is
    the k-th global batch, of which process `rank` takes every world_size-th image: 2 processes with batch 4
    see the same global batches as 1 process with batch 8.

    Without `drop_last`, every image occurs exactly once over all processes. No image is repeated as padding,
    so a process may get a smaller last batch than another, or one batch less. Processes must therefore not
    synchronise in each batch.

    Args:
        num_samples: number of images.
        batch_size: images in a batch of one process.
        seed: seed of the run.
        rank, world_size: rank of this process, and number of processes.
        shuffle: False for the order 0, 1, 2, ...
        drop_last: leave out the images that do not fill a global batch.
        buffer: shuffle buffer that decides the order of an epoch; None for a uniformly random order.

    Raises ValueError if `drop_last` would leave nothing.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        shuffle: bool = True,
        drop_last: bool = True,
        buffer: ShuffleBuffer | None = None,
    ) -> None:
        assert 0 <= rank < world_size
        if batch_size < 1:
            raise ValueError(f"--batch_size {batch_size}: a batch needs at least 1 image")
        if drop_last and num_samples < batch_size * world_size:
            raise ValueError(
                f"--batch_size {batch_size}: {world_size} process(es) need "
                f"{batch_size * world_size} images for one step, but there are {num_samples}; "
                f"choose --batch_size {max(num_samples // world_size, 1)} or less, or give more "
                "images"
            )
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.shuffle, self.drop_last, self.buffer = shuffle, drop_last, buffer
        self.stopped = False
        self.set_epoch(0)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Let the next iteration yield the batches of `epoch`, starting at number `start_batch`."""
        if not 0 <= start_batch <= len(self):
            raise ValueError(
                f"Cannot start epoch {epoch} at batch {start_batch}: with {self.num_samples} "
                f"images and --batch_size {self.batch_size} on {self.world_size} process(es) it "
                f"has {len(self)}. Resume with the data, --batch_size and number of processes "
                "that the run had."
            )
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        """Return the number of batches of this process in a whole epoch."""
        full, rest = divmod(self.num_samples, self.batch_size * self.world_size)
        return full + (not self.drop_last and rest > self.rank)

    def stop(self) -> None:
        """End the current iteration early. The next one is complete again."""
        self.stopped = True

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        ahead = None
        if self.buffer is None:
            order = self._order(self.epoch)
        else:
            stream, order = self._buffered_order(self.buffer, self.epoch)
            ahead = ReadAhead(self.buffer, stream, self._batch_of(order))
        self.stopped = False
        for batch in range(self.start_batch, len(self)):
            if self.stopped:
                return
            if ahead is not None:
                ahead.before(self.start_batch, (batch + 1) * self.batch_size * self.world_size)
            yield [(self.epoch, index) for index in self._indices(order, batch)]

    def indices(self, epoch: int, batch: int) -> list[int]:
        """Return the indices of the images in a batch of this process."""
        return self._indices(self._order(epoch), batch)

    def places(self, epoch: int, indices: Sequence[int]) -> dict[int, tuple[int, int]]:
        """Return {index: (batch, position in it)} for those `indices` that this process has in `epoch`."""
        found = {}
        order = self._order(epoch)
        for position in np.flatnonzero(np.isin(order, indices)):
            batch, rest = divmod(int(position), self.batch_size * self.world_size)
            place, rank = divmod(rest, self.world_size)
            if rank == self.rank and batch < len(self):
                found[int(order[position])] = batch, place
        return found

    def _order(self, epoch: int) -> np.ndarray:
        """Return the indices of all images in the order of an epoch, int64 [N]."""
        if self.buffer is not None:
            return self._buffered_order(self.buffer, epoch)[1]
        if not self.shuffle:
            return np.arange(self.num_samples)
        return keyed_generator(self.seed, EPOCH_ORDER, epoch, 0).permutation(self.num_samples)

    def _buffered_order(self, buffer, epoch):
        """Return the indices in the order in which they enter the buffer, and in which they leave it."""
        return buffer.order(keyed_generator(self.seed, EPOCH_ORDER, epoch, 0))

    def _batch_of(self, order):
        """Return, for each image, the batch of this process that has it, or -1: int64 [N]."""
        places = np.arange(self.num_samples)
        batches = places // (self.batch_size * self.world_size)
        batch_of = np.empty_like(order)
        mine = (places % self.world_size == self.rank) & (batches < len(self))
        batch_of[order] = np.where(mine, batches, -1)
        return batch_of

    def _indices(self, order, batch):
        global_batch = self.batch_size * self.world_size
        stretch = order[batch * global_batch : (batch + 1) * global_batch]
        return stretch[self.rank :: self.world_size].tolist()
