"""The masked autoencoder of He et al. 2021, https://arxiv.org/abs/2111.06377, section 3 and appendix A.1.

Shape letters: N images, C image channels, p patch side, L patches (h x w of them), K kept patches,
D encoder channels, E decoder channels, P = p * p * C values of a patch
(with pca_target: the number of predicted coefficients).
Parameter names are those of the official implementation.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from layer import ENCODERS, Block, LayerNorm, Linear, PatchEmbed, sincos_2d, take_tokens


class MaskedAutoencoderViT(nn.Layer):
    """Encode the visible patches, then predict the pixels of the hidden ones.

    Args:
        img_size: side in pixels, or (height, width).
        norm_pix_loss: normalize each target patch by its own mean and standard deviation (section 4.1).
        encoder_mask_tokens: give the encoder a mask token in place of each hidden patch (Table 1 (c)). The
            parameter `encoder_mask_token` then replaces `mask_token`.
        pca_target: number of principal components of a patch that are predicted (Table 1 (d)); 0 predicts
            pixels. util.data.pca_target fits `pca_mean` and `pca_components`.
        sdpa, recompute: as for `layer.Block`.
    """

    def __init__(
        self,
        img_size: int | Sequence[int] = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 1024,
        depth: int = 24,
        num_heads: int = 16,
        decoder_embed_dim: int = 512,
        decoder_depth: int = 8,
        decoder_num_heads: int = 16,
        mlp_ratio: float = 4.0,
        norm_pix_loss: bool = False,
        encoder_mask_tokens: bool = False,
        pca_target: int = 0,
        sdpa: str | None = None,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        self.norm_pix_loss, self.pca_target = norm_pix_loss, pca_target
        block = partial(Block, mlp_ratio=mlp_ratio, sdpa=sdpa, recompute=recompute)

        # Encoder: visible patches, and with encoder_mask_tokens a mask token in place of each hidden one.
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.cls_token = self._token(embed_dim)
        self.encoder_mask_token = self._token(embed_dim) if encoder_mask_tokens else None
        self.pos_embed = self._fixed_positions(embed_dim)
        self.blocks = nn.LayerList([block(embed_dim, num_heads) for _ in range(depth)])
        self.norm = LayerNorm(embed_dim)

        # Decoder: encoded patches, and a mask token in place of each one that the encoder has not seen.
        self.decoder_embed = Linear(embed_dim, decoder_embed_dim)
        self.mask_token = None if encoder_mask_tokens else self._token(decoder_embed_dim)
        self.decoder_pos_embed = self._fixed_positions(decoder_embed_dim)
        self.decoder_blocks = nn.LayerList(
            [block(decoder_embed_dim, decoder_num_heads) for _ in range(decoder_depth)]
        )
        self.decoder_norm = LayerNorm(decoder_embed_dim)
        values = in_chans * self.patch_embed.patch_size[0] ** 2
        if not 0 <= pca_target <= values or (pca_target and norm_pix_loss):
            raise ValueError(
                f"--pca_target {pca_target}: expected 1 to {values} (values of a patch) or 0 "
                "(pixels), and not together with --norm_pix_loss; leave one of the two out"
            )
        self.decoder_pred = Linear(decoder_embed_dim, pca_target or values)
        if pca_target:
            self.pca_mean = self._fixed(np.zeros([values], "float32"))
            self.pca_components = self._fixed(np.zeros([values, pca_target], "float32"))

        self.apply(_xavier_linear)
        # The patch convolution is a linear map of a flattened patch, so it is initialized as one.
        weight = self.patch_embed.proj.weight
        nn.initializer.XavierUniform(fan_in=weight[0].size, fan_out=embed_dim)(weight)

    def _token(self, dim: int) -> Tensor:
        return self.create_parameter([1, 1, dim], default_initializer=nn.initializer.Normal(std=0.02))

    def _fixed_positions(self, dim: int) -> Tensor:
        """Make the fixed sine-cosine position embedding, [1, 1 + L, dim]; the class token has a zero row."""
        return self._fixed(sincos_2d(dim, self.patch_embed.grid_size, cls_token=True)[None])

    def _fixed(self, values: np.ndarray) -> Tensor:
        """Make a parameter that is never trained."""
        parameter = self.create_parameter(values.shape, default_initializer=nn.initializer.Assign(values))
        parameter.stop_gradient = True
        return parameter

    def patchify(self, imgs: Tensor) -> Tensor:
        """Cut images into patches, [N, C, h * p, w * p] -> [N, L, P]; P is ordered row, column, channel."""
        n, c = imgs.shape[:2]
        (h, w), p = self.patch_embed.grid_size, self.patch_embed.patch_size[0]
        return imgs.reshape([n, c, h, p, w, p]).transpose([0, 2, 4, 3, 5, 1]).reshape([n, h * w, p * p * c])

    def unpatchify(self, x: Tensor) -> Tensor:
        """Put patches together, [N, L, P] -> [N, C, h * p, w * p]; the inverse of `patchify`."""
        n, c = x.shape[0], self.patch_embed.in_chans
        (h, w), p = self.patch_embed.grid_size, self.patch_embed.patch_size[0]
        return x.reshape([n, h, w, p, p, c]).transpose([0, 5, 1, 3, 2, 4]).reshape([n, c, h * p, w * p])

    def forward_encoder(
        self, x: Tensor, mask_ratio: float, noise: Tensor | None = None, num_visible: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode images [N, C, height, width] -> latent [N, 1 + K, D], mask [N, L], ids_restore [N, L].

        With encoder_mask_tokens the latent is [N, 1 + L, D], in the order of the image.
        """
        ids_keep, _, mask, ids_restore = random_masking(
            x.shape[0], self.patch_embed.num_patches, mask_ratio, noise, num_visible
        )
        return self._encode(x, ids_keep, ids_restore), mask, ids_restore

    def _encode(self, x: Tensor, ids_keep: Tensor, ids_restore: Tensor) -> Tensor:
        """Encode images with the ids of `random_masking`; returns the latent of `forward_encoder`."""
        x = self.embed(x, ids_keep, ids_restore)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def embed(self, x: Tensor, ids_keep: Tensor | None = None, ids_restore: Tensor | None = None) -> Tensor:
        """Embed images [N, C, height, width] -> input of the first block, [N, 1 + K, D], class token first.

        Args:
            ids_keep: [N, K], indices of the visible patches; None: all patches, in the order of the image.
            ids_restore: [N, L], needed with encoder_mask_tokens, which give [N, 1 + L, D].
        """
        n, d = x.shape[0], self.pos_embed.shape[2]
        positions = self.pos_embed[:, 1:]
        x = self.patch_embed(x, ids_keep)
        if ids_keep is not None and self.encoder_mask_token is not None:
            assert ids_restore is not None
            x = with_mask_tokens(x, self.encoder_mask_token, ids_restore)
        elif ids_keep is not None:
            positions = paddle.index_select(positions[0], ids_keep.flatten()).reshape([n, -1, d])
        x = x + positions
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand([n, -1, -1])
        return paddle.concat([cls_token.astype(x.dtype), x], axis=1)

    def forward_decoder(self, x: Tensor, ids_restore: Tensor, ids_wanted: Tensor | None = None) -> Tensor:
        """Predict all patches from the latent, [N, L, P], or the patches `ids_wanted` [N, W], [N, W, P]."""
        x = self.decoder_embed(x)
        if self.mask_token is not None:
            x = paddle.concat([x[:, :1], with_mask_tokens(x[:, 1:], self.mask_token, ids_restore)], axis=1)
        x = x + self.decoder_pos_embed
        *blocks, last = self.decoder_blocks
        for block in blocks:
            x = block(x)
        x = last(x)[:, 1:] if ids_wanted is None else last(x, 1 + ids_wanted)
        return self.decoder_pred(self.decoder_norm(x))

    def forward_loss(self, imgs: Tensor, pred: Tensor, mask: Tensor) -> Tensor:
        """Mean squared error over hidden patches: imgs, pred [N, L, P], mask [N, L], 1 = hidden -> []."""
        per_patch = self.patch_errors(self.patchify(imgs), pred)
        return (per_patch * mask).sum() / mask.sum()

    def patch_errors(self, target: Tensor, pred: Tensor) -> Tensor:
        """Mean squared error of each patch: target pixels and prediction, [N, L, P] each -> [N, L]."""
        if self.norm_pix_loss:
            target = target - target.mean(axis=-1, keepdim=True)
            var = target.square().sum(axis=-1, keepdim=True) / (target.shape[-1] - 1)  # unbiased
            target = target / (var + 1e-6).sqrt()
        elif self.pca_target:
            with paddle.amp.auto_cast(enable=False):  # half precision would round the target
                target = paddle.matmul(target - self.pca_mean, self.pca_components)
        # The error is computed in float32, because half precision loses digits in the squares.
        return (pred.astype("float32") - target).square().mean(axis=-1)

    def forward(
        self,
        imgs: Tensor,
        mask_ratio: float = 0.75,
        noise: Tensor | None = None,
        only_loss: bool = False,
        num_visible: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Reconstruct images [N, C, height, width] -> loss, prediction [N, L, P], mask [N, L], 1 = hidden.

        Args:
            noise: [N, L]; the patches with the smallest values stay visible. None draws it uniformly.
            only_loss: return the loss alone, and predict the hidden patches only. The loss and the gradients
                are the same (tests/models/test_models_mae.py).
            num_visible: number of visible patches of a custom mask. None derives it from mask_ratio.
        """
        if not only_loss:
            latent, mask, ids_restore = self.forward_encoder(imgs, mask_ratio, noise, num_visible)
            pred = self.forward_decoder(latent, ids_restore)
            return self.forward_loss(imgs, pred, mask), pred, mask
        ids_keep, ids_hidden, _, ids_restore = random_masking(
            imgs.shape[0], self.patch_embed.num_patches, mask_ratio, noise, num_visible
        )
        pred = self.forward_decoder(self._encode(imgs, ids_keep, ids_restore), ids_restore, ids_hidden)
        return self.patch_errors(take_tokens(self.patchify(imgs), ids_hidden), pred).mean()


def random_masking(
    n: int, l: int, mask_ratio: float, noise: Tensor | None = None, num_visible: int | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keep, in each of n images, the (1 - mask_ratio) part of its l patches that has the smallest noise.

    Args:
        noise: [N, L]; None draws it uniformly.
        num_visible: number of patches to keep. None derives it from mask_ratio.

    Returns:
        ids_keep [N, K] and ids_hidden [N, L - K], indices of patches sorted by their noise;
        mask [N, L] in the order of the image, 0 = kept, 1 = hidden;
        ids_restore [N, L], which sorts ids_keep followed by ids_hidden back into the order of the image.
    """
    keep = num_kept(l, mask_ratio) if num_visible is None else num_visible
    noise = paddle.rand([n, l]) if noise is None else noise
    ids_shuffle = paddle.argsort(noise, axis=1)
    ids_restore = paddle.argsort(ids_shuffle, axis=1)
    mask = (ids_restore >= keep).astype("float32")
    return ids_shuffle[:, :keep], ids_shuffle[:, keep:], mask, ids_restore


def with_mask_tokens(x: Tensor, mask_token: Tensor, ids_restore: Tensor) -> Tensor:
    """Insert mask tokens: x [N, K, D], token [1, 1, D], ids_restore [N, L] -> [N, L, D] in image order."""
    hidden = mask_token.expand([x.shape[0], ids_restore.shape[1] - x.shape[1], -1]).astype(x.dtype)
    return take_tokens(paddle.concat([x, hidden], axis=1), ids_restore)


def num_kept(num_patches: int, mask_ratio: float) -> int:
    """Count the visible patches. The float product is rounded down, exactly as in the official code."""
    return int(num_patches * (1 - mask_ratio))


def _xavier_linear(layer: nn.Layer) -> None:
    if isinstance(layer, nn.Linear):
        nn.initializer.XavierUniform()(layer.weight)


# The decoder of every published model.
_DECODER: dict[str, Any] = dict(decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16)

mae_vit_tiny_patch4 = partial(
    MaskedAutoencoderViT,
    **ENCODERS["tiny_patch4"],
    img_size=32,
    decoder_embed_dim=64,
    decoder_depth=2,
    decoder_num_heads=4,
)
mae_vit_small_patch16 = partial(MaskedAutoencoderViT, **ENCODERS["small_patch16"], **_DECODER)
mae_vit_base_patch16 = mae_vit_base_patch16_dec512d8b = partial(
    MaskedAutoencoderViT, **ENCODERS["base_patch16"], **_DECODER
)
mae_vit_large_patch16 = mae_vit_large_patch16_dec512d8b = partial(
    MaskedAutoencoderViT, **ENCODERS["large_patch16"], **_DECODER
)
mae_vit_huge_patch14 = mae_vit_huge_patch14_dec512d8b = partial(
    MaskedAutoencoderViT, **ENCODERS["huge_patch14"], **_DECODER
)

MODELS = {name: model for name, model in globals().items() if name.startswith("mae_vit_")}
