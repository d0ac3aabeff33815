"""Nearest neighbours among features, and the classification by their vote (arXiv 1805.01978, section 3.4)."""
import numpy as np

AT_ONCE = 2 ** 25  # similarities in memory, 128 MB; their order takes twice as much for a moment


def nearest(features, query, k, *, at_once=AT_ONCE):
    """The k of `features` nearest to each query by cosine, nearest first: their places, and the cosines.

    Args:
        features: [M, D]; query: [N, D], or [D] for a single one. A zero vector has the cosine 0 with all.
        k: at most M; with fewer features all of them are the answer.
        at_once: similarities held in memory.
    Returns: int64 and float32 [N, k], or [k].
    """
    features, query = np.asarray(features, np.float32), np.asarray(query, np.float32)
    if query.shape[-1] != features.shape[1]:
        raise ValueError(f"the features have {features.shape[1]} channels, and what is looked for {query.shape[-1]}")
    if k < 1:
        raise ValueError(f"--k must be at least 1, got {k}")
    found = list(_nearest(features, np.atleast_2d(query), k, at_once))
    places, cosines = (np.concatenate(part) for part in zip(*found))
    return (places, cosines) if query.ndim == 2 else (places[0], cosines[0])


def accuracy(train_features, train_labels, features, labels, *, k=(20,), temperature=0.07, at_once=AT_ONCE):
    """{k: per cent of `features` whose label wins the vote of the k nearest training features}.

    A neighbour of cosine similarity s has exp(s / temperature) votes.

    Args:
        train_features, features: float32 [M, D] and [N, D]; train_labels, labels: int64 [M] and [N].
        k: numbers of neighbours; with fewer training features all of them vote.
        at_once: as for `nearest`.
    """
    if temperature <= 0:
        raise ValueError(f"--temperature must be above 0, got {temperature}")
    num_classes = int(max(train_labels.max(), labels.max())) + 1
    places, cosines = nearest(train_features, features, max(k), at_once=at_once)
    votes = np.exp(cosines.astype(np.float64) / temperature)
    right = {}
    for count in k:
        ballots = np.zeros([len(features), num_classes])
        np.add.at(ballots, (np.arange(len(features))[:, None], train_labels[places[:, :count]]), votes[:, :count])
        right[count] = 100 * float((ballots.argmax(axis=1) == labels).mean())
    return right


def _nearest(features, query, k, at_once):
    """`nearest` for a few queries at a time."""
    k, chunk = min(k, len(features)), max(1, at_once // len(features))
    directions = _unit(features).T
    for start in range(0, len(query), chunk):
        similarity = _unit(query[start:start + chunk]) @ directions  # [n, M]
        places = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        cosines = np.take_along_axis(similarity, places, axis=1)
        order = np.lexsort((places, -cosines), axis=1)  # equal ones by their place
        yield np.take_along_axis(places, order, axis=1), np.take_along_axis(cosines, order, axis=1)


def _unit(features):
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1)
