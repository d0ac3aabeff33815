"""The masked autoencoder of He et al. 2021, https://arxiv.org/abs/2111.06377, section 3 and appendix A.1.

Shape letters: N images, C image channels, p patch side, L patches (h x w of them), K kept patches,
D encoder channels, E decoder channels, P = p * p * C pixel values of a patch (of a prediction, with pca_target, so many
coefficients).
Parameter names are those of the official implementation.
"""
from functools import partial

import numpy as np
import paddle
from paddle import nn

from layer import ENCODERS, Block, LayerNorm, Linear, PatchEmbed, take_tokens
from util.weights.pos_embed import sincos_2d


class MaskedAutoencoderViT(nn.Layer):
    """Encode the visible patches, then predict the pixels of the hidden ones.

    Args:
        img_size: pixels a side, or (height, width).
        norm_pix_loss: the target is each patch normalised by its own mean and spread (paper, section 4.1).
        encoder_mask_tokens: the encoder takes all patches, a mask token for each hidden one (paper, Table 1 (c)), and
            the decoder what comes of them; `encoder_mask_token` then takes the place of the parameter `mask_token`.
        pca_target: the target is that many coefficients of each patch's principal components (paper, Table 1 (d)),
            which `pca_mean` and `pca_components` hold once util.data.pca_target has found them; 0: pixels.
        sdpa, recompute: as for `layer.Block`.
    """

    def __init__(self, img_size=224, patch_size=16, in_chans=3, embed_dim=1024, depth=24, num_heads=16,
                 decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16, mlp_ratio=4.0, norm_pix_loss=False,
                 encoder_mask_tokens=False, pca_target=0, sdpa=None, recompute=False):
        super().__init__()
        self.norm_pix_loss, self.pca_target = norm_pix_loss, pca_target
        block = partial(Block, mlp_ratio=mlp_ratio, sdpa=sdpa, recompute=recompute)

        # encoder: sees the kept patches only, and at most a mask token in every hidden place
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.cls_token = self._token(embed_dim)
        self.encoder_mask_token = self._token(embed_dim) if encoder_mask_tokens else None
        self.pos_embed = self._fixed_positions(embed_dim)
        self.blocks = nn.LayerList([block(embed_dim, num_heads) for _ in range(depth)])
        self.norm = LayerNorm(embed_dim)

        # decoder: sees the encoded patches, and a mask token in every hidden place that the encoder has left out
        self.decoder_embed = Linear(embed_dim, decoder_embed_dim)
        self.mask_token = None if encoder_mask_tokens else self._token(decoder_embed_dim)
        self.decoder_pos_embed = self._fixed_positions(decoder_embed_dim)
        self.decoder_blocks = nn.LayerList([block(decoder_embed_dim, decoder_num_heads) for _ in range(decoder_depth)])
        self.decoder_norm = LayerNorm(decoder_embed_dim)
        values = in_chans * self.patch_embed.patch_size[0] ** 2
        if not 0 <= pca_target <= values or (pca_target and norm_pix_loss):
            raise ValueError(f"--pca_target {pca_target}: expected 1 to {values}, the values of a patch, or 0 for "
                             "pixels; --norm_pix_loss is about pixels: leave one of the two out")
        self.decoder_pred = Linear(decoder_embed_dim, pca_target or values)
        if pca_target:
            self.pca_mean = self._fixed(np.zeros([values], "float32"))
            self.pca_components = self._fixed(np.zeros([values, pca_target], "float32"))

        self.apply(_xavier_linear)
        # The convolution is a linear map of a flattened patch, and starts like one.
        weight = self.patch_embed.proj.weight
        nn.initializer.XavierUniform(fan_in=weight[0].size, fan_out=embed_dim)(weight)

    def _token(self, dim):
        return self.create_parameter([1, 1, dim], default_initializer=nn.initializer.Normal(std=0.02))

    def _fixed_positions(self, dim):
        """Sine-cosine position embedding with a zero row for the class token, [1, 1 + L, dim], never trained."""
        return self._fixed(sincos_2d(dim, self.patch_embed.grid_size, cls_token=True)[None])

    def _fixed(self, values):
        """A parameter that is never trained."""
        parameter = self.create_parameter(values.shape, default_initializer=nn.initializer.Assign(values))
        parameter.stop_gradient = True
        return parameter

    def patchify(self, imgs):
        """[N, C, h * p, w * p] -> [N, L, P], the P values of a patch in the order row, column, channel."""
        n, c = imgs.shape[:2]
        (h, w), p = self.patch_embed.grid_size, self.patch_embed.patch_size[0]
        return imgs.reshape([n, c, h, p, w, p]).transpose([0, 2, 4, 3, 5, 1]).reshape([n, h * w, p * p * c])

    def unpatchify(self, x):
        """[N, L, P] -> [N, C, h * p, w * p], the inverse of `patchify`."""
        n, c = x.shape[0], self.patch_embed.in_chans
        (h, w), p = self.patch_embed.grid_size, self.patch_embed.patch_size[0]
        return x.reshape([n, h, w, p, p, c]).transpose([0, 5, 1, 3, 2, 4]).reshape([n, c, h * p, w * p])

    def forward_encoder(self, x, mask_ratio, noise=None, num_visible=None):
        """Images [N, C, height, width] -> latent [N, 1 + K, D], mask [N, L], ids_restore [N, L].

        With encoder_mask_tokens the latent is [N, 1 + L, D], in the image's order.
        """
        ids_keep, _, mask, ids_restore = random_masking(x.shape[0], self.patch_embed.num_patches, mask_ratio, noise,
                                                            num_visible)
        return self._encode(x, ids_keep, ids_restore), mask, ids_restore

    def _encode(self, x, ids_keep, ids_restore):
        """Images [N, C, height, width] -> latent, see `forward_encoder`; ids of `random_masking`."""
        x = self.embed(x, ids_keep, ids_restore)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def embed(self, x, ids_keep=None, ids_restore=None):
        """Images [N, C, height, width] -> what the first block takes, [N, 1 + K, D], the class token first.

        Args:
            ids_keep: [N, K], numbers of the patches that are seen; None: all of them, in the image's order.
            ids_restore: [N, L], where mask tokens are put beside them if the encoder has some: [N, 1 + L, D].
        """
        n, d = x.shape[0], self.pos_embed.shape[2]
        positions = self.pos_embed[:, 1:]
        x = self.patch_embed(x, ids_keep)
        if ids_keep is not None and self.encoder_mask_token is not None:
            x = with_mask_tokens(x, self.encoder_mask_token, ids_restore)
        elif ids_keep is not None:
            positions = paddle.index_select(positions[0], ids_keep.flatten()).reshape([n, -1, d])
        x = x + positions
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand([n, -1, -1])
        return paddle.concat([cls_token.astype(x.dtype), x], axis=1)

    def forward_decoder(self, x, ids_restore, ids_wanted=None):
        """Latent of the encoder -> predicted patches [N, L, P], or the `ids_wanted` [N, W] of them, [N, W, P]."""
        x = self.decoder_embed(x)
        if self.mask_token is not None:
            x = paddle.concat([x[:, :1], with_mask_tokens(x[:, 1:], self.mask_token, ids_restore)], axis=1)
        x = x + self.decoder_pos_embed
        *blocks, last = self.decoder_blocks
        for block in blocks:
            x = block(x)
        x = last(x)[:, 1:] if ids_wanted is None else last(x, 1 + ids_wanted)
        return self.decoder_pred(self.decoder_norm(x))

    def forward_loss(self, imgs, pred, mask):
        """Mean squared error over the hidden patches: imgs, pred [N, L, P], mask [N, L] with 1 = hidden -> scalar."""
        per_patch = self.patch_errors(self.patchify(imgs), pred)
        return (per_patch * mask).sum() / mask.sum()

    def patch_errors(self, target, pred):
        """The mean squared error of each patch: true pixels and prediction, [N, L, P] each -> [N, L]."""
        if self.norm_pix_loss:
            target = target - target.mean(axis=-1, keepdim=True)
            var = target.square().sum(axis=-1, keepdim=True) / (target.shape[-1] - 1)  # unbiased
            target = target / (var + 1e-6).sqrt()
        elif self.pca_target:
            with paddle.amp.auto_cast(enable=False):  # in half precision the target would have few digits
                target = paddle.matmul(target - self.pca_mean, self.pca_components)
        # In float32 whatever the precision of the network: half precision loses digits in the squares.
        return (pred.astype("float32") - target).square().mean(axis=-1)

    def forward(self, imgs, mask_ratio=0.75, noise=None, only_loss=False, num_visible=None):
        """[N, C, height, width] -> loss, predicted patches [N, L, P], mask [N, L] with 1 = hidden.

        Args:
            noise: [N, L]; the patches with the smallest values stay visible. Drawn when None.
            num_visible: number of visible patches, for a custom mask; None: it follows from mask_ratio.
            only_loss: return the loss alone; nothing is computed for patches that have no part in it. Every hidden one
                has: the mean over them is the same number.
        """
        if not only_loss:
            latent, mask, ids_restore = self.forward_encoder(imgs, mask_ratio, noise, num_visible)
            pred = self.forward_decoder(latent, ids_restore)
            return self.forward_loss(imgs, pred, mask), pred, mask
        ids_keep, ids_hidden, _, ids_restore = random_masking(imgs.shape[0], self.patch_embed.num_patches, mask_ratio,
                                                              noise, num_visible)
        pred = self.forward_decoder(self._encode(imgs, ids_keep, ids_restore), ids_restore, ids_hidden)
        return self.patch_errors(take_tokens(self.patchify(imgs), ids_hidden), pred).mean()


def random_masking(n, l, mask_ratio, noise=None, num_visible=None):
    """Keep, of each of n images, the (1 - mask_ratio) part of its l patches that drew the smallest noise.

    Args:
        noise: [N, L]; drawn uniformly when None.
        num_visible: number of patches to keep; None: it follows from mask_ratio.
    Returns:
        ids_keep [N, K] and ids_hidden [N, L - K], numbers of patches in the order of their noise;
        mask [N, L] in the image's order, 0 = kept, 1 = hidden;
        ids_restore [N, L], which puts tokens in the order of ids_keep, ids_hidden back into the image's order.
    """
    keep = num_kept(l, mask_ratio) if num_visible is None else num_visible
    noise = paddle.rand([n, l]) if noise is None else noise
    ids_shuffle = paddle.argsort(noise, axis=1)
    ids_restore = paddle.argsort(ids_shuffle, axis=1)
    mask = (ids_restore >= keep).astype("float32")
    return ids_shuffle[:, :keep], ids_shuffle[:, keep:], mask, ids_restore


def with_mask_tokens(x, mask_token, ids_restore):
    """Kept patches [N, K, D], a token [1, 1, D] for the others, ids_restore [N, L] -> [N, L, D], in the image's order.
    """
    hidden = mask_token.expand([x.shape[0], ids_restore.shape[1] - x.shape[1], -1]).astype(x.dtype)
    return take_tokens(paddle.concat([x, hidden], axis=1), ids_restore)


def num_kept(num_patches, mask_ratio):
    """How many patches stay visible. The product is rounded down as a float, exactly as in the official code."""
    return int(num_patches * (1 - mask_ratio))


def _xavier_linear(layer):
    if isinstance(layer, nn.Linear):
        nn.initializer.XavierUniform()(layer.weight)


_DECODER = dict(decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16)  # of every published model

mae_vit_tiny_patch4 = partial(MaskedAutoencoderViT, **ENCODERS["tiny_patch4"], img_size=32,
                              decoder_embed_dim=64, decoder_depth=2, decoder_num_heads=4)
mae_vit_small_patch16 = partial(MaskedAutoencoderViT, **ENCODERS["small_patch16"], **_DECODER)
mae_vit_base_patch16 = mae_vit_base_patch16_dec512d8b = partial(
    MaskedAutoencoderViT, **ENCODERS["base_patch16"], **_DECODER)
mae_vit_large_patch16 = mae_vit_large_patch16_dec512d8b = partial(
    MaskedAutoencoderViT, **ENCODERS["large_patch16"], **_DECODER)
mae_vit_huge_patch14 = mae_vit_huge_patch14_dec512d8b = partial(
    MaskedAutoencoderViT, **ENCODERS["huge_patch14"], **_DECODER)

MODELS = {name: model for name, model in globals().items() if name.startswith("mae_vit_")}
