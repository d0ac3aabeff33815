"""Temperature scaling of a classifier, and measures of its calibration (arXiv 1706.04599).

The temperature T divides the logits before the softmax. Logits are float [N, K], labels integers [N] below K;
computation is in float64. Shape letters: N images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

BINS = 15  # as in the paper
TEMPERATURES = 0.01, 100.0  # range of the search
HALVINGS = 30  # bisections on a log scale; they leave a relative error of 1e-8
CHUNK = 4096  # images computed at once, which bounds the memory


def nll(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Return the mean negative log-likelihood of the labels, which is the cross-entropy of training."""
    return -sum(
        float(found[np.arange(len(found)), labels[rows]].sum())
        for rows, found in _log_probabilities(logits, 1 / temperature)
    ) / len(labels)


def ece(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0, *, bins: int = BINS) -> float:
    """Return the expected calibration error.

    Images fall into `bins` of equal width by the probability of their top class; a bin includes its right
    edge. The error is the mean, over the images, of |mean probability - accuracy| in their bin.
    """
    excess = np.zeros(bins)  # sum of (probability - correct) in each bin
    for rows, found in _log_probabilities(logits, 1 / temperature):
        confidence = np.exp(found.max(axis=1))
        correct = found.argmax(axis=1) == labels[rows]
        place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
        excess += np.bincount(place, confidence - correct, minlength=bins)
    return float(np.abs(excess).sum() / len(labels))


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of correct top classes. It does not depend on the temperature."""
    return float(np.mean(logits.argmax(axis=1) == labels))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature with the lowest `nll`. Raises ValueError if it is outside TEMPERATURES.

    The nll is convex in 1 / T, so its minimum is where its derivative changes sign.
    """
    if len(labels) == 0:
        raise ValueError("a temperature cannot be fitted: there are no labelled pictures")
    least, most = (1 / temperature for temperature in reversed(TEMPERATURES))
    if _slope(logits, labels, least) >= 0:
        raise ValueError(
            f"no temperature up to {TEMPERATURES[1]:g} fits, because the answers are no better "
            "than guesses; check that the labels are those of the training"
        )
    if _slope(logits, labels, most) <= 0:
        raise ValueError(
            f"no temperature down to {TEMPERATURES[0]:g} fits, because all answers, or nearly all, "
            "are right; use more pictures, or harder ones that are not from the training data"
        )
    for _ in range(HALVINGS):
        middle = math.sqrt(least * most)
        if _slope(logits, labels, middle) < 0:
            least = middle
        else:
            most = middle
    return 1 / math.sqrt(least * most)


def _slope(logits, labels, factor):
    """Return the derivative of the nll with respect to 1 / T, at 1 / T = `factor`."""
    total = 0.0
    for rows, found in _log_probabilities(logits, factor):
        values = logits[rows].astype("float64")
        total += (np.exp(found) * values).sum() - values[np.arange(len(values)), labels[rows]].sum()
    return total / len(labels)


def _log_probabilities(logits: np.ndarray, factor: float) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield (slice of images, log-probabilities [n, K] float64) of the logits times `factor`."""
    for start in range(0, len(logits), CHUNK):
        rows = slice(start, start + CHUNK)
        values = logits[rows].astype("float64") * factor
        values -= values.max(axis=1, keepdims=True)
        yield rows, values - np.log(np.exp(values).sum(axis=1, keepdims=True))
