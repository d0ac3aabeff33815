"""Settings and helpers that the makers of golden vectors share."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).resolve().parents[3] / "tests" / "golden"
SEED = 20211111
MAE: dict[str, Any] = dict(
    img_size=24,
    patch_size=4,
    in_chans=3,
    embed_dim=24,
    depth=2,
    num_heads=3,
    decoder_embed_dim=16,
    decoder_depth=2,
    decoder_num_heads=2,
)
VIT: dict[str, Any] = dict(
    img_size=24, patch_size=4, in_chans=3, num_classes=10, embed_dim=24, depth=3, num_heads=3
)


def write(name: str, arrays: Mapping[str, Any], **settings: Any) -> None:
    """Write tests/golden/NAME.npz: the arrays, and as JSON the versions and the settings of a test."""
    versions = {
        package: version(package).split("+")[0]
        for package in ("torch", "torchvision", "timm", "transformers", "numpy", "pillow")
    }
    meta = json.dumps({"versions": versions, "seed": SEED, **settings})
    np.savez_compressed(FOLDER / f"{name}.npz", meta=np.array(meta), **arrays)


def generator(name: str) -> np.random.Generator:
    """Returns the random generator of one file, so that changing one file leaves the others as they are."""
    return np.random.default_rng([SEED, *name.encode()])


def float32(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy().astype(np.float32)
