"""Colour augmentation of training images: RandAugment, AutoAugment (--aa) or jitter (--color_jitter)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance

from util.images.autoaugment import AutoAugment
from util.images.bands import MULTIBAND, ImageLike
from util.images.randaugment import RandAugment

JITTERED = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


class Augmentation:
    """Colour augmentation of a cropped and resized image: (image, rng) -> image of the same size and mode.

    Args:
        aa: RandAugment or AutoAugment in timm's notation (--aa), which fills with the mean; "" for none.
        color_jitter: strength for brightness, contrast and saturation (--color_jitter), or None. `aa`
            overrides it with a warning, as in timm.
        mean: mean of each channel of images in [0, 1].

    Raises ValueError for a wrong value, and for images that do not have 1, 3 or 4 channels of 8 bits.
    """

    def __init__(self, aa: str, color_jitter: float | None, *, mean: Sequence[float]) -> None:
        self.channels = len(mean)
        self.flag = ""
        self.change: Callable[[Image.Image, np.random.Generator], Image.Image] | None = None
        if color_jitter is not None and not 0 <= color_jitter < math.inf:
            raise ValueError(f"--color_jitter {color_jitter}: expected a number of 0 or more")
        if aa:
            if color_jitter is not None:
                warnings.warn(
                    f"--color_jitter {color_jitter}: has no effect beside --aa {aa}; pass --aa '' to use it",
                    stacklevel=2,
                )
            policy = RandAugment if aa.partition("-")[0] == "rand" else AutoAugment
            fill = tuple(min(255, round(255 * value)) for value in mean)
            self.flag, self.change = f"--aa {aa}", policy.parse(aa, fill=fill)
        elif color_jitter is not None:
            self.flag, self.change = f"--color_jitter {color_jitter}", ColorJitter(color_jitter)
        if self.change and self.channels not in (1, 3, 4):
            raise ValueError(self._refusal(f"--in_chans is {self.channels}"))

    def __call__(self, image: ImageLike, rng: np.random.Generator) -> ImageLike:
        """Augment one image."""
        if self.change is None:
            return image
        if image.mode == MULTIBAND:
            raise ValueError(
                self._refusal("an image has more than 8 bits per channel, or 4 channels without alpha")
            )
        return self.change(image, rng)  # type: ignore[arg-type]  # all others are PIL images

    def _refusal(self, reason):
        fix = "pass --aa ''" if self.flag.startswith("--aa") else "leave it out"
        return f"{self.flag}: needs 8-bit images of 1, 3 or 4 channels, and {reason}; {fix}"


class ColorJitter:
    """Change of brightness, contrast and saturation in random order, by factors within 1 ± strength."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def draw(self, rng: np.random.Generator) -> list[tuple[type, float]]:
        """Draw the order and the factors, which are at least 0: list of (PIL enhancer, factor)."""
        low, high = max(0.0, 1 - self.strength), 1 + self.strength
        return [(JITTERED[index], rng.uniform(low, high)) for index in rng.permutation(len(JITTERED))]

    @staticmethod
    def apply(image: Image.Image, drawn: Sequence[tuple[type, float]]) -> Image.Image:
        """Apply what `draw` returned."""
        for enhancer, factor in drawn:
            image = enhancer(image).enhance(factor)
        return image

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Jitter one image."""
        return self.apply(image, self.draw(rng))
