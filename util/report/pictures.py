"""The reconstructions of a run, small enough to embed in a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

MOST_PICTURES = 16  # of a run
REPORT_BYTES = 8_000_000  # of all pictures in a report, in base64
WIDEST = 1000  # pixels; wider pictures, and those of more than SMALL bytes, are scaled down
SMALL = 60_000
_DAMAGED = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # raised by Pillow


@dataclass
class Chosen:
    """Pictures for a page.

    Attributes:
        shown: [(name, encoded picture), ...], evenly chosen over time, the first and the last among them.
        damaged: number of pictures that cannot be read.
        no_space: True if fewer than MOST_PICTURES are shown because of their size.
    """

    shown: list[tuple[str, bytes]]
    damaged: int
    no_space: bool


def choose(paths: Sequence[Path], budget: int) -> Chosen:
    """Choose at most MOST_PICTURES that take at most `budget` bytes together."""
    whole = [path for path in paths if _is_whole(path)]
    shrunk: dict[Path, bytes] = {}
    while True:
        chosen = [whole[index] for index in evenly(len(whole), MOST_PICTURES)]
        shrunk |= {path: _shrunk(path) for path in chosen if path not in shrunk}
        if all(shrunk[path] for path in chosen):
            break
        whole = [path for path in whole if shrunk.get(path, b"?")]  # others replace damaged ones
    found, damaged = [(path.stem.replace("_", " "), shrunk[path]) for path in chosen], len(paths) - len(whole)
    for count in range(len(found), 0, -1):
        kept = [found[index] for index in evenly(len(found), count)]
        if sum(len(content) for _, content in kept) * 4 / 3 <= budget:
            return Chosen(kept, damaged, count < len(found))
    return Chosen([], damaged, bool(found))


def data_url(content: bytes) -> str:
    """Return a data URL of a PNG or WebP."""
    kind = "webp" if is_shrunk(content) else "png"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def is_shrunk(content: bytes) -> bool:
    """Return True for a WebP, the format of pictures that were scaled down."""
    return content.startswith(b"RIFF")


def evenly(total: int, count: int) -> Sequence[int]:
    """Choose `count` of the numbers below `total`: the last one, and the first if there are two."""
    return (
        range(total)
        if count >= total
        else sorted({round(total - 1 - place * (total - 1) / max(1, count - 1)) for place in range(count)})
    )


def _is_whole(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            picture.verify()
    except _DAMAGED:
        return False
    return True


def _shrunk(path: Path) -> bytes:
    """Return the bytes of a picture: the file if it is small, else a narrower WebP; b"" if it is damaged."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            if len(content) <= SMALL and picture.width <= WIDEST:
                return content
            rgb = picture.convert("RGB")
    except _DAMAGED:
        return b""
    rgb.thumbnail((WIDEST, 10 * WIDEST))
    smaller = io.BytesIO()
    rgb.save(smaller, format="WEBP", quality=80)
    return smaller.getvalue()
