"""The plateau rule, by hand and against what PyTorch's scheduler did with the same scores."""

import pytest

from util.optim.lr_sched import Plateau

# 30 scores and the epochs after which ReduceLROnPlateau(mode="max", patience=p, threshold=0) of torch 2.13 reduced.
SCORES = [
    10,
    12,
    12,
    11,
    13,
    13,
    13,
    13,
    13,
    14,
    13,
    13,
    13,
    13,
    15,
    15,
    15,
    15,
    15,
    15,
    15,
    16,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
]
REDUCED = {
    0: [2, 3, 5, 6, 7, 8, 10, 11, 12, 13, 15, 16, 17, 18, 19, 20, 22, 23, 24, 25, 26, 27, 28, 29],
    1: [3, 6, 8, 11, 13, 16, 18, 20, 23, 25, 27, 29],
    2: [7, 12, 17, 20, 24, 27],
    4: [19, 26],
}


@pytest.mark.parametrize("patience, expected", REDUCED.items())
def test_reductions_are_those_of_pytorch(patience, expected):
    plateau = Plateau(patience)
    assert [epoch for epoch, score in enumerate(SCORES) if plateau.observe(epoch, score)] == expected
    assert plateau.reductions == len(expected)


def test_the_warmup_is_not_looked_at():
    plateau = Plateau(1, warmup_epochs=3)
    assert [plateau.observe(epoch, score) for epoch, score in enumerate([9, 9, 9, 5, 5, 5, 5])] == [
        False,
        False,
        False,
        False,
        False,
        True,
        False,
    ]


def test_epochs_without_an_evaluation_count():
    plateau = Plateau(3)
    assert [plateau.observe(epoch, -1.0) for epoch in (1, 3, 5, 7, 9)] == [False, False, True, False, True]


def test_it_continues_from_its_state():
    for cut in range(len(SCORES)):
        plateau, found = Plateau(2), []
        for epoch, score in enumerate(SCORES):
            if epoch == cut:
                state, plateau = plateau.state(), Plateau(2)
                plateau.restore(state)
            if plateau.observe(epoch, score):
                found.append(epoch)
        assert found == REDUCED[2] and plateau.reductions == len(found)


def test_a_negative_patience_is_refused():
    with pytest.raises(ValueError, match="--patience_epochs -1: expected 0 or more"):
        Plateau(-1)
