"""Whether a classifier's probabilities mean what they say, and the temperature that makes them (arXiv 1706.04599).

A temperature T divides logits before the softmax. Logits are float [N, K], labels integers [N] below K; computed in
float64. Shape letters: N images, K classes.
"""
import math

import numpy as np

BINS = 15               # the paper's
SEARCHED = 0.01, 100.0  # temperatures
HALVINGS = 30           # of that range, by its logarithm: to 1e-8 of the temperature
AT_ONCE = 4096          # images, which bounds the memory


def nll(logits, labels, temperature=1.0):
    """The negative log-likelihood of the labels, mean over the images; in training it is called the cross-entropy."""
    return -sum(found[np.arange(len(found)), labels[rows]].sum() for rows, found in
                _log_probabilities(logits, 1 / temperature)) / len(labels)


def ece(logits, labels, temperature=1.0, *, bins=BINS):
    """Expected calibration error: how far, on average, the probability of the likeliest class is from the accuracy.

    Images are put into `bins` of equal width by that probability; a bin has its right edge. It is the mean over the
    images of the difference, in their bin, between the mean probability and the share of right answers.
    """
    excess = np.zeros(bins)  # of probability over right answers, summed up
    for rows, found in _log_probabilities(logits, 1 / temperature):
        sure = np.exp(found.max(axis=1))
        right = found.argmax(axis=1) == labels[rows]
        place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
        excess += np.bincount(place, sure - right, minlength=bins)
    return np.abs(excess).sum() / len(labels)


def accuracy(logits, labels):
    """The share of images whose likeliest class is their own; no temperature changes it."""
    return float(np.mean(logits.argmax(axis=1) == labels))


def fit_temperature(logits, labels):
    """The temperature with the least `nll`; ValueError if there is none among those SEARCHED.

    The nll is convex in 1 / T; its only minimum is where its derivative changes its sign.
    """
    if len(labels) == 0:
        raise ValueError("a temperature needs labelled pictures, got none")
    least, most = (1 / temperature for temperature in reversed(SEARCHED))
    if _slope(logits, labels, least) >= 0:
        raise ValueError(f"no temperature up to {SEARCHED[1]:g} fits: the likelihood still grows there, so that the answers "
                         "are no better than guesses. Are the labels those of the training?")
    if _slope(logits, labels, most) <= 0:
        raise ValueError(f"no temperature down to {SEARCHED[0]:g} fits: the likelihood still grows there, so that all answers, "
                         "or nearly all, are right. Use more pictures, or harder ones that it was not trained on")
    for _ in range(HALVINGS):
        middle = math.sqrt(least * most)
        if _slope(logits, labels, middle) < 0:
            least = middle
        else:
            most = middle
    return 1 / math.sqrt(least * most)


def _slope(logits, labels, factor):
    """The derivative of the nll by 1 / T, at `factor`."""
    total = 0.0
    for rows, found in _log_probabilities(logits, factor):
        values = logits[rows].astype("float64")
        total += (np.exp(found) * values).sum() - values[np.arange(len(values)), labels[rows]].sum()
    return total / len(labels)


def _log_probabilities(logits, factor):
    """(slice of images, float64 [n, K]) of the logits times `factor`, a part after the other."""
    for start in range(0, len(logits), AT_ONCE):
        rows = slice(start, start + AT_ONCE)
        values = logits[rows].astype("float64") * factor
        values -= values.max(axis=1, keepdims=True)
        yield rows, values - np.log(np.exp(values).sum(axis=1, keepdims=True))
