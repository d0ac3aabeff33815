"""Transformer operations on oneDNN, forward and backward; util.compute.operations chooses them or Paddle's.

Input and output tensors are float32, dense, not empty and on the CPU. `products` is the type of the matrix
products, F32 or BF16. BF16 rounds their inputs to bfloat16, and the values between two products of one
operation. Sums, softmax, normalisation, weights and the gradients of weights stay float32.

Shape letters: M rows (images times tokens), N images, L tokens, D channels, H heads, C = D // H.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import paddle
from paddle.autograd import PyLayer

from util.compute import onednn
from util.compute.onednn import BF16, BYTES, F32, dense

# Bytes of scores of a group of images. Attention works group by group, so that the scores stay in the cache
# between the product that writes them and the softmax that reads them: 1.2 to 1.8 times as fast as all at
# once.
SCORES_IN_CACHE = 4 << 20


def missing() -> str:
    """Return the float32 operation that oneDNN lacks for this CPU, as the end of a sentence; "" if none.

    Builds each forward and backward once, for small tensors, because an operation found missing in the middle
    of a step could not be replaced.
    """
    rows, vector, scores = dense((2, 4)), dense((8,)), dense((1, 1, 2, 2))
    heads = _Heads(1, 2, 4, 1, F32)
    try:
        onednn.matmul(rows, dense((4, 4)), rows, dense((1, 4)), None, rows)
        onednn.matmul(rows.transposed, rows, dense((4, 4)))
        onednn.matmul(heads.qkv, heads.qkv.transposed, heads.scores, None, 0.5)
        onednn.matmul(heads.weights.transposed, heads.mixed, heads.qkv)
        onednn.multiply(rows, dense((2, 1)), rows, rows)
        onednn.add(vector, vector, vector)
        onednn.gelu(vector, vector)
        onednn.gelu_backward(vector, vector)
        onednn.softmax(scores, scores)
        onednn.softmax_backward(scores)
        onednn.layer_norm(rows, rows, 1e-6)
        onednn.layer_norm_backward(rows, rows, rows, 1e-6)
    except onednn.Unavailable as reason:
        return str(reason)
    return ""


def contiguous(x: paddle.Tensor) -> paddle.Tensor:
    """Return `x`, or a dense copy if it is a view with gaps or exchanged axes."""
    return x if x.is_contiguous() else x.contiguous()


@dataclass(frozen=True)
class BranchSettings:
    """Arguments of a residual branch that get no gradient."""

    scale: paddle.Tensor | None  # [N, 1, 1], factor of the branch; None is 1
    epsilon: float  # of the layer normalisation
    products: int  # F32 or BF16
    heads: int = 1
    scores_scale: float = 1.0  # factor of the products of queries and keys


class Linear(PyLayer):
    """Linear map x [..., K] @ weight [K, n] + bias [n], of shape [..., n]."""

    @staticmethod
    def forward(
        ctx: Any, x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, products: int
    ) -> paddle.Tensor:
        """Return the result in float32."""
        ctx.trained = _trained(x, weight, bias)
        x, weight = _cast(x, products), _cast(weight, products)
        _save(ctx, x, weight)
        return _linear(x, weight, bias, F32)

    @staticmethod
    def backward(ctx: Any, g: paddle.Tensor) -> tuple:
        """Return the gradients of x, weight and bias."""
        x, weight = _saved(ctx)
        g = _cast(g, _dtype(x))
        g_x = _product_with_transposed(g, weight, F32) if ctx.trained[0] else None
        return _select(ctx.trained, g_x, *_parameter_gradients(x, g))


class LayerNorm(PyLayer):
    """Normalisation of x [..., D] over its last axis, times weight [D], plus bias [D]."""

    @staticmethod
    def forward(
        ctx: Any, x: paddle.Tensor, weight: paddle.Tensor, bias: paddle.Tensor, epsilon: float
    ) -> paddle.Tensor:
        """Return the result in float32."""
        ctx.trained, ctx.epsilon = _trained(x, weight, bias), epsilon
        y, mean, variance = _normalise(x, weight, bias, epsilon, F32)
        _save(ctx, x, weight, mean, variance)
        return y

    @staticmethod
    def backward(ctx: Any, g: paddle.Tensor) -> tuple:
        """Return the gradients of x, weight and bias."""
        x, weight, mean, variance = _saved(ctx)
        gradients = _normalise_backward(x, weight, mean, variance, contiguous(g), ctx.epsilon)
        return _select(ctx.trained, *gradients)


class MlpBranch(PyLayer):
    """MLP branch x + scale * (gelu(norm(x) @ weight1 + bias1) @ weight2 + bias2), x [N, L, D]."""

    @staticmethod
    def forward(
        ctx: Any,
        x: paddle.Tensor,
        norm_weight: paddle.Tensor,
        norm_bias: paddle.Tensor,
        weight1: paddle.Tensor,
        bias1: paddle.Tensor,
        weight2: paddle.Tensor,
        bias2: paddle.Tensor,
        settings: BranchSettings,
    ) -> paddle.Tensor:
        """Return the result in float32."""
        ctx.trained = _trained(x, norm_weight, norm_bias, weight1, bias1, weight2, bias2)
        ctx.settings, products = settings, settings.products
        h, mean, variance = _normalise(x, norm_weight, norm_bias, settings.epsilon, products)
        weight1, weight2 = _cast(weight1, products), _cast(weight2, products)
        hidden = _linear(h, weight1, bias1, products)
        _save(ctx, x, norm_weight, mean, variance, h, hidden, weight1, weight2)
        return _residual(x, _gelu(hidden), weight2, bias2, settings.scale)

    @staticmethod
    def backward(ctx: Any, g: paddle.Tensor) -> tuple:
        """Return the gradients of the tensors in `forward`."""
        x, norm_weight, mean, variance, h, hidden, weight1, weight2 = _saved(ctx)
        products, g = _dtype(h), contiguous(g)
        g_branch = _cast(_scaled(g, ctx.settings.scale), products)
        # GELU is computed a second time, because that costs less than the memory of its result.
        g_weight2, g_bias2 = _parameter_gradients(_gelu(hidden), g_branch)
        g_hidden = _gelu_backward(hidden, _product_with_transposed(g_branch, weight2, products))
        g_weight1, g_bias1 = _parameter_gradients(h, g_hidden)
        g_h = _product_with_transposed(g_hidden, weight1, products)
        g_x, g_norm_weight, g_norm_bias = _normalise_backward(
            x, norm_weight, mean, variance, g_h, ctx.settings.epsilon
        )
        return _select(
            ctx.trained, _add_to(g_x, g), g_norm_weight, g_norm_bias, g_weight1, g_bias1, g_weight2, g_bias2
        )


class AttentionBranch(PyLayer):
    """Attention branch x + scale * (attention(norm(x) @ qkv_weight + qkv_bias) @ proj_weight + proj_bias)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: paddle.Tensor,
        norm_weight: paddle.Tensor,
        norm_bias: paddle.Tensor,
        qkv_weight: paddle.Tensor,
        qkv_bias: paddle.Tensor,
        proj_weight: paddle.Tensor,
        proj_bias: paddle.Tensor,
        settings: BranchSettings,
    ) -> paddle.Tensor:
        """Return the result, of the shape of x [N, L, D], in float32."""
        ctx.trained = _trained(x, norm_weight, norm_bias, qkv_weight, qkv_bias, proj_weight, proj_bias)
        ctx.settings, products = settings, settings.products
        h, mean, variance = _normalise(x, norm_weight, norm_bias, settings.epsilon, products)
        qkv_weight, proj_weight = _cast(qkv_weight, products), _cast(proj_weight, products)
        qkv = _linear(h, qkv_weight, qkv_bias, products)
        mixed, weights = _attend(qkv, settings.heads, settings.scores_scale)
        _save(ctx, x, norm_weight, mean, variance, h, qkv, weights, mixed, qkv_weight, proj_weight)
        return _residual(x, mixed, proj_weight, proj_bias, settings.scale)

    @staticmethod
    def backward(ctx: Any, g: paddle.Tensor) -> tuple:
        """Return the gradients of the tensors in `forward`."""
        x, norm_weight, mean, variance, h, qkv, weights, mixed, qkv_weight, proj_weight = _saved(ctx)
        products, g = _dtype(h), contiguous(g)
        g_branch = _cast(_scaled(g, ctx.settings.scale), products)
        g_proj_weight, g_proj_bias = _parameter_gradients(mixed, g_branch)
        g_mixed = _product_with_transposed(g_branch, proj_weight, products)
        g_qkv = _attend_backward(qkv, weights, g_mixed, ctx.settings.heads, ctx.settings.scores_scale)
        g_qkv_weight, g_qkv_bias = _parameter_gradients(h, g_qkv)
        g_h = _product_with_transposed(g_qkv, qkv_weight, products)
        g_x, g_norm_weight, g_norm_bias = _normalise_backward(
            x, norm_weight, mean, variance, g_h, ctx.settings.epsilon
        )
        return _select(
            ctx.trained,
            _add_to(g_x, g),
            g_norm_weight,
            g_norm_bias,
            g_qkv_weight,
            g_qkv_bias,
            g_proj_weight,
            g_proj_bias,
        )


class PackedWeight:
    """Copy of a trained weight [K, n], rounded to the type of its products, in the layout that they prefer.

    It takes the place of the weight in the operations above. Later changes of the weight do not reach it.
    """

    stop_gradient = True
    ROWS = 256  # any number, because it does not change the layout

    def __init__(self, weight: paddle.Tensor, products: int):
        self.weight = weight  # kept, so that no other object gets its id
        rows, self.shape = self.ROWS, weight.shape
        k, n = self.shape
        self.layout = onednn.Packed(
            dense((rows, k), products), dense((k, n), products), dense((rows, n), products), dense((1, n))
        )
        self.values = paddle.empty([self.layout.bytes], dtype="uint8")
        _run(onednn.reorder(_matrix(weight), self.layout), weight, self.values)

    def data_ptr(self) -> int:
        """Return the address of the values."""
        return self.values.data_ptr()


def _save(ctx: Any, x: paddle.Tensor, *others: paddle.Tensor) -> None:
    ctx.save_for_backward(x, *others)
    ctx.version = x.inplace_version


def _saved(ctx: Any) -> tuple:
    """Return the arguments of `_save`. Raises RuntimeError if x was changed in place since."""
    saved = ctx.saved_tensor()
    if saved[0].inplace_version != ctx.version:
        raise RuntimeError(
            "the input of a layer was changed in place between its forward and its backward; "
            "give the layer a copy (x.clone())"
        )
    return saved


def _trained(*tensors: paddle.Tensor) -> list[bool]:
    """Return for each tensor if it gets a gradient."""
    return [not tensor.stop_gradient for tensor in tensors]


def _select(trained: list[bool], *gradients: paddle.Tensor | None) -> tuple:
    """Return the gradients in the form of PyLayer.backward: None for a tensor that is not trained."""
    return tuple(gradient if wanted else None for gradient, wanted in zip(gradients, trained, strict=True))


def _empty(shape: Sequence[int], dtype: int = F32) -> paddle.Tensor:
    return paddle.empty(shape, dtype="bfloat16" if dtype == BF16 else "float32")


def _dtype(x: paddle.Tensor) -> int:
    return BF16 if x.dtype == paddle.bfloat16 else F32


def _matrix(x):
    """Return the Layout of `x` as [M, size of its last axis]."""
    if isinstance(x, PackedWeight):
        return x.layout
    *rows, columns = x.shape
    return dense((math.prod(rows), columns), _dtype(x))  # x.size takes 8 us


def _vector(x: paddle.Tensor) -> onednn.Layout:
    return dense((math.prod(x.shape),), _dtype(x))


def _run(primitive: onednn.Primitive, *tensors: paddle.Tensor | PackedWeight) -> None:
    primitive(*[tensor.data_ptr() for tensor in tensors])


def _cast(x, dtype):
    """Return `x` in the type `dtype`, F32 or BF16; `x` itself if it has it."""
    if isinstance(x, PackedWeight):
        return x
    x = contiguous(x)
    if _dtype(x) == dtype:
        return x
    result = _empty(x.shape, dtype)
    _run(onednn.reorder(_vector(x), _vector(result)), x, result)
    return result


def _linear(x, weight, bias, dtype, add=None):
    """Return x @ weight + bias + add in the type `dtype`; x and weight are of one type."""
    result = _empty([*x.shape[:-1], weight.shape[1]], dtype)
    layouts = _matrix(x), _matrix(weight), _matrix(result), dense((1, weight.shape[1]))
    if add is None:
        _run(onednn.matmul(*layouts), x, weight, result, bias)
    else:
        _run(onednn.matmul(*layouts, None, _matrix(add)), x, weight, result, bias, add)
    return result


def _residual(x, h, weight, bias, scale):
    """Return x + scale * (h @ weight + bias) in float32."""
    if scale is None:
        return _linear(h, weight, bias, F32, add=x)
    return _scaled(_linear(h, weight, bias, F32), scale, add=x)


def _scaled(x, scale, add=None):
    """Return x [N, ...] * scale [N, 1, 1] + add in float32; x if scale is None.

    Paddle's own multiplication is 20 times slower.
    """
    if scale is None:
        return x
    result = _empty(x.shape)
    images = x.shape[0]
    layout, factors = dense((images, math.prod(x.shape[1:]))), dense((images, 1))
    if add is None:
        _run(onednn.multiply(layout, factors, layout), x, scale, result)
    else:
        _run(onednn.multiply(layout, factors, layout, layout), x, scale, result, add)
    return result


def _product_with_transposed(g, weight, dtype):
    """Return the gradient of x in x @ weight, which is g @ weight^T, in the type `dtype`."""
    result = _empty([*g.shape[:-1], weight.shape[0]], dtype)
    _run(onednn.matmul(_matrix(g), _matrix(weight).transposed, _matrix(result)), g, weight, result)
    return result


def _parameter_gradients(x, g):
    """Return the gradients of weight and bias in x @ weight + bias in float32.

    They are x^T @ g [K, n] and the column sums of g [n].
    """
    weight, bias = _empty([x.shape[-1], g.shape[-1]]), _empty([g.shape[-1]])
    _run(onednn.matmul(_matrix(x).transposed, _matrix(g), _matrix(weight)), x, g, weight)
    rows, columns = _matrix(g).dims
    sums = onednn.matmul(dense((1, rows), _dtype(g)), _matrix(g), dense((1, columns)))
    _run(sums, _ones(rows, _dtype(g)), g, bias)
    return weight, bias


@functools.lru_cache(maxsize=16)
def _ones(size, dtype):
    # For column sums as a product with ones, because the reductions of oneDNN and Paddle are many times
    # slower.
    return _cast(paddle.ones([size], dtype="float32"), dtype)


def _add_to(x, other):
    """Add `other` to x in place; return x. Both have one shape."""
    _run(onednn.add(_vector(x), _vector(x), _vector(x)), x, other, x)
    return x


def _gelu(x):
    result = _empty(x.shape, _dtype(x))
    _run(onednn.gelu(_vector(x), _vector(x)), x, result)
    return result


def _gelu_backward(x, g):
    """Return the gradient of x, in the memory of g."""
    _run(onednn.gelu_backward(_vector(x), _vector(x)), x, g, g)
    return g


def _normalise(x, weight, bias, epsilon, dtype):
    """Return the layer normalisation of x in the type `dtype`, and mean and variance [M]."""
    y = _empty(x.shape, dtype)
    mean, variance = (_empty([_matrix(x).dims[0]]) for _ in range(2))
    _run(onednn.layer_norm(_matrix(x), _matrix(y), epsilon), x, y, mean, variance, weight, bias)
    return y, mean, variance


def _normalise_backward(x, weight, mean, variance, g, epsilon):
    """Return the gradients of x, weight and bias."""
    g_x, g_weight, g_bias = (_empty(like.shape) for like in (x, weight, weight))
    _run(
        onednn.layer_norm_backward(_matrix(x), _matrix(g), _matrix(g_x), epsilon),
        x,
        mean,
        variance,
        g,
        weight,
        weight,
        g_x,
        g_weight,
        g_bias,
    )
    return g_x, g_weight, g_bias


class _Heads:
    """Layouts of the heads of a group of images, in place in [N, L, 3 D] (`qkv`) and [N, L, D] (`mixed`)."""

    def __init__(self, images: int, tokens: int, channels: int, heads: int, dtype: int):
        size = channels // heads
        dims = (images, heads, tokens, size)
        self.qkv = onednn.Layout(dims, (tokens * 3 * channels, size, 3 * channels, 1), dtype)
        self.mixed = onednn.Layout(dims, (tokens * channels, size, channels, 1), dtype)
        self.weights = dense((images, heads, tokens, tokens), dtype)
        self.scores = dense((images, heads, tokens, tokens), F32)


def _groups(
    images: int, tokens: int, channels: int, heads: int, dtype: int
) -> Iterator[tuple[_Heads, int, int]]:
    """Yield for each group of images its _Heads, and its offset in bytes in [N, L, D] and in the weights."""
    size = max(1, min(images, SCORES_IN_CACHE // (heads * tokens * tokens * BYTES[F32])))
    for first in range(0, images, size):
        yield (
            _Heads(min(size, images - first), tokens, channels, heads, dtype),
            first * tokens * channels * BYTES[dtype],
            first * heads * tokens * tokens * BYTES[dtype],
        )


def _attend(qkv, heads, scale):
    """Return the mixed values [N, L, D] and weights [N, H, L, L] of qkv [N, L, 3 D], in the type of qkv."""
    (n, tokens, d), dtype = qkv.shape, _dtype(qkv)
    d //= 3
    mixed, weights = _empty([n, tokens, d], dtype), _empty([n, heads, tokens, tokens], dtype)
    scores = None
    for group, at, at_weights in _groups(n, tokens, d, heads, dtype):
        if scores is None:
            scores = _empty(group.scores.dims)
        q, w = qkv.data_ptr() + 3 * at, weights.data_ptr() + at_weights
        k, v = q + d * BYTES[dtype], q + 2 * d * BYTES[dtype]
        onednn.matmul(group.qkv, group.qkv.transposed, group.scores, None, scale)(q, k, scores.data_ptr())
        onednn.softmax(group.scores, group.weights)(scores.data_ptr(), w)
        onednn.matmul(group.weights, group.qkv, group.mixed)(w, v, mixed.data_ptr() + at)
    return mixed, weights


def _attend_backward(qkv, weights, g, heads, scale):
    """Return the gradient of qkv [N, L, 3 D], in its type; g [N, L, D] is that of the mixed values."""
    (n, tokens, d), dtype = qkv.shape, _dtype(qkv)
    d //= 3
    g_qkv, g_weights = _empty(qkv.shape, dtype), None
    for group, at, at_weights in _groups(n, tokens, d, heads, dtype):
        if g_weights is None:
            g_weights = _empty(group.weights.dims, dtype)
        q, g_q = qkv.data_ptr() + 3 * at, g_qkv.data_ptr() + 3 * at
        k, v, g_k, g_v = (base + i * d * BYTES[dtype] for base in (q, g_q) for i in (1, 2))
        w, g_w, g_mixed = weights.data_ptr() + at_weights, g_weights.data_ptr(), g.data_ptr() + at
        onednn.matmul(group.mixed, group.qkv.transposed, group.weights)(g_mixed, v, g_w)
        onednn.matmul(group.weights.transposed, group.mixed, group.qkv)(w, g_mixed, g_v)
        onednn.softmax_backward(group.weights)(w, g_w, g_w)
        onednn.matmul(group.weights, group.qkv, group.qkv, None, scale)(g_w, k, g_q)
        onednn.matmul(group.weights.transposed, group.qkv, group.qkv, None, scale)(g_w, q, g_k)
    return g_qkv
