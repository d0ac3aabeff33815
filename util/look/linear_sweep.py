"""Linear classifiers on features that were computed once: one for each of several weight decays, all trained together.

Each minimises  mean cross-entropy + weight_decay / 2 * |W|^2  over its weights W [D, C] and a bias; the features are
first given mean 0 and variance 1 in each channel, as by the BatchNorm without scale and shift of the linear probe (MAE
paper, appendix A.1). This is convex, so that learning rate, schedule and seed do not matter, and there are none: as for
the linear probes of CLIP (arXiv 2103.00020, appendix A.3) it is solved by L-BFGS on all images at once. A bound of the
Hessian (Boehning 1992, Multinomial logistic regression algorithm) preconditions it; features of a Transformer are so
correlated that without it 500 steps do not come as far as 20 with it.

Shape letters: N images, D channels, C classes, G weight decays.
"""
import numpy as np

TOLERANCE = 1e-4        # of the largest entry of the gradient, at which a classifier is done
MEMORY = 10             # pairs of steps and changes of the gradient that L-BFGS keeps
SUFFICIENT = 1e-4       # part of the promised decrease that a step has to keep (Armijo)
HALVINGS = 30           # of a step that does not
ROUNDING = 1e-7         # part of the loss by which float32 logits may make it look larger than it is
AT_ONCE = 2 ** 24       # logits in memory, 64 MB


class Sweep:
    """Linear classifiers trained on `features`, one for each of `weight_decays`.

    weights: float64 [G, D + 1, C]; the last row is the bias. They are those of features that are standardised by
    `centre` and `scale`, both [D]. steps: [G], how many each took; gradient: [G], its largest entry, which is above
    TOLERANCE for a classifier that is not done.

    Args:
        features: float32 [N, D]; labels: int64 [N], below num_classes.
        most_steps: after which training ends.
        on_step: called after each with its number and how many classifiers go on.
    """

    def __init__(self, features, labels, *, num_classes, weight_decays, most_steps=500,
                 on_step=lambda step, left: None):
        if min(weight_decays) < 0:
            raise ValueError(f"--weight_decay must not be negative, got {min(weight_decays)}")
        self.weight_decays = np.array(weight_decays, np.float64)
        self.centre, self.scale = features.mean(axis=0, dtype=np.float64), np.ones(features.shape[1])
        inputs = self._inputs(features)
        self.scale = 1 / np.sqrt(np.einsum("nd,nd->d", inputs, inputs, dtype=np.float64)[:-1] / len(inputs) + 1e-6)
        inputs[:, :-1] *= self.scale.astype(np.float32)
        problem = _Problem(inputs, labels, num_classes, self.weight_decays)
        self.weights, self.steps, self.gradient = _minimize(problem, most_steps, on_step)

    def accuracy(self, features, labels):
        """Per cent of `features` to which each classifier gives their label: [G]."""
        right = np.zeros(len(self.weights))
        for rows, logits in _logits(self._inputs(features), self.weights):
            right += (logits.argmax(axis=2) == labels[rows, None]).sum(axis=0)
        return 100 * right / len(labels)

    def _inputs(self, features):
        """The standardised features, and 1 for the bias: float32 [N, D + 1]."""
        inputs = np.ones([len(features), features.shape[1] + 1], np.float32)
        inputs[:, :-1] = features
        inputs[:, :-1] -= self.centre.astype(np.float32)
        inputs[:, :-1] *= self.scale.astype(np.float32)
        return inputs


class _Problem:
    """What is minimised over weights [G, D + 1, C]; `inputs` are those of Sweep."""

    def __init__(self, inputs, labels, num_classes, weight_decays):
        self.inputs, self.labels = inputs, labels
        self.shape = len(weight_decays), inputs.shape[1], num_classes
        self.decays = np.repeat(weight_decays[:, None, None], inputs.shape[1], axis=1)  # [G, D + 1, 1]
        self.decays[:, -1] = 0  # of the bias
        values, self.vectors = np.linalg.eigh((inputs.T @ inputs).astype(np.float64) / len(inputs))
        # Channels that say the same as others have 0, give or take the rounding.
        self.bounds = np.maximum(values, 1e-6 * values[-1])[:, None] / 2 + weight_decays[:, None, None]  # [G, D + 1, 1]

    def loss(self, weights):
        """Losses [G] and gradients [G, D + 1, C]."""
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

    def precondition(self, gradient):
        """The inverse of the bound of the Hessian times `gradient`: a short step, but in a good direction."""
        return self.vectors @ (self.vectors.T @ gradient / self.bounds)


def _logits(inputs, weights):
    """Yield (slice of rows, their logits [n, G, C]), computed as one product."""
    groups, dim, classes = weights.shape
    joined = weights.transpose(1, 0, 2).reshape(dim, groups * classes).astype(np.float32)
    chunk = max(1, AT_ONCE // (groups * classes))
    for start in range(0, len(inputs), chunk):
        rows = slice(start, start + chunk)
        yield rows, (inputs[rows] @ joined).reshape(-1, groups, classes)


def _minimize(problem, most_steps, on_step):
    """L-BFGS (Nocedal and Wright, Numerical Optimization, algorithm 7.5) for all groups side by side, from 0.

    The weights, and for each group the steps that it took and the largest entry of its gradient.
    """
    weights, pairs = np.zeros(problem.shape), []
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
        pairs = [*pairs[1 - MEMORY:], (new_weights - weights, new_gradient - gradient)]
        weights, loss, gradient = new_weights, new_loss, new_gradient
        steps += running
        on_step(step + 1, int(running.sum()))
    return weights, steps, abs(gradient).max(axis=(1, 2))


def _approximately_newton(gradient, pairs, precondition):
    """The inverse of the Hessian, as `pairs` of steps and changes of the gradient tell of it, times `gradient`."""
    found, parts = gradient.copy(), []
    curvatures = [_dot(step, change) for step, change in pairs]
    for (step, change), curvature in zip(reversed(pairs), reversed(curvatures)):
        parts.append(_ratio(_dot(step, found), curvature))
        found -= parts[-1][:, None, None] * change
    found = precondition(found)
    if pairs:
        change = pairs[-1][1]
        found *= _ratio(curvatures[-1], _dot(change, precondition(change)), otherwise=1.0)[:, None, None]
    for (step, change), curvature, part in zip(pairs, curvatures, reversed(parts)):
        found += (part - _ratio(_dot(change, found), curvature))[:, None, None] * step
    return found


def _dot(a, b):
    """[G, D, C], [G, D, C] -> [G]."""
    return np.einsum("gdc,gdc->g", a, b)


def _ratio(above, below, otherwise=0.0):
    """above / below where `below` is positive; a group that stands still has steps and changes of 0."""
    return np.divide(above, below, out=np.full_like(above, otherwise), where=below > 0)
