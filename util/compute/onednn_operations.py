"""The operations of a Transformer on oneDNN, forward and backward; util.compute.operations chooses between these and Paddle's.

Tensors that come in and go out are float32, dense, not empty and on the CPU. `products` is the type of the matrix
products, F32 or BF16. With BF16 their inputs are rounded to bfloat16, and so is what passes from one product to the next
inside an operation; sums, softmax, normalisation, weights and the gradients of weights are float32.

Shape letters: M rows (images times tokens), N images, L tokens, D channels, H heads, C = D // H.
"""
import functools
import math

import paddle
from paddle.autograd import PyLayer

from util.compute import onednn
from util.compute.onednn import BF16, BYTES, F32, dense

# Attention goes through the images in groups whose scores have about this many bytes, so that they stay in the cache
# between the product that makes them and the softmax that reads them: 1.2 to 1.8 times as fast as all at once.
SCORES_IN_CACHE = 4 << 20


def missing():
    """Which operation oneDNN lacks in float32 for this processor, as the end of a sentence; "" if it has all.

    Tried once a process, on the smallest tensors, forward and backward: an operation that is missed in the middle of a
    step could not be replaced any more.
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


def contiguous(x):
    """`x`, or a dense copy of a view: oneDNN is told of none."""
    return x if x.is_contiguous() else x.contiguous()


class Linear(PyLayer):
    """x [..., K] @ weight [K, n] + bias [n] -> [..., n]."""

    @staticmethod
    def forward(ctx, x, weight, bias, products):
        ctx.trained = _trained(x, weight, bias)
        x, weight = _cast(x, products), _cast(weight, products)
        _save(ctx, x, weight)
        return _linear(x, weight, bias, F32)

    @staticmethod
    def backward(ctx, g):
        x, weight = _saved(ctx)
        g = _cast(g, _dtype(x))
        g_x = _product_with_transposed(g, weight, F32) if ctx.trained[0] else None
        return _select(ctx.trained, g_x, *_parameter_gradients(x, g))


class LayerNorm(PyLayer):
    """Normalise x [..., D] over its last axis, * weight [D] + bias [D]."""

    @staticmethod
    def forward(ctx, x, weight, bias, epsilon):
        ctx.trained, ctx.epsilon = _trained(x, weight, bias), epsilon
        y, mean, variance = _normalise(x, weight, bias, epsilon, F32)
        _save(ctx, x, weight, mean, variance)
        return y

    @staticmethod
    def backward(ctx, g):
        x, weight, mean, variance = _saved(ctx)
        return _select(ctx.trained, *_normalise_backward(x, weight, mean, variance, contiguous(g), ctx.epsilon))


class MlpBranch(PyLayer):
    """x + scale * (gelu(norm(x) @ weight1 + bias1) @ weight2 + bias2), x [N, L, D].

    `scale` [N, 1, 1] gets no gradient; None is 1.
    """

    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, scale, epsilon, products):
        ctx.trained = _trained(x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, scale)
        ctx.epsilon, ctx.scale = epsilon, scale
        h, mean, variance = _normalise(x, norm_weight, norm_bias, epsilon, products)
        weight1, weight2 = _cast(weight1, products), _cast(weight2, products)
        hidden = _linear(h, weight1, bias1, products)
        _save(ctx, x, norm_weight, mean, variance, h, hidden, weight1, weight2)
        return _residual(x, _gelu(hidden), weight2, bias2, scale)

    @staticmethod
    def backward(ctx, g):
        x, norm_weight, mean, variance, h, hidden, weight1, weight2 = _saved(ctx)
        products, g = _dtype(h), contiguous(g)
        g_branch = _cast(_scaled(g, ctx.scale), products)
        # GELU is computed a second time: that costs less than the memory of its result.
        g_weight2, g_bias2 = _parameter_gradients(_gelu(hidden), g_branch)
        g_hidden = _gelu_backward(hidden, _product_with_transposed(g_branch, weight2, products))
        g_weight1, g_bias1 = _parameter_gradients(h, g_hidden)
        g_h = _product_with_transposed(g_hidden, weight1, products)
        g_x, g_norm_weight, g_norm_bias = _normalise_backward(x, norm_weight, mean, variance, g_h, ctx.epsilon)
        return _select(ctx.trained, _add_to(g_x, g), g_norm_weight, g_norm_bias, g_weight1, g_bias1, g_weight2,
                       g_bias2, None)


class AttentionBranch(PyLayer):
    """x + scale * (attention(norm(x) @ qkv_weight + qkv_bias) @ proj_weight + proj_bias), x [N, L, D].

    `scale` [N, 1, 1] gets no gradient; None is 1. `scores_scale` multiplies the products of queries and keys.
    """

    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, qkv_weight, qkv_bias, proj_weight, proj_bias, scale, epsilon, heads,
                scores_scale, products):
        ctx.trained = _trained(x, norm_weight, norm_bias, qkv_weight, qkv_bias, proj_weight, proj_bias, scale)
        ctx.epsilon, ctx.scale, ctx.heads, ctx.scores_scale = epsilon, scale, heads, scores_scale
        h, mean, variance = _normalise(x, norm_weight, norm_bias, epsilon, products)
        qkv_weight, proj_weight = _cast(qkv_weight, products), _cast(proj_weight, products)
        qkv = _linear(h, qkv_weight, qkv_bias, products)
        mixed, weights = _attend(qkv, heads, scores_scale)
        _save(ctx, x, norm_weight, mean, variance, h, qkv, weights, mixed, qkv_weight, proj_weight)
        return _residual(x, mixed, proj_weight, proj_bias, scale)

    @staticmethod
    def backward(ctx, g):
        x, norm_weight, mean, variance, h, qkv, weights, mixed, qkv_weight, proj_weight = _saved(ctx)
        products, g = _dtype(h), contiguous(g)
        g_branch = _cast(_scaled(g, ctx.scale), products)
        g_proj_weight, g_proj_bias = _parameter_gradients(mixed, g_branch)
        g_mixed = _product_with_transposed(g_branch, proj_weight, products)
        g_qkv = _attend_backward(qkv, weights, g_mixed, ctx.heads, ctx.scores_scale)
        g_qkv_weight, g_qkv_bias = _parameter_gradients(h, g_qkv)
        g_h = _product_with_transposed(g_qkv, qkv_weight, products)
        g_x, g_norm_weight, g_norm_bias = _normalise_backward(x, norm_weight, mean, variance, g_h, ctx.epsilon)
        return _select(ctx.trained, _add_to(g_x, g), g_norm_weight, g_norm_bias, g_qkv_weight, g_qkv_bias,
                       g_proj_weight, g_proj_bias, None)


class PackedWeight:
    """A weight [K, n] that is not trained any more, rounded to the type of its products and laid out as they like best.

    Takes the place of the weight in the operations above. It is a copy: later changes of the weight do not reach it.
    """

    stop_gradient = True
    ROWS = 256  # any number: it has no part in the layout

    def __init__(self, weight, products):
        self.weight = weight  # nothing else gets its id while this lives
        rows, self.shape = self.ROWS, weight.shape
        k, n = self.shape
        self.layout = onednn.Packed(dense((rows, k), products), dense((k, n), products), dense((rows, n), products),
                                    dense((1, n)))
        self.values = paddle.empty([self.layout.bytes], dtype="uint8")
        _run(onednn.reorder(_matrix(weight), self.layout), weight, self.values)

    def data_ptr(self):
        return self.values.data_ptr()


def _save(ctx, x, *others):
    ctx.save_for_backward(x, *others)
    ctx.version = x.inplace_version


def _saved(ctx):
    """What `_save` was given; RuntimeError if x was changed in place since, which would falsify the gradients."""
    saved = ctx.saved_tensor()
    if saved[0].inplace_version != ctx.version:
        raise RuntimeError("the input of a layer was changed in place between its forward and its backward; give the "
                           "layer a copy (x.clone())")
    return saved


def _trained(*tensors):
    """Which of the tensors among `tensors` want a gradient; None is left out, as PyLayer does."""
    return [not tensor.stop_gradient for tensor in tensors if tensor is not None]


def _select(trained, *gradients):
    """What backward returns: a gradient for each tensor that forward took, None where nobody wants it."""
    return tuple(gradient if wanted else None for gradient, wanted in zip(gradients, trained))


def _empty(shape, dtype=F32):
    return paddle.empty(shape, dtype="bfloat16" if dtype == BF16 else "float32")


def _dtype(x):
    return BF16 if x.dtype == paddle.bfloat16 else F32


def _matrix(x):
    """The Layout of `x` as [M, size of its last axis]."""
    if isinstance(x, PackedWeight):
        return x.layout
    *rows, columns = x.shape
    return dense((math.prod(rows), columns), _dtype(x))  # x.size takes 8 us


def _vector(x):
    return dense((math.prod(x.shape),), _dtype(x))


def _run(primitive, *tensors):
    primitive(*[tensor.data_ptr() for tensor in tensors])


def _cast(x, dtype):
    """`x` in F32 or BF16; itself if it is that."""
    if isinstance(x, PackedWeight):
        return x
    x = contiguous(x)
    if _dtype(x) == dtype:
        return x
    result = _empty(x.shape, dtype)
    _run(onednn.reorder(_vector(x), _vector(result)), x, result)
    return result


def _linear(x, weight, bias, dtype, add=None):
    """x @ weight + bias (+ add, like the result) as a tensor of `dtype`; x and weight are of one type."""
    result = _empty([*x.shape[:-1], weight.shape[1]], dtype)
    layouts = [_matrix(x), _matrix(weight), _matrix(result), dense((1, weight.shape[1]))]
    if add is None:
        _run(onednn.matmul(*layouts), x, weight, result, bias)
    else:
        _run(onednn.matmul(*layouts, None, _matrix(add)), x, weight, result, bias, add)
    return result


def _residual(x, h, weight, bias, scale):
    """x + scale * (h @ weight + bias), float32."""
    if scale is None:
        return _linear(h, weight, bias, F32, add=x)
    return _scaled(_linear(h, weight, bias, F32), scale, add=x)


def _scaled(x, scale, add=None):
    """x [N, ...] * scale [N, 1, 1] + add, float32; x itself where scale is None. Paddle's own is 20 times slower."""
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
    """The gradient of x in x @ weight: g @ weight^T as a tensor of `dtype`."""
    result = _empty([*g.shape[:-1], weight.shape[0]], dtype)
    _run(onednn.matmul(_matrix(g), _matrix(weight).transposed, _matrix(result)), g, weight, result)
    return result


def _parameter_gradients(x, g):
    """The gradients of weight and bias in x @ weight + bias: x^T @ g [K, n] and the column sums of g [n], float32."""
    weight, bias = _empty([x.shape[-1], g.shape[-1]]), _empty([g.shape[-1]])
    _run(onednn.matmul(_matrix(x).transposed, _matrix(g), _matrix(weight)), x, g, weight)
    rows, columns = _matrix(g).dims
    sums = onednn.matmul(dense((1, rows), _dtype(g)), _matrix(g), dense((1, columns)))
    _run(sums, _ones(rows, _dtype(g)), g, bias)
    return weight, bias


@functools.lru_cache(maxsize=16)
def _ones(size, dtype):
    # Column sums as a product with ones: oneDNN's own reduction over rows is many times slower, like Paddle's.
    return _cast(paddle.ones([size], dtype="float32"), dtype)


def _add_to(x, other):
    """x += other, of one shape."""
    _run(onednn.add(_vector(x), _vector(x), _vector(x)), x, other, x)
    return x


def _gelu(x):
    result = _empty(x.shape, _dtype(x))
    _run(onednn.gelu(_vector(x), _vector(x)), x, result)
    return result


def _gelu_backward(x, g):
    """The gradient of x, in the memory of g."""
    _run(onednn.gelu_backward(_vector(x), _vector(x)), x, g, g)
    return g


def _normalise(x, weight, bias, epsilon, dtype):
    """Layer normalisation of x as a tensor of `dtype`; mean and variance [M]."""
    y = _empty(x.shape, dtype)
    mean, variance = (_empty([_matrix(x).dims[0]]) for _ in range(2))
    _run(onednn.layer_norm(_matrix(x), _matrix(y), epsilon), x, y, mean, variance, weight, bias)
    return y, mean, variance


def _normalise_backward(x, weight, mean, variance, g, epsilon):
    """The gradients of x, weight and bias."""
    g_x, g_weight, g_bias = (_empty(like.shape) for like in (x, weight, weight))
    _run(onednn.layer_norm_backward(_matrix(x), _matrix(g), _matrix(g_x), epsilon),
         x, mean, variance, g, weight, weight, g_x, g_weight, g_bias)
    return g_x, g_weight, g_bias


class _Heads:
    """Layouts of a group of images: heads are read and written where they lie in [N, L, 3 D] and [N, L, D]."""

    def __init__(self, images, tokens, channels, heads, dtype):
        size = channels // heads
        self.qkv = onednn.Layout((images, heads, tokens, size), (tokens * 3 * channels, size, 3 * channels, 1), dtype)
        self.mixed = onednn.Layout((images, heads, tokens, size), (tokens * channels, size, channels, 1), dtype)
        self.weights = dense((images, heads, tokens, tokens), dtype)
        self.scores = dense((images, heads, tokens, tokens), F32)


def _groups(n, l, d, heads, dtype):
    """Yield for each group of images: its _Heads, its number, and its offset in elements for [N, L, D] / for weights."""
    size = max(1, min(n, SCORES_IN_CACHE // (heads * l * l * BYTES[F32])))
    for first in range(0, n, size):
        yield _Heads(min(size, n - first), l, d, heads, dtype), first * l * d * BYTES[dtype], \
            first * heads * l * l * BYTES[dtype]


def _attend(qkv, heads, scale):
    """qkv [N, L, 3 D] -> the mixed values [N, L, D], the weights [N, H, L, L], both of the type of qkv."""
    (n, l, d), dtype = qkv.shape, _dtype(qkv)
    d //= 3
    mixed, weights = _empty([n, l, d], dtype), _empty([n, heads, l, l], dtype)
    scores = None
    for group, at, at_weights in _groups(n, l, d, heads, dtype):
        if scores is None:
            scores = _empty(group.scores.dims)
        q, w = qkv.data_ptr() + 3 * at, weights.data_ptr() + at_weights
        k, v = q + d * BYTES[dtype], q + 2 * d * BYTES[dtype]
        onednn.matmul(group.qkv, group.qkv.transposed, group.scores, None, scale)(q, k, scores.data_ptr())
        onednn.softmax(group.scores, group.weights)(scores.data_ptr(), w)
        onednn.matmul(group.weights, group.qkv, group.mixed)(w, v, mixed.data_ptr() + at)
    return mixed, weights


def _attend_backward(qkv, weights, g, heads, scale):
    """The gradient of qkv [N, L, 3 D], of its type; g [N, L, D] is that of the mixed values."""
    (n, l, d), dtype = qkv.shape, _dtype(qkv)
    d //= 3
    g_qkv, g_weights = _empty(qkv.shape, dtype), None
    for group, at, at_weights in _groups(n, l, d, heads, dtype):
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
