"""Golden vectors of models, by transformers and timm: positions.npz, mae.npz and vit.npz."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from tools.maintain.golden.common import MAE, VIT, float32, generator, write

Shapes = dict[str, list[int]]
Weights = dict[str, np.ndarray]  # float32, by official name

# Linear maps whose output is the residual stream, or is added to it.
INTO_STREAM = ("attn.proj.", "fc2.", "patch_embed.proj.", "decoder_embed.")


def positions() -> None:
    """Write sine-cosine tables and interpolated tables."""
    arrays = {}
    for height, width, dim in [(14, 14, 48), (7, 7, 32), (3, 8, 64), (10, 4, 24), (2, 2, 768)]:
        table = build_2d_sinusoidal_position_embedding(height, width, dim)
        # transformers puts the row first; published MAE weights, and its own model, have the column first.
        arrays[f"sincos/{height}x{width}x{dim}"] = torch.cat(
            table.split(dim // 2, dim=1)[::-1], dim=1
        ).numpy()
    rng = generator("positions")
    for old, new in [((14, 14), (24, 24)), ((14, 14), (6, 6)), ((14, 14), (16, 16)), ((8, 8), (5, 11))]:
        table = rng.standard_normal([1, 1 + old[0] * old[1], 8]).astype(np.float32)
        grid = torch.from_numpy(table[:, 1:]).reshape(1, *old, 8).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, size=new, mode="bicubic", align_corners=False)
        name = "interpolated/" + "-".join(f"{height}x{width}" for height, width in (old, new))
        rows = grid.permute(0, 2, 3, 1).reshape(1, -1, 8).numpy()
        arrays.update({f"{name}/from": table, f"{name}/to": np.concatenate([table[:, :1], rows], axis=1)})
    write("positions", arrays)


def block_shapes(prefix: str, dim: int) -> Shapes:
    return {
        f"{prefix}.norm1.weight": [dim],
        f"{prefix}.norm1.bias": [dim],
        f"{prefix}.attn.qkv.weight": [3 * dim, dim],
        f"{prefix}.attn.qkv.bias": [3 * dim],
        f"{prefix}.attn.proj.weight": [dim, dim],
        f"{prefix}.attn.proj.bias": [dim],
        f"{prefix}.norm2.weight": [dim],
        f"{prefix}.norm2.bias": [dim],
        f"{prefix}.mlp.fc1.weight": [4 * dim, dim],
        f"{prefix}.mlp.fc1.bias": [4 * dim],
        f"{prefix}.mlp.fc2.weight": [dim, 4 * dim],
        f"{prefix}.mlp.fc2.bias": [dim],
    }


def encoder_shapes(
    *, img_size: int, patch_size: int, in_chans: int, embed_dim: int, depth: int, **_: object
) -> Shapes:
    shapes: Shapes = {
        "cls_token": [1, 1, embed_dim],
        "pos_embed": [1, 1 + (img_size // patch_size) ** 2, embed_dim],
        "patch_embed.proj.weight": [embed_dim, in_chans, patch_size, patch_size],
        "patch_embed.proj.bias": [embed_dim],
    }
    for i in range(depth):
        shapes.update(block_shapes(f"blocks.{i}", embed_dim))
    return shapes


def mae_shapes() -> Shapes:
    dim, patch_values = MAE["decoder_embed_dim"], MAE["in_chans"] * MAE["patch_size"] ** 2
    shapes = {
        **encoder_shapes(**MAE),
        "norm.weight": [MAE["embed_dim"]],
        "norm.bias": [MAE["embed_dim"]],
        "decoder_embed.weight": [dim, MAE["embed_dim"]],
        "decoder_embed.bias": [dim],
        "mask_token": [1, 1, dim],
        "decoder_pos_embed": [1, 1 + (MAE["img_size"] // MAE["patch_size"]) ** 2, dim],
    }
    for i in range(MAE["decoder_depth"]):
        shapes.update(block_shapes(f"decoder_blocks.{i}", dim))
    return {
        **shapes,
        "decoder_norm.weight": [dim],
        "decoder_norm.bias": [dim],
        "decoder_pred.weight": [patch_values, dim],
        "decoder_pred.bias": [patch_values],
    }


def random_weights(shapes: Mapping[str, Sequence[int]], rng: np.random.Generator) -> Weights:
    """Draw weights that reveal small errors.

    The residual stream is small, so that the epsilon of every LayerNorm matters. The inputs of GELU and
    softmax are of the order of 1.
    """
    weights = {}
    for name, shape in shapes.items():
        value = rng.standard_normal(shape)
        into_stream = any(part in name for part in INTO_STREAM)
        if name.endswith(".weight") and len(shape) == 1:
            value = 1 + 0.2 * value
        elif name.endswith(".weight"):
            value *= (0.03 if into_stream else 1.5) / math.sqrt(math.prod(shape[1:]))
        elif into_stream:
            value *= 0.01
        else:
            value *= 0.03 if name.endswith(("_token", "pos_embed")) else 0.2
        weights[name] = value.astype(np.float32)
    return weights


def huggingface_name(name: str) -> str:
    """Translate an official name to transformers' ViTMAE; attn.qkv becomes a pattern for q, k and v."""
    inner = (
        name.replace(".norm1.", ".layernorm_before.")
        .replace(".norm2.", ".layernorm_after.")
        .replace(".attn.proj.", ".attention.o_proj.")
        .replace(".attn.qkv.", ".attention.{}_proj.")
    )
    for official, theirs in [
        ("decoder_blocks.", "decoder.decoder_layers."),
        ("blocks.", "vit.layers."),
        ("norm.", "vit.layernorm."),
        ("cls_token", "vit.embeddings.cls_token"),
        ("pos_embed", "vit.embeddings.position_embeddings"),
        ("mask_token", "decoder.mask_token"),
        ("patch_embed.proj.", "vit.embeddings.patch_embeddings.projection."),
        ("decoder_", "decoder.decoder_"),
    ]:
        if inner.startswith(official):
            return theirs + inner[len(official) :]
    raise ValueError(name)


def huggingface_mae(weights: Weights, *, norm_pix_loss: bool) -> ViTMAEForPreTraining:
    """Build the masked autoencoder of transformers with the sizes of MAE, in float64."""
    model = ViTMAEForPreTraining(
        ViTMAEConfig(
            image_size=MAE["img_size"],
            patch_size=MAE["patch_size"],
            num_channels=MAE["in_chans"],
            hidden_size=MAE["embed_dim"],
            num_hidden_layers=MAE["depth"],
            num_attention_heads=MAE["num_heads"],
            intermediate_size=4 * MAE["embed_dim"],
            decoder_hidden_size=MAE["decoder_embed_dim"],
            decoder_num_hidden_layers=MAE["decoder_depth"],
            decoder_num_attention_heads=MAE["decoder_num_heads"],
            decoder_intermediate_size=4 * MAE["decoder_embed_dim"],
            mask_ratio=0.75,
            norm_pix_loss=norm_pix_loss,
            layer_norm_eps=1e-6,  # transformers' default is 1e-12, the official code's 1e-6
            attn_implementation="sdpa",
        )
    )  # the eager one takes its softmax in float32
    state = {}
    for name, value in weights.items():
        theirs = huggingface_name(name)
        parts = zip("qkv", np.split(value, 3), strict=True) if "{}" in theirs else [("", value)]
        state.update({theirs.format(letter): torch.from_numpy(part) for letter, part in parts})
    model.load_state_dict(state, strict=True)
    return model.double().train()


def huggingface_values(
    model: nn.Module, names: Iterable[str], value_of: Callable[[nn.Parameter], torch.Tensor]
) -> Weights:
    """Apply `value_of` to parameters of transformers. Returns {official name: float32 array}."""
    parameters = dict(model.named_parameters())

    def joined(theirs: str) -> np.ndarray:
        parts = [
            value_of(parameters[theirs.format(letter)]) for letter in ("qkv" if "{}" in theirs else [""])
        ]
        return float32(torch.cat(parts))

    return {name: joined(huggingface_name(name)) for name in names}


def random_images(rng: np.random.Generator, count: int, size: int = 24) -> np.ndarray:
    """Draw float32 [count, 3, size, size] with structure at several scales.

    Patches then differ in mean and standard deviation.
    """
    coarse = torch.from_numpy(rng.standard_normal([count, 3, size // 6, size // 6]))
    smooth = F.interpolate(coarse, size=[size, size], mode="bicubic").numpy()
    return (smooth + 0.3 * rng.standard_normal(smooth.shape)).astype(np.float32)


def mae() -> None:
    """Write patches, masks, and forward and backward of the masked autoencoder with both kinds of target."""
    rng = generator("mae")
    weights = random_weights(mae_shapes(), rng)
    images, noise = random_images(rng, 2), rng.random([2, 36], dtype=np.float32)
    images[1] *= 0.01  # nearly flat, so that the place of epsilon in a normalized target matters
    arrays = {
        "images": images,
        "noise": noise,
        **{f"weights/{name}": value for name, value in weights.items()},
    }
    trained = [name for name in weights if not name.endswith("pos_embed")]
    for target, norm_pix_loss in (("pixels", False), ("normalised", True)):
        model = huggingface_mae(weights, norm_pix_loss=norm_pix_loss)
        pixels, draws = torch.from_numpy(images).double(), torch.from_numpy(noise)
        output = model(pixels, noise=draws)
        output.loss.backward()
        arrays.update(
            {
                f"{target}/latent": float32(model.vit(pixels, noise=draws).last_hidden_state),
                f"{target}/pred": float32(output.logits),
                f"{target}/mask": float32(output.mask),
                f"{target}/loss": output.loss.detach().numpy(),
            }
        )
        gradients = huggingface_values(model, trained, lambda p: p.grad)
        arrays.update({f"{target}/gradients/{name}": value for name, value in gradients.items()})

    for name, shape in (("square", (24, 24)), ("wide", (8, 20))):
        pictures = torch.from_numpy(rng.standard_normal([2, 3, *shape]).astype(np.float32))
        patches = model.patchify(pictures, interpolate_pos_encoding=True)
        assert torch.equal(model.unpatchify(patches, shape), pictures)
        arrays.update(
            {f"patchify/{name}/images": pictures.numpy(), f"patchify/{name}/patches": patches.numpy()}
        )
    # The number of kept patches is rounded down as a float: 9 of 100 at a ratio of 0.9.
    for length, ratio in [(36, 0.75), (100, 0.9), (100, 0.8), (49, 0.6)]:
        model.config.mask_ratio = ratio
        tokens = torch.arange(2 * length, dtype=torch.float32).reshape(2, length, 1)
        draws = torch.from_numpy(rng.random([2, length], dtype=np.float32))
        kept, mask, ids_restore = model.vit.embeddings.random_masking(tokens, draws)
        arrays.update(
            {
                f"masking/{length}-{ratio}/{key}": value.numpy()
                for key, value in dict(noise=draws, kept=kept, mask=mask, ids_restore=ids_restore).items()
            }
        )
    write("mae", arrays, model=MAE, mask_ratio=0.75)


def timm_vit(weights: Weights, *, global_pool: bool) -> VisionTransformer:
    """Build timm's ViT with the sizes of VIT, in float64. With mean pooling, `norm.*` becomes fc_norm.*."""
    model = VisionTransformer(
        **VIT, global_pool="avg" if global_pool else "token", norm_layer=partial(nn.LayerNorm, eps=1e-6)
    )
    model.load_state_dict(
        {
            ("fc_" if global_pool and name.startswith("norm.") else "") + name: torch.from_numpy(value)
            for name, value in weights.items()
        },
        strict=True,
    )
    return model.double().train()


def timm_values(model: nn.Module) -> Weights:
    return {name.replace("fc_norm.", "norm."): float32(p) for name, p in model.named_parameters()}


def vit() -> Weights:
    """Write the forward of the classifier with both kinds of pooling. Returns its weights."""
    rng = generator("vit")
    weights = random_weights(
        {
            **encoder_shapes(**VIT),
            "norm.weight": [24],
            "norm.bias": [24],
            "head.weight": [10, 24],
            "head.bias": [10],
        },
        rng,
    )
    images = random_images(rng, 4)
    arrays = {"images": images, **{f"weights/{name}": value for name, value in weights.items()}}
    for pool in ("mean", "token"):
        model = timm_vit(weights, global_pool=pool == "mean").eval()
        pixels = torch.from_numpy(images).double()
        arrays[f"{pool}/features"] = float32(
            model.forward_head(model.forward_features(pixels), pre_logits=True)
        )
        arrays[f"{pool}/logits"] = float32(model(pixels))
    write("vit", arrays, model=VIT)
    return weights
