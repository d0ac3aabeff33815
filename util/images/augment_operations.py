"""The operations of AutoAugment and RandAugment on PIL images, and how strong they are at which level.

A level is a number from 0 to 10; what an operation makes of it, its magnitude, differs between policies. The names are
timm's, but its suffixes: which of the variants Posterize, Solarize and the four enhancements are, the table says that a
level is looked up in.
"""
from PIL import Image, ImageEnhance, ImageOps

MAX_LEVEL = 10
IMAGENET_FILL = (124, 116, 104)    # 255 * the ImageNet mean, for what moves into the picture


# Geometric operations: (image, magnitude, fill) -> image of the same size; bicubic.

def rotate(image, degrees, fill):
    """Counter-clockwise about the centre."""
    return image.rotate(degrees, resample=Image.Resampling.BICUBIC, fillcolor=fill)


def shear_x(image, slope, fill):
    """Rows moved to the left by `slope` times their distance from the top."""
    return _affine(image, (1, slope, 0, 0, 1, 0), fill)


def shear_y(image, slope, fill):
    """Columns moved up by `slope` times their distance from the left."""
    return _affine(image, (1, 0, 0, slope, 1, 0), fill)


def translate_x(image, part, fill):
    """To the left by a part of the width."""
    return _affine(image, (1, 0, part * image.width, 0, 1, 0), fill)


def translate_y(image, part, fill):
    """Up by a part of the height."""
    return _affine(image, (1, 0, 0, 0, 1, part * image.height), fill)


def _affine(image, matrix, fill):
    """`matrix` (a, b, c, d, e, f): the pixel at (x, y) comes from (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BICUBIC,
                           fillcolor=fill)


# Color operations: (image of mode L or RGB, magnitude) -> image. Three have no magnitude.

def auto_contrast(image, _):
    """Each channel stretched to 0-255."""
    return ImageOps.autocontrast(image)


def equalize(image, _):
    """Flat histogram in each channel."""
    return ImageOps.equalize(image)


def invert(image, _):
    """Negative."""
    return ImageOps.invert(image)


def posterize(image, bits):
    """The upper `bits` of each value kept; none of them is a black image."""
    dropped = 8 - bits
    # Not ImageOps.posterize, which refuses to drop all 8 bits in Pillow 13.
    return _map_values(image, [value >> dropped << dropped for value in range(256)])


def solarize(image, threshold):
    """Negative of the values from the threshold on."""
    return ImageOps.solarize(image, threshold)


def solarize_add(image, added):
    """`added`, at most 128, to the values below 128."""
    return _map_values(image, [value + added if value < 128 else value for value in range(256)])


def _map_values(image, table):
    """Every channel through the same `table` of 256 values."""
    return image.point(table * len(image.getbands()))


def color(image, factor):
    """Saturation times the factor."""
    return ImageEnhance.Color(image).enhance(factor)


def contrast(image, factor):
    """Distance from the mean grey times the factor."""
    return ImageEnhance.Contrast(image).enhance(factor)


def brightness(image, factor):
    """Values times the factor."""
    return ImageEnhance.Brightness(image).enhance(factor)


def sharpness(image, factor):
    """Distance from a smoothed copy times the factor."""
    return ImageEnhance.Sharpness(image).enhance(factor)


GEOMETRIC = {"Rotate": rotate, "ShearX": shear_x, "ShearY": shear_y, "TranslateX": translate_x,
             "TranslateY": translate_y}
COLOR = {"AutoContrast": auto_contrast, "Equalize": equalize, "Invert": invert, "Posterize": posterize,
         "Solarize": solarize, "SolarizeAdd": solarize_add, "Color": color, "Contrast": contrast,
         "Brightness": brightness, "Sharpness": sharpness}
ENHANCEMENTS = ("Color", "Contrast", "Brightness", "Sharpness")
OPERATIONS = (*GEOMETRIC, *COLOR)


def apply_operation(image, name, magnitude, fill):
    """One of OPERATIONS on an image of mode L, RGB or RGBA; `fill` has one whole number a channel."""
    if name in GEOMETRIC:
        return GEOMETRIC[name](image, magnitude, _fillcolor(fill))
    if image.mode != "RGBA":
        return COLOR[name](image, magnitude)
    changed = COLOR[name](image.convert("RGB"), magnitude)
    changed.putalpha(image.getchannel("A"))
    return changed


def _fillcolor(fill):
    """`fill` in the form that PIL's interpolating transforms expect for it."""
    if len(fill) == 4:                 # PIL interpolates color times alpha, and takes the fill to be that already
        *color, alpha = fill
        return (*(round(value * alpha / 255) for value in color), alpha)
    return tuple(fill)


# Level -> magnitude. The first five take it with a sign, from -10 to 10.

def degrees(level):
    return level / MAX_LEVEL * 30


def slope(level):
    return level / MAX_LEVEL * 0.3


def part_of_side(level):
    return level / MAX_LEVEL * 0.45


def factor_around_1(level):
    """0.1 to 1.9: a signed level 0 changes nothing."""
    return 1 + level / MAX_LEVEL * 0.9


def factor(level):
    """0.1 to 1.9, about 1 in the middle."""
    return level / MAX_LEVEL * 1.8 + 0.1


def few_bits(level):
    """0 to 4 bits kept: a low level leaves nothing. EfficientNet's, for TPUs."""
    return int(level / MAX_LEVEL * 4)


def bits(level):
    """4 to 8 bits kept, as arXiv 1805.09501 says."""
    return 4 + int(level / MAX_LEVEL * 4)


def bits_increasing(level):
    """4 to 0 bits kept: a high level leaves nothing. That of the authors' later code."""
    return 4 - int(level / MAX_LEVEL * 4)


def threshold(level):
    """0 to 256: at a low level everything is inverted."""
    return int(level / MAX_LEVEL * 256)


def threshold_increasing(level):
    """256 to 0: at a high level everything is inverted."""
    return 256 - int(level / MAX_LEVEL * 256)


def added(level):
    return int(level / MAX_LEVEL * 110)


def no_magnitude(_):
    return None


PLAIN = {"Rotate": degrees, "ShearX": slope, "ShearY": slope, "TranslateX": part_of_side, "TranslateY": part_of_side,
         "AutoContrast": no_magnitude, "Equalize": no_magnitude, "Invert": no_magnitude, "Posterize": few_bits,
         "Solarize": threshold, "SolarizeAdd": added, **dict.fromkeys(ENHANCEMENTS, factor)}
INCREASING = {**PLAIN, "Posterize": bits_increasing, "Solarize": threshold_increasing,
              **dict.fromkeys(ENHANCEMENTS, factor_around_1)}
SIGNED = {degrees, slope, part_of_side, factor_around_1}


def draw_level(level, std, magnitude, rng):
    """A level near `level`: normal with deviation `std`, cut off at 0 and 10, and with a random sign if `magnitude`,
    which is to be looked up, takes one."""
    level = min(max(rng.normal(level, std), 0.0), float(MAX_LEVEL))
    return -level if magnitude in SIGNED and rng.random() < 0.5 else level
