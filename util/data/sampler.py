"""Which images make up which batch, for any number of processes and from any place in an epoch."""
import numpy as np

from util.data.shuffle_buffer import ReadAhead
from util.system.keyed_random import EPOCH_ORDER, keyed_generator


class EpochSampler:
    """Batches as lists of (epoch, index) pairs; a `batch_sampler` for paddle.io.DataLoader.

    The order of an epoch follows from (seed, epoch) alone, also in a single process. Its k-th stretch of
    batch_size * world_size images is the k-th global batch, of which process `rank` takes every world_size-th image:
    2 processes with batch 4 see the same global batches as 1 process with batch 8.

    Without `drop_last` every image comes exactly once over all processes. Nothing is repeated to even out the end: a
    process may get a smaller last batch than another, or one batch less, so they must not wait for each other batch by
    batch.

    Args:
        batch_size: images in a batch of one process.
        shuffle: without it the order is 0, 1, 2, ...
        buffer: util.data.shuffle_buffer.ShuffleBuffer, which gives the order of an epoch then; None: any is as likely.
        drop_last: leave out the images that do not fill a global batch.

    Raises ValueError if `drop_last` would leave nothing.
    """

    def __init__(self, num_samples, batch_size, *, seed, rank=0, world_size=1, shuffle=True, drop_last=True,
                 buffer=None):
        assert 0 <= rank < world_size
        if batch_size < 1:
            raise ValueError(f"--batch_size {batch_size}: a batch needs at least 1 image.")
        if drop_last and num_samples < batch_size * world_size:
            raise ValueError(f"--batch_size {batch_size} on {world_size} process(es) needs {batch_size * world_size} "
                             f"images for one step, but there are {num_samples}: an epoch would have no step. "
                             f"Choose --batch_size {max(num_samples // world_size, 1)} or less, or give more images.")
        self.num_samples, self.batch_size, self.seed = num_samples, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.shuffle, self.drop_last, self.buffer = shuffle, drop_last, buffer
        self.stopped = False
        self.set_epoch(0)

    def set_epoch(self, epoch, start_batch=0):
        """The next iteration gives the batches of `epoch` from number `start_batch` on."""
        if not 0 <= start_batch <= len(self):
            raise ValueError(f"Cannot start epoch {epoch} at batch {start_batch}: with {self.num_samples} images and "
                             f"--batch_size {self.batch_size} on {self.world_size} process(es) it has {len(self)}. "
                             "Resume with the data, --batch_size and number of processes that the run had.")
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self):
        """Batches of this process in a whole epoch, wherever the next iteration starts."""
        full, rest = divmod(self.num_samples, self.batch_size * self.world_size)
        return full + (not self.drop_last and rest > self.rank)

    def stop(self):
        """End the iteration under way. The next one is whole again."""
        self.stopped = True

    def __iter__(self):
        stream, order = self._stream_and_order(self.epoch)
        ahead = None if self.buffer is None else ReadAhead(self.buffer, stream, self._batch_of(order))
        self.stopped = False
        for batch in range(self.start_batch, len(self)):
            if self.stopped:
                return
            if ahead is not None:
                ahead.before(self.start_batch, (batch + 1) * self.batch_size * self.world_size)
            yield [(self.epoch, index) for index in self._of_batch(order, batch)]

    def indices(self, epoch, batch):
        """The images of a batch of this process, as indices."""
        return self._of_batch(self._stream_and_order(epoch)[1], batch)

    def places(self, epoch, indices):
        """{index: (batch, place in it)} of those of the images `indices` that this process has in `epoch`."""
        found = {}
        order = self._stream_and_order(epoch)[1]
        for position in np.flatnonzero(np.isin(order, indices)):
            batch, rest = divmod(int(position), self.batch_size * self.world_size)
            place, rank = divmod(rest, self.world_size)
            if rank == self.rank and batch < len(self):
                found[int(order[position])] = batch, place
        return found

    def _stream_and_order(self, epoch):
        """The pictures as they are read into the buffer, None without one, and as they come."""
        rng = keyed_generator(self.seed, EPOCH_ORDER, epoch, 0)
        if self.buffer is not None:
            return self.buffer.order(rng)
        return None, rng.permutation(self.num_samples) if self.shuffle else np.arange(self.num_samples)

    def _batch_of(self, order):
        """int64 [N]: the batch of this process in which each picture comes, -1 for none."""
        places = np.arange(self.num_samples)
        batches = places // (self.batch_size * self.world_size)
        batch_of = np.empty_like(order)
        batch_of[order] = np.where((places % self.world_size == self.rank) & (batches < len(self)), batches, -1)
        return batch_of

    def _of_batch(self, order, batch):
        global_batch = self.batch_size * self.world_size
        stretch = order[batch * global_batch:(batch + 1) * global_batch]
        return stretch[self.rank::self.world_size].tolist()
