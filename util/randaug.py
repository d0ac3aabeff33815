"""RandAugment (arXiv 1909.13719) on PIL images: the 15 operations of timm 0.3.2 whose strength grows with their level.

A level is a number from 0 to 10. Operations with two directions take it signed, from -10 to 10.
"""
import re

from PIL import Image, ImageEnhance, ImageOps

MAX_LEVEL = 10
PROB = 0.5                         # of applying an operation that was drawn
IMAGENET_FILL = (124, 116, 104)    # 255 * the ImageNet mean, for what moves into the picture


# Geometric operations: (image, signed level, fill) -> image of the same size; bicubic.

def rotate(image, level, fill):
    """Counter-clockwise about the centre, up to 30 degrees."""
    return image.rotate(level / MAX_LEVEL * 30, resample=Image.Resampling.BICUBIC, fillcolor=fill)


def shear_x(image, level, fill):
    """Rows moved to the left by up to 0.3 of their distance from the top."""
    return _affine(image, (1, level / MAX_LEVEL * 0.3, 0, 0, 1, 0), fill)


def shear_y(image, level, fill):
    """Columns moved up by up to 0.3 of their distance from the left."""
    return _affine(image, (1, 0, 0, level / MAX_LEVEL * 0.3, 1, 0), fill)


def translate_x(image, level, fill):
    """To the left by up to 0.45 of the width."""
    return _affine(image, (1, 0, level / MAX_LEVEL * 0.45 * image.width, 0, 1, 0), fill)


def translate_y(image, level, fill):
    """Up by up to 0.45 of the height."""
    return _affine(image, (1, 0, 0, 0, 1, level / MAX_LEVEL * 0.45 * image.height), fill)


def _affine(image, matrix, fill):
    """`matrix` (a, b, c, d, e, f): the pixel at (x, y) comes from (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC,
                           fillcolor=fill)


# Color operations: (image of mode L or RGB, level) -> image.

def auto_contrast(image, level):
    """Each channel stretched to 0-255, whatever the level."""
    return ImageOps.autocontrast(image)


def equalize(image, level):
    """Flat histogram in each channel, whatever the level."""
    return ImageOps.equalize(image)


def invert(image, level):
    """Negative, whatever the level."""
    return ImageOps.invert(image)


def posterize(image, level):
    """Upper 4 bits kept at level 0, none (a black image) at level 10."""
    dropped = 4 + int(level / MAX_LEVEL * 4)
    # Not ImageOps.posterize, which refuses to drop all 8 bits in Pillow 13.
    return _map_values(image, [value >> dropped << dropped for value in range(256)])


def solarize(image, level):
    """Negative of the values from a threshold on, which falls from 256 to 0."""
    return ImageOps.solarize(image, 256 - int(level / MAX_LEVEL * 256))


def solarize_add(image, level):
    """Up to 110 added to the values below 128."""
    add = int(level / MAX_LEVEL * 110)
    return _map_values(image, [value + add if value < 128 else value for value in range(256)])


def _map_values(image, table):
    """Every channel through the same `table` of 256 values."""
    return image.point(table * len(image.getbands()))


def color(image, level):
    """Saturation times 0.1 to 1.9; the level is signed."""
    return ImageEnhance.Color(image).enhance(_enhancement(level))


def contrast(image, level):
    """Distance from the mean grey times 0.1 to 1.9; the level is signed."""
    return ImageEnhance.Contrast(image).enhance(_enhancement(level))


def brightness(image, level):
    """Values times 0.1 to 1.9; the level is signed."""
    return ImageEnhance.Brightness(image).enhance(_enhancement(level))


def sharpness(image, level):
    """Distance from a smoothed copy times 0.1 to 1.9; the level is signed."""
    return ImageEnhance.Sharpness(image).enhance(_enhancement(level))


def _enhancement(level):
    return 1 + level / MAX_LEVEL * 0.9


GEOMETRIC = {"Rotate": rotate, "ShearX": shear_x, "ShearY": shear_y, "TranslateX": translate_x,
             "TranslateY": translate_y}
COLOR = {"AutoContrast": auto_contrast, "Equalize": equalize, "Invert": invert, "Posterize": posterize,
          "Solarize": solarize, "SolarizeAdd": solarize_add, "Color": color, "Contrast": contrast,
          "Brightness": brightness, "Sharpness": sharpness}
OPERATIONS = (*GEOMETRIC, *COLOR)
SIGNED = {*GEOMETRIC, "Color", "Contrast", "Brightness", "Sharpness"}


def apply_operation(image, name, level, fill):
    """One of OPERATIONS on an image of mode L, RGB or RGBA; `fill` has one whole number a channel."""
    if name in GEOMETRIC:
        return GEOMETRIC[name](image, level, _fillcolor(fill))
    if image.mode != "RGBA":
        return COLOR[name](image, level)
    changed = COLOR[name](image.convert("RGB"), level)
    changed.putalpha(image.getchannel("A"))
    return changed


def _fillcolor(fill):
    """`fill` in the form that PIL's interpolating transforms expect for it."""
    if len(fill) == 4:                 # PIL interpolates color times alpha, and takes the fill to be that already
        *color, alpha = fill
        return (*(round(value * alpha / 255) for value in color), alpha)
    return tuple(fill)


class RandAugment:
    """`num_ops` operations drawn with replacement, each applied with probability 1/2 at a level near `magnitude`.

    Args:
        magnitude: mean level, 0 to 10.
        magnitude_std: of the normal distribution of the level, which is then clipped to 0-10.
        fill: one whole number (0-255) a channel, for what a geometric operation moves into the picture.
    """

    def __init__(self, magnitude, magnitude_std=0.0, num_ops=2, *, fill=IMAGENET_FILL):
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        self.num_ops = num_ops
        self.fill = fill

    @classmethod
    def parse(cls, text, *, fill=IMAGENET_FILL):
        """From timm's notation "rand-m9-mstd0.5-inc1": m magnitude (10), mstd its deviation (0), n operations (2), inc.

        As in timm 0.3.2 any number after "inc", even 0, selects the increasing operations. They are the only ones here,
        so that "inc" may not be left out. Raises ValueError for everything else.
        """
        kind, *parts = text.split("-")
        if kind != "rand":
            raise ValueError(f"--aa {text!r}: only RandAugment is supported, such as rand-m9-mstd0.5-inc1; "
                             "pass --aa '' for none.")
        values = {}
        for part in parts:
            match = re.fullmatch(r"(m|n|inc)(\d+)|(mstd)(\d+\.?\d*|\.\d+)", part)
            if match is None:
                raise ValueError(f"--aa {text!r}: cannot read {part!r}; the parts are m and n with a whole number, "
                                 "mstd with a number, and inc1.")
            key, value = match.group(1, 2) if match.group(1) else match.group(3, 4)
            if key in values:
                raise ValueError(f"--aa {text!r}: {key} is given twice.")
            values[key] = float(value) if key == "mstd" else int(value)
        if "inc" not in values:
            raise ValueError(f"--aa {text!r}: only the increasing operations are supported; add -inc1.")
        magnitude = values.get("m", MAX_LEVEL)
        if magnitude > MAX_LEVEL:
            raise ValueError(f"--aa {text!r}: m must be from 0 to {MAX_LEVEL}, got {magnitude}.")
        return cls(magnitude, values.get("mstd", 0.0), values.get("n", 2), fill=fill)

    def draw(self, rng):
        """The operations to apply to one image, in order: list of (name, level)."""
        drawn = []
        for index in rng.integers(0, len(OPERATIONS), size=self.num_ops):
            name = OPERATIONS[index]
            if rng.random() >= PROB:
                continue
            level = min(max(rng.normal(self.magnitude, self.magnitude_std), 0.0), float(MAX_LEVEL))
            if name in SIGNED and rng.random() < 0.5:
                level = -level
            drawn.append((name, level))
        return drawn

    def __call__(self, image, rng):
        """PIL image of mode L, RGB or RGBA -> image of the same size and mode."""
        for name, level in self.draw(rng):
            image = apply_operation(image, name, level, self.fill)
        return image
