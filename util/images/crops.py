"""Crop boxes and sizes of training and evaluation, and the random flip.

Sizes of crops are (height, width); boxes are PIL's (left, top, right, bottom). Ratios are width / height.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

from util.images.bands import ImageLike

Box = tuple[int, int, int, int]

CROP_RATIO = (3 / 4, 4 / 3)  # of random crops, log-uniform
MAX_TRIES = 10  # attempts to draw a crop that fits, before the central crop is taken


def center_box(width: int, height: int, size: tuple[int, int]) -> Box:
    """Return the central box of `size` in an image of width x height, like torchvision's CenterCrop."""
    crop_height, crop_width = size
    # round() rounds halves to even, as torchvision does.
    left = round((width - crop_width) / 2)
    top = round((height - crop_height) / 2)
    return left, top, left + crop_width, top + crop_height


def random_box(width: int, height: int, size: tuple[int, int], rng: np.random.Generator) -> Box:
    """Draw a box of `size` at a uniformly random position in an image of width x height."""
    crop_height, crop_width = size
    top = int(rng.integers(0, height - crop_height + 1))
    left = int(rng.integers(0, width - crop_width + 1))
    return left, top, left + crop_width, top + crop_height


def random_resized_crop_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float] = CROP_RATIO,
) -> Box:
    """Draw a box that covers a share `scale` of the area, with an aspect `ratio` (arXiv 1409.4842).

    torchvision's RandomResizedCrop: ten tries, then the largest central box within `ratio`.
    """
    for _ in range(MAX_TRIES):
        crop_width, crop_height = _draw_crop_size(width, height, rng, scale, ratio)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            return random_box(width, height, (crop_height, crop_width), rng)
    crop_width, crop_height = width, height
    if width / height < ratio[0]:
        crop_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        crop_width = round(height * ratio[1])
    left = (width - crop_width) // 2
    top = (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def clamped_crop_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float] = CROP_RATIO,
) -> Box:
    """Draw a box like `random_resized_crop_box`, but with a single try, clamped to the image.

    The official linear probing does the same. The box can therefore cover less than `scale`.
    """
    crop_width, crop_height = _draw_crop_size(width, height, rng, scale, ratio)
    # At least one pixel, because the size can round to 0 on images of 1 to 3 pixels.
    size = max(1, min(crop_height, height)), max(1, min(crop_width, width))
    return random_box(width, height, size, rng)


def _draw_crop_size(width, height, rng, scale, ratio):
    area = rng.uniform(*scale) * (width * height)
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    return round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))


def random_flip(image: ImageLike, rng: np.random.Generator) -> ImageLike:
    """Flip an image horizontally with probability 1/2."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def crop_share(img_size: tuple[int, int]) -> float:
    """Return the share of each side of the resized image that an evaluation crop of `img_size` covers."""
    return 224 / 256 if max(img_size) <= 224 else 1.0


def eval_size(width: int, height: int, img_size: tuple[int, int]) -> tuple[int, int]:
    """Return the (width, height) to which evaluation resizes an image before the central crop.

    It is the smallest size with the image's aspect ratio that covers img_size / crop_share. For a square
    img_size this is torchvision's Resize of the short side, with the same rounding.
    """
    target_height, target_width = (int(side / crop_share(img_size)) for side in img_size)
    if target_width * height >= target_height * width:
        return target_width, target_width * height // width
    return target_height * width // height, target_height
