"""The order of an epoch in which tar files are read one after the other, and mixed by a buffer of pictures."""
import hashlib

import numpy as np


def through_buffer(length, size, rng):
    """Positions of a stream of `length` items in the order in which a shuffle buffer of `size` items lets them out.

    The usual buffer: it is filled with the first `size` items; one drawn at random goes out and the next of the stream
    takes its slot, until the stream has ended; the rest goes out in random order. At step t only positions below
    t + size can go out. What is in a slot came when that slot was drawn the last time, so that a sort by slot tells all
    of it at once: 1.28 million items take 0.2 s.

    Returns int64 [length].
    """
    size = min(size, length)
    slots = rng.integers(size, size=length - size)
    by_slot = np.argsort(slots, kind="stable")     # steps, together by slot, in order of time
    first = np.diff(slots[by_slot], prepend=-1) != 0
    came = np.empty_like(slots)                     # position of what goes out at each step
    came[by_slot] = np.where(first, slots[by_slot], size + np.roll(by_slot, 1))
    left = np.arange(size)
    left[slots] = size + np.arange(length - size)   # of several steps at one slot the last one stays
    return np.concatenate([came, rng.permutation(left)])


def epoch_order(shards, size, rng):
    """(stream, order), int64 [N] each: what is read when, and which picture comes when.

    Args:
        shards: for each tar file the indices of its pictures, as they lie in it.
        size: pictures in the buffer.
        rng: shuffles the tar files, and draws from the buffer.
    """
    stream = np.concatenate([shards[number] for number in rng.permutation(len(shards))])
    return stream, stream[through_buffer(len(stream), size, rng)]


class ShuffleBuffer:
    """The orders of a source whose pictures lie in tar files, and what tells the operating system of them in time.

    Args:
        shards: as for `epoch_order`.
        size: pictures in the buffer.
        announce: called with the indices, int64 [n], of pictures that will soon be read, in the order of the files.
    """

    def __init__(self, shards, size, announce):
        if size < 1:
            raise ValueError(f"--shuffle_buffer {size}: expected a number of pictures, or 0 for a wholly random order")
        self.shards, self.size, self.announce = shards, size, announce

    def order(self, rng):
        return epoch_order(self.shards, self.size, rng)

    def fingerprint(self):
        """What two buffers differ in if their orders differ."""
        lengths = np.array([len(shard) for shard in self.shards])
        digest = hashlib.sha256(np.concatenate([lengths, *self.shards]).astype("<i8").tobytes()).hexdigest()
        return f"{self.size} pictures, over {len(self.shards)} tar file(s) {digest[:8]}"


class ReadAhead:
    """Announces the pictures of an epoch as they come into the buffer: only then they are read in one sweep.

    Args:
        buffer: ShuffleBuffer.
        stream: of its epoch.
        batch_of: int64 [N], the batch of this process in which each picture comes, negative for none.
    """

    def __init__(self, buffer, stream, batch_of):
        self.buffer, self.stream, self.batch_of, self.done = buffer, stream, batch_of, 0

    def before(self, batch, images):
        """Announce what is new in the buffer when it has let out `images`; what came before `batch` is not read."""
        new = self.stream[self.done:images + self.buffer.size]
        self.done = max(self.done, images + self.buffer.size)
        new = new[self.batch_of[new] >= batch]
        if new.size:
            self.buffer.announce(new)
