"""The optimizers that --opt names."""

from collections.abc import Sequence
from typing import Any

import paddle

from util.optim.fused_adamw import FusedAdamW
from util.optim.lars import LARS


def make_optimizer(
    name: str,
    lr: float,
    groups: list[dict[str, Any]],
    *,
    betas: Sequence[float] | None = None,
    momentum: float | None = None,
    fused: bool = False,
    masters: bool = False,
) -> paddle.optimizer.Optimizer:
    """Make the optimizer `name`. Arguments that it does not have are ignored.

    adamw: decoupled weight decay (arXiv 1711.05101), p -= lr * decay * p beside Adam's step.
    sgd: PyTorch's, g = grad + decay * p, v = momentum * v + g, p -= lr * v. The decay is part of the
    gradient, so
        values from adamw recipes are far too strong here.
    lars: see util.optim.lars. The decay is part of the gradient before rescaling.

    Args:
        groups: of util.optim.param_groups, each with a weight decay and perhaps a factor of the learning
            rate.
        betas: of adamw; None: 0.9 and 0.999.
        momentum: of sgd and lars; None: 0.9.
        fused: update each adamw group in one operation.
        masters: keep float32 master weights for weights in half precision.
    """
    parameters: Any = groups  # Paddle's stubs do not know groups without a learning rate
    if name in ("lars", "sgd"):
        rest = 0.9 if momentum is None else momentum
        if name == "lars":
            return LARS(lr, parameters, momentum=rest)
        return paddle.optimizer.Momentum(lr, rest, parameters=parameters)
    AdamW = FusedAdamW if fused else paddle.optimizer.AdamW
    beta1, beta2 = betas or (0.9, 0.999)
    return AdamW(lr, beta1=beta1, beta2=beta2, parameters=parameters, multi_precision=masters)
