"""The masked autoencoder of He et al. 2021, https://arxiv.org/abs/2111.06377, section 3 and appendix A.1.

Shape letters: N images, C image channels, p patch side, L patches (h x w of them), K kept patches,
D encoder channels, E decoder channels, P = p * p * C pixel values of a patch.
Parameter names are those of the official implementation.
"""
from functools import partial

import paddle
from paddle import nn

from layer import ENCODERS, Block, PatchEmbed, layer_norm
from util.pos_embed import sincos_2d


class MaskedAutoencoderViT(nn.Layer):
    """Encode the visible patches, then predict the pixels of the hidden ones.

    Args:
        img_size: pixels a side, or (height, width).
        norm_pix_loss: the target is each patch normalised by its own mean and spread (paper, section 4.1).
    """

    def __init__(self, img_size=224, patch_size=16, in_chans=3, embed_dim=1024, depth=24, num_heads=16,
                 decoder_embed_dim=512, decoder_depth=8, decoder_num_heads=16, mlp_ratio=4.0, norm_pix_loss=False):
        super().__init__()
        self.norm_pix_loss = norm_pix_loss
        token_init = nn.initializer.Normal(std=0.02)

        # encoder: sees the kept patches only
        self.patch_embed = PatchEmbed(img_size, patch_size, in_chans, embed_dim)
        self.cls_token = self.create_parameter([1, 1, embed_dim], default_initializer=token_init)
        self.pos_embed = self._fixed_positions(embed_dim)
        self.blocks = nn.LayerList([Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth)])
        self.norm = layer_norm(embed_dim)

        # decoder: sees the encoded patches, and a mask token in every hidden place
        self.decoder_embed = nn.Linear(embed_dim, decoder_embed_dim)
        self.mask_token = self.create_parameter([1, 1, decoder_embed_dim], default_initializer=token_init)
        self.decoder_pos_embed = self._fixed_positions(decoder_embed_dim)
        self.decoder_blocks = nn.LayerList([Block(decoder_embed_dim, decoder_num_heads, mlp_ratio)
                                            for _ in range(decoder_depth)])
        self.decoder_norm = layer_norm(decoder_embed_dim)
        self.decoder_pred = nn.Linear(decoder_embed_dim, in_chans * self.patch_embed.patch_size[0] ** 2)

        self.apply(_xavier_linear)
        # The convolution is a linear map of a flattened patch, and starts like one.
        weight = self.patch_embed.proj.weight
        nn.initializer.XavierUniform(fan_in=weight[0].size, fan_out=embed_dim)(weight)

    def _fixed_positions(self, dim):
        """Sine-cosine position embedding with a zero row for the class token, [1, 1 + L, dim], never trained."""
        table = sincos_2d(dim, self.patch_embed.grid_size, cls_token=True)
        positions = self.create_parameter([1, *table.shape], default_initializer=nn.initializer.Assign(table[None]))
        positions.stop_gradient = True
        return positions

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

    def random_masking(self, x, mask_ratio, noise=None):
        """Keep the (1 - mask_ratio) part of each image's tokens that drew the smallest noise.

        Args:
            x: tokens, [N, L, D].
            noise: [N, L]; drawn uniformly when None.
        Returns:
            kept tokens [N, K, D], in the order of their noise;
            mask [N, L] in the image's order, 0 = kept, 1 = hidden;
            ids_restore [N, L], which puts shuffled tokens back into the image's order.
        """
        n, l, _ = x.shape
        keep = num_kept(l, mask_ratio)
        noise = paddle.rand([n, l]) if noise is None else noise
        ids_shuffle = paddle.argsort(noise, axis=1)
        ids_restore = paddle.argsort(ids_shuffle, axis=1)
        mask = (ids_restore >= keep).astype("float32")
        return _take_tokens(x, ids_shuffle[:, :keep]), mask, ids_restore

    def forward_encoder(self, x, mask_ratio, noise=None):
        """Images [N, C, height, width] -> latent [N, 1 + K, D], mask [N, L], ids_restore [N, L]."""
        x = self.patch_embed(x) + self.pos_embed[:, 1:]
        x, mask, ids_restore = self.random_masking(x, mask_ratio, noise)
        cls_token = (self.cls_token + self.pos_embed[:, :1]).expand([x.shape[0], -1, -1])
        x = paddle.concat([cls_token.astype(x.dtype), x], axis=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x), mask, ids_restore

    def forward_decoder(self, x, ids_restore):
        """Latent [N, 1 + K, D] -> predicted patches [N, L, P]."""
        x = self.decoder_embed(x)
        n, hidden = x.shape[0], ids_restore.shape[1] + 1 - x.shape[1]
        mask_tokens = self.mask_token.expand([n, hidden, -1]).astype(x.dtype)
        patches = _take_tokens(paddle.concat([x[:, 1:], mask_tokens], axis=1), ids_restore)  # in the image's order
        x = paddle.concat([x[:, :1], patches], axis=1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]

    def forward_loss(self, imgs, pred, mask):
        """Mean squared error over the hidden patches: imgs, pred [N, L, P], mask [N, L] with 1 = hidden -> scalar."""
        target = self.patchify(imgs)
        if self.norm_pix_loss:
            target = target - target.mean(axis=-1, keepdim=True)
            var = (target ** 2).sum(axis=-1, keepdim=True) / (target.shape[-1] - 1)  # unbiased
            target = target / (var + 1e-6).sqrt()
        # In float32 whatever the precision of the network: half precision loses digits in the squares.
        per_patch = ((pred.astype("float32") - target) ** 2).mean(axis=-1)  # [N, L]
        return (per_patch * mask).sum() / mask.sum()

    def forward(self, imgs, mask_ratio=0.75, noise=None):
        """[N, C, height, width] -> loss, predicted patches [N, L, P], mask [N, L] with 1 = hidden.

        Args:
            noise: [N, L]; the patches with the smallest values stay visible. Drawn when None.
        """
        latent, mask, ids_restore = self.forward_encoder(imgs, mask_ratio, noise)
        pred = self.forward_decoder(latent, ids_restore)
        return self.forward_loss(imgs, pred, mask), pred, mask


def num_kept(num_patches, mask_ratio):
    """How many patches stay visible. The product is rounded down as a float, exactly as in the official code."""
    return int(num_patches * (1 - mask_ratio))


def _take_tokens(x, ids):
    """x [N, L, D], ids [N, K] -> [N, K, D]."""
    return paddle.take_along_axis(x, ids.unsqueeze(-1), axis=1)


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
