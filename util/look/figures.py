"""Sheets of small pictures with titles, and colours for numbers. Pictures are [C, height, width] with values in [0, 1]."""
import contextlib
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from util.images.normalize import has_unit_scale

GAP = 8                 # pixels between pictures and around them
HEADING, TITLE, NOTE = 26, 22, 18   # heights of the three kinds of lines
NOTE_SIZE = 12                      # of its letters


def sheet(rows, *, least_side=224):
    """Pictures in rows, with text above them, as one PIL image.

    Args:
        rows: [(heading of the row or "", [(title, note, picture), ...]), ...]; all pictures have one size. A row may be
            a heading alone.
        least_side: small pictures are magnified by a whole number, until their shorter side has that many pixels.
    """
    height, width = next(picture for _, cells in rows for _, _, picture in cells).shape[1:]
    scale = max(1, -(-least_side // min(height, width)))
    across = max(len(cells) for _, cells in rows)
    text = [(HEADING if heading else 0, TITLE if any(title for title, _, _ in cells) else 0,
             NOTE if any(note for _, note, _ in cells) else 0, height * scale + GAP if cells else 0)
            for heading, cells in rows]
    size = across * (width * scale + GAP) + GAP, sum(map(sum, text)) + GAP
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    top = GAP
    for (heading, cells), (heading_height, title_height, note_height, picture_height) in zip(rows, text, strict=True):
        _write(draw, (GAP, top), heading, "black", 15)
        top += heading_height
        for column, (title, note, picture) in enumerate(cells):
            left = GAP + column * (width * scale + GAP)
            _write(draw, (left, top), title, "black", 14)
            _write(draw, (left, top + title_height), note, "dimgray", NOTE_SIZE)
            shown = to_image(picture).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            canvas.paste(shown, (left, top + title_height + note_height))
        top += title_height + note_height + picture_height
    return canvas


def cut_off(text, width):
    """As much of `text` as a note of that many pixels has room for, with … for the rest."""
    font = _chosen_font(text, NOTE_SIZE)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def stack(images):
    """PIL images one below the other, on white."""
    canvas = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), "white")
    top = 0
    for image in images:
        canvas.paste(image, (0, top))
        top += image.height
    return canvas


# Where Pillow's own font has no characters: Chinese ones of Linux, Windows and macOS.
CHINESE_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "wqy-microhei.ttc", "wqy-zenhei.ttc",
                 "DroidSansFallbackFull.ttf", "msyh.ttc", "simhei.ttf", "PingFang.ttc", "STHeiti Light.ttc")


def _write(draw, place, text, colour, size):
    draw.text(place, text, fill=colour, font=_chosen_font(text, size))


def _chosen_font(text, size):
    chinese = _chinese_font(size) if any(ord(character) > 0x24F for character in text) else None
    return chinese or _font(size)


@lru_cache(maxsize=None)
def _font(size):
    return ImageFont.load_default(size=size)


@lru_cache(maxsize=None)
def _chinese_font(size):
    """The first of CHINESE_FONTS that is installed, or None."""
    for name in CHINESE_FONTS:
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size)
    return None


def to_image(picture):
    """PIL image, RGB; of more than three channels the first three are shown, of two the first, in grey."""
    picture = np.repeat(picture[:1], 3, axis=0) if len(picture) < 3 else picture[:3]
    return Image.fromarray((np.clip(picture, 0, 1).transpose(1, 2, 0) * 255).round().astype("uint8"))


def to_pixels(values, *, mean, std, like=None):
    """Normalised values [..., C, height, width] -> a picture's, cut off at 0 and 1.

    Args:
        like: the normalised values of true pictures. If neither they nor mean and std are of values from 0 to 1,
            nothing says what white is: mean - 2 std then becomes 0, and mean + 2 std becomes 1.
    """
    mean, std = np.reshape(mean, [-1, 1, 1]), np.reshape(std, [-1, 1, 1])
    possible = np.square(std) <= mean * (1 - mean)  # no values from 0 to 1 of this mean are spread more widely
    if like is not None and not possible.all() and not has_unit_scale(like * std + mean):
        return ((values + 2) / 4).clip(0, 1)
    return (values * std + mean).clip(0, 1)


def choose(picture, channels):
    """The channels [..., C, height, width] of which `channels` has the numbers from 0; all of them for None."""
    return picture if channels is None else picture[..., channels, :, :]


def heat(values, largest=None):
    """[height, width] -> [3, height, width]: black for 0 over red to pale yellow for `largest`, None: of the values."""
    from matplotlib import colormaps  # a third of a second, which only some figures need
    largest = values.max() if largest is None else largest
    return colormaps["magma"](values / largest if largest > 0 else values)[..., :3].transpose(2, 0, 1)


def enlarge(values, size):
    """One value a patch, [..., h, w], as one a pixel, [..., height, width] of `size`: each patch in one colour."""
    rows, columns = size[0] // values.shape[-2], size[1] // values.shape[-1]
    return values.repeat(rows, axis=-2).repeat(columns, axis=-1)


def spotlight(picture, values):
    """The picture, darker where the values [h, w] of its patches are small: black for 0, as it is for the largest."""
    return picture * enlarge(values / values.max() if values.max() > 0 else values, picture.shape[1:])
