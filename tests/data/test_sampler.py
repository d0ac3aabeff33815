import numpy as np
import pytest

from util.data.sampler import EpochSampler
from util.system.keyed_random import EPOCH_ORDER, keyed_generator


def indices(sampler):
    return [[index for _, index in batch] for batch in sampler]


def sampler(num_samples, batch_size, *, epoch=0, start_batch=0, **options):
    result = EpochSampler(num_samples, batch_size, **{"seed": 3, **options})
    result.set_epoch(epoch, start_batch)
    return result


def test_the_order_is_the_permutation_that_seed_and_epoch_name():
    order = keyed_generator(3, EPOCH_ORDER, 5, 0).permutation(10).tolist()
    batches = list(sampler(10, 4, epoch=5))
    assert batches == [[(5, index) for index in order[:4]], [(5, index) for index in order[4:8]]]
    assert all(type(number) is int for batch in batches for place in batch for number in place)


def test_each_epoch_and_each_seed_has_its_own_order():
    orders = [
        np.concatenate(indices(sampler(64, 8, epoch=epoch, seed=seed)))
        for epoch in range(3)
        for seed in range(3)
    ]
    assert len({tuple(order) for order in orders}) == 9
    assert all(sorted(order) == list(range(64)) for order in orders)


def test_an_epoch_does_not_depend_on_those_before():
    used = sampler(20, 4)
    list(used)
    used.set_epoch(2)
    assert list(used) == list(sampler(20, 4, epoch=2)) == list(used)


def test_global_batches_do_not_depend_on_how_they_are_split():
    for world_size, batch_size in ((2, 4), (4, 2), (8, 1)):
        whole = indices(sampler(43, 8, epoch=1))
        assert len(whole) == 5
        split = [
            indices(sampler(43, batch_size, epoch=1, rank=rank, world_size=world_size))
            for rank in range(world_size)
        ]
        assert all(len(batch) == batch_size for batches in split for batch in batches)
        assert [sorted(sum(parts, [])) for parts in zip(*split, strict=True)] == [
            sorted(batch) for batch in whole
        ]


EVALUATION_COUNTS_EACH_IMAGE_ONCE = [
    (7, 4, [[4], [3]]),  # one uneven batch
    (9, 4, [[4, 1], [4]]),  # one process has a batch less
    (8, 4, [[4], [4]]),
    (11, 4, [[4, 2], [4, 1]]),  # the rest is shared
    (1, 4, [[1], []]),
]


def test_evaluation_counts_each_image_once():
    for num_samples, batch_size, sizes in EVALUATION_COUNTS_EACH_IMAGE_ONCE:
        ranks = [
            sampler(num_samples, batch_size, rank=rank, world_size=2, shuffle=False, drop_last=False)
            for rank in (0, 1)
        ]
        assert [[len(batch) for batch in rank] for rank in ranks] == sizes
        assert [len(rank) for rank in ranks] == [len(batches) for batches in sizes]
        assert sorted(index for rank in ranks for batch in indices(rank) for index in batch) == list(
            range(num_samples)
        )


def test_without_shuffle_one_process_goes_in_order():
    assert indices(sampler(5, 2, epoch=9, shuffle=False, drop_last=False)) == [[0, 1], [2, 3], [4]]


def test_an_epoch_entered_late_gives_exactly_the_remaining_batches():
    for drop_last in (True, False):
        options = {"epoch": 4, "rank": 1, "world_size": 2, "drop_last": drop_last}
        whole = list(sampler(23, 3, **options))
        for start in range(len(whole) + 1):
            late = sampler(23, 3, start_batch=start, **options)
            assert list(late) == whole[start:]
            assert len(late) == len(whole) == (3 if drop_last else 4)
        late.set_epoch(5)
        assert len(list(late)) == len(whole)


def test_a_stopped_iteration_ends_and_the_next_is_whole():
    stopped = sampler(20, 4)
    batches = iter(stopped)
    next(batches)
    stopped.stop()
    assert list(batches) == [] and len(list(stopped)) == 5


def test_the_start_must_lie_in_the_epoch():
    with pytest.raises(ValueError, match="epoch 2 at batch 6.*23 images.*--batch_size 4.*it has 5"):
        sampler(23, 4, epoch=2, start_batch=6)


def test_too_few_images_for_one_step():
    with pytest.raises(ValueError, match=r"--batch_size 16: .* 32 .*20.*--batch_size 10"):
        EpochSampler(20, 16, seed=0, world_size=2)
    assert indices(EpochSampler(20, 10, seed=0, world_size=2))  # the advice works
    assert len(EpochSampler(20, 16, seed=0, world_size=2, drop_last=False)) == 1


def test_batch_size_must_be_positive():
    with pytest.raises(ValueError, match="--batch_size 0"):
        EpochSampler(20, 0, seed=0, drop_last=False)
