"""LARS, the optimizer of the linear probe (arXiv 1708.03888, in the form of MoCo v3 and MAE)."""

from collections.abc import Iterable
from typing import Any

import paddle
from paddle import Tensor


class LARS(paddle.optimizer.Momentum):
    """Momentum on gradients that are rescaled, parameter by parameter, by the trust ratio.

    Weights: g = grad + weight_decay * p, then g *= trust_coefficient * |p| / |g| unless |p| or |g| is 0.
    Biases and norm scales (at most 1-D) are neither rescaled nor decayed.
    Then v = momentum * v + g, p -= lr * v. Paddle's own LarsMomentumOptimizer does not rescale on a CPU if
    the weight decay is 0.

    Args:
        parameters: tensors, or groups of util.optim.param_groups.
    """

    def __init__(
        self,
        learning_rate: float,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust_coefficient: float = 0.001,
    ) -> None:
        given: list[Any] = list(parameters)
        groups: list[dict[str, Any]] = given
        if not isinstance(given[0], dict):
            groups = [{"params": given, "weight_decay": weight_decay}]
        self._rescaled: list[tuple[Tensor, float]] = [
            (p, group["weight_decay"]) for group in groups for p in group["params"] if p.ndim > 1
        ]
        self._trust_coefficient = trust_coefficient
        # Momentum itself does not decay: `step` adds the decay to the gradient of weights only.
        undecayed: Any = [{**group, "weight_decay": 0.0} for group in groups] if groups is given else given
        super().__init__(learning_rate, momentum, parameters=undecayed)

    @paddle.no_grad()
    def step(self) -> None:
        for p, weight_decay in self._rescaled:
            if p.stop_gradient or p.grad is None:
                continue
            gradient = p.grad + weight_decay * p
            p_length, g_length = paddle.norm(p), paddle.norm(gradient)
            trust = self._trust_coefficient * p_length / g_length
            usable = paddle.logical_and(p_length > 0, g_length > 0)
            p.grad = gradient * paddle.where(usable, trust, paddle.ones_like(trust))
        super().step()
