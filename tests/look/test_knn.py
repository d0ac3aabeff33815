"""Nearest neighbours against hand values and a loop over every pair."""

import math

import numpy as np
import pytest

from util.look.knn import accuracy, nearest


def at(*degrees):
    """Unit vectors, with lengths that differ by far: only directions count."""
    return np.array(
        [
            [10.0 ** (i % 3) * math.cos(math.radians(d)), 10.0 ** (i % 3) * math.sin(math.radians(d))]
            for i, d in enumerate(degrees)
        ],
        "float32",
    )


def brute_force(train, train_labels, features, labels, k, temperature):
    right = 0
    for feature, label in zip(features, labels):
        cosines = [
            float(np.dot(feature, known) / math.sqrt(np.dot(feature, feature) * np.dot(known, known)))
            for known in train
        ]
        votes = {}
        for _, cosine, vote in sorted(((-c, c, v) for c, v in zip(cosines, train_labels)))[:k]:
            votes[vote] = votes.get(vote, 0.0) + math.exp(cosine / temperature)
        right += max(votes, key=votes.get) == label
    return 100 * right / len(labels)


@pytest.mark.parametrize("at_once", [1, 2**20])
def test_the_nearest_come_first_with_their_cosines(at_once):
    features, queries = at(0, 90, 30, 180, 31), at(29, 100, 200)
    places, cosines = nearest(features, queries, 3, at_once=at_once)
    assert places.tolist() == [[2, 4, 0], [1, 4, 2], [3, 1, 0]]
    expected = [
        [math.cos(math.radians(d)) for d in row] for row in ([1, 2, 29], [10, 69, 70], [20, 110, 160])
    ]
    np.testing.assert_allclose(cosines, expected, atol=1e-6)


def test_a_single_query_has_a_single_row():
    places, cosines = nearest(at(0, 90, 30), at(50)[0], 2)
    assert places.tolist() == [2, 1] and cosines == pytest.approx(
        [math.cos(math.radians(d)) for d in (20, 40)]
    )


def test_equal_ones_stand_by_their_place_and_nothing_is_far_from_all():
    places, cosines = nearest(np.array([[0, 1], [0, 0], [1, 0], [2, 0]]), np.array([1, 0]), 9)
    assert places.tolist() == [2, 3, 0, 1] and cosines.tolist() == [1, 1, 0, 0]
    assert nearest(at(0, 90), np.zeros(2), 2)[1].tolist() == [0, 0]


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="2 channels.* 3"):
        nearest(at(0, 90), np.ones(3), 1)
    with pytest.raises(ValueError, match="--k 0"):
        accuracy(at(0, 90), np.arange(2), at(0), np.arange(1), k=[0, 5])
    with pytest.raises(ValueError, match="--temperature 0"):
        accuracy(at(0, 90), np.arange(2), at(0), np.arange(1), temperature=0)


@pytest.mark.parametrize("temperature, at_once", [(0.07, 150), (10.0, 2**20)])
def test_accuracy_is_that_of_a_loop(temperature, at_once):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal([4, 6])
    train_labels, labels = rng.integers(0, 4, 60), rng.integers(0, 4, 30)
    train = (centres[train_labels] + 1.5 * rng.standard_normal([60, 6])) * rng.uniform(0.1, 10, [60, 1])
    features = centres[labels] + 1.5 * rng.standard_normal([30, 6])
    expected = {k: brute_force(train, train_labels, features, labels, k, temperature) for k in (1, 5, 20, 60)}
    assert len(set(expected.values())) > 1 and all(10 < value < 90 for value in expected.values())
    found = accuracy(
        train.astype("float32"),
        train_labels,
        features.astype("float32"),
        labels,
        k=[5, 1, 60, 20],
        temperature=temperature,
        at_once=at_once,
    )
    assert found == pytest.approx(expected)


def test_one_near_neighbour_outvotes_two_far_ones_where_the_temperature_is_low():
    vote = [at(5, 60, 61), np.array([1, 0, 0]), at(0), np.array([1])]
    assert accuracy(*vote, k=[3], temperature=0.07) == {3: 100}
    assert accuracy(*vote, k=[3], temperature=10.0) == {3: 0}


def test_with_fewer_features_than_neighbours_all_vote():
    train = np.eye(3, dtype="float32")
    assert accuracy(train, np.arange(3), train, np.arange(3), k=[20]) == {20: 100}


def test_classes_that_are_not_in_the_training_set_count_as_wrong():
    train = np.eye(3, dtype="float32")
    assert accuracy(train, np.arange(3), train, np.array([0, 1, 7]), k=[1]) == pytest.approx({1: 200 / 3})
