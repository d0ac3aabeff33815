"""Model sizes from the names and shapes of weights, and the shapes of the weights from model sizes.

Names and layout are ours, see util.weights.name_maps. The number of attention heads cannot be read from the
weights; the model tables give it.
"""

import functools
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from util.weights.name_maps import WeightNamesError

if TYPE_CHECKING:
    import paddle


def sizes(weights: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the sizes of a model from its weights {name: array}, which include patch_embed.proj.weight.

    Always: patch_size, in_chans, embed_dim, depth, mlp_dim, and tokens (1 + patches).
    Autoencoder: decoder_embed_dim, decoder_depth, decoder_mlp_dim; if used, encoder_mask_tokens and
    pca_target. Classifier: num_classes, global_pool, linear_probe.

    Raises WeightNamesError if the patch embedding is not a convolution.
    """
    convolution = weights["patch_embed.proj.weight"]
    if convolution.ndim != 4 or not convolution.size:
        raise WeightNamesError(
            f"patch_embed.proj.weight has the shape {list(convolution.shape)}; expected "
            "that of a convolution, [width, channels, patch, patch]"
        )
    embed_dim, in_chans, _, patch_size = convolution.shape
    positions = next(
        (
            weights[name]
            for name in ("pos_embed", "decoder_pos_embed")
            if name in weights and weights[name].ndim == 3
        ),
        None,
    )
    found: dict[str, Any] = {
        "patch_size": patch_size,
        "in_chans": in_chans,
        "embed_dim": embed_dim,
        "depth": _depth(weights, "blocks"),
        "mlp_dim": _length(weights, "blocks.0.mlp.fc1.bias", 4 * embed_dim),
        "tokens": 1 if positions is None else max(1, positions.shape[1]),
    }
    if any(name.startswith("decoder_") for name in weights):
        width = _length(weights, "decoder_embed.bias", 512)
        return {
            **found,
            "decoder_embed_dim": width,
            "decoder_depth": _depth(weights, "decoder_blocks"),
            "decoder_mlp_dim": _length(weights, "decoder_blocks.0.mlp.fc1.bias", 4 * width),
            **({"encoder_mask_tokens": True} if "encoder_mask_token" in weights else {}),
            **(
                {"pca_target": _length(weights, "decoder_pred.bias", 0)}
                if "pca_components" in weights
                else {}
            ),
        }
    if any(name.startswith("head.") for name in weights):
        linear_probe = "head.1.weight" in weights
        return {
            **found,
            "num_classes": _length(weights, "head.1.bias" if linear_probe else "head.bias", 0),
            "global_pool": "fc_norm.weight" in weights,
            "linear_probe": linear_probe,
        }
    return found


def shapes(size: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of all parameters and statistics of a model of this `size`, in its order."""
    d, patch, channels = size["embed_dim"], size["patch_size"], size["in_chans"]
    names: dict[str, tuple[int, ...]] = {"cls_token": (1, 1, d), "pos_embed": (1, size["tokens"], d)}
    if "decoder_embed_dim" in size:
        e = size["decoder_embed_dim"]
        token, width = ("encoder_mask_token", d) if size.get("encoder_mask_tokens") else ("mask_token", e)
        names.update({token: (1, 1, width), "decoder_pos_embed": (1, size["tokens"], e)})
    names.update({"patch_embed.proj.weight": (d, channels, patch, patch), "patch_embed.proj.bias": (d,)})
    names.update(_blocks("blocks", size["depth"], d, size["mlp_dim"]))
    names.update(_norm("fc_norm" if size.get("global_pool") else "norm", d))
    if "decoder_embed_dim" in size:
        names.update(_linear("decoder_embed", d, e))
        names.update(_blocks("decoder_blocks", size["decoder_depth"], e, size["decoder_mlp_dim"]))
        names.update(_norm("decoder_norm", e))
        values, coefficients = channels * patch * patch, size.get("pca_target")
        names.update(_linear("decoder_pred", e, coefficients or values))
        if coefficients:
            names.update({"pca_mean": (values,), "pca_components": (values, coefficients)})
    if size.get("linear_probe"):
        names.update({"head.0._mean": (d,), "head.0._variance": (d,)})
    if "num_classes" in size:
        names.update(_linear("head.1" if size["linear_probe"] else "head", d, size["num_classes"]))
    return names


def differences(
    weights: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]
) -> tuple[list[str], list[str], list[tuple]]:
    """Compare weights with the expected {name: shape}.

    Returns missing names, unexpected names, and (name, found shape, expected shape) where shapes differ. All
    are sorted.
    """
    misshaped = [
        (name, tuple(weights[name].shape), expected[name])
        for name in sorted(expected.keys() & weights.keys())
        if tuple(weights[name].shape) != expected[name]
    ]
    return sorted(expected.keys() - weights.keys()), sorted(weights.keys() - expected.keys()), misshaped


def described(size: Mapping[str, Any], models: Mapping[str, functools.partial]) -> dict[str, Any] | None:
    """Return {"name": ..., keyword arguments of the model}, or None if no model has this `size`.

    Args:
        models: {name: partial of a model's class}; its keywords are sizes.
    """
    if size["mlp_dim"] != 4 * size["embed_dim"] or size.get("decoder_mlp_dim") != (
        4 * size["decoder_embed_dim"] if "decoder_embed_dim" in size else None
    ):
        return None
    for name, model in models.items():
        table = model.keywords
        if all(
            table.get(key) == size.get(key)
            for key in ("embed_dim", "depth", "decoder_embed_dim", "decoder_depth")
        ):
            side = math.isqrt(size["tokens"] - 1)
            more: dict[str, Any] = {}
            if side * side == size["tokens"] - 1:
                more["img_size"] = side * size["patch_size"]
            if size["patch_size"] != table["patch_size"]:
                more["patch_size"] = size["patch_size"]
            return {
                "name": name,
                **more,
                "in_chans": size["in_chans"],
                **{
                    key: size[key]
                    for key in ("num_classes", "global_pool", "encoder_mask_tokens", "pca_target")
                    if key in size
                },
            }
    return None


def num_heads(model: "paddle.nn.Layer") -> dict[str, int]:
    """Return {"num_heads": ...}, with "decoder_num_heads" for an autoencoder."""
    stacks = (("num_heads", "blocks"), ("decoder_num_heads", "decoder_blocks"))
    return {
        name: getattr(model, stack)[0].attn.num_heads
        for name, stack in stacks
        if len(getattr(model, stack, ()))
    }


def _depth(weights, blocks):
    found = map(re.compile(rf"{blocks}\.(\d{{1,9}})\.").match, weights)
    depth = 1 + max((int(block[1]) for block in found if block), default=-1)
    if depth > len(weights):  # a corrupted number would fill the memory with block shapes
        raise WeightNamesError(f"{blocks}.{depth - 1} among {len(weights)} weights: a number is too large")
    return depth


def _length(weights, name, default):
    return weights[name].shape[0] if name in weights and weights[name].ndim else default


def _norm(name, dim):
    return {f"{name}.weight": (dim,), f"{name}.bias": (dim,)}


def _linear(name, inputs, outputs):
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}


def _blocks(name, depth, dim, mlp_dim):
    layers = {}
    for block in (f"{name}.{number}" for number in range(depth)):
        layers.update(
            {
                **_norm(f"{block}.norm1", dim),
                **_linear(f"{block}.attn.qkv", dim, 3 * dim),
                **_linear(f"{block}.attn.proj", dim, dim),
                **_norm(f"{block}.norm2", dim),
                **_linear(f"{block}.mlp.fc1", dim, mlp_dim),
                **_linear(f"{block}.mlp.fc2", mlp_dim, dim),
            }
        )
    return layers
