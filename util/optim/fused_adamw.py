"""AdamW that updates all parameters of a group in one operation."""

import inspect
from typing import Any

import paddle
from paddle import Tensor

CHUNK = 2048 * 32  # values that a block of GPU threads works on, as in Paddle's own tests of the operation


class FusedAdamW(paddle.optimizer.AdamW):
    """AdamW with the values, arguments and state of paddle.optimizer.AdamW, and far fewer launches on a GPU.

    Takes parameter groups only. Paddle has no public fused AdamW (`use_multi_tensor` is for Adam and
    Momentum), so this calls its private operation. Raises ValueError if this Paddle has none.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not hasattr(paddle._C_ops, "fused_adam_"):
            raise ValueError(f"--fused_adamw: Paddle {paddle.__version__}: no fused AdamW; remove the flag")
        super().__init__(*args, **kwargs)

    @paddle.no_grad()
    def step(self) -> None:
        all_groups: list[dict[str, Any]] = self._param_groups  # type: ignore[assignment]  # stubs say object
        groups = [(group, [p for p in group["params"] if p.grad is not None]) for group in all_groups]
        moments = self._accumulators[self._moment1_acc_str]
        if any(p.name not in moments for _, params in groups for p in params):
            return super().step()  # the first update creates or restores the moments
        for group, params in groups:
            for dtype in {p.dtype for p in params}:
                self._update(group, [p for p in params if p.dtype == dtype])

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Update `params`, which are of one data type and one group."""
        # The product is computed as in Paddle's AdamW, which makes the first update after a resume.
        lr = paddle.full([1], self.get_lr(), "float32") * group.get("learning_rate", 1.0)
        moments = [
            [self._get_accumulator_master(name, p) for p in params]
            for name in (
                self._moment1_acc_str,
                self._moment2_acc_str,
                self._beta1_pow_acc_str,
                self._beta2_pow_acc_str,
            )
        ]
        masters = None
        if params[0].dtype != paddle.float32:
            masters = [self._master_weights[p.name] for p in params]
        # Paddle 3 added amsgrad: its moments, and whether it is on.
        largest, amsgrad = ([None], [False]) if _has_amsgrad() else ([], [])
        paddle._C_ops.fused_adam_(
            params,
            [p.grad for p in params],
            lr,
            *moments[:2],
            *largest,
            *moments[2:],
            masters,
            None,
            group["beta1"],
            group["beta2"],
            group["epsilon"],
            CHUNK,
            group["weight_decay"],
            True,
            masters is not None,
            False,
            *amsgrad,
        )


def _has_amsgrad() -> bool:
    return "amsgrad" in inspect.signature(paddle.optimizer.AdamW.__init__).parameters
