"""Images with any number of channels, and their conversion from and to arrays.

PIL has image modes for 1 to 4 channels of 8 bits, but none for the 13 channels of a satellite or for two
float32 channels. `Bands` holds such images, with the methods of a PIL image that transforms use.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from PIL import Image

MULTIBAND = "multiband"  # the `mode` of Bands


class ImageLike(Protocol):
    """Interface that transforms use, which PIL images and Bands share."""

    @property
    def mode(self) -> str: ...

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...

    @property
    def size(self) -> tuple[int, int]: ...

    def crop(self, box: tuple[float, float, float, float]) -> ImageLike: ...

    def resize(self, size: tuple[int, int], resample: int) -> ImageLike: ...

    def transpose(self, method: Image.Transpose) -> ImageLike: ...

    def split(self) -> Sequence[Image.Image]: ...


class Bands:
    """Image with any number of channels, each stored as a separate greyscale PIL image.

    Pillow crops, flips and resizes each channel on its own. None of them is an alpha channel, by which Pillow
    would multiply the others before resizing.

    Args:
        bands: PIL images of the same size, all of mode L (8 bits) or all of mode F (float32).
    """

    mode = MULTIBAND

    def __init__(self, bands: Iterable[Image.Image]) -> None:
        self.bands = tuple(bands)
        self.size = self.width, self.height = self.bands[0].size

    def split(self) -> tuple[Image.Image, ...]:
        """Return the channels as greyscale images."""
        return self.bands

    def crop(self, box: tuple[float, float, float, float]) -> Bands:
        """Crop every channel to `box`, PIL's (left, top, right, bottom)."""
        return Bands(band.crop(box) for band in self.bands)

    def transpose(self, method: Image.Transpose) -> Bands:
        """Flip or rotate every channel."""
        return Bands(band.transpose(method) for band in self.bands)

    def resize(self, size: tuple[int, int], resample: int) -> Bands:
        """Resize every channel to `size` (width, height)."""
        return Bands(band.resize(size, resample) for band in self.bands)


def channels_last(array: np.ndarray, in_chans: int) -> np.ndarray:
    """Convert [H, W, C], [C, H, W] or, for one channel, [H, W] to [H, W, C].

    C is the axis of length `in_chans`. Raises ValueError if neither the first nor the last axis has this
    length, or both do.
    """
    shape = list(array.shape)
    if array.ndim == 2 and in_chans == 1:
        return array[:, :, None]
    if array.ndim == 3 and shape[0] == shape[2] == in_chans:
        raise ValueError(
            f"its shape is {shape}: the first and the last axis could both be the {in_chans} channels"
        )
    if array.ndim == 3 and shape[2] == in_chans:
        return array
    if array.ndim == 3 and shape[0] == in_chans:
        return array.transpose(1, 2, 0)
    raise ValueError(
        f"its shape is {shape}, and --in_chans {in_chans} expects [height, width, {in_chans}] "
        f"or [{in_chans}, height, width]"
    )


def image_from_array(array: np.ndarray) -> Image.Image | Bands:
    """Make an image of an array [H, W, C].

    uint8 stays uint8; other numbers become float32 and keep their values. Returns a PIL image of mode L or
    RGB for one or three 8-bit channels, else Bands. Raises ValueError for an array without pixels, with
    anything but real numbers, or with NaN or infinity.
    """
    if array.dtype.kind not in "iuf":
        raise ValueError(f"it holds {array.dtype}, not whole or floating-point numbers")
    if 0 in array.shape:
        raise ValueError(f"its shape is {list(array.shape)}: it has no pixels")
    if array.dtype != np.uint8:
        with np.errstate(over="ignore", invalid="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ValueError(
                "some of its values are NaN, infinite or too large for float32; replace them "
                "(numpy.nan_to_num)"
            )
    elif array.shape[2] in (1, 3):
        return Image.fromarray(np.ascontiguousarray(array[:, :, 0] if array.shape[2] == 1 else array))
    return Bands(
        Image.fromarray(np.ascontiguousarray(array[:, :, channel])) for channel in range(array.shape[2])
    )


def array_from_image(image: ImageLike) -> np.ndarray:
    """Return the pixels [C, H, W] of an image, uint8 or float32."""
    return np.stack([np.asarray(band) for band in image.split()])
