"""A Vision Transformer's forward pass in float64 numpy, one image at a time, written from the papers with plain loops.

The models are compared with it. `w` is {parameter name: array}, Linear weights [in, out].
"""

import math

import numpy as np


def weights_of(model):
    return {name: value.numpy().astype("float64") for name, value in model.state_dict().items()}


def linear(x, w, name):
    return x @ w[f"{name}.weight"] + w[f"{name}.bias"]


def layer_norm(x, w, name):
    """Over the last axis, with the epsilon of the published models, 1e-6."""
    centred = x - x.mean(axis=-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return centred / spread * w[f"{name}.weight"] + w[f"{name}.bias"]


def gelu(x):
    """x times the normal distribution function of x (arXiv 1606.08415, equation 1)."""
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def attention_weights(x, w, name, heads):
    """x [L, D] -> [H, L, L]; queries and keys are the first two thirds of the qkv channels, each head owns a run."""
    dim = x.shape[1]
    size = dim // heads
    qkv, found = linear(x, w, f"{name}.qkv"), []
    for head in range(heads):
        q, k = (qkv[:, start + head * size : start + (head + 1) * size] for start in (0, dim))
        scores = np.exp(q @ k.T / math.sqrt(size))
        found.append(scores / scores.sum(axis=1, keepdims=True))
    return np.stack(found)


def attention(x, w, name, heads):
    """x [L, D]; the values are the last third of the qkv channels."""
    values = np.split(linear(x, w, f"{name}.qkv")[:, 2 * x.shape[1] :], heads, axis=1)
    joined = [weights @ v for weights, v in zip(attention_weights(x, w, name, heads), values, strict=True)]
    return linear(np.concatenate(joined, axis=1), w, f"{name}.proj")


def block(x, w, name, heads):
    x = x + attention(layer_norm(x, w, f"{name}.norm1"), w, f"{name}.attn", heads)
    hidden = gelu(linear(layer_norm(x, w, f"{name}.norm2"), w, f"{name}.mlp.fc1"))
    return x + linear(hidden, w, f"{name}.mlp.fc2")


def patches_of(image, p):
    """image [C, height, width] -> [L, C, p, p], patches row by row."""
    _, height, width = image.shape
    return np.stack(
        [
            image[:, top : top + p, left : left + p]
            for top in range(0, height, p)
            for left in range(0, width, p)
        ]
    )


def embed_patches(image, w, p):
    """image [C, height, width] -> [L, D]."""
    kernel, bias = w["patch_embed.proj.weight"], w["patch_embed.proj.bias"]  # [D, C, p, p], [D]
    return np.array([[(patch * one).sum() for one in kernel] for patch in patches_of(image, p)]) + bias


def sincos(dim, height, width):
    """[1 + height * width, dim]: a zero row, then a quarter each of sin x, cos x, sin y, cos y; x is the column."""
    quarter, rows = dim // 4, [np.zeros(dim)]
    for y in range(height):
        for x in range(width):
            rows.append(
                [
                    function(place / 10000 ** (i / quarter))
                    for place in (x, y)
                    for function in (math.sin, math.cos)
                    for i in range(quarter)
                ]
            )
    return np.array(rows)
