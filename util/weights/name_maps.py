"""Parameter names and layouts of other programs: official code, timm, Hugging Face, mmpretrain, PaddleViT.

This project uses the official names in Paddle's layout: a Linear weight is [in, out], in PyTorch [out, in].
Names decide what is transposed, not shapes, because attn.proj is square.
"""

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# A stem is a name without its leaf (weight, bias, ...) and with # for the number of a block.
_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_LINEAR = {
    "head",
    "head.1",
    "decoder_embed",
    "decoder_pred",
    *(
        f"{blocks}.#.{part}"
        for blocks in ("blocks", "decoder_blocks")
        for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    ),
}
_WITHOUT_LEAF = (
    "cls_token",
    "pos_embed",
    "encoder_mask_token",
    "mask_token",
    "decoder_pos_embed",
    "pca_mean",
    "pca_components",
)
_LEAVES = {
    "weight": "weight",
    "bias": "bias",
    "running_mean": "_mean",
    "running_var": "_variance",
    "_mean": "_mean",
    "_variance": "_variance",
    "num_batches_tracked": "num_batches_tracked",
}
_TORCH_STATISTICS = {"_mean": "running_mean", "_variance": "running_var"}
_THIRDS = ("query", "key", "value")  # the order within qkv


def _blocks(theirs, ours, parts):
    return {f"{theirs}.#.{part}": f"{ours}.#.{name}" for part, name in parts.items()}


_OFFICIAL = {
    stem: stem
    for stem in (
        "cls_token",
        "pos_embed",
        "patch_embed.proj",
        "norm",
        "fc_norm",
        "head",
        "head.0",
        "head.1",
        "encoder_mask_token",
        "mask_token",
        "decoder_pos_embed",
        "decoder_embed",
        "decoder_norm",
        "decoder_pred",
        "pca_mean",
        "pca_components",
        *(f"{blocks}.#.{part}" for blocks in ("blocks", "decoder_blocks") for part in _BLOCK),
    )
}

# transformers, as in published files. "attn.qkv/key" is a third of attn.qkv.
_HF_BLOCK = {
    "layernorm_before": "norm1",
    **{f"attention.attention.{third}": f"attn.qkv/{third}" for third in _THIRDS},
    "attention.output.dense": "attn.proj",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}
_HF_ENCODER = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm": "norm",
    **_blocks("encoder.layer", "blocks", _HF_BLOCK),
}
_HF_DECODER = {
    "decoder.mask_token": "mask_token",
    "decoder.decoder_pos_embed": "decoder_pos_embed",
    "decoder.decoder_embed": "decoder_embed",
    "decoder.decoder_norm": "decoder_norm",
    "decoder.decoder_pred": "decoder_pred",
    **_blocks("decoder.decoder_layers", "decoder_blocks", _HF_BLOCK),
}
# In memory, transformers 5 has other names, which state_dict() shows. Its save_pretrained calls the layers of
# a decoder decoder_encoder.layer (5.23).
_HF5_BLOCK = {
    "layernorm_before": "norm1",
    **{f"attention.{third[0]}_proj": f"attn.qkv/{third}" for third in _THIRDS},
    "attention.o_proj": "attn.proj",
    "layernorm_after": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_HF_BODY = {**_HF_ENCODER, **_blocks("layers", "blocks", _HF5_BLOCK)}
_HF = {
    **_HF_BODY,
    **{f"vit.{theirs}": ours for theirs, ours in _HF_BODY.items()},
    **_HF_DECODER,
    "classifier": "head",
    **_blocks("decoder.decoder_layers", "decoder_blocks", _HF5_BLOCK),
    **_blocks("decoder.decoder_encoder.layer", "decoder_blocks", _HF_BLOCK),
}

_MM_BLOCK = {
    "ln1": "norm1",
    "attn.qkv": "attn.qkv",
    "attn.proj": "attn.proj",
    "ln2": "norm2",
    "ffn.layers.0.0": "mlp.fc1",
    "ffn.layers.1": "mlp.fc2",
}
_MMPRETRAIN = {
    "backbone.cls_token": "cls_token",
    "backbone.pos_embed": "pos_embed",
    "backbone.patch_embed.projection": "patch_embed.proj",
    "backbone.ln1": "norm",
    "backbone.ln2": "fc_norm",
    "neck.mask_token": "mask_token",
    "neck.decoder_pos_embed": "decoder_pos_embed",
    "neck.decoder_embed": "decoder_embed",
    "neck.ln1": "decoder_norm",
    "neck.decoder_pred": "decoder_pred",
    "neck.bn": "head.0",
    "head.fc": "head",
    "head.layers.head": "head",
    **_blocks("backbone.layers", "blocks", _MM_BLOCK),
    **_blocks("neck.decoder_blocks", "decoder_blocks", _MM_BLOCK),
}

_PADDLEVIT_BLOCK = {
    "attn_norm": "norm1",
    "attn.qkv": "attn.qkv",
    "attn.out": "attn.proj",
    "mlp_norm": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_PADDLEVIT = {
    "cls_token": "cls_token",
    "encoder_position_embedding": "pos_embed",
    "mask_token": "mask_token",
    "decoder_position_embedding": "decoder_pos_embed",
    "patch_embedding.patch_embedding": "patch_embed.proj",
    "encoder.norm": "norm",
    "encoder_norm": "fc_norm",
    "linear_projection": "decoder_embed",
    "decoder.norm": "decoder_norm",
    "decoder_pred": "decoder_pred",
    "classifier": "head",
    **_blocks("encoder.layers", "blocks", _PADDLEVIT_BLOCK),
    **_blocks("decoder.layers", "decoder_blocks", _PADDLEVIT_BLOCK),
}

FAMILIES = {
    "official / timm": _OFFICIAL,
    "Hugging Face": _HF,
    "mmpretrain": _MMPRETRAIN,
    "PaddleViT": _PADDLEVIT,
}
TARGETS = ("official", "timm", "hf", "paddle")

# Prefixes of the parameters that a classifier does not take from an autoencoder.
OF_PRETRAINING = ("decoder_", "mask_token", "encoder_mask_token", "pca_")

# Prefixes of wrappers: DataParallel, torch.compile, and a model inside a training module.
_WRAPPERS = ("module.", "_orig_mod.", "model.")


class WeightNamesError(ValueError):
    """Weights that cannot be renamed. The message says which."""


@dataclass(frozen=True)
class Renamed:
    """Weights under our names and in our layout.

    Args:
        weights: {our name: array}.
        family: key of FAMILIES; prefix: what preceded every name.
        layout: of the file, "PyTorch" or "Paddle".
        unknown: {name in the file: array} without a name here.
        dropped: names that the caller left out.
        counters: names of BatchNorm's counters, which are not used here.
    """

    weights: dict[str, np.ndarray]
    family: str
    prefix: str
    layout: str
    unknown: dict[str, np.ndarray]
    dropped: list[str]
    counters: list[str]


def to_ours(weights: Mapping[str, np.ndarray], *, drop: Sequence[str] = ()) -> Renamed:
    """Rename weights of any of the FAMILIES.

    Args:
        weights: {name: array}; only shapes matter, so that arrays without memory do.
        drop: shell patterns of names to leave out.

    Raises WeightNamesError if no family fits, two names mean the same, a pattern matches nothing, or the file
    mixes layouts.
    """
    idle = [pattern for pattern in drop if not any(fnmatch.fnmatchcase(name, pattern) for name in weights)]
    if idle:
        raise WeightNamesError(f"--drop {', '.join(idle)}: matches no name; the file has {_some(weights)}")
    dropped = [name for name in weights if any(fnmatch.fnmatchcase(name, pattern) for pattern in drop)]
    weights = {name: value for name, value in weights.items() if name not in set(dropped)}
    prefix = ""
    while weights and (
        wrapper := next((w for w in _WRAPPERS if all(name.startswith(w) for name in weights)), None)
    ):
        weights, prefix = {name[len(wrapper) :]: value for name, value in weights.items()}, prefix + wrapper
    family = max(
        FAMILIES, key=lambda family: sum(_renamed(name, FAMILIES[family]) is not None for name in weights)
    )
    if not any(_renamed(name, FAMILIES[family]) == "patch_embed.proj.weight" for name in weights):
        raise WeightNamesError(
            "these are not the weights of a ViT or a masked autoencoder under any of the "
            f"known names ({', '.join(FAMILIES)}); it has {_some(weights)}"
        )
    ours: dict[str, np.ndarray] = {}
    thirds: dict[str, dict[str, np.ndarray]] = {}
    unknown: dict[str, np.ndarray] = {}
    counters: list[str] = []
    for name, value in weights.items():
        new = _renamed(name, FAMILIES[family])
        if new is None:
            unknown[prefix + name] = value
        elif new.endswith("num_batches_tracked"):
            counters.append(prefix + name)
        else:
            whole, _, third = new.partition("/")
            place = thirds.setdefault(whole, {}) if third else ours
            if (third or whole) in place:
                raise WeightNamesError(
                    f"two of its weights mean {new}, one is {prefix}{name}; leave one out with --drop"
                )
            place[third or whole] = value
    for name, parts in thirds.items():
        if parts.keys() != set(_THIRDS):
            raise WeightNamesError(f"{name} lacks its {', '.join(t for t in _THIRDS if t not in parts)} part")
        if len({part.shape for part in parts.values()}) > 1 or not parts[_THIRDS[0]].ndim:
            raise WeightNamesError(f"the query, key and value of {name} differ in shape, or have none")
        ours[name] = np.concatenate([parts[third] for third in _THIRDS])
    if any(name.startswith("head.0.") for name in ours):  # mmpretrain has the BatchNorm in its neck
        ours = {re.sub(r"^head\.(weight|bias)$", r"head.1.\1", name): value for name, value in ours.items()}
    layout = _layout(ours, default="Paddle" if family == "PaddleViT" else "PyTorch")
    if layout == "PyTorch":
        ours = _transposed(ours)
    return Renamed(ours, family, prefix, layout, unknown, dropped, counters)


def from_ours(weights: Mapping[str, np.ndarray], target: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Rename weights from ours to those of `target`, one of TARGETS.

    "official" and "timm" agree except for the decoder, which timm lacks. "hf" is ViTMAEForPreTraining,
    ViTMAEModel for an encoder, or ViTForImageClassification.

    Returns the renamed weights, and our names without a place there. Raises WeightNamesError if `target` has
    no such model.
    """
    if target == "paddle":
        return dict(weights), []
    probe, pooled = "head.1.weight" in weights, "fc_norm.weight" in weights
    if target == "timm" and probe:
        raise WeightNamesError(
            "--to timm: timm has no BatchNorm before a head, so a linear probe has no "
            "place there; use --to official"
        )
    if target == "hf" and not weights.keys().isdisjoint(("encoder_mask_token", "pca_mean")):
        raise WeightNamesError(
            "--to hf: ViTMAEForPreTraining encodes the visible patches alone and "
            "predicts pixels, so what was trained with --encoder_mask_tokens or "
            "--pca_target has no place there; use --to official"
        )
    if target == "hf" and (probe or pooled):
        what = "a linear probe with its BatchNorm" if probe else "a classifier of the mean patch token"
        raise WeightNamesError(
            "--to hf: ViTForImageClassification classifies the normalised class token, "
            f"so {what} has no place there; use --to official"
        )
    left_out = [name for name in weights if target == "timm" and name.startswith(OF_PRETRAINING)]
    kept = _transposed({name: value for name, value in weights.items() if name not in set(left_out)})
    if target == "hf":
        return _to_hugging_face(kept), left_out
    theirs = {}
    for name, value in kept.items():
        stem, _, leaf = name.rpartition(".")
        theirs[f"{stem}.{_TORCH_STATISTICS[leaf]}" if leaf in _TORCH_STATISTICS else name] = value
        if leaf == "_variance":
            theirs[f"{stem}.num_batches_tracked"] = np.zeros([], "int64")
    return theirs, left_out


def _to_hugging_face(weights):
    whole = "decoder_pred.weight" in weights or "head.weight" in weights
    table = {
        **{("vit." if whole else "") + theirs: ours for theirs, ours in _HF_ENCODER.items()},
        **_HF_DECODER,
        "classifier": "head",
    }
    theirs_of = {ours: theirs for theirs, ours in table.items()}
    result = {}
    for name, value in weights.items():
        stem, leaf, number = _split(name, _OFFICIAL)
        parts = {stem: value}
        if stem.endswith("qkv"):
            parts = dict(zip((f"{stem}/{third}" for third in _THIRDS), np.split(value, 3), strict=True))
        for part, numbers in parts.items():
            result[theirs_of[part].replace("#", number) + leaf] = numbers
    return result


def _split(name, table):
    """Split a name into stem, leaf with its dot, and block number. None if the stem is not in `table`."""
    numbered = re.search(r"\.(0|[1-9]\d*)\.", name)
    for candidate, number in (
        (name, ""),
        *([(name[: numbered.start(1)] + "#" + name[numbered.end(1) :], numbered[1])] if numbered else []),
    ):
        if table.get(candidate) in _WITHOUT_LEAF:
            return candidate, "", number
        stem, _, leaf = candidate.rpartition(".")
        if stem in table and table[stem] not in _WITHOUT_LEAF and leaf in _LEAVES:
            return stem, f".{leaf}", number
    return None


def _renamed(name, table):
    """Return our name for a name of a family, "<name>/query" for a third of it, or None."""
    found = _split(name, table)
    if found is None:
        return None
    stem, leaf, number = found
    stem, _, third = table[stem].replace("#", number).partition("/")
    return stem + (f".{_LEAVES[leaf[1:]]}" if leaf else "") + (f"/{third}" if third else "")


def _is_linear_weight(name):
    return name.endswith(".weight") and _split(name, _OFFICIAL)[0] in _LINEAR


def _transposed(weights):
    return {
        name: value.T if _is_linear_weight(name) and value.ndim == 2 else value
        for name, value in weights.items()
    }


def _layout(weights, default):
    """Return "PyTorch" or "Paddle": the side of a Linear weight that is as long as its bias is its output."""
    found: dict[str, list[str]] = {"PyTorch": [], "Paddle": []}
    for name, value in weights.items():
        bias = weights.get(name.removesuffix("weight") + "bias")
        if (
            _is_linear_weight(name)
            and bias is not None
            and value.ndim == 2
            and value.shape[0] != value.shape[1]
        ):
            sides = [bias.shape == (side,) for side in value.shape]
            if any(sides):
                found["PyTorch" if sides[0] else "Paddle"].append(name)
    if all(found.values()):
        raise WeightNamesError(
            "some of its Linear weights are [out, in] as in PyTorch and some [in, out] "
            f"as in Paddle: {_some(found['PyTorch'])} and {_some(found['Paddle'])}"
        )
    return next((layout for layout, names in found.items() if names), default)


def _some(names, most=4):
    """Return the first of some names, in words."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "nothing"
