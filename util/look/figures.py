"""Sheets of small pictures with titles, and colours for numbers.

Pictures are [C, height, width] with values in [0, 1].
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from util.images.normalize import has_unit_scale

GAP = 8  # pixels between pictures and around them
HEADING, TITLE, NOTE = 26, 22, 18  # heights of the three kinds of lines
NOTE_SIZE = 12  # font size of a note

Cell = tuple[str, str, np.ndarray]  # title, note, picture
Row = tuple[str, Sequence[Cell]]  # heading or "", cells

# Fonts of Linux, Windows and macOS with the Chinese characters that Pillow's own font lacks.
CHINESE_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansSC-Regular.otf",
    "wqy-microhei.ttc",
    "wqy-zenhei.ttc",
    "DroidSansFallbackFull.ttf",
    "msyh.ttc",
    "simhei.ttf",
    "PingFang.ttc",
    "STHeiti Light.ttc",
)


def sheet(rows: Sequence[Row], *, least_side: int = 224) -> Image.Image:
    """Arrange pictures of one size in rows, with text above them.

    Args:
        rows: [(heading, [(title, note, picture), ...]), ...]; a row may be a heading alone.
        least_side: small pictures are magnified by a whole number until their shorter side has at least so
            many pixels.
    """
    height, width = next(picture for _, cells in rows for _, _, picture in cells).shape[1:]
    scale = max(1, -(-least_side // min(height, width)))
    across = max(len(cells) for _, cells in rows)
    text = [
        (
            HEADING if heading else 0,
            TITLE if any(title for title, _, _ in cells) else 0,
            NOTE if any(note for _, note, _ in cells) else 0,
            height * scale + GAP if cells else 0,
        )
        for heading, cells in rows
    ]
    size = across * (width * scale + GAP) + GAP, sum(map(sum, text)) + GAP
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    top = GAP
    for (heading, cells), (heading_height, title_height, note_height, picture_height) in zip(
        rows, text, strict=True
    ):
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


def cut_off(text: str, width: int) -> str:
    """Shorten the text of a note to `width` pixels, with … for the rest."""
    font = _chosen_font(text, NOTE_SIZE)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"


def stack(images: Sequence[Image.Image]) -> Image.Image:
    """Stack images vertically on a white background."""
    canvas = Image.new(
        "RGB", (max(image.width for image in images), sum(image.height for image in images)), "white"
    )
    top = 0
    for image in images:
        canvas.paste(image, (0, top))
        top += image.height
    return canvas


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, colour: str, size: int) -> None:
    draw.text(place, text, fill=colour, font=_chosen_font(text, size))


def _chosen_font(text: str, size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    chinese = _chinese_font(size) if any(ord(character) > 0x24F for character in text) else None
    return chinese or _font(size)


@cache
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


@cache
def _chinese_font(size: int) -> ImageFont.FreeTypeFont | None:
    """Open the first of CHINESE_FONTS that is installed. Returns None if there is none."""
    for name in CHINESE_FONTS:
        with contextlib.suppress(OSError):
            return ImageFont.truetype(name, size)
    return None


def to_image(picture: np.ndarray) -> Image.Image:
    """Convert to RGB: the first three channels, or the first one in grey if there are fewer than three."""
    picture = np.repeat(picture[:1], 3, axis=0) if len(picture) < 3 else picture[:3]
    return Image.fromarray((np.clip(picture, 0, 1).transpose(1, 2, 0) * 255).round().astype("uint8"))


def to_pixels(
    values: np.ndarray, *, mean: Sequence[float], std: Sequence[float], like: np.ndarray | None = None
) -> np.ndarray:
    """Convert normalised values [..., C, height, width] to pixels, clipped to [0, 1].

    Args:
        mean, std: of the normalisation, one per channel.
        like: normalised values of true pictures. If mean, std and these show that pixels are not in [0, 1],
            the range from mean - 2 std to mean + 2 std becomes 0 to 1.
    """
    means, stds = np.reshape(mean, [-1, 1, 1]), np.reshape(std, [-1, 1, 1])
    possible = np.square(stds) <= means * (
        1 - means
    )  # the largest variance of values in [0, 1] with this mean
    if like is not None and not possible.all() and not has_unit_scale(like * stds + means):
        return ((values + 2) / 4).clip(0, 1)
    return (values * stds + means).clip(0, 1)


def choose(picture: np.ndarray, channels: Sequence[int] | None) -> np.ndarray:
    """Select channels of [..., C, height, width] by their indices; None for all."""
    return picture if channels is None else picture[..., channels, :, :]


def heat(values: np.ndarray, largest: float | None = None) -> np.ndarray:
    """Colour values [height, width]: black for 0, red, pale yellow for `largest` (default: the maximum).

    Returns [3, height, width].
    """
    from matplotlib import colormaps  # its import takes a third of a second, and only some figures need it

    largest = values.max() if largest is None else largest
    return colormaps["magma"](values / largest if largest > 0 else values)[..., :3].transpose(2, 0, 1)


def enlarge(values: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Repeat one value per patch, [..., h, w], for each of its pixels, [..., *size]."""
    rows, columns = size[0] // values.shape[-2], size[1] // values.shape[-1]
    return values.repeat(rows, axis=-2).repeat(columns, axis=-1)


def spotlight(picture: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Darken the patches of a picture by their values [h, w]: black for 0, unchanged for the largest."""
    return picture * enlarge(values / values.max() if values.max() > 0 else values, picture.shape[1:])
