"""Normalisation: pixel values minus the mean, divided by the standard deviation of each channel.

8-bit pixels are first scaled to [0, 1]. All other pixels are float32 and keep their values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import paddle

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in PIL's conversion from RGB to L

UNIT_SCALE = (-1, 2)  # bounds for values from 0 to 1, with room for the overshoot of the bicubic filter


def check_mean_std(*, mean: Sequence[float] = (), std: Sequence[float] = ()) -> None:
    """Raise ValueError unless all means are finite and all standard deviations finite and positive."""
    if not all(map(math.isfinite, mean)):
        raise ValueError(f"--mean {' '.join(map(str, mean))}: expected numbers")
    if not all(math.isfinite(value) and value > 0 for value in std):
        raise ValueError(f"--std {' '.join(map(str, std))}: expected numbers above 0")


def default_mean_std(in_chans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the default mean and std of images in [0, 1] with 1 (L), 3 (RGB) or 4 (RGBA) channels.

    RGB has those of ImageNet. L has their luma: exact for the mean, and for the standard deviation if the
    three channels are fully correlated. Alpha has 0.5 and 0.5, so that it spans -1 to 1. Raises ValueError
    for other numbers of channels.
    """
    if in_chans == 1:
        mean, std = (
            sum(weight * value for weight, value in zip(LUMA, values, strict=True))
            for values in (IMAGENET_MEAN, IMAGENET_STD)
        )
        return (mean,), (std,)
    if in_chans == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    if in_chans == 4:
        return (*IMAGENET_MEAN, 0.5), (*IMAGENET_STD, 0.5)
    if in_chans < 1:
        raise ValueError(f"--in_chans {in_chans}: an image has at least 1 channel")
    raise ValueError(
        f"--in_chans {in_chans}: there are default mean and std values for 1, 3 and 4 channels "
        f"only; pass --mean and --std, {in_chans} numbers each (tools/channel_statistics.py "
        "computes them)"
    )


def has_unit_scale(values: np.ndarray) -> bool:
    """Return True if values lie in [0, 1] up to overshoot. Counts, reflectances and the like do not."""
    low, high = UNIT_SCALE
    return bool(low <= values.min() and values.max() <= high)


class Normalize:
    """Normalisation of uint8 or float32 pixels [..., C, H, W] to float32 of the same shape.

    A call takes a numpy array, `tensor` a Paddle tensor on its device. Both give bit-identical results.

    Args:
        mean, std: one number for each channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = np.asarray(mean, np.float32).reshape(-1, 1, 1)
        self.std = np.asarray(std, np.float32).reshape(-1, 1, 1)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Normalise an array."""
        values = pixels.astype(np.float32)
        if pixels.dtype == np.uint8:
            values /= 255
        values -= self.mean
        values /= self.std
        return values

    def tensor(self, pixels: paddle.Tensor) -> paddle.Tensor:
        """Normalise a tensor on its device."""
        import paddle  # not at module level: ONNX inference runs without Paddle

        values = pixels.astype("float32")
        if pixels.dtype == paddle.uint8:
            # A tensor instead of the scalar 255, because Paddle 2.6 would multiply by the rounded 1 / 255.
            values = values / paddle.full([1], 255.0)
        return (values - paddle.to_tensor(self.mean)) / paddle.to_tensor(self.std)
