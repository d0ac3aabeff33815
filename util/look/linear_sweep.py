"""Linear classifiers on large sets of features: one per weight decay, all trained together.

util.look.logistic_regression minimises the same loss with scikit-learn. On 16,000 features of 768 channels
and 100 classes, four weight decays take 164 s there and 32 s here, because they share each matrix product and
because a bound of the Hessian (Boehning 1992, Multinomial logistic regression algorithm) preconditions
L-BFGS. The loss is convex, so that there are no learning rate, schedule or seed; CLIP's linear probes are
solved likewise (arXiv 2103.00020, appendix A.3).

Shape letters: N images, D channels, C classes, G weight decays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

TOLERANCE = 1e-4  # a classifier has converged if no entry of its gradient is larger
MEMORY = 10  # pairs of steps and gradient changes that L-BFGS keeps
SUFFICIENT = 1e-4  # share of the predicted decrease that a step must achieve (Armijo condition)
HALVINGS = 30  # of a step that does not achieve it
ROUNDING = 1e-7  # share of the loss that rounding of float32 logits may add
AT_ONCE = 2**24  # logits in memory, 64 MB


class Sweep:
    """Linear classifiers, one for each weight decay.

    Attributes:
        weights: float64 [G, D + 1, C] on standardised features; the last row is the bias.
        centre, scale: [D], by which features are standardised.
        steps: [G], number of L-BFGS steps.
        gradient: [G], largest entry of the last gradient.
        converged: [G], True if that is below TOLERANCE.
    """

    def __init__(
        self,
        features: np.ndarray,
        labels: np.ndarray,
        *,
        num_classes: int,
        weight_decays: Sequence[float],
        most_steps: int = 500,
        on_step: Callable[[int, int], None] = lambda step, left: None,
    ) -> None:
        """Train on features float32 [N, D] and labels int64 [N], which are below num_classes.

        Args:
            on_step: called after each step with its number and the number of classifiers still in training.

        Raises:
            ValueError: a weight decay is negative.
        """
        if min(weight_decays) < 0:
            raise ValueError(f"--weight_decay {min(weight_decays)}: must not be negative")
        self.weight_decays = np.array(weight_decays, np.float64)
        self.centre, self.scale = features.mean(axis=0, dtype=np.float64), np.ones(features.shape[1])
        inputs = self._inputs(features)
        self.scale = 1 / np.sqrt(
            np.einsum("nd,nd->d", inputs, inputs, dtype=np.float64)[:-1] / len(inputs) + 1e-6
        )
        inputs[:, :-1] *= self.scale.astype(np.float32)
        problem = _Problem(inputs, labels, num_classes, self.weight_decays)
        self.weights, self.steps, self.gradient = _minimize(problem, most_steps, on_step)
        self.converged = self.gradient <= TOLERANCE

    def accuracy(self, features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Top-1 accuracy of each classifier in per cent, [G]."""
        right = np.zeros(len(self.weights))
        for rows, logits in _logits(self._inputs(features), self.weights):
            right += (logits.argmax(axis=2) == labels[rows, None]).sum(axis=0)
        return 100 * right / len(labels)

    def _inputs(self, features: np.ndarray) -> np.ndarray:
        """Standardise features and append 1 for the bias: float32 [N, D + 1]."""
        inputs = np.ones([len(features), features.shape[1] + 1], np.float32)
        inputs[:, :-1] = features
        inputs[:, :-1] -= self.centre.astype(np.float32)
        inputs[:, :-1] *= self.scale.astype(np.float32)
        return inputs


class _Problem:
    """The loss as a function of weights [G, D + 1, C]; `inputs` are those of Sweep."""

    def __init__(
        self, inputs: np.ndarray, labels: np.ndarray, num_classes: int, weight_decays: np.ndarray
    ) -> None:
        self.inputs, self.labels = inputs, labels
        self.shape = len(weight_decays), inputs.shape[1], num_classes
        self.decays = np.repeat(weight_decays[:, None, None], inputs.shape[1], axis=1)  # [G, D + 1, 1]
        self.decays[:, -1] = 0  # of the bias
        values, self.vectors = np.linalg.eigh((inputs.T @ inputs).astype(np.float64) / len(inputs))
        # Linearly dependent channels have eigenvalues of 0, up to rounding.
        self.bounds = (
            np.maximum(values, 1e-6 * values[-1])[:, None] / 2 + weight_decays[:, None, None]
        )  # [G, D + 1, 1]

    def loss(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compute losses [G] and gradients [G, D + 1, C]."""
        groups, dim, classes = self.shape
        loss, gradient = np.zeros(groups), np.zeros([dim, groups * classes])
        for rows, logits in _logits(self.inputs, weights):
            own = np.arange(len(logits)), slice(None), self.labels[rows]
            logits -= logits.max(axis=2, keepdims=True)
            loss -= logits[own].sum(axis=0, dtype=np.float64)
            np.exp(logits, out=logits)
            total = logits.sum(axis=2, keepdims=True)
            loss += np.log(total).sum(axis=(0, 2), dtype=np.float64)
            logits /= total
            logits[own] -= 1
            gradient += self.inputs[rows].T @ logits.reshape(len(logits), -1)
        gradient = gradient.reshape(dim, groups, classes).transpose(1, 0, 2) / len(self.inputs)
        decayed = self.decays * weights
        return loss / len(self.inputs) + _dot(decayed, weights) / 2, gradient + decayed

    def precondition(self, gradient: np.ndarray) -> np.ndarray:
        """Precondition a gradient: multiply it by the inverse of the Hessian's bound."""
        return self.vectors @ (self.vectors.T @ gradient / self.bounds)


def _logits(inputs: np.ndarray, weights: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield (slice of rows, their logits [n, G, C]); one matrix product serves all classifiers."""
    groups, dim, classes = weights.shape
    joined = weights.transpose(1, 0, 2).reshape(dim, groups * classes).astype(np.float32)
    chunk = max(1, AT_ONCE // (groups * classes))
    for start in range(0, len(inputs), chunk):
        rows = slice(start, start + chunk)
        yield rows, (inputs[rows] @ joined).reshape(-1, groups, classes)


def _minimize(
    problem: _Problem, most_steps: int, on_step: Callable[[int, int], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run L-BFGS for all classifiers at once, from 0 (Nocedal and Wright, Numerical Optimization, 7.5).

    Returns the weights, and for each classifier its number of steps and the largest entry of its gradient.
    """
    weights = np.zeros(problem.shape)
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    loss, gradient = problem.loss(weights)
    steps, running = np.zeros(len(loss), np.int64), np.ones(len(loss), bool)
    for step in range(most_steps):
        running &= abs(gradient).max(axis=(1, 2)) > TOLERANCE
        if not running.any():
            break
        direction = -_approximately_newton(gradient, pairs, problem.precondition)
        slope = _dot(direction, gradient)
        length = np.where(running, 1.0, 0.0)
        for _ in range(HALVINGS):
            new_weights = weights + length[:, None, None] * direction
            new_loss, new_gradient = problem.loss(new_weights)
            too_long = running & ~(new_loss <= loss + SUFFICIENT * length * slope + ROUNDING * loss)
            if not too_long.any():
                break
            length = np.where(too_long, length / 2, length)
        running &= ~too_long
        pairs = [*pairs[1 - MEMORY :], (new_weights - weights, new_gradient - gradient)]
        weights, loss, gradient = new_weights, new_loss, new_gradient
        steps += running
        on_step(step + 1, int(running.sum()))
    return weights, steps, abs(gradient).max(axis=(1, 2))


def _approximately_newton(
    gradient: np.ndarray,
    pairs: list[tuple[np.ndarray, np.ndarray]],
    precondition: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """Multiply a gradient by the inverse Hessian, estimated from `pairs` of steps and gradient changes."""
    found, parts = gradient.copy(), []
    curvatures = [_dot(step, change) for step, change in pairs]
    for (step, change), curvature in zip(reversed(pairs), reversed(curvatures), strict=True):
        parts.append(_ratio(_dot(step, found), curvature))
        found -= parts[-1][:, None, None] * change
    found = precondition(found)
    if pairs:
        change = pairs[-1][1]
        found *= _ratio(curvatures[-1], _dot(change, precondition(change)), otherwise=1.0)[:, None, None]
    for (step, change), curvature, part in zip(pairs, curvatures, reversed(parts), strict=True):
        found += (part - _ratio(_dot(change, found), curvature))[:, None, None] * step
    return found


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sum of products for each classifier: [G, D, C], [G, D, C] -> [G]."""
    return np.einsum("gdc,gdc->g", a, b)


def _ratio(above: np.ndarray, below: np.ndarray, otherwise: float = 0.0) -> np.ndarray:
    """Divide where `below` is positive; for a classifier that has converged, steps and changes are 0."""
    return np.divide(above, below, out=np.full_like(above, otherwise), where=below > 0)
