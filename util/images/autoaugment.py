"""AutoAugment (arXiv 1805.09501) on PIL images, as in timm 0.3.2.

Policies are those of the paper, and EfficientNet's. A policy has 25 sub-policies of two operations. An
operation is (name, probability, level), where the level is None if the operation has no magnitude.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

from util.images.randaugment import (
    IMAGENET_FILL,
    PLAIN,
    apply_operation,
    bits,
    bits_increasing,
    draw_level,
    few_bits,
)

# Policies of the paper's appendix for ImageNet, CIFAR-10 and SVHN.
IMAGENET = (
    (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, None)),
    (("Equalize", 0.8, None), ("Equalize", 0.6, None)),
    (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
    (("Equalize", 0.4, None), ("Solarize", 0.2, 4)),
    (("Equalize", 0.4, None), ("Rotate", 0.8, 8)),
    (("Solarize", 0.6, 3), ("Equalize", 0.6, None)),
    (("Posterize", 0.8, 5), ("Equalize", 1.0, None)),
    (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
    (("Equalize", 0.6, None), ("Posterize", 0.4, 6)),
    (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
    (("Rotate", 0.4, 9), ("Equalize", 0.6, None)),
    (("Equalize", 0.0, None), ("Equalize", 0.8, None)),
    (("Invert", 0.6, None), ("Equalize", 1.0, None)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
    (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
    (("Sharpness", 0.4, 7), ("Invert", 0.6, None)),
    (("ShearX", 0.6, 5), ("Equalize", 1.0, None)),
    (("Color", 0.4, 0), ("Equalize", 0.6, None)),
    (("Equalize", 0.4, None), ("Solarize", 0.2, 4)),
    (("Solarize", 0.6, 5), ("AutoContrast", 0.6, None)),
    (("Invert", 0.6, None), ("Equalize", 1.0, None)),
    (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
    (("Equalize", 0.8, None), ("Equalize", 0.6, None)),
)
CIFAR10 = (
    (("Invert", 0.1, None), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, None), ("Equalize", 0.9, None)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, None), ("Equalize", 0.5, None)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, None), ("AutoContrast", 0.4, None)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, None)),
    (("Equalize", 0.2, None), ("AutoContrast", 0.6, None)),
    (("Equalize", 0.2, None), ("Equalize", 0.6, None)),
    (("Color", 0.9, 9), ("Equalize", 0.6, None)),
    (("AutoContrast", 0.8, None), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, None)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, None), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, None), ("Invert", 0.1, None)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, None)),
)
SVHN = (
    (("ShearX", 0.9, 4), ("Invert", 0.2, None)),
    (("ShearY", 0.9, 8), ("Invert", 0.7, None)),
    (("Equalize", 0.6, None), ("Solarize", 0.6, 6)),
    (("Invert", 0.9, None), ("Equalize", 0.6, None)),
    (("Equalize", 0.6, None), ("Rotate", 0.9, 3)),
    (("ShearX", 0.9, 4), ("AutoContrast", 0.8, None)),
    (("ShearY", 0.9, 8), ("Invert", 0.4, None)),
    (("ShearY", 0.9, 5), ("Solarize", 0.2, 6)),
    (("Invert", 0.9, None), ("AutoContrast", 0.8, None)),
    (("Equalize", 0.6, None), ("Rotate", 0.9, 3)),
    (("ShearX", 0.9, 4), ("Solarize", 0.3, 3)),
    (("ShearY", 0.8, 8), ("Invert", 0.7, None)),
    (("Equalize", 0.9, None), ("TranslateY", 0.6, 6)),
    (("Invert", 0.9, None), ("Equalize", 0.6, None)),
    (("Contrast", 0.3, 3), ("Rotate", 0.8, 4)),
    (("Invert", 0.8, None), ("TranslateY", 0.0, 2)),
    (("ShearY", 0.7, 6), ("Solarize", 0.4, 8)),
    (("Invert", 0.6, None), ("Rotate", 0.8, 4)),
    (("ShearY", 0.3, 7), ("TranslateX", 0.9, 3)),
    (("ShearX", 0.1, 6), ("Invert", 0.6, None)),
    (("Solarize", 0.7, 2), ("TranslateY", 0.6, 7)),
    (("ShearY", 0.8, 4), ("Invert", 0.8, None)),
    (("ShearX", 0.7, 9), ("TranslateY", 0.8, 3)),
    (("ShearY", 0.8, 5), ("AutoContrast", 0.7, None)),
    (("ShearX", 0.7, 2), ("Invert", 0.1, None)),
)
# EfficientNet's policy for ImageNet (its code for TPUs), which timm calls v0.
EFFICIENTNET = (
    (("Equalize", 0.8, None), ("ShearY", 0.8, 4)),
    (("Color", 0.4, 9), ("Equalize", 0.6, None)),
    (("Color", 0.4, 1), ("Rotate", 0.6, 8)),
    (("Solarize", 0.8, 3), ("Equalize", 0.4, None)),
    (("Solarize", 0.4, 2), ("Solarize", 0.6, 2)),
    (("Color", 0.2, 0), ("Equalize", 0.8, None)),
    (("Equalize", 0.4, None), ("SolarizeAdd", 0.8, 3)),
    (("ShearX", 0.2, 9), ("Rotate", 0.6, 8)),
    (("Color", 0.6, 1), ("Equalize", 1.0, None)),
    (("Invert", 0.4, None), ("Rotate", 0.6, 0)),
    (("Equalize", 1.0, None), ("ShearY", 0.6, 3)),
    (("Color", 0.4, 7), ("Equalize", 0.6, None)),
    (("Posterize", 0.4, 6), ("AutoContrast", 0.4, None)),
    (("Solarize", 0.6, 8), ("Color", 0.6, 9)),
    (("Solarize", 0.2, 4), ("Rotate", 0.8, 9)),
    (("Rotate", 1.0, 7), ("TranslateY", 0.8, 9)),
    (("ShearX", 0.0, 0), ("Solarize", 0.8, 4)),
    (("ShearY", 0.8, 0), ("Color", 0.6, 4)),
    (("Color", 1.0, 0), ("Rotate", 0.6, 2)),
    (("Equalize", 0.8, None), ("Equalize", 0.0, None)),
    (("Equalize", 1.0, None), ("AutoContrast", 0.6, None)),
    (("ShearY", 0.4, 7), ("SolarizeAdd", 0.6, 7)),
    (("Posterize", 0.8, 2), ("Solarize", 0.6, 10)),
    (("Solarize", 0.6, 8), ("Equalize", 0.6, None)),
    (("Color", 0.8, 6), ("Rotate", 0.4, 5)),
)

# {name: (policy, function from the level to the number of bits that Posterize keeps)}. Names with the suffix
# r differ only in that function.
POLICIES = {
    "original": (IMAGENET, bits),
    "originalr": (IMAGENET, bits_increasing),
    "v0": (EFFICIENTNET, few_bits),
    "v0r": (EFFICIENTNET, bits_increasing),
    "cifar10": (CIFAR10, bits),
    "svhn": (SVHN, bits),
}


class AutoAugment:
    """Apply a random sub-policy: its two operations in order, each with its own probability and level.

    Magnitudes are those of timm 0.3.2: level 10 is the end of the paper's range. Geometric operations get a
    random sign. Translations are relative to the side: 0.45 stands for the paper's 150 of 331 pixels.

    Args:
        name: key of POLICIES.
        magnitude_std: standard deviation of the level, which is then clipped to 0-10.
        fill: one integer (0-255) for each channel, with which geometric operations fill new pixels.
    """

    def __init__(self, name: str, magnitude_std: float = 0.0, *, fill: Sequence[int] = IMAGENET_FILL) -> None:
        self.policy, posterize = POLICIES[name]
        self.magnitudes = {**PLAIN, "Posterize": posterize}
        self.magnitude_std = magnitude_std
        self.fill = fill

    @classmethod
    def parse(cls, text: str, *, fill: Sequence[int] = IMAGENET_FILL) -> AutoAugment:
        """Parse timm's notation, such as "original" or "original-mstd0.5". Raises ValueError if invalid."""
        match = re.fullmatch(r"([a-z]\w*)(?:-mstd(\d+\.?\d*|\.\d+))?", text)
        if match is None or match[1] not in POLICIES:
            raise ValueError(
                f"--aa {text}: expected RandAugment, such as rand-m9-mstd0.5-inc1, or a policy "
                f"of AutoAugment ({', '.join(POLICIES)}), optionally followed by -mstd0.5 or "
                "another number; '' for none"
            )
        return cls(match[1], float(match[2] or 0), fill=fill)

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float | None]]:
        """Draw the operations for one image. Returns a list of (name, level), in order."""

        def draw(name, level):
            if level is None:
                return None
            return draw_level(level, self.magnitude_std, self.magnitudes[name], rng)

        sub_policy = self.policy[rng.integers(len(self.policy))]
        return [(name, draw(name, level)) for name, prob, level in sub_policy if rng.random() < prob]

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Augment a PIL image of mode L, RGB or RGBA; size and mode stay the same."""
        for name, level in self.draw(rng):
            magnitude = self.magnitudes[name](level)  # type: ignore[arg-type]  # None for no_magnitude
            image = apply_operation(image, name, magnitude, self.fill)
        return image
