import numpy as np
import pytest

from util.data.sampler import EpochSampler
from util.data.shuffle_buffer import ShuffleBuffer, epoch_order, through_buffer
from util.system.keyed_random import EPOCH_ORDER, keyed_generator

# 40 pictures in five tar files; the numbers of pictures are in sorted order of names, not of places.
SHARDS = [
    np.array(indices) for indices in np.split(np.random.default_rng(0).permutation(40), [9, 10, 25, 30])
]


def one_by_one(length, size, rng):
    """Return what leaves a plain shuffle buffer during the stream, and what is left in its slots."""
    buffer, out = list(range(size)), []
    for position, slot in enumerate(rng.integers(size, size=length - size), size):
        out.append(buffer[slot])
        buffer[slot] = position
    return out, buffer


def test_what_goes_through_a_buffer():
    for length, size in ((50, 7), (200, 3), (20, 1), (9, 9), (1, 1)):
        order = through_buffer(length, size, np.random.default_rng(3))
        rng = np.random.default_rng(3)
        out, left = one_by_one(length, size, rng)
        assert order.tolist() == out + rng.permutation(left).tolist() and sorted(order) == list(range(length))
        assert all(position < step + size for step, position in enumerate(order))


def test_a_buffer_of_one_changes_nothing_and_one_larger_than_the_stream_mixes_all():
    assert through_buffer(10, 1, np.random.default_rng(0)).tolist() == list(range(10))
    firsts = {through_buffer(5, 8, np.random.default_rng(seed))[0] for seed in range(40)}
    assert firsts == set(range(5))


def test_tar_files_are_read_one_after_the_other():
    stream, order = epoch_order(SHARDS, 4, np.random.default_rng(1))
    starts = [stream.tolist().index(shard[0]) for shard in SHARDS]
    for start, shard in zip(starts, SHARDS, strict=True):
        assert stream[start : start + len(shard)].tolist() == shard.tolist()
    assert sorted(starts) != starts and sorted(stream) == sorted(order) == list(range(40))
    read = {index: position for position, index in enumerate(stream)}
    # never more than the buffer ahead
    assert max(read[index] - step for step, index in enumerate(order)) == 3


def buffered(batch_size=2, *, epoch=0, start_batch=0, size=6, **options):
    """A sampler, and the list of what it announces."""
    announced = []
    sampler = EpochSampler(
        40, batch_size, seed=3, buffer=ShuffleBuffer(SHARDS, size, announced.append), **options
    )
    sampler.set_epoch(epoch, start_batch)
    return sampler, announced


def batches_of(sampler):
    return [[index for _, index in batch] for batch in sampler]


def test_the_order_follows_from_seed_and_epoch():
    orders = [sum(batches_of(buffered(epoch=epoch)[0]), []) for epoch in range(3)]
    for epoch, order in enumerate(orders):
        assert order == epoch_order(SHARDS, 6, keyed_generator(3, EPOCH_ORDER, epoch, 0))[1].tolist()
    assert len({tuple(order) for order in orders}) == 3
    sampler, _ = buffered(epoch=2)
    assert sampler.indices(2, 5) == batches_of(sampler)[5]


def test_processes_divide_the_order():
    whole = batches_of(buffered(6, epoch=1)[0])
    parts = [batches_of(buffered(3, epoch=1, rank=rank, world_size=2)[0]) for rank in (0, 1)]
    assert [sorted(one + other) for one, other in zip(*parts, strict=True)] == [
        sorted(batch) for batch in whole
    ]
    assert len({index for part in parts for batch in part for index in batch}) == 36


def test_an_epoch_entered_late_gives_exactly_the_remaining_batches():
    whole = batches_of(buffered(3, epoch=1, rank=1, world_size=2)[0])
    for start in range(len(whole) + 1):
        assert batches_of(buffered(3, epoch=1, start_batch=start, rank=1, world_size=2)[0]) == whole[start:]


@pytest.mark.parametrize("start, rank, world_size", [(0, 0, 1), (4, 1, 2)])
def test_each_picture_is_announced_once_before_it_is_read_and_with_what_lies_beside_it(
    start, rank, world_size
):
    sampler, announced = buffered(3, epoch=1, start_batch=start, rank=rank, world_size=world_size)
    stream, _ = sampler.buffer.order(keyed_generator(3, EPOCH_ORDER, 1, 0))
    place = {index: position for position, index in enumerate(stream)}
    read = []
    for number, batch in enumerate(sampler, start + 1):
        read += [index for _, index in batch]
        told = np.concatenate(announced).tolist()
        assert set(read) <= set(told)
        # and no more than the buffer ahead
        assert max(place[index] for index in told) < number * 3 * world_size + 6
    assert sorted(told) == sorted(read) and [place[index] for index in told] == sorted(
        place[index] for index in told
    )


def test_the_fingerprint_tells_orders_apart():
    def fingerprint(shards, size=6):
        return ShuffleBuffer(shards, size, None).fingerprint()

    assert fingerprint(SHARDS).startswith("6 pictures, over 5 tar file(s) ")
    assert fingerprint(SHARDS) == fingerprint([shard.copy() for shard in SHARDS])
    others = [
        fingerprint(SHARDS, 7),
        fingerprint(SHARDS[::-1]),
        fingerprint([*SHARDS[:3], SHARDS[3][::-1], SHARDS[4]]),
        fingerprint([np.concatenate(SHARDS)]),
        fingerprint(np.split(np.concatenate(SHARDS), [8, 10, 25, 30])),
    ]
    assert len({fingerprint(SHARDS), *others}) == 6


def test_the_size_must_be_positive():
    with pytest.raises(ValueError, match="--shuffle_buffer -1: expected a number of pictures, or 0"):
        ShuffleBuffer(SHARDS, -1, None)
