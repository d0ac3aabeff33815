"""Rule of an update: optimizer, learning rate, gradient accumulation and precision."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import paddle


@dataclass(frozen=True)
class UpdateRule:
    """Settings of the updates that an engine makes.

    Attributes:
        optimizer: of the trained parameters.
        scaler: loss scaling, see util.compute.amp.grad_scaler.
        lr_at: learning rate as a function of the fractional epoch.
        accum_iter: micro-batches per update.
        autocast: returns the context that sets the precision of a forward pass.
        clip_grad: largest global norm of the gradient; None: no clipping.
    """

    optimizer: paddle.optimizer.Optimizer
    scaler: paddle.amp.GradScaler
    lr_at: Callable[[float], float]
    accum_iter: int
    autocast: Callable[[], AbstractContextManager]
    clip_grad: float | None = None
