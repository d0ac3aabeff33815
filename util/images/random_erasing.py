"""Random erasing (arXiv 1708.04896) of normalised images, as in the official fine-tuning (timm 0.3.2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import paddle

Box = tuple[int, int, int, int]  # top, left, bottom, right
Erased = tuple[Box, np.ndarray]  # a box and its new content
Images = TypeVar("Images", np.ndarray, "paddle.Tensor")

MODES = ("const", "rand", "pixel")

AREA = (0.02, 1 / 3)  # share of an image that its boxes cover together
ASPECT = (0.3, 1 / 0.3)  # height / width of a box
MAX_TRIES = 10  # attempts to draw a box that fits, before it is left out


class RandomErasing:
    """Draw boxes and their new content for normalised images.

    Args:
        prob: probability of erasing anything in an image (--reprob).
        mode: content of a box (--remode): "const" is zero, the mean colour; "rand" one N(0, 1) colour for
            each box; "pixel" N(0, 1) noise for each pixel.
        max_count: an image gets 1 to max_count boxes, which share the area of one (--recount).

    Raises ValueError for a wrong value.
    """

    def __init__(self, prob: float, mode: str = "pixel", max_count: int = 1) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"--reprob {prob}: expected a probability from 0 to 1")
        if mode not in MODES:
            raise ValueError(f"--remode {mode}: unknown; choose from {', '.join(MODES)}")
        if max_count < 1:
            raise ValueError(f"--recount {max_count}: must be at least 1; --reprob 0 switches erasing off")
        self.prob = prob
        self.mode = mode
        self.max_count = max_count

    def draw(self, shape: Sequence[int], rng: np.random.Generator) -> list[Erased]:
        """Draw the boxes and their new content for an image of `shape` (C, H, W).

        Returns a list of ((top, left, bottom, right), values). The values broadcast to
        [C, bottom - top, right - left].
        """
        channels, height, width = shape
        if rng.random() >= self.prob:
            return []
        count = int(rng.integers(1, self.max_count + 1))
        drawn = []
        for _ in range(count):
            box = draw_box(height, width, rng, count=count)
            if box is None:
                continue
            top, left, bottom, right = box
            if self.mode == "pixel":
                values = rng.standard_normal((channels, bottom - top, right - left), dtype=np.float32)
            elif self.mode == "rand":
                values = rng.standard_normal((channels, 1, 1), dtype=np.float32)
            else:
                values = np.zeros((channels, 1, 1), np.float32)
            drawn.append((box, values))
        return drawn


def draw_box(height: int, width: int, rng: np.random.Generator, *, count: int) -> Box | None:
    """Draw one of `count` boxes in an image of height x width. Returns None if no try fits."""
    for _ in range(MAX_TRIES):
        area = rng.uniform(*AREA) * (height * width) / count
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        box_height = round(math.sqrt(area * aspect))
        box_width = round(math.sqrt(area / aspect))
        if box_height < height and box_width < width:
            top = int(rng.integers(0, height - box_height + 1))
            left = int(rng.integers(0, width - box_width + 1))
            return top, left, top + box_height, left + box_width
    return None


def fill_boxes(images: Images, erased: Sequence[Sequence[Erased]]) -> Images:
    """Fill the boxes of RandomErasing.draw in place, and return the images.

    Args:
        images: float32 [N, C, H, W], a numpy array or a Paddle tensor.
        erased: the boxes of each image.
    """
    for number, drawn in enumerate(erased):
        for (top, left, bottom, right), values in drawn:
            images[number, :, top:bottom, left:right] = values
    return images
