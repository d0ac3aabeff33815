"""AdamW that updates all parameters of a group by one operation."""
import inspect

import paddle

CHUNK = 2048 * 32  # values that a block of GPU threads works on, as in Paddle's own tests of the operation


class FusedAdamW(paddle.optimizer.AdamW):
    """paddle.optimizer.AdamW in value, arguments and state, with far fewer launches on a GPU.

    Takes parameter groups only. Paddle has no public fused AdamW (`use_multi_tensor` is Adam's and Momentum's); this is
    its private operation, which is checked for first. Raises ValueError where this Paddle has none.
    """

    def __init__(self, *args, **kwargs):
        if not hasattr(paddle._C_ops, "fused_adam_"):
            raise ValueError(f"--fused_adamw: Paddle {paddle.__version__} has no fused AdamW; leave the flag out")
        super().__init__(*args, **kwargs)

    @paddle.no_grad()
    def step(self):
        groups = [(group, [p for p in group["params"] if p.grad is not None]) for group in self._param_groups]
        if any(p.name not in self._accumulators[self._moment1_acc_str] for _, params in groups for p in params):
            return super().step()  # the first update, which also makes or restores the moments
        for group, params in groups:
            for dtype in {p.dtype for p in params}:
                self._update(group, [p for p in params if p.dtype == dtype])

    def _update(self, group, params):
        """One update of `params`, all of one type and of one group."""
        # As Paddle's own multiplies, so that the first update after a resume is the same as ours would be.
        lr = paddle.full([1], self.get_lr(), "float32") * group.get("learning_rate", 1.0)
        moments = [[self._get_accumulator_master(name, p) for p in params] for name in (
            self._moment1_acc_str, self._moment2_acc_str, self._beta1_pow_acc_str, self._beta2_pow_acc_str)]
        masters = None if params[0].dtype == paddle.float32 else [self._master_weights[p.name] for p in params]
        # Paddle 3 added amsgrad: its moments, and whether it is on.
        largest, amsgrad = ([None], [False]) if _has_amsgrad() else ([], [])
        paddle._C_ops.fused_adam_(
            params, [p.grad for p in params], lr, *moments[:2], *largest, *moments[2:], masters, None, group["beta1"],
            group["beta2"], group["epsilon"], CHUNK, group["weight_decay"], True, masters is not None, False, *amsgrad)


def _has_amsgrad():
    return "amsgrad" in inspect.signature(paddle.optimizer.AdamW.__init__).parameters
