"""RandAugment (arXiv 1909.13719) on PIL images, as in timm 0.3.2.

AutoAugment (util.images.autoaugment) uses the same operations. An operation is drawn with a level from 0 to
10, which a table maps to a magnitude, such as degrees. Operations have timm's names without the suffixes: the
table in use decides between the variants of Posterize, Solarize and the four enhancements.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MAX_LEVEL = 10
PROB = 0.5  # probability of applying an operation that was drawn
IMAGENET_FILL = (124, 116, 104)  # 255 * the ImageNet mean


# Geometric operations: (image, magnitude, fill) -> image of the same size, by bicubic interpolation.


def rotate(image: Image.Image, degrees: float, fill: Sequence[int]) -> Image.Image:
    """Rotate counter-clockwise about the centre."""
    return image.rotate(degrees, resample=Image.Resampling.BICUBIC, fillcolor=tuple(fill))


def shear_x(image: Image.Image, slope: float, fill: Sequence[int]) -> Image.Image:
    """Shift each row to the left by `slope` times its distance from the top."""
    return _affine(image, (1, slope, 0, 0, 1, 0), fill)


def shear_y(image: Image.Image, slope: float, fill: Sequence[int]) -> Image.Image:
    """Shift each column up by `slope` times its distance from the left."""
    return _affine(image, (1, 0, 0, slope, 1, 0), fill)


def translate_x(image: Image.Image, share: float, fill: Sequence[int]) -> Image.Image:
    """Shift to the left by a share of the width."""
    return _affine(image, (1, 0, share * image.width, 0, 1, 0), fill)


def translate_y(image: Image.Image, share: float, fill: Sequence[int]) -> Image.Image:
    """Shift up by a share of the height."""
    return _affine(image, (1, 0, 0, 0, 1, share * image.height), fill)


def _affine(image, matrix, fill):
    """Apply `matrix` (a, b, c, d, e, f): the pixel at (x, y) comes from (a x + b y + c, d x + e y + f)."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC, fillcolor=tuple(fill)
    )


# Colour operations: (image of mode L or RGB, magnitude) -> image. The first three ignore the magnitude.


def auto_contrast(image: Image.Image, _: object) -> Image.Image:
    """Stretch each channel to 0-255."""
    return ImageOps.autocontrast(image)


def equalize(image: Image.Image, _: object) -> Image.Image:
    """Equalize the histogram of each channel."""
    return ImageOps.equalize(image)


def invert(image: Image.Image, _: object) -> Image.Image:
    """Invert every value."""
    return ImageOps.invert(image)


def posterize(image: Image.Image, bits: int) -> Image.Image:
    """Keep the highest `bits` bits of each value. 0 bits give a black image."""
    dropped = 8 - bits
    # Not ImageOps.posterize, which in Pillow 13 refuses to drop all 8 bits.
    return _map_values(image, [value >> dropped << dropped for value in range(256)])


def solarize(image: Image.Image, threshold: int) -> Image.Image:
    """Invert the values from `threshold` on."""
    return ImageOps.solarize(image, threshold)


def solarize_add(image: Image.Image, added: int) -> Image.Image:
    """Add `added`, at most 128, to the values below 128."""
    return _map_values(image, [value + added if value < 128 else value for value in range(256)])


def _map_values(image, table):
    """Map the values of every channel by a `table` of 256 values."""
    return image.point(table * len(image.getbands()))


def color(image: Image.Image, factor: float) -> Image.Image:
    """Multiply the saturation by `factor`."""
    return ImageEnhance.Color(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Multiply the distance from the mean grey by `factor`."""
    return ImageEnhance.Contrast(image).enhance(factor)


def brightness(image: Image.Image, factor: float) -> Image.Image:
    """Multiply the values by `factor`."""
    return ImageEnhance.Brightness(image).enhance(factor)


def sharpness(image: Image.Image, factor: float) -> Image.Image:
    """Multiply the distance from a smoothed copy by `factor`."""
    return ImageEnhance.Sharpness(image).enhance(factor)


GEOMETRIC: dict[str, Callable[..., Image.Image]] = {
    "Rotate": rotate,
    "ShearX": shear_x,
    "ShearY": shear_y,
    "TranslateX": translate_x,
    "TranslateY": translate_y,
}
COLOR: dict[str, Callable[..., Image.Image]] = {
    "AutoContrast": auto_contrast,
    "Equalize": equalize,
    "Invert": invert,
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
    "Color": color,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
}
ENHANCEMENTS = ("Color", "Contrast", "Brightness", "Sharpness")
OPERATIONS = (*GEOMETRIC, *COLOR)


def apply_operation(image: Image.Image, name: str, magnitude: Any, fill: Sequence[int]) -> Image.Image:
    """Apply one of OPERATIONS to an image of mode L, RGB or RGBA.

    Geometric operations fill new pixels with `fill`, one integer (0-255) for each channel.
    """
    if name in GEOMETRIC:
        return GEOMETRIC[name](image, magnitude, _premultiplied(fill))
    if image.mode != "RGBA":
        return COLOR[name](image, magnitude)
    changed = COLOR[name](image.convert("RGB"), magnitude)
    changed.putalpha(image.getchannel("A"))
    return changed


def _premultiplied(fill):
    """Return `fill` as PIL's interpolation expects it: for RGBA with the colour multiplied by alpha."""
    if len(fill) == 4:
        *color, alpha = fill
        return (*(round(value * alpha / 255) for value in color), alpha)
    return tuple(fill)


# Functions from a level to a magnitude. The first four take a signed level, from -10 to 10.


def degrees(level: float) -> float:
    """Return -30 to 30 degrees."""
    return level / MAX_LEVEL * 30


def slope(level: float) -> float:
    """Return -0.3 to 0.3."""
    return level / MAX_LEVEL * 0.3


def share_of_side(level: float) -> float:
    """Return -0.45 to 0.45."""
    return level / MAX_LEVEL * 0.45


def factor_around_1(level: float) -> float:
    """Return 0.1 to 1.9; level 0 changes nothing."""
    return 1 + level / MAX_LEVEL * 0.9


def factor(level: float) -> float:
    """Return 0.1 to 1.9; level 5 changes nothing."""
    return level / MAX_LEVEL * 1.8 + 0.1


def few_bits(level: float) -> int:
    """Return 0 to 4 bits, so that a low level leaves nothing (EfficientNet for TPUs)."""
    return int(level / MAX_LEVEL * 4)


def bits(level: float) -> int:
    """Return 4 to 8 bits, as in arXiv 1805.09501."""
    return 4 + int(level / MAX_LEVEL * 4)


def bits_increasing(level: float) -> int:
    """Return 4 to 0 bits, so that a high level leaves nothing (later code of AutoAugment's authors)."""
    return 4 - int(level / MAX_LEVEL * 4)


def threshold(level: float) -> int:
    """Return 0 to 256, so that level 0 inverts everything."""
    return int(level / MAX_LEVEL * 256)


def threshold_increasing(level: float) -> int:
    """Return 256 to 0, so that level 10 inverts everything."""
    return 256 - int(level / MAX_LEVEL * 256)


def added(level: float) -> int:
    """Return 0 to 110."""
    return int(level / MAX_LEVEL * 110)


def no_magnitude(_: object) -> None:
    """Return None, for operations without a magnitude."""


# PLAIN is AutoAugment's table, in which some operations get weaker as the level rises. In INCREASING none
# does.
PLAIN: dict[str, Callable[[Any], Any]] = {
    "Rotate": degrees,
    "ShearX": slope,
    "ShearY": slope,
    "TranslateX": share_of_side,
    "TranslateY": share_of_side,
    "AutoContrast": no_magnitude,
    "Equalize": no_magnitude,
    "Invert": no_magnitude,
    "Posterize": few_bits,
    "Solarize": threshold,
    "SolarizeAdd": added,
    **dict.fromkeys(ENHANCEMENTS, factor),
}
INCREASING = {
    **PLAIN,
    "Posterize": bits_increasing,
    "Solarize": threshold_increasing,
    **dict.fromkeys(ENHANCEMENTS, factor_around_1),
}
SIGNED = {degrees, slope, share_of_side, factor_around_1}


def draw_level(
    level: float, std: float, to_magnitude: Callable[[Any], Any], rng: np.random.Generator
) -> float:
    """Draw a level from N(level, std), clipped to 0-10, with a random sign if `to_magnitude` is in SIGNED."""
    level = min(max(rng.normal(level, std), 0.0), float(MAX_LEVEL))
    return -level if to_magnitude in SIGNED and rng.random() < 0.5 else level


# Probabilities of the operations in timm 0.3.2's only other distribution, "w0".
WEIGHTS = {
    "Rotate": 0.3,
    "ShearX": 0.2,
    "ShearY": 0.2,
    "TranslateX": 0.1,
    "TranslateY": 0.1,
    "Color": 0.025,
    "Sharpness": 0.025,
    "AutoContrast": 0.025,
    "Solarize": 0.005,
    "SolarizeAdd": 0.005,
    "Contrast": 0.005,
    "Brightness": 0.005,
    "Equalize": 0.005,
    "Posterize": 0.0,
    "Invert": 0.0,
}
MAX_WEIGHTED_OPS = sum(weight > 0 for weight in WEIGHTS.values())


class RandAugment:
    """Draw `num_ops` operations and apply each with probability 1/2, at a level near `magnitude`.

    Args:
        magnitude: mean level, 0 to 10.
        magnitude_std: standard deviation of the level, which is then clipped to 0-10.
        increasing: use the table INCREASING instead of PLAIN.
        weighted: draw by WEIGHTS without replacement instead of uniformly with replacement.
        fill: one integer (0-255) for each channel, with which geometric operations fill new pixels.
    """

    def __init__(
        self,
        magnitude: float,
        magnitude_std: float = 0.0,
        num_ops: int = 2,
        *,
        increasing: bool = True,
        weighted: bool = False,
        fill: Sequence[int] = IMAGENET_FILL,
    ) -> None:
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        self.num_ops = num_ops
        self.magnitudes = INCREASING if increasing else PLAIN
        self.weighted = weighted
        self.fill = fill

    @classmethod
    def parse(cls, text: str, *, fill: Sequence[int] = IMAGENET_FILL) -> RandAugment:
        """Parse timm's notation "rand-m9-mstd0.5-inc1". Raises ValueError for an unknown or repeated part.

        The parts, with defaults in parentheses: m, the magnitude (10); mstd, its standard deviation (0); n,
        the number of operations (2); w0, weighted; inc, increasing, whatever its number, as in timm 0.3.2.
        """
        _, *parts = text.split("-")
        values: dict[str, float] = {}
        for part in parts:
            match = re.fullmatch(r"(m|n|inc)(\d+)|(w)(0)|(mstd)(\d+\.?\d*|\.\d+)", part)
            if match is None:
                raise ValueError(
                    f"--aa {text}: unknown part {part!r}; the parts are m and n with a whole "
                    "number, mstd with a number, inc1 and w0"
                )
            key, value = (group for group in match.groups() if group is not None)
            if key in values:
                raise ValueError(f"--aa {text}: {key} is given twice; give it once")
            values[key] = float(value) if key == "mstd" else int(value)
        magnitude, num_ops = values.get("m", MAX_LEVEL), int(values.get("n", 2))
        if magnitude > MAX_LEVEL:
            raise ValueError(f"--aa {text}: m{magnitude} is too large; m goes from 0 to {MAX_LEVEL}")
        if "w" in values and num_ops > MAX_WEIGHTED_OPS:
            raise ValueError(
                f"--aa {text}: n{num_ops} is too large; w0 draws each of {MAX_WEIGHTED_OPS} "
                "operations at most once"
            )
        return cls(
            magnitude,
            values.get("mstd", 0.0),
            num_ops,
            increasing="inc" in values,
            weighted="w" in values,
            fill=fill,
        )

    def draw(self, rng: np.random.Generator) -> list[tuple[str, float]]:
        """Draw the operations for one image. Returns a list of (name, level), in order."""
        if self.weighted:
            weights = list(WEIGHTS.values())
            names = rng.choice(list(WEIGHTS), size=self.num_ops, replace=False, p=weights).tolist()
        else:
            names = [OPERATIONS[index] for index in rng.integers(0, len(OPERATIONS), size=self.num_ops)]
        return [
            (name, draw_level(self.magnitude, self.magnitude_std, self.magnitudes[name], rng))
            for name in names
            if rng.random() < PROB
        ]

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        """Augment a PIL image of mode L, RGB or RGBA; size and mode stay the same."""
        for name, level in self.draw(rng):
            image = apply_operation(image, name, self.magnitudes[name](level), self.fill)
        return image
