"""The Transformer pieces that the autoencoder and the classifier share.

Shape letters: N images, L tokens, D channels, H heads, C = D // H channels per head, p patch side.
Parameter names are the official ones (`attn.qkv`, `mlp.fc1`, ...), so that published weights map one to one.
"""
import math

import paddle
import paddle.nn.functional as F
from paddle import nn

from util.compute import operations


@operations.fused
class Linear(nn.Linear):
    """[..., in_features] -> [..., out_features]."""

    def forward(self, x):
        return operations.linear(x, self.weight, self.bias)


@operations.fused
class LayerNorm(nn.LayerNorm):
    """Over the last axis, with the epsilon of every published ViT and MAE; Paddle's default is 1e-5."""

    epsilon = 1e-6

    def __init__(self, dim):
        super().__init__(dim, epsilon=self.epsilon)

    def forward(self, x):
        return operations.layer_norm(x, self.weight, self.bias, self.epsilon)


class PatchEmbed(nn.Layer):
    """Cut an image into square patches and project each: [N, in_chans, height, width] -> [N, L, D].

    The projection is a convolution whose stride is its size, and is computed as what that is, a linear map of patches.

    Args:
        img_size: pixels a side, or (height, width); each a multiple of `patch_size`.
    """

    def __init__(self, img_size=224, patch_size=16, in_chans=3, embed_dim=768):
        super().__init__()
        self.img_size = pair(img_size)
        self.patch_size = pair(patch_size)
        if self.patch_size[0] != self.patch_size[1]:
            raise ValueError(f"--patch_size: patches are square, got {patch_size}")
        if any(side % p for side, p in zip(self.img_size, self.patch_size)):
            raise ValueError(f"--input_size {self.img_size[0]} {self.img_size[1]}: each side must be a multiple of "
                             f"--patch_size {self.patch_size[0]}")
        self.in_chans = in_chans
        self.grid_size = tuple(side // p for side, p in zip(self.img_size, self.patch_size))
        self.num_patches = self.grid_size[0] * self.grid_size[1]
        # PyTorch's default for a convolution, weight and bias: the official models keep it for the bias, and the
        # classifier for the weight too. Paddle's own default is wider, and zero for the bias.
        bound = 1 / math.sqrt(in_chans * self.patch_size[0] ** 2)
        self.proj = nn.Conv2D(in_chans, embed_dim, self.patch_size, stride=self.patch_size,
                              weight_attr=nn.initializer.Uniform(-bound, bound),
                              bias_attr=nn.initializer.Uniform(-bound, bound))

    def forward(self, x, ids=None):
        """
        Args:
            ids: [N, K], which patches are wanted; None: all L.
        """
        if list(x.shape[1:]) != [self.in_chans, *self.img_size]:
            raise ValueError(f"the model was built for images of [channels, height, width] = "
                             f"{[self.in_chans, *self.img_size]} (--in_chans, --input_size), got {list(x.shape[1:])}")
        n, (h, w), p = x.shape[0], self.grid_size, self.patch_size[0]
        patches = x.reshape([n, self.in_chans, h, p, w, p]).transpose([0, 2, 4, 1, 3, 5]).reshape([n, h * w, -1])
        if ids is not None:
            patches = take_tokens(patches, ids)
        return operations.linear(patches, self.proj.weight.flatten(1).t(), self.proj.bias)


@operations.fused
class Attention(nn.Layer):
    """Multi-head self-attention, [N, L, D] -> [N, L, D].

    Args:
        sdpa: the type in which Paddle's fused attention computes, "float32", "float16" or "bfloat16"; on a GPU it is
            flash attention, which has the latter two. None: attention is written out here.
    """

    def __init__(self, dim, num_heads, sdpa=None):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{dim} channels cannot be shared by {num_heads} attention heads: not a multiple")
        self.num_heads, self.sdpa = num_heads, sdpa
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = Linear(dim, 3 * dim)
        self.proj = Linear(dim, dim)

    def forward(self, x):
        n, l, d = x.shape
        qkv = self.qkv(x).reshape([n, l, 3, self.num_heads, d // self.num_heads])
        if self.sdpa:
            # Autocast in Paddle 2.6 does not know this operation, and a float32 bias has made qkv float32.
            q, k, v = qkv.astype(self.sdpa).unbind(2)  # each [N, L, H, C]
            return self.proj(F.scaled_dot_product_attention(q, k, v).reshape([n, l, d]))
        q, k, v = qkv.transpose([2, 0, 3, 1, 4]).unbind(0)  # each [N, H, L, C]
        return self.proj(paddle.matmul(self._softmax(q, k), v).transpose([0, 2, 1, 3]).reshape([n, l, d]))

    def weights(self, x):
        """How much each token takes of each: [N, L, D] -> [N, H, L, L], whose rows sum to 1. Only for looking at."""
        n, l, d = x.shape
        q, k, _ = self.qkv(x).reshape([n, l, 3, self.num_heads, d // self.num_heads]).transpose(
            [2, 0, 3, 1, 4]).unbind(0)
        return self._softmax(q, k)

    def _softmax(self, q, k):
        return F.softmax(paddle.matmul(q * self.scale, k, transpose_y=True))


@operations.fused
class Mlp(nn.Layer):
    """Two linear maps with a GELU (the exact one, by erf) between them, [N, L, D] -> [N, L, D]."""

    def __init__(self, dim, hidden_dim):
        super().__init__()
        self.fc1 = Linear(dim, hidden_dim)
        self.fc2 = Linear(hidden_dim, dim)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class DropPath(nn.Layer):
    """Stochastic depth: leave a residual branch out for a random part of the images."""

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        """What the branch of each image of x [N, L, D] is to be multiplied by, [N, 1, 1]; None where that is 1.

        0 for the images that are left out, and what keeps the mean for the others.
        """
        if self.drop_prob == 0.0 or not self.training:
            return None
        keep = 1.0 - self.drop_prob
        return (paddle.rand([x.shape[0], 1, 1]) < keep).astype("float32") / keep


class Block(nn.Layer):
    """Pre-norm Transformer block, [N, L, D] -> [N, L, D]: x += attn(norm1(x)), then x += mlp(norm2(x)).

    Args:
        sdpa: as for `Attention`.
        recompute: in training, keep no more than x for the backward and compute the block a second time there.
    """

    def __init__(self, dim, num_heads, mlp_ratio=4.0, drop_path=0.0, sdpa=None, recompute=False):
        super().__init__()
        self.recompute = recompute
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, num_heads, sdpa)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x, ids=None):
        """
        Args:
            ids: [N, K], the tokens that anybody wants of the result, which is then [N, K, D]; None: all L. The others
                end with the attention, which is the last that they have a part in.
        """
        if self.recompute and self.training and not x.stop_gradient:
            return operations.recompute(self._branches, x, ids)
        return self._branches(x, ids)

    def _branches(self, x, ids):
        x = operations.attention_branch(x, self.norm1, self.attn, self.drop_path(x))
        if ids is not None:
            x = take_tokens(x, ids)
        return operations.mlp_branch(x, self.norm2, self.mlp, self.drop_path(x))


def take_tokens(x, ids):
    """x [N, L, D], ids [N, K] -> [N, K, D]."""
    n, l, d = x.shape
    # Rows of a matrix: Paddle's take_along_axis copies value by value, here 10 to 20 times as slow on a CPU.
    rows = ids + paddle.arange(n, dtype=ids.dtype).unsqueeze(1) * l
    return paddle.index_select(x.reshape([n * l, d]), rows.flatten()).reshape([n, ids.shape[1], d])


def pair(size):
    """224 -> (224, 224); [224] -> (224, 224); (224, 160) -> (224, 160)."""
    sides = (size,) if isinstance(size, int) else tuple(size)
    if len(sides) not in (1, 2) or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError("--input_size and --patch_size take whole numbers above 0, one or (height and width) two, "
                         f"got {size}")
    return sides * 2 if len(sides) == 1 else sides


# The encoders of the paper (its appendix, and arXiv 2010.11929 Table 1 for the widths), and smaller ones for small
# machines. "small" has the width and depth that the MAE-Small of the community has; "tiny" is for 32-pixel images.
ENCODERS = {
    "tiny_patch4": dict(patch_size=4, embed_dim=96, depth=6, num_heads=3),
    "small_patch16": dict(patch_size=16, embed_dim=384, depth=12, num_heads=6),
    "base_patch16": dict(patch_size=16, embed_dim=768, depth=12, num_heads=12),
    "large_patch16": dict(patch_size=16, embed_dim=1024, depth=24, num_heads=16),
    "huge_patch14": dict(patch_size=14, embed_dim=1280, depth=32, num_heads=16),
}
