"""Nearest neighbours among features, and the classification by their vote (arXiv 1805.01978, section 3.4)."""
import numpy as np

AT_ONCE = 2 ** 25  # similarities in memory, 128 MB, and 256 MB for their order


def nearest(features, query, k, *, at_once=AT_ONCE, progress=lambda starts: starts):
    """The k of `features` nearest to each query by cosine, nearest first: their places, and the cosines.

    Args:
        features: [M, D]; query: [N, D], or [D] for a single one. A zero vector has the cosine 0 with all.
        k: at most M; with fewer features all of them are the answer.
        at_once: similarities held in memory.
        progress: passes a sized sequence on, and may show how far it is.
    Returns: int64 and float32 [N, k], or [k].
    """
    features, query = np.asarray(features, np.float32), np.asarray(query, np.float32)
    if query.shape[-1] != features.shape[1]:
        raise ValueError(f"the features have {features.shape[1]} channels, and what is looked for {query.shape[-1]}")
    _check_number(k)
    directions, queries = _unit(features).T, np.atleast_2d(query)
    k, chunk, found = min(k, len(features)), max(1, at_once // len(features)), []
    for start in progress(range(0, len(queries), chunk)):
        similarity = _unit(queries[start:start + chunk]) @ directions  # [n, M]
        places = np.argpartition(similarity, len(features) - k, axis=1)[:, -k:]
        cosines = np.take_along_axis(similarity, places, axis=1)
        order = np.lexsort((places, -cosines), axis=1)  # equal ones by their place
        found.append((np.take_along_axis(places, order, axis=1), np.take_along_axis(cosines, order, axis=1)))
    places, cosines = (np.concatenate(part) for part in zip(*found))
    return (places, cosines) if query.ndim == 2 else (places[0], cosines[0])


def accuracy(train_features, train_labels, features, labels, *, k=(20,), temperature=0.07, at_once=AT_ONCE,
             progress=lambda starts: starts):
    """{k: per cent of `features` whose label wins the vote of the k nearest training features}.

    A neighbour of cosine similarity s has exp(s / temperature) votes.

    Args:
        train_features, features: float32 [M, D] and [N, D]; train_labels, labels: int64 [M] and [N].
        k: numbers of neighbours; with fewer training features all of them vote.
        at_once, progress: as for `nearest`.
    """
    _check_number(min(k))
    if not temperature > 0:
        raise ValueError(f"--temperature must be above 0, got {temperature}")
    num_classes = int(max(train_labels.max(), labels.max())) + 1
    places, cosines = nearest(train_features, features, max(k), at_once=at_once, progress=progress)
    # Relative to those of the nearest one, so that a small temperature does not overflow.
    votes = np.exp((cosines.astype(np.float64) - cosines[:, :1]) / temperature)
    right = {}
    for count in k:
        ballots = np.zeros([len(features), num_classes])
        np.add.at(ballots, (np.arange(len(features))[:, None], train_labels[places[:, :count]]), votes[:, :count])
        right[count] = 100 * float((ballots.argmax(axis=1) == labels).mean())
    return right


def _check_number(k):
    if k < 1:
        raise ValueError(f"--k must be at least 1, got {k}")


def _unit(features):
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1)
