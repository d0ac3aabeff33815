"""Mixed precision: what --amp and --amp_level mean on this device."""
from functools import partial

import paddle
from paddle import nn

from util.compute import onednn, operations


def resolve(amp, device, level="O1"):
    """--amp auto|off|fp16|bf16 on "gpu" or "cpu" -> None, "float16" or "bfloat16"; ValueError where it cannot be.

    Args:
        level: --amp_level O1|O2.
    """
    if level == "O2" and device == "cpu":
        raise ValueError("--amp_level O2: a CPU keeps its weights in float32, and with --amp bf16 rounds them for each "
                         "product; pass --amp_level O1")
    if level == "O2" and amp == "off":
        raise ValueError("--amp_level O2: weights in half precision need products in half precision; pass --amp fp16 "
                         "or bf16, or --amp_level O1")
    if amp == "off" or (amp == "auto" and device == "cpu"):
        return None
    if device == "cpu":
        if amp == "fp16":
            raise ValueError("--amp fp16: a CPU computes in float32 or bfloat16; pass --amp off or bf16")
        if reason := bfloat16_unavailable():
            raise ValueError(f"--amp bf16: {reason}; pass --amp off")
    return {"auto": "float16", "fp16": "float16", "bf16": "bfloat16"}[amp]


def bfloat16_unavailable():
    """Why this CPU cannot compute in bfloat16, as a clause; "" if it can."""
    if reason := onednn.bfloat16_missing():
        return reason
    reason = operations.unavailable()
    return f"bfloat16 on a CPU needs oneDNN, and {reason}" if reason else ""


def autocast(dtype):
    """A function that gives the context in which forward passes run; `dtype` as `resolve` returns it."""
    if paddle.get_device() == "cpu":  # where Paddle's own auto_cast does nothing
        return partial(operations.products, dtype or "float32")
    return partial(paddle.amp.auto_cast, enable=dtype is not None, dtype=dtype or "float16")


def keep_masters(model, optimizer):
    """--amp_level O2, first half: `optimizer`, made with multi_precision, shall update float32 copies of the weights.

    Before a checkpoint is resumed; `halve` comes after it. What is halved are the trained parameters of linear maps,
    nearly all there are. The others, of normalisations, positions, tokens and the patch embedding, stay in float32,
    and so does what O1 computes in float32.
    """
    masters = {}
    for p in _halved(model):
        masters[p.name] = p.detach().clone()
        masters[p.name].name = p.name  # so that the optimizer's state has the names that it has without masters
    optimizer.set_state_dict({"master_weights": masters})


def halve(model, optimizer, dtype):
    """--amp_level O2, second half: the masters take the values of the weights, and these become `dtype`."""
    masters = optimizer.state_dict()["master_weights"]
    for p in _halved(model):
        masters[p.name].set_value(p)
    for layer in _linear_maps(model):
        layer.to(dtype=dtype)


def _linear_maps(model):
    return [layer for layer in model.sublayers() if isinstance(layer, nn.Linear)]


def _halved(model):
    return [p for layer in _linear_maps(model) for p in layer.parameters()]


def grad_scaler(dtype, loss_scale="dynamic"):
    """Loss scaling, which float16 needs and the others do not; ValueError for a number where there is none.

    Args:
        loss_scale: "dynamic", with the growth of the official code's scaler, or a number that stays. Either way an
            update whose gradient overflows is left out.
    """
    if loss_scale == "dynamic":
        return paddle.amp.GradScaler(enable=dtype == "float16", init_loss_scaling=65536.0, incr_every_n_steps=2000)
    if dtype != "float16":
        raise ValueError(f"--loss_scale {loss_scale:g}: only float16 is scaled, and this run computes in "
                         f"{dtype or 'float32'}; pass --amp fp16, or leave the flag out")
    if not 1 <= loss_scale < float("inf"):
        raise ValueError(f"--loss_scale {loss_scale:g}: expected dynamic, or a number of at least 1")
    return paddle.amp.GradScaler(init_loss_scaling=loss_scale, use_dynamic_loss_scaling=False)
