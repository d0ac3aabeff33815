"""The Vision Transformer classifier of finetuning and linear probe (arXiv 2010.11929; MAE, appendix A.1).

Shape letters: N images, L patches, D channels.
Parameter names are those of the official implementation and of timm.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import paddle
from paddle import Tensor, nn

from layer import ENCODERS, Block, LayerNorm, Linear, PatchEmbed


class VisionTransformer(nn.Layer):
    """Classify images.

    Args:
        img_size: side in pixels, or (height, width).
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 at the first.
        global_pool: classify the mean of the patch tokens, normalized by `fc_norm` (the paper's finetuning).
            Without it, classify the class token, normalized by `norm` (its linear probe). Only one of the two
            layers exists.
        sdpa, recompute: as for `layer.Block`.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        global_pool: bool = False,
        sdpa: str | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.global_pool, self.num_classes = global_pool, num_classes
        normal = nn.initializer.Normal(std=0.02)
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.cls_token = self.create_parameter([1, 1, embed_dim], default_initializer=normal)
        self.pos_embed = self.create_parameter(
            [1, 1 + self.patch_embed.num_patches, embed_dim], default_initializer=normal
        )
        rates = np.linspace(0, drop_path_rate, depth).tolist()
        self.blocks = nn.LayerList(
            [Block(embed_dim, num_heads, mlp_ratio, rate, sdpa, recompute) for rate in rates]
        )
        if global_pool:
            self.fc_norm = LayerNorm(embed_dim)
        else:
            self.norm = LayerNorm(embed_dim)
        self.head = Linear(embed_dim, num_classes)
        self.apply(_normal_linear)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that finetuning does not decay although they are not 1-D."""
        return {"pos_embed", "cls_token"}

    def make_linear_probe(self) -> None:
        """Freeze the encoder and put a BatchNorm without scale and shift before the head (appendix A.1)."""
        for p in self.parameters():
            p.stop_gradient = True
        for p in self.head.parameters():
            p.stop_gradient = False
        norm = nn.BatchNorm1D(self.head.weight.shape[0], epsilon=1e-6, weight_attr=False, bias_attr=False)
        self.head = nn.Sequential(norm, self.head)  # type: ignore[assignment]  # keys head.0, head.1 as in the official code

    def embed(self, x: Tensor) -> Tensor:
        """Embed images [N, C, height, width] -> input of the blocks [N, 1 + L, D], class token first."""
        x = self.patch_embed(x)
        cls_token = self.cls_token.expand([x.shape[0], -1, -1]).astype(x.dtype)
        return paddle.concat([cls_token, x], axis=1) + self.pos_embed

    def forward_tokens(self, x: Tensor) -> Tensor:
        """Encode images [N, C, height, width] -> output of the blocks [N, 1 + L, D], class token first."""
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Encode images [N, C, height, width] as the input of the head, [N, D]."""
        x = self.forward_tokens(x)
        if self.global_pool:
            return self.fc_norm(x[:, 1:].mean(axis=1))
        return self.norm(x)[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        """Classify images, [N, C, height, width] -> logits [N, num_classes]."""
        return self.head(self.forward_features(x))


def _normal_linear(layer: nn.Layer) -> None:
    # timm's truncated normal cuts at an absolute +-2, a hundred standard deviations: a plain normal.
    if isinstance(layer, nn.Linear):
        nn.initializer.Normal(std=0.02)(layer.weight)


vit_tiny_patch4 = partial(VisionTransformer, **ENCODERS["tiny_patch4"], img_size=32)
vit_small_patch16 = partial(VisionTransformer, **ENCODERS["small_patch16"])
vit_base_patch16 = partial(VisionTransformer, **ENCODERS["base_patch16"])
vit_large_patch16 = partial(VisionTransformer, **ENCODERS["large_patch16"])
vit_huge_patch14 = partial(VisionTransformer, **ENCODERS["huge_patch14"])

MODELS = {name: model for name, model in globals().items() if name.startswith("vit_")}
