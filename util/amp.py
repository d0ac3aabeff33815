"""Mixed precision: what --amp means on this device."""
from functools import partial

import paddle


def resolve(amp, device):
    """--amp auto|off|fp16|bf16 on "gpu" or "cpu" -> None, "float16" or "bfloat16"."""
    if amp == "off" or (amp == "auto" and device == "cpu"):
        return None
    if device == "cpu":
        raise ValueError(f"--amp {amp}: Paddle computes in float32 only on a CPU; pass --amp auto or off")
    return {"auto": "float16", "fp16": "float16", "bf16": "bfloat16"}[amp]


def autocast(dtype):
    """A function that gives the context in which forward passes run; `dtype` as `resolve` returns it."""
    return partial(paddle.amp.auto_cast, enable=dtype is not None, dtype=dtype or "float16")


def grad_scaler(dtype):
    """Loss scaling, which float16 needs and the others do not; the growth of the official code's scaler."""
    return paddle.amp.GradScaler(enable=dtype == "float16", init_loss_scaling=65536.0, incr_every_n_steps=2000)
