"""Description of a model file: the model, its sizes and the normalisation of its images.

A checkpoint describes its model by its "architecture", by the shapes of its weights, or by both; flags may
override it. An exported model describes itself only once it is opened: see util.infer.model_info.

Paddle is imported when a checkpoint is read. An exported model needs no description from here.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from util.images.normalize import check_mean_std, default_mean_std
from util.weights import flag_names

# Tables of models, {name: partial of a model's class}, come as arguments, because models are above this room.
Models = Mapping[str, Callable[..., Any]]

EXPORTED = "exported"
PROGRAM_SUFFIXES = (".json", ".pdmodel")  # of Paddle 3 and of Paddle 2
PROGRAM_FILES = ("model.json", "model.pdmodel", "model.pdiparams", "model_info.json")  # in an exported folder
NORMALIZATION = ("mean", "std")
DEFAULT_FEATURES = ("mean", "cls")
PRETRAINING_SIZES = ("norm_pix_loss", "encoder_mask_tokens", "pca_target", "decoder_")  # prefixes


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Description of a model file.

    Args:
        path: the file, or the folder of an exported Paddle program.
        role: of the weights, a key of util.weights.checkpoint.ROLES; or EXPORTED.
        name: of the model; "" for an exported one, and for an encoder whose sizes are in no table.
        sizes: keyword arguments of the model.
        constructor: returns the model; None for an exported one.
        normalization: {"mean", "std"}, a number for each channel; for an exported model only the values that
            override its own.
        classes: class names in the order of the labels; None if the model has no classes, or is exported.
        features: outputs to compute instead of logits, see util.look.feature_file.KINDS.
        state: content of the checkpoint.
        weights: {parameter name: array} to load.
        status: of the file before it was read.
    """

    path: Path | str
    role: str
    name: str = ""
    sizes: Mapping[str, Any] = field(default_factory=dict)
    constructor: Callable[..., Any] | None = None
    normalization: Mapping[str, Sequence[float]] = field(default_factory=dict)
    classes: Sequence[str] | None = None
    features: tuple[str, ...] | None = None
    state: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, np.ndarray] = field(default_factory=dict)
    status: os.stat_result | None = None

    @property
    def is_exported(self) -> bool:
        """True for a file or folder that tools/export.py wrote."""
        return self.role == EXPORTED

    @property
    def is_autoencoder(self) -> bool:
        """True if the model reconstructs images."""
        return is_autoencoder(self.name)


def is_autoencoder(name: str) -> bool:
    """Return True if the model of this name is a masked autoencoder, False for a classifier."""
    return name.startswith("mae_")


def is_onnx(path: Path | str) -> bool:
    """Return True for the suffix of an ONNX file."""
    return Path(path).suffix.lower() == ".onnx"


def is_exported(path: Path | str) -> bool:
    """Return True for an exported model: an ONNX file, a folder of tools/export.py or a program in it."""
    path = Path(path)
    return (
        is_onnx(path)
        or path.suffix.lower() in PROGRAM_SUFFIXES
        or (path.is_dir() and any((path / name).exists() for name in PROGRAM_FILES))
    )


def read_model_spec(
    path: Path | str,
    models: Models,
    overrides: Mapping[str, Any] | None = None,
    *,
    features: Sequence[str] | None = None,
    trusted: bool = False,
) -> ModelSpec:
    """Read the description of a checkpoint, with its weights, or of an exported model.

    Args:
        models: {name: partial of a model's class}; empty for an exported model.
        overrides: name, img_size, patch_size, in_chans, num_classes, global_pool, norm_pix_loss, mean and std
            that replace those of the file. None values are ignored, and so are keywords that the model does
            not have.
        features: outputs of the encoder to compute instead of logits or reconstructions; [] for the default
            ones.
        trusted: see util.weights.checkpoint.read_checkpoint.

    Raises CheckpointError for a file that cannot be read, ValueError for overrides that contradict it.
    """
    if is_exported(path):
        return _exported_spec(path, overrides or {}, features)
    from util.weights import checkpoint

    status = os.stat(path) if os.path.exists(path) else None
    return checkpoint_spec(
        path,
        checkpoint.read_checkpoint(path, trusted=trusted),
        models,
        overrides,
        features=features,
        status=status,
    )


def _exported_spec(path, overrides, features):
    given = {name: value for name, value in overrides.items() if value is not None}
    normalization = {name: given.pop(name) for name in NORMALIZATION if name in given}
    for name in given:
        raise ValueError(
            f"{flag_names.flag(name)}: an exported model cannot be changed; remove the flag, "
            "or export the checkpoint again with it"
        )
    return ModelSpec(
        path=path,
        role=EXPORTED,
        normalization=normalization,
        features=None if features is None else tuple(features),
    )


def checkpoint_spec(
    path: Path | str,
    state: Mapping[str, Any],
    models: Models,
    overrides: Mapping[str, Any] | None = None,
    *,
    features: Sequence[str] | None = None,
    status: os.stat_result | None = None,
) -> ModelSpec:
    """Describe a checkpoint that has been read.

    Args:
        state: what util.weights.checkpoint.read_checkpoint returned.
        status: of the file before it was read.
        models, overrides, features: as for `read_model_spec`.
    """
    from util.infer import class_names
    from util.weights import checkpoint

    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    role, as_encoder, read = checkpoint.role(state["model"]), features is not None, state
    headless = as_encoder and role in ("mae", "encoder")
    if headless:
        read, given["num_classes"] = _encoder_only(state), 1
    name, sizes = _describe(path, read, models, given)
    constructor, weights, classes = models[name], read["model"], None
    if headless:
        weights = {
            **weights,
            "head.weight": np.zeros([weights["cls_token"].shape[-1], 1], "float32"),
            "head.bias": np.zeros([1], "float32"),
        }
    if not as_encoder and not is_autoencoder(name):
        classes = class_names.of_checkpoint(state, _size(constructor, sizes, "num_classes"))
    return ModelSpec(
        path=path,
        role=role,
        name=_name_by_size(constructor, sizes, models) if as_encoder else name,
        sizes=sizes,
        constructor=constructor,
        classes=classes,
        normalization=normalization_of(state, _size(constructor, sizes, "in_chans"), given),
        features=(tuple(features) or DEFAULT_FEATURES) if features is not None else None,
        state=state,
        weights=weights,
        status=status,
    )


def _encoder_only(state):
    """Return the state as if the file held only the encoder."""
    from util.weights import name_maps

    bare = {
        **state,
        "model": {
            name: value
            for name, value in state["model"].items()
            if not name.startswith(name_maps.OF_PRETRAINING)
        },
    }
    if "architecture" in state:
        bare["architecture"] = {
            key: value
            for key, value in state["architecture"].items()
            if not key.startswith(PRETRAINING_SIZES)
        }
        name = bare["architecture"].get("name", "")
        bare["architecture"]["name"] = name.removeprefix("mae_").removesuffix("_dec512d8b")
    return bare


def _describe(path, state, models, overrides):
    """Return (name, keyword arguments) of the model of a checkpoint."""
    from util.weights import architecture, checkpoint

    asked, weights = overrides.get("name"), state["model"]
    if asked is not None and asked not in models:
        raise ValueError(f"--model {asked}: unknown; choose from {', '.join(models)}")
    role = checkpoint.role(weights)
    described = dict(state.get("architecture", {}))
    if not described and role != "unknown":  # a file of another project: the shapes tell most of it
        described = architecture.described(architecture.sizes(weights), models) or {}
    found = described.pop("name", None)
    name = asked or found or ("mae_vit_base_patch16" if role == "mae" else "vit_base_patch16")
    if name not in models:
        raise ValueError(
            f"{path}: its model {name} is unknown; choose another by --model from {', '.join(models)}"
        )
    if is_autoencoder(name) != (role == "mae"):
        described = {}  # loading reports the mismatch
    _check_overrides(path, overrides, described, None if role == "unknown" else weights)
    ignored = {"num_classes", "global_pool"} if is_autoencoder(name) else {"norm_pix_loss"}
    return name, described | {
        key: value for key, value in overrides.items() if key not in {"name", *NORMALIZATION, *ignored}
    }


def _check_overrides(path, overrides, described, weights):
    if overrides.get("norm_pix_loss") and described.get("norm_pix_loss") is False:
        raise ValueError(f"--norm_pix_loss: {path} was trained without it; remove the flag")
    patch_size = overrides.get("patch_size")
    own = None if weights is None else weights["patch_embed.proj.weight"].shape[-1]
    if own is not None and patch_size not in (None, own):
        raise ValueError(
            f"--patch_size {patch_size}: {path} has patches of {own} pixels; remove the flag. "
            "To change the patch size, finetune: main_finetune.py --finetune resamples the "
            "patch embedding"
        )


def _size(constructor, sizes, name):
    """Return a keyword argument of the model, given or by default."""
    if name in sizes:
        return sizes[name]
    return inspect.signature(constructor).parameters[name].default


def _name_by_size(constructor, sizes, models):
    """Return the name of the Vision Transformer with this width and depth, "" if `models` has none."""
    wanted = [sizes.get(key, constructor.keywords[key]) for key in ("embed_dim", "depth")]
    return next(
        (
            name
            for name, made in models.items()
            if not is_autoencoder(name) and [made.keywords["embed_dim"], made.keywords["depth"]] == wanted
        ),
        "",
    )


def normalization_of(
    state: Mapping[str, Any], in_chans: int, overrides: Mapping[str, Any]
) -> dict[str, Sequence[float]]:
    """Return {"mean", "std"} for the images of a checkpoint's model, a number for each channel.

    In order of precedence: `overrides`, the checkpoint, the usual values for this number of channels.
    """
    given = {name: overrides[name] for name in NORMALIZATION if overrides.get(name)}
    check_channels(given, in_chans)
    known = {**state.get("normalization", {}), **given}
    if len(known) == len(NORMALIZATION):
        return known
    return {**dict(zip(NORMALIZATION, default_mean_std(in_chans), strict=True)), **known}


def check_channels(normalization: Mapping[str, Sequence[float]], in_chans: int) -> None:
    """Raise ValueError unless --mean and --std have one valid number for each channel."""
    for flag, values in normalization.items():
        if len(values) != in_chans:
            raise ValueError(
                f"--{flag}: expected {in_chans} numbers, one for each channel, got {len(values)}"
            )
    check_mean_std(**normalization)
