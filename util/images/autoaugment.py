"""AutoAugment (arXiv 1805.09501) on PIL images: the policies that the paper found, and EfficientNet's.

A policy has 25 sub-policies, each two operations (name, probability, level), with None for an operation that has no
magnitude.
"""
import re

from util.images.augment_operations import (
    IMAGENET_FILL,
    PLAIN,
    apply_operation,
    bits,
    bits_increasing,
    draw_level,
    few_bits,
)

# The paper's appendix: tables of the policies for ImageNet, CIFAR-10 and SVHN.
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
# EfficientNet's for ImageNet (its code for TPUs), which timm calls v0.
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

# {name: (policy, how many bits Posterize keeps)}; the names that end in r differ from those that do not by that alone.
POLICIES = {"original": (IMAGENET, bits), "originalr": (IMAGENET, bits_increasing),
            "v0": (EFFICIENTNET, few_bits), "v0r": (EFFICIENTNET, bits_increasing),
            "cifar10": (CIFAR10, bits), "svhn": (SVHN, bits)}


class AutoAugment:
    """One of a policy's sub-policies: its two operations in order, each with its own probability and level.

    Magnitudes are timm 0.3.2's: a level of 10 is the end of the paper's range. Geometric operations go either way.
    Translations are by a part of the side, 0.45 for 150 of the paper's 331 pixels.

    Args:
        name: key of POLICIES.
        magnitude_std: deviation of the normal distribution that a level is drawn from, and then clipped to 0-10.
        fill: one whole number (0-255) a channel, for what a geometric operation moves into the picture.
    """

    def __init__(self, name, magnitude_std=0.0, *, fill=IMAGENET_FILL):
        self.policy, posterize = POLICIES[name]
        self.magnitudes = {**PLAIN, "Posterize": posterize}
        self.magnitude_std = magnitude_std
        self.fill = fill

    @classmethod
    def parse(cls, text, *, fill=IMAGENET_FILL):
        """From timm's notation "original-mstd0.5", of which the second part may be missing; ValueError otherwise."""
        match = re.fullmatch(r"([a-z]\w*)(?:-mstd(\d+\.?\d*|\.\d+))?", text)
        if match is None or match[1] not in POLICIES:
            raise ValueError(f"--aa {text!r}: expected RandAugment, such as rand-m9-mstd0.5-inc1, or a policy of "
                             f"AutoAugment, {', '.join(POLICIES)}, with -mstd0.5 or another number behind it or "
                             "nothing; '' for none.")
        return cls(match[1], float(match[2] or 0), fill=fill)

    def draw(self, rng):
        """The operations to apply to one image, in order: list of (name, level)."""
        return [(name, None if level is None else draw_level(level, self.magnitude_std, self.magnitudes[name], rng))
                for name, prob, level in self.policy[rng.integers(len(self.policy))] if rng.random() < prob]

    def __call__(self, image, rng):
        """PIL image of mode L, RGB or RGBA -> image of the same size and mode."""
        for name, level in self.draw(rng):
            image = apply_operation(image, name, self.magnitudes[name](level), self.fill)
        return image
