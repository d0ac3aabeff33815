"""The Transformer pieces that the autoencoder and the classifier share.

Shape letters: N images, L tokens, D channels, H heads, C = D // H channels per head, p patch side.
Parameter names are the official ones (`attn.qkv`, `mlp.fc1`, ...), so that published weights map one to one.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from util.compute import operations


@operations.fusable
class Linear(nn.Linear):
    """Linear map, [..., in_features] -> [..., out_features]."""

    def forward(self, x: Tensor) -> Tensor:
        return operations.linear(x, self.weight, self.bias)


@operations.fusable
class LayerNorm(nn.LayerNorm):
    """Layer normalization of the last axis. Published ViTs and MAEs have this epsilon; Paddle's is 1e-5."""

    epsilon = 1e-6
    weight: Tensor
    bias: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim, epsilon=self.epsilon)

    def forward(self, x: Tensor) -> Tensor:
        return operations.layer_norm(x, self.weight, self.bias, self.epsilon)


class PatchEmbed(nn.Layer):
    """Cut an image into square patches and project each: [N, in_chans, height, width] -> [N, L, D].

    The parameters are those of a convolution with stride p. It is computed as a linear map of patches.

    Args:
        img_size: side in pixels, or (height, width); each a multiple of `patch_size`.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        patch_size: int | Sequence[int] = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
    ) -> None:
        super().__init__()
        self.img_size = pair(img_size)
        self.patch_size = pair(patch_size)
        if self.patch_size[0] != self.patch_size[1]:
            raise ValueError(f"--patch_size: patches are square, got {patch_size}")
        if any(side % p for side, p in zip(self.img_size, self.patch_size, strict=True)):
            raise ValueError(
                f"--input_size {self.img_size[0]} {self.img_size[1]}: each side must be a "
                f"multiple of --patch_size {self.patch_size[0]}"
            )
        self.in_chans = in_chans
        self.grid_size = (self.img_size[0] // self.patch_size[0], self.img_size[1] // self.patch_size[1])
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        # PyTorch's default for a convolution. The official models keep it for the bias, and the classifier
        # for the weight too. Paddle's own default is wider, and zero for the bias.
        bound = 1 / math.sqrt(in_chans * self.patch_size[0] ** 2)
        self.proj = nn.Conv2D(
            in_chans,
            embed_dim,
            self.patch_size,
            stride=self.patch_size,
            weight_attr=nn.initializer.Uniform(-bound, bound),
            bias_attr=nn.initializer.Uniform(-bound, bound),
        )

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        """Embed all L patches, or only those whose indices are in `ids` [N, K]: [N, K, D]."""
        if list(x.shape[1:]) != [self.in_chans, *self.img_size]:
            raise ValueError(
                f"the model was built for images of [channels, height, width] = "
                f"{[self.in_chans, *self.img_size]} (--in_chans, --input_size), "
                f"got {list(x.shape[1:])}"
            )
        n, (h, w), p = x.shape[0], self.grid_size, self.patch_size[0]
        patches = x.reshape([n, self.in_chans, h, p, w, p]).transpose([0, 2, 4, 1, 3, 5])
        patches = patches.reshape([n, h * w, -1])
        if ids is not None:
            patches = take_tokens(patches, ids)
        return operations.linear(patches, self.proj.weight.flatten(1).t(), self.proj.bias)


@operations.fusable
class Attention(nn.Layer):
    """Multi-head self-attention, [N, L, D] -> [N, L, D].

    Args:
        sdpa: data type of Paddle's fused attention: "float32", "float16" or "bfloat16". On a GPU it is flash
            attention, which has the latter two only. None computes attention step by step.
    """

    def __init__(self, dim: int, num_heads: int, sdpa: str | None = None) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"{dim} channels cannot be divided among {num_heads} attention heads: not a multiple"
            )
        self.num_heads, self.sdpa = num_heads, sdpa
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        n, l, d = x.shape
        qkv = self.qkv(x).reshape([n, l, 3, self.num_heads, d // self.num_heads])
        if self.sdpa:
            # Autocast in Paddle 2.6 does not know this operation, and a float32 bias has made qkv float32.
            q, k, v = qkv.astype(self.sdpa).unbind(2)  # each [N, L, H, C]
            return self.proj(F.scaled_dot_product_attention(q, k, v).reshape([n, l, d]))
        q, k, v = qkv.transpose([2, 0, 3, 1, 4]).unbind(0)  # each [N, H, L, C]
        return self.proj(paddle.matmul(self._softmax(q, k), v).transpose([0, 2, 1, 3]).reshape([n, l, d]))

    def weights(self, x: Tensor) -> Tensor:
        """Attention weights, [N, L, D] -> [N, H, L, L]; rows are queries and sum to 1. For visualization."""
        n, l, d = x.shape
        q, k, _ = (
            self.qkv(x)
            .reshape([n, l, 3, self.num_heads, d // self.num_heads])
            .transpose([2, 0, 3, 1, 4])
            .unbind(0)
        )
        return self._softmax(q, k)

    def _softmax(self, q: Tensor, k: Tensor) -> Tensor:
        return F.softmax(paddle.matmul(q * self.scale, k, transpose_y=True))


@operations.fusable
class Mlp(nn.Layer):
    """Two linear maps with an exact GELU (by erf) between them, [N, L, D] -> [N, L, D]."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class DropPath(nn.Layer):
    """Stochastic depth (arXiv 1603.09382): drop a residual branch [N, L, D] for a random set of images.

    The kept branches are divided by the probability of being kept, so that their mean does not change.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale(x.shape[0])
        return x if scale is None else x * scale.astype(x.dtype)

    def scale(self, n: int) -> Tensor | None:
        """Draw the factor of each of n images, [N, 1, 1]: 0 or 1 / keep. Returns None if none is dropped."""
        if self.drop_prob == 0.0 or not self.training:
            return None
        keep = 1.0 - self.drop_prob
        return (paddle.rand([n, 1, 1]) < keep).astype("float32") / keep


class Block(nn.Layer):
    """Pre-norm Transformer block, [N, L, D] -> [N, L, D].

    Args:
        sdpa: as for `Attention`.
        recompute: in training, keep only x for the backward pass and compute the block a second time there.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        sdpa: str | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, num_heads, sdpa)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        """Compute the block; with `ids` [N, K] return those tokens alone, [N, K, D].

        The other tokens only take part in the attention, as keys and values.
        """
        if self.recompute and self.training and not x.stop_gradient:
            return operations.recompute(self._forward, x, ids)
        return self._forward(x, ids)

    def _forward(self, x: Tensor, ids: Tensor | None) -> Tensor:
        # A fused call computes the line below it: test_operations.py compares their values and gradients.
        if operations.can_fuse(x, self.norm1, self.attn):
            x = operations.attention_branch(x, self.norm1, self.attn, self.drop_path.scale(x.shape[0]))
        else:
            x = x + self.drop_path(self.attn(self.norm1(x)))
        if ids is not None:
            x = take_tokens(x, ids)
        if operations.can_fuse(x, self.norm2, self.mlp):
            return operations.mlp_branch(x, self.norm2, self.mlp, self.drop_path.scale(x.shape[0]))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def take_tokens(x: Tensor, ids: Tensor) -> Tensor:
    """Select tokens by index: x [N, L, D], ids [N, K] -> [N, K, D]."""
    n, l, d = x.shape
    # Rows of a matrix: Paddle's take_along_axis copies value by value, here 10 to 20 times as slow on a CPU.
    rows = ids + paddle.arange(n, dtype=ids.dtype).unsqueeze(1) * l
    return paddle.index_select(x.reshape([n * l, d]), rows.flatten()).reshape([n, ids.shape[1], d])


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """224 -> (224, 224); [224] -> (224, 224); (224, 160) -> (224, 160)."""
    sides = (size,) if isinstance(size, int) else tuple(size)
    if len(sides) not in (1, 2) or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"--input_size and --patch_size take one or two whole numbers above 0, got {size}")
    return sides[0], sides[-1]


def sincos_2d(dim: int, grid_size: Sequence[int], *, cls_token: bool = False) -> np.ndarray:
    """2-D sine-cosine position embedding, float32 [height * width, dim].

    With `cls_token` a zero row comes first. The first half of the channels encodes the column and the second
    half the row, as in the official code.

    Args:
        grid_size: (height, width) in patches.
    """
    if dim % 4:
        raise ValueError(f"a 2-D sine-cosine embedding needs a multiple of 4 channels, got {dim}")
    height, width = grid_size
    row, column = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    table = np.concatenate([sincos_1d(dim // 2, place.reshape(-1)) for place in (column, row)], axis=1)
    if cls_token:
        table = np.concatenate([np.zeros([1, dim]), table], axis=0)
    return table.astype("float32")


def sincos_1d(dim: int, positions: np.ndarray) -> np.ndarray:
    """1-D sine-cosine embedding, positions [M] -> float64 [M, dim], sines in the first half."""
    omega = 1.0 / 10000 ** (np.arange(dim // 2, dtype="float64") / (dim / 2))
    angles = np.outer(positions, omega)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


# The encoders of the paper (its appendix; widths: arXiv 2010.11929 Table 1), and two for small machines:
# "small" has the width and depth of the community's MAE-Small, "tiny" is for 32-pixel images.
ENCODERS: dict[str, dict[str, Any]] = {
    "tiny_patch4": dict(patch_size=4, embed_dim=96, depth=6, num_heads=3),
    "small_patch16": dict(patch_size=16, embed_dim=384, depth=12, num_heads=6),
    "base_patch16": dict(patch_size=16, embed_dim=768, depth=12, num_heads=12),
    "large_patch16": dict(patch_size=16, embed_dim=1024, depth=24, num_heads=16),
    "huge_patch14": dict(patch_size=14, embed_dim=1280, depth=32, num_heads=16),
}
