"""Preprocessing of a single image, in any form, to the input of a model, as in evaluation."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from util.images import bands, decode
from util.images.transforms import EvalTransform

MAX_ASPECT = 100  # long side / short side; a longer image, resized by its short side, could take gigabytes

Picture = Path | str | bytes | BinaryIO | Image.Image | np.ndarray


class Preprocess:
    """Decode, resize, crop and normalise an image -> float32 [C, height, width].

    An image is a path, the bytes of a file, a file opened for reading in binary, a PIL image, or a uint8
    array [H, W], [H, W, 1] (grey), [H, W, 3] (RGB) or [H, W, 4] (RGBA). For other numbers of channels, arrays
    may have any real type, see util.images.bands.

    Args:
        img_size: (height, width).
        mean, std: one number for each channel.
    """

    def __init__(
        self, img_size: Sequence[int], in_chans: int, *, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        height, width = img_size
        self.img_size, self.in_chans = (height, width), in_chans
        self.mean, self.std = list(mean), list(std)
        self.transform = EvalTransform(self.img_size, mean=mean, std=std)

    def __call__(self, picture: Picture, name: object = None) -> np.ndarray:
        """Return the model input [C, height, width].

        Raises UnreadableImage, with `name` as the name of the image. Raises ValueError for an array that is
        no image.
        """
        return self.transform.normalized(self.decode(picture, name))

    def decode(self, picture: Picture, name: object = None) -> Image.Image | bands.Bands:
        """Decode an image without resizing it. Raises as a call does."""
        image = self._decode(picture, name)
        if max(image.size) > MAX_ASPECT * min(image.size):
            known = picture if isinstance(picture, (str, os.PathLike)) else getattr(picture, "filename", "")
            raise decode.UnreadableImage(
                name or known or "picture",
                (
                    f"{image.width} x {image.height} pixels, one side more than {MAX_ASPECT} times the other"
                    "; the crop would show next to nothing"
                ),
            )
        return image

    def _decode(self, picture, name):
        if isinstance(picture, np.ndarray):
            if self.in_chans not in (1, 3, 4):
                return _multiband_image(picture, self.in_chans)
            picture = _pil_image(picture)
        if isinstance(picture, Image.Image):
            return decode.from_pil(picture, in_chans=self.in_chans, name=name)
        if not (isinstance(picture, (bytes, str, os.PathLike)) or hasattr(picture, "read")):
            raise ValueError(
                "expected a path, the bytes of a file, an open binary file, a PIL image or a "
                f"uint8 array, got {type(picture).__name__}"
            )
        return decode.decode(picture, in_chans=self.in_chans, name=name)


def _pil_image(pixels):
    has_channels = pixels.ndim in (2, 3) and pixels.shape[2:] in ((), (1,), (3,), (4,))
    if pixels.dtype != np.uint8 or not has_channels:
        raise ValueError(
            "an array must be uint8 [height, width] (grey), [height, width, 1], "
            "[height, width, 3] (RGB) or [height, width, 4] (RGBA), "
            f"got {pixels.dtype} {list(pixels.shape)}"
        )
    if 0 in pixels.shape:
        raise ValueError(f"an array of the shape {list(pixels.shape)} has no pixels")
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels)


def _multiband_image(array, in_chans):
    try:
        return bands.image_from_array(bands.channels_last(array, in_chans))
    except ValueError as error:
        raise ValueError(f"an array cannot be taken as a picture: {error}") from error
