"""The vote of the neighbours against a loop over every pair."""
import math

import numpy as np
import pytest

from util.knn import accuracy


def brute_force(train, train_labels, features, labels, k, temperature):
    right = 0
    for feature, label in zip(features, labels):
        cosines = [float(np.dot(feature, known) / math.sqrt(np.dot(feature, feature) * np.dot(known, known)))
                   for known in train]
        votes = {}
        for _, cosine, vote in sorted(((-c, c, v) for c, v in zip(cosines, train_labels)))[:k]:
            votes[vote] = votes.get(vote, 0.0) + math.exp(cosine / temperature)
        right += max(votes, key=votes.get) == label
    return 100 * right / len(labels)


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (5, 0.07), (5, 10.0), (20, 0.2), (60, 0.07)])
@pytest.mark.parametrize("chunk", [7, 1024])
def test_accuracy_is_that_of_a_loop(k, temperature, chunk):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal([4, 6])
    train_labels, labels = rng.integers(0, 4, 60), rng.integers(0, 4, 30)
    # Lengths differ by far: only directions count.
    train = (centres[train_labels] + 1.5 * rng.standard_normal([60, 6])) * rng.uniform(0.1, 10, [60, 1])
    features = centres[labels] + 1.5 * rng.standard_normal([30, 6])
    expected = brute_force(train, train_labels, features, labels, k, temperature)
    assert 30 < expected < 90
    found = accuracy(train.astype("float32"), train_labels, features.astype("float32"), labels, k=k,
                     temperature=temperature, chunk=chunk)
    assert found == pytest.approx(expected)


def test_one_near_neighbour_outvotes_two_far_ones_where_the_temperature_is_low():
    def at(*degrees):
        return np.array([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees], "float32")

    vote = [at(5, 60, 61), np.array([1, 0, 0]), at(0), np.array([1])]
    assert accuracy(*vote, k=3, temperature=0.07) == 100
    assert accuracy(*vote, k=3, temperature=10.0) == 0


def test_with_fewer_features_than_neighbours_all_vote():
    train = np.eye(3, dtype="float32")
    assert accuracy(train, np.arange(3), train, np.arange(3), k=20) == 100


def test_classes_that_are_not_in_the_training_set_count_as_wrong():
    train = np.eye(3, dtype="float32")
    assert accuracy(train, np.arange(3), train, np.array([0, 1, 7]), k=1) == pytest.approx(200 / 3)
