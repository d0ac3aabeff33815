"""Linear classifiers against recorded ones, against each other, and against properties of the minimum."""

from functools import partial

import numpy as np
import pytest

from util.look import linear_sweep, logistic_regression
from util.look.linear_sweep import Sweep
from util.look.logistic_regression import LogisticRegressions


def problem(count=60):
    """Features of three overlapping classes, with different scales and two nearly equal channels."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), count // 3)
    centres = rng.standard_normal([3, 4])
    x = (centres[labels] + rng.standard_normal([count, 4])) * [1, 10, 0.1, 1] + [0, 5, 0, -3]
    x[:, 3] = x[:, 0] + 0.01 * x[:, 3]
    return x.astype("float32"), labels


# LogisticRegression(C=1 / (60 * weight_decay), tol=1e-12, max_iter=100000) of scikit-learn 1.7.2 on the
# features of `problem` after (x - mean) / sqrt(variance + 1e-6): coefficients [D, C], intercepts without
# their mean, accuracy.
RECORDED = {
    1e-1: (
        [
            [0.1101, -0.0196, -0.0905],
            [0.1389, 0.5077, -0.6466],
            [0.3533, 0.3879, -0.7412],
            [0.1067, -0.0165, -0.0902],
        ],
        [0.1485, 0.0502, -0.1987],
        70.0,
    ),
    1e-3: (
        [
            [0.2653, -0.0922, -0.1731],
            [0.4632, 1.145, -1.6082],
            [1.1067, 1.2428, -2.3495],
            [0.0082, 0.0627, -0.0709],
        ],
        [0.5837, 0.2655, -0.8492],
        66.66666666666666,
    ),
}


@pytest.mark.parametrize("at_once", [100, 2**24])
def test_weights_are_those_of_scikit_learn(monkeypatch, at_once):
    """Two weight decays at once; they converge after different numbers of steps."""
    monkeypatch.setattr(linear_sweep, "AT_ONCE", at_once)
    monkeypatch.setattr(linear_sweep, "TOLERANCE", 1e-6)
    features, labels = problem()
    sweep = Sweep(features, labels, num_classes=3, weight_decays=[1e-3, 1e-1])
    accuracy = sweep.accuracy(features, labels)
    assert (sweep.gradient <= 1e-6).all() and sweep.steps[0] > sweep.steps[1] > 3
    for found, right, (weights, bias, expected) in zip(
        sweep.weights, accuracy, (RECORDED[1e-3], RECORDED[1e-1])
    ):
        np.testing.assert_allclose(found[:-1], weights, atol=1e-3)
        np.testing.assert_allclose(found[-1] - found[-1].mean(), bias, atol=1e-3)
        assert right == pytest.approx(expected)


@pytest.mark.parametrize("decays", [[1e-3, 1e-1], [1e-2, 1e4]])
def test_both_solvers_agree(decays):
    features, labels = problem()
    ours = Sweep(features, labels, num_classes=3, weight_decays=decays)
    theirs = LogisticRegressions(features, labels, decays)
    assert all(theirs.converged) and np.allclose(
        ours.accuracy(features, labels), theirs.accuracy(features, labels), atol=2
    )
    for found, pipeline in zip(ours.weights, theirs._pipelines):
        probabilities = np.exp((features - features.mean(0)) / features.std(0) @ found[:-1] + found[-1])
        np.testing.assert_allclose(
            probabilities / probabilities.sum(axis=1, keepdims=True),
            pipeline.predict_proba(features),
            atol=1e-2,
        )


def test_scikit_learn_says_what_has_not_converged(monkeypatch):
    monkeypatch.setattr(logistic_regression, "MOST_STEPS", 3)
    assert LogisticRegressions(*problem(), [1e-7, 1e9]).converged == [False, True]


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        LogisticRegressions(problem()[0], np.zeros(60, int), [1e-3])


def test_scale_and_mean_of_a_channel_do_not_matter():
    """Nor do a constant channel, and a duplicate channel without decay."""
    features, labels = problem()
    odd = np.concatenate([1000 * features + 7, np.full([60, 1], 3.0), features[:, :1]], axis=1).astype(
        "float32"
    )
    for weight_decay in (0, 1e-2):
        plain = Sweep(features, labels, num_classes=3, weight_decays=[weight_decay])
        other = Sweep(odd, labels, num_classes=3, weight_decays=[weight_decay])
        assert (
            other.gradient <= linear_sweep.TOLERANCE
            and other.accuracy(odd, labels) >= plain.accuracy(features, labels) - 2
        )
        assert (abs(other.weights[0, 4]) < 1e-6).all()  # of the constant channel


def test_strong_decay_leaves_the_classes_shares():
    """The bias has no decay: with weights of 0 it is the log frequency of a class, up to a constant."""
    features, labels = problem()
    labels = np.repeat(np.arange(3), [10, 20, 30])
    bias = Sweep(features, labels, num_classes=3, weight_decays=[1e4]).weights[0, -1]
    np.testing.assert_allclose(bias - bias[0], np.log([1, 2, 3]), atol=1e-2)


def test_one_that_runs_out_of_steps_says_so():
    features, labels = problem()
    seen = []
    sweep = Sweep(
        features,
        labels,
        num_classes=3,
        weight_decays=[1e-7, 10.0],
        most_steps=9,
        on_step=lambda step, left: seen.append((step, left)),
    )
    assert (
        sweep.gradient[0] > linear_sweep.TOLERANCE >= sweep.gradient[1]
        and sweep.steps[0] == 9 > sweep.steps[1]
    )
    assert [step for step, _ in seen] == list(range(1, 10)) and seen[0][1] == 2 and seen[-1][1] == 1


@pytest.mark.parametrize("solver", [partial(Sweep, num_classes=3), LogisticRegressions])
def test_a_negative_weight_decay_is_refused(solver):
    with pytest.raises(ValueError, match="--weight_decay -1"):
        solver(*problem(), weight_decays=[1, -1])


def test_one_that_is_done_stands_still():
    features, labels = problem()
    whole = Sweep(features, labels, num_classes=3, weight_decays=[1e-7, 1.0])
    until_then = Sweep(
        features, labels, num_classes=3, weight_decays=[1e-7, 1.0], most_steps=int(whole.steps[1])
    )
    assert whole.steps[1] < whole.steps[0]
    assert (whole.weights[1] == until_then.weights[1]).all() and (
        whole.weights[0] != until_then.weights[0]
    ).any()


def test_large_logits_have_a_finite_loss():
    """Logits of 200 and -200: loss 0 for a right answer, 400 for a wrong one."""
    inputs = np.ones([2, 2], "float32")
    weights = np.array([[[100.0, -100.0], [100.0, -100.0]]])
    problem = linear_sweep._Problem(inputs, np.array([0, 1]), 2, np.zeros(1))
    loss, gradient = problem.loss(weights)
    assert loss.tolist() == [200] and gradient[0].tolist() == [[0.5, -0.5], [0.5, -0.5]]
