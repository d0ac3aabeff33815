"""Exponential moving average of a model's weights (EMA, as in arXiv 1703.01780)."""

import contextlib
from collections.abc import Iterator, Mapping

import numpy as np
import paddle
from paddle import Tensor, nn


class EMA:
    """After each update: average += (1 - decay) * (weight - average), starting from the initial weights.

    Only trained parameters are averaged. Frozen weights do not change, and running statistics of BatchNorm
    are averages already, so evaluations and checkpoints take both from the model. With --amp_level O2 the
    float32 master weights are averaged. All processes hold the same average, because they have the same
    weights.

    Args:
        decay: in [0, 1). About the last 1 / (1 - decay) updates count.
    """

    def __init__(self, model: nn.Layer, optimizer: paddle.optimizer.Optimizer, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"--ema_decay {decay}: expected at least 0 and less than 1")
        self.decay, self.optimizer = decay, optimizer
        self.parameters = {name: p for name, p in model.named_parameters() if not p.stop_gradient}
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.weights: dict[str, Tensor] | None = None  # source of the average, found at the first update
        self.set_aside: dict[str, Tensor] = {}  # weights of the model while the averages replace them

    @paddle.no_grad()
    def update(self) -> None:
        """Add the weights after an update to the average."""
        if self.weights is None:
            masters = self.optimizer.state_dict().get("master_weights", {})
            self.weights = {name: masters.get(p.name, p) for name, p in self.parameters.items()}
        for name, average in self.averages.items():
            # Not decay * average + (1 - decay) * weight: in float32 the two factors of 0.9999 do not add up
            # to 1, and in the long run the average would be 2e-4 too small.
            average.add_((self.weights[name] - average).scale_(1 - self.decay))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Context in which the averages replace the weights of the model."""
        self.set_aside = {name: p.detach().clone() for name, p in self.parameters.items()}
        try:
            for name, p in self.parameters.items():
                p.set_value(self.averages[name].astype(p.dtype))
            yield
        finally:
            self.put_back()

    def put_back(self) -> None:
        """Restore the weights of the model exactly, if the averages replace them."""
        for name, value in self.set_aside.items():
            self.parameters[name].set_value(value)
        self.set_aside = {}

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the averages, {parameter name: array}."""
        return {name: average.numpy() for name, average in self.averages.items()}

    def restore(self, path: str, weights: Mapping[str, np.ndarray]) -> None:
        """Continue from {name: array}: the averages in the checkpoint at `path`, or its weights."""
        for name, average in self.averages.items():
            value = weights.get(name)
            if not isinstance(value, np.ndarray) or list(value.shape) != average.shape:
                raise ValueError(f"--resume {path}: model_ema does not fit the model: {name}")
            average.set_value(weights[name])
