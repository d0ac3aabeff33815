"""Nearest neighbours among features, and classification by their votes (arXiv 1805.01978, section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

AT_ONCE = 2**25  # similarities held in memory: 128 MB, and 256 MB for their sorted indices


def nearest(
    features: np.ndarray,
    query: np.ndarray,
    k: int,
    *,
    at_once: int = AT_ONCE,
    progress: Callable[[range], Iterable[int]] = lambda starts: starts,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the k features nearest to each query by cosine, the nearest first.

    Args:
        features: [M, D].
        query: [N, D], or [D] for a single one. A zero vector has the cosine 0 with every other.
        k: number of neighbours; all features if there are fewer.
        at_once: similarities held in memory.
        progress: wraps the sequence of batches, and may show a progress bar.

    Returns:
        Indices int64 [N, k] and cosines float32 [N, k]; [k] for a single query.

    Raises:
        ValueError: the numbers of channels differ, or k is below 1.
    """
    features, query = np.asarray(features, np.float32), np.asarray(query, np.float32)
    if query.shape[-1] != features.shape[1]:
        raise ValueError(f"features have {features.shape[1]} channels, queries have {query.shape[-1]}")
    _check_number(k)
    directions, queries = _unit(features).T, np.atleast_2d(query)
    k, chunk, found = min(k, len(features)), max(1, at_once // len(features)), []
    for start in progress(range(0, len(queries), chunk)):
        similarity = _unit(queries[start : start + chunk]) @ directions  # [n, M]
        places = np.argpartition(similarity, len(features) - k, axis=1)[:, -k:]
        cosines = np.take_along_axis(similarity, places, axis=1)
        order = np.lexsort((places, -cosines), axis=1)  # ties go to the lower index
        found.append((np.take_along_axis(places, order, axis=1), np.take_along_axis(cosines, order, axis=1)))
    places, cosines = (np.concatenate(part) for part in zip(*found, strict=True))
    return (places, cosines) if query.ndim == 2 else (places[0], cosines[0])


def accuracy(
    train_features: np.ndarray,
    train_labels: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    *,
    k: Sequence[int] = (20,),
    temperature: float = 0.07,
    at_once: int = AT_ONCE,
    progress: Callable[[range], Iterable[int]] = lambda starts: starts,
) -> dict[int, float]:
    """Compute the k-NN accuracy: {k: top-1 accuracy in per cent}.

    A neighbour of cosine similarity s has exp(s / temperature) votes.

    Args:
        train_features, features: float32 [M, D] and [N, D].
        train_labels, labels: int64 [M] and [N].
        k: numbers of neighbours; all training features vote if there are fewer.
        temperature: divisor of the similarities in the votes.
        at_once, progress: as for `nearest`.

    Raises:
        ValueError: k or temperature is out of range.
    """
    _check_number(min(k))
    if not temperature > 0:
        raise ValueError(f"--temperature {temperature}: must be above 0")
    num_classes = int(max(train_labels.max(), labels.max())) + 1
    places, cosines = nearest(train_features, features, max(k), at_once=at_once, progress=progress)
    # Relative to the nearest neighbour, so that a small temperature does not overflow.
    votes = np.exp((cosines.astype(np.float64) - cosines[:, :1]) / temperature)
    right = {}
    for count in k:
        ballots = np.zeros([len(features), num_classes])
        np.add.at(
            ballots, (np.arange(len(features))[:, None], train_labels[places[:, :count]]), votes[:, :count]
        )
        right[count] = 100 * float((ballots.argmax(axis=1) == labels).mean())
    return right


def _check_number(k: int) -> None:
    if k < 1:
        raise ValueError(f"--k {k}: must be at least 1")


def _unit(features: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1)
