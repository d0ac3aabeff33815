"""Linear classifiers on precomputed features, trained by scikit-learn: one for each weight decay."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np

MOST_STEPS = 500
TOLERANCE = 1e-4  # L-BFGS has converged if no entry of the gradient is larger


class LogisticRegressions:
    """Multinomial logistic regressions on standardised features.

    Each minimises mean cross-entropy + weight_decay / 2 * |W|^2 over weights W [D, C] and a bias without
    decay. Every channel first gets mean 0 and variance 1, as by the BatchNorm of the linear probe (MAE paper,
    appendix A.1).

    Attributes:
        steps: number of L-BFGS steps of each classifier.
        converged: for each classifier, True if it reached TOLERANCE within MOST_STEPS.
    """

    def __init__(self, features: np.ndarray, labels: np.ndarray, weight_decays: Iterable[float]) -> None:
        """Train on features [N, D] and integer labels [N].

        Raises:
            ValueError: a weight decay is negative, or there is only one class.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if len(np.unique(labels)) < 2:
            raise ValueError("TRAIN.npz: all training features are of one class; at least two are needed")
        self.steps, self.converged, self._pipelines = [], [], []
        for weight_decay in weight_decays:
            if weight_decay < 0:
                raise ValueError(f"--weight_decay {weight_decay}: must not be negative")
            # scikit-learn sums the losses; we average them. A C of 1e30 means no regularisation.
            strength = 1 / max(weight_decay * len(labels), 1e-30)
            pipeline = make_pipeline(
                StandardScaler(), LogisticRegression(C=strength, tol=TOLERANCE, max_iter=MOST_STEPS)
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # reported by `converged`
                pipeline.fit(features, labels)
            steps = int(pipeline[-1].n_iter_[0])
            self.steps.append(steps)
            self.converged.append(steps < MOST_STEPS)
            self._pipelines.append(pipeline)

    def accuracy(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Top-1 accuracy of each classifier in per cent, [G]."""
        return np.array([100 * pipeline.score(features, labels) for pipeline in self._pipelines])
