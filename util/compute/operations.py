"""The operations that the models are made of: on a CPU by oneDNN where that can be had, elsewhere Paddle's own.

Both compute the same values to float32 rounding. Paddle's own run on a GPU, while a static graph is traced, for tensors
that are not float32 or empty, where Paddle carries no oneDNN 3 or one that lacks an operation for this processor, and
with MAE_CPU_RUNTIME=off. A residual branch is fused if its layers come from layer.py and have no hooks.
"""
import contextlib
import functools
import itertools
import threading

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.distributed import fleet

from util.compute import cpu_runtime, onednn, onednn_operations
from util.compute.onednn_operations import contiguous

TYPES = {"float32": onednn.F32, "bfloat16": onednn.BF16}


class _Choice(threading.local):
    products = onednn.F32
    by_paddle = False
    packed = {}  # id of a weight -> its PackedWeight


_choice = _Choice()
_fusable = set()  # classes


def fusable(layer_class):
    """Class decorator: layers of this class may be computed as a part of a branch, without being called."""
    _fusable.add(layer_class)
    return layer_class


@contextlib.contextmanager
def _chosen(name, value):
    before = getattr(_choice, name)
    setattr(_choice, name, value)
    try:
        yield
    finally:
        setattr(_choice, name, before)


def products(dtype):
    """Context: compute the matrix products in "float32" or "bfloat16". Only oneDNN, so only a CPU, listens.

    An operation's backward does as its forward did, wherever it runs.
    """
    return _chosen("products", TYPES[dtype])


def packed(model, dtype):
    """A function that gives the context `products(dtype)` for a trained `model`, whose weights are prepared here, once.

    Otherwise every product prepares its weight anew, a tenth of the time of a small batch in float32 and a fifth in
    bfloat16; preparing them takes as long as a few batches save. Takes memory for a copy of the weights; later changes
    of them are not seen. There are no gradients in the context.
    """
    if unavailable():
        return functools.partial(products, dtype)
    weights = {id(layer.weight): onednn_operations.PackedWeight(layer.weight, TYPES[dtype])
               for layer in model.sublayers() if isinstance(layer, nn.Linear)}

    @contextlib.contextmanager
    def chosen():
        with paddle.no_grad(), products(dtype), _chosen("packed", weights):
            yield
    return chosen


def by_paddle():
    """Context: use Paddle's own operations. The layers of a branch are then called one by one, and their hooks too."""
    return _chosen("by_paddle", True)


def recompute(layer, *args):
    """layer(*args), which keeps no more than `args` for its backward and computes itself a second time there.

    Paddle's own recompute would leave `products` behind, and in 2.6 it keeps the random numbers of a GPU only. The
    reentrant kind would run a backward inside the backward, which DataParallel takes for a second one and refuses.
    """
    products, by_paddle, numbers = _choice.products, _choice.by_paddle, paddle.get_rng_state()
    calls = itertools.count()

    def forward(*args):
        again = next(calls) > 0
        with (_chosen("products", products), _chosen("by_paddle", by_paddle),
              _random_numbers(numbers) if again else contextlib.nullcontext()):
            return layer(*args)
    return fleet.utils.recompute(forward, *args, use_reentrant=False, preserve_rng_state=False)


@contextlib.contextmanager
def _random_numbers(state):
    """Context: draw what was drawn after `state`, without a trace in what is drawn later."""
    before = paddle.get_rng_state()
    paddle.set_rng_state(state)
    try:
        yield
    finally:
        paddle.set_rng_state(before)


def sdpa_type(attention, device, amp):
    """--attention auto|math|sdpa on "gpu" or "cpu" -> the type that Paddle's fused attention takes, or None without it.

    Args:
        amp: None, "float16" or "bfloat16", as `util.compute.amp.resolve` returns it.
    """
    if attention == "sdpa" and device == "gpu" and amp is None:
        raise ValueError("--attention sdpa: flash attention computes in half precision only; pass --amp fp16 or bf16, "
                         "or --attention math")
    # Flash attention needs the tensor cores of Ampere or later; Paddle 2.6 takes it and fails on anything older.
    if attention == "auto" and device == "gpu" and amp and paddle.device.cuda.get_device_capability() >= (8, 0):
        attention = "sdpa"
    if attention != "sdpa":
        return None
    return amp if device == "gpu" else "float32"


def linear(x, weight, bias):
    """x [..., K] @ weight [K, n] + bias [n] -> [..., n]."""
    if _for_onednn(x, weight, bias) and x.shape[-1] == weight.shape[0]:
        return onednn_operations.Linear.apply(contiguous(x), _weight(weight), bias, _choice.products)
    return F.linear(x, weight, bias)


def layer_norm(x, weight, bias, epsilon):
    """x [..., D] normalised over its last axis, * weight [D] + bias [D]."""
    if _for_onednn(x, weight, bias) and x.shape[-1:] == weight.shape:
        return onednn_operations.LayerNorm.apply(contiguous(x), weight, bias, epsilon)
    return F.layer_norm(x, weight.shape, weight, bias, epsilon)


def can_fuse(x, *layers):
    """Tell if a residual branch of `layers` can be computed for x [N, L, D] by one oneDNN operation.

    Their classes must be the fusable ones, not subclasses, and have no hooks, because the layers are not called.
    """
    parts = [part for layer in layers for part in layer.sublayers(include_self=True)]
    return (all(type(part) in _fusable and not part._forward_pre_hooks and not part._forward_post_hooks
                and not getattr(part, "sdpa", None) for part in parts)
            and _for_onednn(x, *(parameter for part in parts if hasattr(part, "weight")
                                 for parameter in (part.weight, part.bias))))


def attention_branch(x, norm, attention, scale):
    """x + scale * attention(norm(x)), x [N, L, D], for layers that `can_fuse`.

    Args:
        scale: [N, 1, 1] without gradient; None is 1.
    """
    return onednn_operations.AttentionBranch.apply(
        contiguous(x), norm.weight, norm.bias, _weight(attention.qkv.weight), attention.qkv.bias,
        _weight(attention.proj.weight), attention.proj.bias, scale, norm.epsilon, attention.num_heads,
        attention.scale, _choice.products)


def mlp_branch(x, norm, mlp, scale):
    """x + scale * mlp(norm(x)), x [N, L, D], for layers that `can_fuse`; `scale` as above."""
    return onednn_operations.MlpBranch.apply(
        contiguous(x), norm.weight, norm.bias, _weight(mlp.fc1.weight), mlp.fc1.bias, _weight(mlp.fc2.weight),
        mlp.fc2.bias, scale, norm.epsilon, _choice.products)


@functools.lru_cache(maxsize=None)
def unavailable():
    """Why the operations cannot use oneDNN in this process, as the end of a sentence; "" if they can."""
    if cpu_runtime.is_off():
        return "MAE_CPU_RUNTIME=off"
    try:
        onednn.library()
    except onednn.Unavailable as reason:
        return str(reason)
    return onednn_operations.missing()


def describe():
    """Which library computes on this device and with which instruction set, for a line of the log; "" on a GPU."""
    if paddle.get_device() != "cpu":
        return ""
    if reason := unavailable():
        return f"Paddle's own operations on {onednn.instruction_set()}, slower than oneDNN's: {reason}"
    return f"operations by oneDNN {onednn.library().version} with {onednn.instruction_set()}"


def _for_onednn(x, *parameters):
    # x.size would be simpler; once a model has been compiled, Paddle 2.6 takes it for a method.
    return (paddle.in_dynamic_mode() and not _choice.by_paddle and not unavailable() and x.dtype == paddle.float32
            and x.place.is_cpu_place() and 0 not in x.shape
            and all(p is not None and p.dtype == paddle.float32 for p in parameters))


def _weight(weight):
    return _choice.packed.get(id(weight), weight)
