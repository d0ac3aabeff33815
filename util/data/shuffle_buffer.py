"""Shuffle buffer: tar files are read in sequence, and a buffer of images mixes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import numpy as np


def through_buffer(length: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return the order in which a buffer of `size` items releases a stream of `length` items, int64 [length].

    The buffer is filled with the first `size` items. Then a random one leaves, and the next of the stream
    takes its slot. At the end of the stream, the rest leaves in random order. At step t only positions below
    t + size can leave.

    The item in a slot entered when the slot was drawn before. So a stable sort by slot gives all steps at
    once: 1.28 million items take 0.2 s.
    """
    size = min(size, length)
    slots = rng.integers(size, size=length - size)
    by_slot = np.argsort(slots, kind="stable")  # steps, grouped by slot, in order of time
    first = np.diff(slots[by_slot], prepend=-1) != 0
    released = np.empty_like(slots)  # position of the item that leaves at each step
    released[by_slot] = np.where(first, slots[by_slot], size + np.roll(by_slot, 1))
    left = np.arange(size)
    left[slots] = size + np.arange(length - size)  # the last of several steps at one slot stays
    return np.concatenate([released, rng.permutation(left)])


def epoch_order(
    shards: Sequence[np.ndarray], size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return the images as they are read and as they leave the buffer, int64 [N] each.

    Args:
        shards: for each tar file the indices of its images, in the order of the file.
        size: images in the buffer.
        rng: shuffles the tar files, and draws from the buffer.
    """
    stream = np.concatenate([shards[number] for number in rng.permutation(len(shards))])
    return stream, stream[through_buffer(len(stream), size, rng)]


class ShuffleBuffer:
    """Orders of the epochs of a source in tar files, and its read-ahead.

    Args:
        shards: for each tar file the indices of its images, in the order of the file.
        size: images in the buffer (--shuffle_buffer).
        announce: called with the indices, int64 [n], of images that will be read soon, in the order of the
            files.
    """

    def __init__(
        self, shards: Sequence[np.ndarray], size: int, announce: Callable[[np.ndarray], None]
    ) -> None:
        if size < 1:
            raise ValueError(
                f"--shuffle_buffer {size}: expected a number of pictures, or 0 for a uniformly random order"
            )
        self.shards, self.size, self.announce = shards, size, announce

    def order(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return `epoch_order` of this buffer."""
        return epoch_order(self.shards, self.size, rng)

    def fingerprint(self) -> str:
        """Return a text that differs between buffers with different orders."""
        lengths = np.array([len(shard) for shard in self.shards])
        digest = hashlib.sha256(np.concatenate([lengths, *self.shards]).astype("<i8").tobytes()).hexdigest()
        return f"{self.size} pictures, over {len(self.shards)} tar file(s) {digest[:8]}"


class ReadAhead:
    """Read-ahead of an epoch: images are announced as they enter the buffer.

    So the files are read in one sweep.

    Args:
        buffer: the shuffle buffer.
        stream: images as they enter it in this epoch, int64 [N].
        batch_of: int64 [N], the batch of this process that has each image, negative for none.
    """

    def __init__(self, buffer: ShuffleBuffer, stream: np.ndarray, batch_of: np.ndarray) -> None:
        self.buffer, self.stream, self.batch_of, self.done = buffer, stream, batch_of, 0

    def before(self, batch: int, images: int) -> None:
        """Announce the images that enter until `images` have left, except those before `batch`."""
        new = self.stream[self.done : images + self.buffer.size]
        self.done = max(self.done, images + self.buffer.size)
        new = new[self.batch_of[new] >= batch]
        if new.size:
            self.buffer.announce(new)
