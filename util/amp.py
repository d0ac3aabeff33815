"""Mixed precision: what --amp means on this device."""
from functools import partial

import paddle

from util import cpu_runtime, operations


def resolve(amp, device):
    """--amp auto|off|fp16|bf16 on "gpu" or "cpu" -> None, "float16" or "bfloat16"."""
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
    if not cpu_runtime.features() & {"avx512_bf16", "amx_bf16"}:
        return "this CPU has neither avx512_bf16 nor amx_bf16, and would be slower than in float32"
    reason = operations.unavailable()
    return f"bfloat16 on a CPU needs oneDNN, and {reason}" if reason else ""


def autocast(dtype):
    """A function that gives the context in which forward passes run; `dtype` as `resolve` returns it."""
    if paddle.get_device() == "cpu":  # where Paddle's own auto_cast does nothing
        return partial(operations.products, dtype or "float32")
    return partial(paddle.amp.auto_cast, enable=dtype is not None, dtype=dtype or "float16")


def grad_scaler(dtype):
    """Loss scaling, which float16 needs and the others do not; the growth of the official code's scaler."""
    return paddle.amp.GradScaler(enable=dtype == "float16", init_loss_scaling=65536.0, incr_every_n_steps=2000)
