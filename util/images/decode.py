"""Decoding of image files: upright pixels with the requested channels.

Pixels have 8 bits, except those of .npy files and of TIFFs of many channels (util.images.array_files). PIL's
own convert("RGB") is not enough: it ignores the EXIF orientation, shows hidden colours of transparent pixels,
and clips 16 bits to white. Colour profiles are not applied, as in the published recipes.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from util.images import array_files
from util.images.bands import MULTIBAND, Bands, channels_last, image_from_array

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
TIFF_BY_PILLOW = (1, 3, 4)  # channel counts for which Pillow reads and converts TIFFs

# EXIF orientation -> operation that turns the image upright. ImageOps.exif_transpose does the same, but
# copies upright images as well, and fails if it cannot write a damaged EXIF block back.
EXIF_ORIENTATION = 274
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPPED = (5, 6, 7, 8)  # orientations that exchange width and height

# Pillow's decoders raise one of these for damaged bytes; the types in WITH_MESSAGE carry a message.
WITH_MESSAGE = (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError)
DAMAGED = (*WITH_MESSAGE, EOFError, TypeError, LookupError, struct.error)

# Errors of the machine when it opens a file: the file may be sound.
MACHINE_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

TIFF_BITS_PER_SAMPLE, TIFF_PHOTOMETRIC = 258, 262


class UnreadableImage(ValueError):
    """Error for an image that cannot be read. No other problem has this type.

    Args:
        name, reason: both are stored without line breaks and control characters, whatever file names contain.
    """

    def __init__(self, name: object, reason: object) -> None:
        self.name, self.reason = _printable(name), _printable(reason)
        super().__init__(self.name, self.reason)

    def __str__(self) -> str:
        other = "" if self.name.endswith(".npy") else ", save it as an 8-bit PNG or JPEG,"
        return (
            f"{self.name} cannot be read as a picture: {self.reason}. Repair it{other} or take it out of "
            "the data."
        )


@contextlib.contextmanager
def file_errors(name: object) -> Iterator[None]:
    """Turn an OSError from reading a file into UnreadableImage.

    Errors of the machine, such as too many open files, stay as they are.
    """
    try:
        yield
    except OSError as error:
        if error.errno in MACHINE_ERRORS:
            raise
        raise UnreadableImage(name, _file_reason(error)) from error


def read_file(path: Path | str) -> bytes:
    """Return the bytes of an image file. Raises UnreadableImage if that fails or it is no regular file."""
    # Without O_NONBLOCK, open() would wait until somebody writes to a named pipe.
    with (
        file_errors(path),
        open(
            path, "rb", buffering=0, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)
        ) as file,
    ):
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UnreadableImage(path, "it is a device or a pipe, not a file")
        try:
            return file.read()
        except MemoryError as error:
            size = os.fstat(file.fileno()).st_size
            raise UnreadableImage(path, f"its {size:,} bytes do not fit into memory") from error


def decode(
    data_or_file: bytes | Path | str | BinaryIO, *, in_chans: int = 3, name: object = None
) -> Image.Image | Bands:
    """Decode the first image of a file and turn it upright by its EXIF orientation.

    Args:
        data_or_file: bytes, a path, or a file opened for reading in binary.
        in_chans: 3 gives 'RGB', 1 'L', 4 'RGBA', 2 'LA'. Other numbers need a file with that many channels.
        name: name of the image in errors; a path needs none.

    Transparent pixels become white if the result has no alpha channel. 16 bits are scaled to 8, not clipped.
    .npy files keep their values, and so do TIFFs whose channel count is not 1, 3 or 4 or that are unknown to
    Pillow: see util.images.bands.image_from_array.

    Raises UnreadableImage for damaged files, if the channels do not fit, and for pixels without a defined
    white (float and wide integers in formats other than those above).
    """
    return EncodedImage(data_or_file, in_chans=in_chans, name=name).decode()


class EncodedImage:
    """Image file before decoding: its size comes from the header.

    Arguments and errors are those of `decode`. `width`, `height` and `size` are those of the upright image,
    in pixels.
    """

    def __init__(
        self, data_or_file: bytes | Path | str | BinaryIO, *, in_chans: int = 3, name: object = None
    ) -> None:
        self.in_chans = _checked(in_chans)
        self.name = name or (data_or_file if not isinstance(data_or_file, bytes) else "picture")
        if isinstance(data_or_file, bytes):
            data = data_or_file
        elif isinstance(data_or_file, (str, os.PathLike)):
            data = read_file(data_or_file)
        else:
            data = data_or_file.read()
        if not data:
            raise UnreadableImage(self.name, "it is empty (0 bytes)")
        with self._named_errors(DAMAGED):
            self._image = self._open(data)
        orientation = 1 if isinstance(self._image, Bands) else _orientation(self._image)
        self._to_upright = UPRIGHT.get(orientation)
        self._swapped = orientation in SWAPPED
        self.size = self.width, self.height = self._turned(self._image.size)

    @property
    def is_multiband(self) -> bool:
        """True if `decode` returns Bands, False for an 8-bit PIL image."""
        return self._image.mode == MULTIBAND

    def _open(self, data):
        if array_files.is_npy(data):
            return image_from_array(channels_last(array_files.read_npy(data), self.in_chans))
        is_tiff = array_files.is_tiff(data)
        if is_tiff and self.in_chans not in TIFF_BY_PILLOW:
            return self._open_tiff(data)
        try:
            image = Image.open(io.BytesIO(data))
        except UnidentifiedImageError:
            if not is_tiff:
                raise
            return self._open_tiff(data)
        has_page_for_each_channel = (
            image.format == "TIFF"
            and len(image.getbands()) == 1
            and 1 < getattr(image, "n_frames", 1) == self.in_chans
        )
        if has_page_for_each_channel:
            return self._open_tiff(data)
        if image.format not in ("JPEG", "MPO"):
            # Pillow turns TIFFs while it loads them, and finds the orientation of a PNG behind its pixels.
            image.load()
        return image

    def _open_tiff(self, data):
        return image_from_array(array_files.read_tiff(data, self.in_chans))

    def decode(self) -> Image.Image | Bands:
        """Decode the whole image, like the function `decode`."""
        image = self._image
        if isinstance(image, Bands):
            return image
        with self._named_errors(DAMAGED):
            image.load()
        with self._named_errors(ValueError):  # no defined white, or a mode that Pillow cannot convert
            upright = image if self._to_upright is None else image.transpose(self._to_upright)
            return _convert(upright, self.in_chans)

    def decode_reduced(self, min_size: tuple[int, int]) -> tuple[Image.Image | Bands, float]:
        """Decode at the smallest size of the decoder that is at least `min_size` (width, height).

        A JPEG decoder can halve the size up to three times, which saves most of its work. The other details
        are lost for later calls.

        Returns the image, and the number by which its size was divided: 1, 2, 4 or 8.
        """
        image = self._image
        if isinstance(image, Bands):
            return image, 1.0
        with self._named_errors(DAMAGED):
            # None keeps the mode
            reduced = image.draft(None, self._turned(min_size))  # type: ignore[arg-type]  # Pillow's stub
        return self.decode(), 1.0 if reduced is None else max(self.size) / max(reduced[1])

    def _turned(self, size):
        return size[::-1] if self._swapped else size

    @contextlib.contextmanager
    def _named_errors(self, kinds):
        try:
            yield
        except kinds as error:
            raise UnreadableImage(self.name, _decoder_reason(error)) from error


def from_pil(image: Image.Image, *, in_chans: int = 3, name: object = None) -> Image.Image:
    """Convert a PIL image the way `decode` converts a file. Raises UnreadableImage."""
    in_chans, name = _checked(in_chans), name or getattr(image, "filename", "") or "picture"
    try:
        image.load()
        to_upright = UPRIGHT.get(_orientation(image))
        return _convert(image if to_upright is None else image.transpose(to_upright), in_chans)
    except DAMAGED as error:
        raise UnreadableImage(name, _decoder_reason(error)) from error


def to_channels(image: Image.Image, in_chans: int) -> Image.Image:
    """Convert a loaded PIL image of any mode to 'L' (`in_chans` 1), 'LA' (2), 'RGB' (3) or 'RGBA' (4)."""
    return _convert(image, _checked(in_chans))


def _printable(text):
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def _file_reason(error):
    """Describe an OSError from opening or reading a file."""
    if isinstance(error, FileNotFoundError):
        if error.filename and os.path.islink(error.filename):
            return f"it is a link to {os.readlink(error.filename)}, and there is no such file"
        return "there is no such file (any more)"
    if isinstance(error, PermissionError):
        return "there is no permission to read it"
    return "it is a folder" if isinstance(error, IsADirectoryError) else error.strerror or repr(error)


def _decoder_reason(error):
    """Describe an error of DAMAGED."""
    if isinstance(error, UnidentifiedImageError):
        return "it is in no picture format that Pillow knows"
    if isinstance(error, WITH_MESSAGE) and str(error):
        return str(error).rstrip(".")
    return f"its contents are damaged ({error!r})"


def _checked(in_chans):
    if in_chans < 1:
        raise ValueError(f"--in_chans {in_chans}: an image has at least 1 channel")
    return in_chans


def _orientation(image):
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1)
    except DAMAGED:  # the pixels beside a damaged EXIF block may be sound
        return 1


def _convert(image, in_chans):
    mode = MODES.get(in_chans)
    if mode is None:
        raise ValueError(
            f"it has the channels {' '.join(image.getbands())}, and --in_chans asks for {in_chans}"
        )
    if image.mode.startswith("I"):
        image = _to_eight_bits(image)
    elif image.mode == "F":
        raise ValueError(
            "its pixels are floating-point numbers without a defined white level; a .npy file keeps "
            "them as they are"
        )
    if image.mode == mode and "transparency" not in image.info:
        return image
    if mode == "LA":
        return image.convert("RGBA").convert("LA")  # RGBA knows every kind of transparency
    if mode != "RGBA" and image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.new("RGB", image.size, "white")
        page.paste(image, mask=image.getchannel("A"))
        image = page
    return image.convert(mode)


def _to_eight_bits(image):
    """Convert 16-bit grey (modes I;16* and I) to L, or to LA if one value is transparent."""
    grey = np.asarray(image).astype(np.int64)
    tags = getattr(image, "tag_v2", {})
    white = 4095 if tags.get(TIFF_BITS_PER_SAMPLE) == (12,) else 65535
    if grey.min() < 0 or grey.max() > white:
        raise ValueError(
            f"its pixels run from {grey.min()} to {grey.max()}, outside of 16 bits "
            f"(0 to {white}), and have no defined white"
        )
    scaled = (grey * 255 + white // 2) // white
    if tags.get(TIFF_PHOTOMETRIC) == 0:  # WhiteIsZero: PIL inverts only 8-bit images
        scaled = 255 - scaled
    result = Image.fromarray(scaled.astype(np.uint8))
    if "transparency" in image.info:
        alpha = Image.fromarray(np.where(grey == image.info["transparency"], 0, 255).astype(np.uint8))
        result = Image.merge("LA", (result, alpha))
    return result
