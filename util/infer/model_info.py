"""Model info: inputs and outputs of a model, as plain values. They suffice to use the model without its code.

An exported file carries it as JSON: a Paddle program in model_info.json beside it, an ONNX file in its
metadata and in a file beside it. The info of a checkpoint is made from its model. Keys:

    format_version  1
    task            "classification" or "features"
    model           name and sizes, as `architecture` in a checkpoint
    input           name, shape [images, channels, height, width] (images is null for any number), dtype,
                    channels ("RGB"; "" for 2 or more than 4), scale ("1/255" for 8-bit pixels; values of
                    more bits are not scaled), mean and std for each channel (of scaled values), resize
                    ("bicubic") and crop_share (share of the resized picture that the central crop shows)
    outputs         name -> shape
    classes         class names in the order of the labels; null for features
    temperature     divisor of the logits before the softmax
    block, norm     of features: number of the block, counted from 1, and the norm after it, see
                    util.look.encoder_features.norm_of; null for logits

Exported files also have:

    source          file and weights_sha256 of the checkpoint
    versions        of the software that made the file (for ONNX also paddle2onnx and opset)
    files           SHA256 of the program and of its weights (Paddle programs only)
    parity          largest_difference from the original model, its limit, and the number of images compared
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from util.images.crops import crop_share
from util.images.preprocess import Preprocess
from util.system.atomic_file import atomic_write

if TYPE_CHECKING:
    from paddle import nn

    from util.infer.model_spec import ModelSpec

FORMAT_VERSION = 1
TASKS = ("classification", "features")
CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}


def info_of(
    model: nn.Layer, spec: ModelSpec, outputs: Mapping[str, Sequence[int]], *, norm: str | None = None
) -> dict[str, Any]:
    """Return the info of a models_vit.VisionTransformer, for any number of images.

    Args:
        outputs: {name: shape for one image}.
        norm: see above.
    """
    height, width = model.patch_embed.img_size
    channels = model.patch_embed.in_chans
    features = spec.features is not None
    return {
        "format_version": FORMAT_VERSION,
        "task": "features" if features else "classification",
        "model": {
            "name": spec.name,
            "img_size": [height, width],
            "patch_size": model.patch_embed.patch_size[0],
            "in_chans": channels,
            "global_pool": model.global_pool,
            "num_classes": model.num_classes,
        },
        "input": {
            "name": "images",
            "shape": [None, channels, height, width],
            "dtype": "float32",
            "channels": CHANNELS.get(channels, ""),
            "scale": "1/255",
            "mean": [float(value) for value in spec.normalization["mean"]],
            "std": [float(value) for value in spec.normalization["std"]],
            "resize": "bicubic",
            "crop_share": crop_share((height, width)),
        },
        "outputs": {output: [None, *shape] for output, shape in outputs.items()},
        "classes": None if spec.classes is None else list(spec.classes),
        "temperature": 1.0,
        "block": len(model.blocks) if features else None,
        "norm": norm,
    }


def for_batch(info: dict[str, Any], batch: int | None) -> dict[str, Any]:
    """Return the info of a program for `batch` images at once, None for any number."""
    shape = info["input"]["shape"]
    return {
        **info,
        "input": {**info["input"], "shape": [batch, *shape[1:]]},
        "outputs": {name: [batch, *sizes[1:]] for name, sizes in info["outputs"].items()},
    }


def preprocess_of(info: Mapping[str, Any]) -> Preprocess:
    """Return the preprocessing that a model needs."""
    _, in_chans, *size = info["input"]["shape"]
    return Preprocess(size, in_chans, mean=info["input"]["mean"], std=info["input"]["std"])


def write_info(path: Path, info: Mapping[str, Any]) -> None:
    """Write the info as a JSON file."""
    with atomic_write(path) as f:
        f.write((json.dumps(info, indent=2, ensure_ascii=False) + "\n").encode())


def parse_info(text: str | bytes, path: Path | str) -> dict[str, Any]:
    """Parse JSON of the file `path`. Raises ValueError if it is no model info of this format version."""
    try:
        info = json.loads(text)
        fits = info["task"] in TASKS and len(info["input"]["shape"]) == 4 and len(info["outputs"]) > 0
        if info["task"] == "classification":
            fits = fits and len(info["classes"]) == info["outputs"]["logits"][1]
            fits = fits and all(isinstance(name, str) for name in info["classes"])
            fits = fits and 0 < float(info["temperature"])
        channels = info["input"]["shape"][1]
        fits = fits and len(info["input"]["mean"]) == len(info["input"]["std"]) == channels
    except (ValueError, TypeError, LookupError):
        fits = False
    if not fits:
        raise ValueError(f"{path}: not a model info of tools/export.py; export the model again")
    if info["format_version"] != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version {info['format_version']} is unknown, expected "
            f"{FORMAT_VERSION}; export the model again, or use the version of this project that wrote it"
        )
    return info
