"""k-nearest-neighbour classification of frozen features, as DINO and its successors do it (arXiv 1805.01978)."""
import numpy as np


def accuracy(train_features, train_labels, features, labels, *, k=20, temperature=0.07, chunk=1024):
    """Per cent of `features` whose label wins the vote of the `k` nearest training features.

    A neighbour of cosine similarity s has exp(s / temperature) votes.

    Args:
        train_features, features: float32 [M, D] and [N, D]; train_labels, labels: int64 [M] and [N].
        k: at most M; with fewer training features all of them vote.
        chunk: features compared at a time; the similarities take 4 * chunk * M bytes.
    """
    k, num_classes = min(k, len(train_labels)), int(max(train_labels.max(), labels.max())) + 1
    train_features, features = _unit(train_features), _unit(features)
    right = 0
    for start in range(0, len(features), chunk):
        similarity = features[start:start + chunk] @ train_features.T  # [n, M]
        nearest = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
        weights = np.exp(np.take_along_axis(similarity, nearest, axis=1) / temperature)
        votes = np.zeros([len(similarity), num_classes])
        np.add.at(votes, (np.arange(len(similarity))[:, None], train_labels[nearest]), weights)
        right += int((votes.argmax(axis=1) == labels[start:start + chunk]).sum())
    return 100 * right / len(features)


def _unit(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)
