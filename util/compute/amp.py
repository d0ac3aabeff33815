"""Mixed precision: --amp, --amp_level and --loss_scale on a GPU and on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import paddle
from paddle import nn

from util.compute import onednn, operations


def resolve(amp: str, device: str, level: str = "O1") -> str | None:
    """Turn the flags into the type of the matrix products: "float16", "bfloat16", or None for float32.

    Args:
        amp: --amp auto|off|fp16|bf16.
        device: "gpu" or "cpu".
        level: --amp_level O1|O2.

    Raises:
        ValueError: if the device does not support it, or the two flags contradict each other.
    """
    if level == "O2" and device == "cpu":
        raise ValueError(
            "--amp_level O2: a CPU keeps its weights in float32, and with --amp bf16 rounds "
            "them for each product; pass --amp_level O1"
        )
    if level == "O2" and amp == "off":
        raise ValueError(
            "--amp_level O2: weights in half precision need products in half precision; pass "
            "--amp fp16 or bf16, or --amp_level O1"
        )
    if amp == "off" or (amp == "auto" and device == "cpu"):
        return None
    if device == "cpu":
        if amp == "fp16":
            raise ValueError("--amp fp16: a CPU computes in float32 or bfloat16; pass --amp off or bf16")
        if reason := bfloat16_unavailable():
            raise ValueError(f"--amp bf16: {reason}; pass --amp off")
    return {"auto": "float16", "fp16": "float16", "bf16": "bfloat16"}[amp]


def bfloat16_unavailable() -> str:
    """Return the reason why this CPU cannot compute in bfloat16, as a clause; "" if it can."""
    if reason := onednn.bfloat16_missing():
        return reason
    reason = operations.unavailable()
    return f"bfloat16 on a CPU needs oneDNN, and {reason}" if reason else ""


def autocast(dtype: str | None) -> Callable[[], AbstractContextManager]:
    """Return a function that makes the context for forward passes; `dtype` comes from `resolve`."""
    if paddle.get_device() == "cpu":  # Paddle's own auto_cast does nothing there
        return partial(operations.products, dtype or "float32")
    return partial(paddle.amp.auto_cast, enable=dtype is not None, dtype=dtype or "float16")  # type: ignore[arg-type]  # the stub lists literals


def keep_masters(model: nn.Layer, optimizer: paddle.optimizer.Optimizer) -> None:
    """Give `optimizer` float32 copies (masters) of the weights, which it updates: --amp_level O2, first half.

    The optimizer is made with multi_precision. Call this before a checkpoint is resumed, and `halve` after
    it. Only the parameters of linear maps, nearly all of the model, get masters and are halved. The
    normalisations, positions, tokens and the patch embedding stay in float32, and so does all that O1
    computes in float32.
    """
    masters = {}
    for p in _halved(model):
        masters[p.name] = p.detach().clone()
        masters[p.name].name = p.name  # the optimizer's state then has the same names as without masters
    optimizer.set_state_dict({"master_weights": masters})


def halve(model: nn.Layer, optimizer: paddle.optimizer.Optimizer, dtype: str) -> None:
    """Copy the weights into the masters and round the weights to `dtype`: --amp_level O2, second half."""
    masters = optimizer.state_dict()["master_weights"]
    for p in _halved(model):
        masters[p.name].set_value(p)
    for layer in _linear_maps(model):
        layer.to(dtype=dtype)  # type: ignore[arg-type]  # the stub lists literals


def _linear_maps(model: nn.Layer) -> list[nn.Linear]:
    return [layer for layer in model.sublayers() if isinstance(layer, nn.Linear)]


def _halved(model: nn.Layer) -> list[paddle.Tensor]:
    return [p for layer in _linear_maps(model) for p in layer.parameters()]


def grad_scaler(dtype: str | None, loss_scale: str | float = "dynamic") -> paddle.amp.GradScaler:
    """Return the loss scaler, which acts in float16 only and skips an update whose gradient overflows.

    Args:
        dtype: None, "float16" or "bfloat16", as `resolve` returns it.
        loss_scale: a constant, or "dynamic" for the start and growth of PyTorch's scaler (official code).

    Raises:
        ValueError: if a constant is below 1 or not finite, or `dtype` is not float16.
    """
    if isinstance(loss_scale, str):
        return paddle.amp.GradScaler(
            enable=dtype == "float16", init_loss_scaling=65536.0, incr_every_n_steps=2000
        )
    if dtype != "float16":
        raise ValueError(
            f"--loss_scale {loss_scale:g}: only float16 is scaled, and this run computes in "
            f"{dtype or 'float32'}; pass --amp fp16, or leave the flag out"
        )
    if not 1 <= loss_scale < float("inf"):
        raise ValueError(f"--loss_scale {loss_scale:g}: expected dynamic, or a number of at least 1")
    return paddle.amp.GradScaler(init_loss_scaling=loss_scale, use_dynamic_loss_scaling=False)
