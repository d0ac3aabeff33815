import pytest

from util.optim.accumulation import check_accum_iter, window


@pytest.mark.parametrize(
    "steps, accum_iter, expected",
    [
        (4, 1, [(True, True, 1)] * 4),
        (4, 2, [(True, False, 2), (False, True, 2)] * 2),
        (5, 3, [(True, False, 3), (False, False, 3), (False, True, 3), (True, False, 2), (False, True, 2)]),
        (4, 3, [(True, False, 3), (False, False, 3), (False, True, 3), (True, True, 1)]),
    ],
)
def test_windows(steps, accum_iter, expected):
    assert [tuple(window(step, steps, accum_iter)) for step in range(steps)] == expected


def test_an_epoch_that_cannot_fill_a_window_is_refused():
    check_accum_iter(4, 4)
    with pytest.raises(ValueError, match="--accum_iter 4: an epoch has only 3 micro-batches"):
        check_accum_iter(4, 3)
    with pytest.raises(ValueError, match="--accum_iter 0"):
        check_accum_iter(0, 10)
