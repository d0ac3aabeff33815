"""Operations of the models: oneDNN's on a CPU, otherwise Paddle's own. Both agree to float32 rounding.

Paddle's own operations run
- on a GPU, and while a static graph is traced;
- for tensors that are empty or not float32;
- if Paddle carries no oneDNN 3, or one that lacks an operation for this processor;
- with MAE_CPU_RUNTIME=off, and in the context `by_paddle`.
A residual branch is fused into one operation if its layers come from layer.py and have no hooks.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.distributed import fleet

from util.compute import cpu_runtime, onednn, onednn_operations
from util.compute.onednn_operations import BranchSettings, contiguous

LayerClass = TypeVar("LayerClass", bound=type)
TYPES = {"float32": onednn.F32, "bfloat16": onednn.BF16}


class _Choice(threading.local):
    products = onednn.F32
    by_paddle = False
    packed: dict[int, onednn_operations.PackedWeight] = {}  # by the id of the weight


_choice = _Choice()
_fusable: set[type] = set()


def fusable(layer_class: LayerClass) -> LayerClass:
    """Class decorator: allow a fused branch to compute layers of this class without calling them."""
    _fusable.add(layer_class)
    return layer_class


@contextlib.contextmanager
def _chosen(name: str, value: Any) -> Iterator[None]:
    before = getattr(_choice, name)
    setattr(_choice, name, value)
    try:
        yield
    finally:
        setattr(_choice, name, before)


def products(dtype: str) -> AbstractContextManager:
    """Context: compute matrix products in "float32" or "bfloat16". It acts on oneDNN only, so only on a CPU.

    A backward uses the type of its forward, also outside of the context.
    """
    return _chosen("products", TYPES[dtype])


def packed(model: nn.Layer, dtype: str) -> Callable[[], AbstractContextManager]:
    """Return a function that makes the context `products(dtype)` for a trained `model`, without gradients.

    The weights are copied here, once, into the layout that oneDNN prefers; later changes of them are not
    seen. Otherwise every product does that: a tenth of the time of a small batch in float32, a fifth in
    bfloat16. The copy takes the memory of the weights, and as much time as a few batches save.
    """
    if unavailable():
        return functools.partial(products, dtype)
    weights = {
        id(layer.weight): onednn_operations.PackedWeight(layer.weight, TYPES[dtype])
        for layer in model.sublayers()
        if isinstance(layer, nn.Linear)
    }

    @contextlib.contextmanager
    def chosen() -> Iterator[None]:
        with paddle.no_grad(), products(dtype), _chosen("packed", weights):
            yield

    return chosen


def by_paddle() -> AbstractContextManager:
    """Context: use Paddle's own operations, and call the layers of a branch one by one, with their hooks."""
    return _chosen("by_paddle", True)


def recompute(layer: Callable, *args: Any) -> Any:
    """Return layer(*args), keeping only `args` for the backward, which computes the layer a second time.

    Paddle's own recompute forgets `products`, and in 2.6 it repeats the random numbers of a GPU only. Its
    reentrant kind runs a backward inside the backward, which DataParallel refuses as a second one.
    """
    products, by_paddle, numbers = _choice.products, _choice.by_paddle, paddle.get_rng_state()
    calls = itertools.count()

    def forward(*args):
        again = next(calls) > 0
        with (
            _chosen("products", products),
            _chosen("by_paddle", by_paddle),
            _random_numbers(numbers) if again else contextlib.nullcontext(),
        ):
            return layer(*args)

    return fleet.utils.recompute(forward, *args, use_reentrant=False, preserve_rng_state=False)


@contextlib.contextmanager
def _random_numbers(state: Any) -> Iterator[None]:
    """Context: draw again the numbers that followed `state`; later draws are not affected."""
    before = paddle.get_rng_state()
    paddle.set_rng_state(state)
    try:
        yield
    finally:
        paddle.set_rng_state(before)


def sdpa_type(attention: str, device: str, amp: str | None) -> str | None:
    """Return the type that Paddle's fused attention computes in; None for attention by single products.

    Args:
        attention: --attention auto|math|sdpa.
        device: "gpu" or "cpu".
        amp: None, "float16" or "bfloat16", as `util.compute.amp.resolve` returns it.

    Raises:
        ValueError: if sdpa is asked for in float32 on a GPU.
    """
    if attention == "sdpa" and device == "gpu" and amp is None:
        raise ValueError(
            "--attention sdpa: flash attention computes in half precision only; pass --amp fp16 "
            "or bf16, or --attention math"
        )
    # Flash attention needs an Ampere GPU or a later one; Paddle 2.6 tries it on older ones and fails.
    if (
        attention == "auto"
        and device == "gpu"
        and amp
        and paddle.device.cuda.get_device_capability() >= (8, 0)
    ):
        attention = "sdpa"
    if attention != "sdpa":
        return None
    return amp if device == "gpu" else "float32"


def linear(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor | None) -> paddle.Tensor:
    """Return x [..., K] @ weight [K, n] + bias [n], of shape [..., n]."""
    if _for_onednn(x, weight, bias) and x.shape[-1] == weight.shape[0]:
        return onednn_operations.Linear.apply(contiguous(x), _weight(weight), bias, _choice.products)
    return F.linear(x, weight, bias)


def layer_norm(x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, epsilon: float) -> paddle.Tensor:
    """Normalise x [..., D] over its last axis, then multiply by weight [D] and add bias [D]."""
    if _for_onednn(x, weight, bias) and x.shape[-1:] == weight.shape:
        return onednn_operations.LayerNorm.apply(contiguous(x), weight, bias, epsilon)
    return F.layer_norm(x, weight.shape, weight, bias, epsilon)


def can_fuse(x: paddle.Tensor, *layers: nn.Layer) -> bool:
    """Return True if one oneDNN operation can compute a residual branch of `layers` for x [N, L, D].

    Their classes must be fusable ones, not subclasses, and have no hooks, because the layers are not called.
    """
    parts = [part for layer in layers for part in layer.sublayers(include_self=True)]
    return all(
        type(part) in _fusable
        and not part._forward_pre_hooks
        and not part._forward_post_hooks
        and not getattr(part, "sdpa", None)
        for part in parts
    ) and _for_onednn(
        x, *(parameter for part in parts if hasattr(part, "weight") for parameter in (part.weight, part.bias))
    )


def attention_branch(
    x: paddle.Tensor, norm: nn.Layer, attention: nn.Layer, scale: paddle.Tensor | None
) -> paddle.Tensor:
    """Return x + scale * attention(norm(x)), x [N, L, D], for layers that `can_fuse`.

    `scale` [N, 1, 1] gets no gradient; None is 1.
    """
    settings = BranchSettings(scale, norm.epsilon, _choice.products, attention.num_heads, attention.scale)
    return onednn_operations.AttentionBranch.apply(
        contiguous(x),
        norm.weight,
        norm.bias,
        _weight(attention.qkv.weight),
        attention.qkv.bias,
        _weight(attention.proj.weight),
        attention.proj.bias,
        settings,
    )


def mlp_branch(x: paddle.Tensor, norm: nn.Layer, mlp: nn.Layer, scale: paddle.Tensor | None) -> paddle.Tensor:
    """Return x + scale * mlp(norm(x)), x [N, L, D], for layers that `can_fuse`; `scale` as above."""
    return onednn_operations.MlpBranch.apply(
        contiguous(x),
        norm.weight,
        norm.bias,
        _weight(mlp.fc1.weight),
        mlp.fc1.bias,
        _weight(mlp.fc2.weight),
        mlp.fc2.bias,
        BranchSettings(scale, norm.epsilon, _choice.products),
    )


@functools.cache
def unavailable() -> str:
    """Return the reason why this process cannot use oneDNN, as the end of a sentence; "" if it can."""
    if cpu_runtime.is_off():
        return "MAE_CPU_RUNTIME=off"
    try:
        onednn.library()
    except onednn.Unavailable as reason:
        return str(reason)
    return onednn_operations.missing()


def describe() -> str:
    """Return the library and the instruction set that compute, for a line of the log; "" on a GPU."""
    if paddle.get_device() != "cpu":
        return ""
    if reason := unavailable():
        return f"Paddle's own operations on {onednn.instruction_set()}, slower than oneDNN's: {reason}"
    return f"operations by oneDNN {onednn.library().version} with {onednn.instruction_set()}"


def _for_onednn(x: paddle.Tensor, *parameters: paddle.Tensor | None) -> bool:
    # x.size would be simpler, but once a model has been compiled it is a method in Paddle 2.6.
    return (
        paddle.in_dynamic_mode()
        and not _choice.by_paddle
        and not unavailable()
        and x.dtype == paddle.float32
        and x.place.is_cpu_place()
        and 0 not in x.shape
        and all(p is not None and p.dtype == paddle.float32 for p in parameters)
    )


def _weight(weight: paddle.Tensor) -> paddle.Tensor | onednn_operations.PackedWeight:
    return _choice.packed.get(id(weight), weight)
