"""From the bytes of a picture file to its pixels, upright and with the channels that were asked for.

Pixels have 8 bits, except those of .npy files and of TIFFs of many channels, see util.images.band_files.
PIL's own convert("RGB") keeps a camera's picture lying on its side, shows what transparency hides, and clips 16 bits
to white. Colour profiles are not applied, as in the published recipes.
"""
import contextlib
import errno
import io
import os
import stat
import struct

import numpy as np
from PIL import Image, UnidentifiedImageError

from util.images import band_files
from util.images.bands import Bands

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
AS_PICTURES = (1, 3, 4)     # channels with which TIFFs are pictures, to which PIL may be asked to convert them

# EXIF orientation -> what brings the picture upright. ImageOps.exif_transpose does the same, but copies upright
# pictures too, and fails where it cannot write a damaged EXIF block back.
EXIF_ORIENTATION = 274
UPRIGHT = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
           5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
           8: Image.Transpose.ROTATE_90}
LYING = (5, 6, 7, 8)    # stored with width and height exchanged

# What Pillow's decoders raise on damaged bytes; those in the first line come with a sentence.
WORDED = (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError)
DAMAGED = (*WORDED, EOFError, TypeError, LookupError, struct.error)

# What is wrong with the machine, and not with the file that could not be opened.
NO_FAULT_OF_THE_FILE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)

TIFF_BITS_PER_SAMPLE, TIFF_PHOTOMETRIC = 258, 262


class UnreadableImage(ValueError):
    """A picture that cannot be read: `name`, and `reason` in words. Nothing else that goes wrong is of this type.

    Both can be printed in a line, whatever stands in the names of files.
    """

    def __init__(self, name, reason):
        self.name, self.reason = _printable(name), _printable(reason)
        super().__init__(self.name, self.reason)

    def __str__(self):
        other = "" if self.name.endswith(".npy") else ", save it as an 8-bit PNG or JPEG,"
        return f"{self.name} cannot be read as a picture: {self.reason}. Repair it{other} or take it out of the data."


@contextlib.contextmanager
def file_errors(name):
    """What the operating system says against reading a file, as UnreadableImage of the picture `name`.

    An OSError that is no fault of the file, such as too many open ones, stays what it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno in NO_FAULT_OF_THE_FILE:
            raise
        raise UnreadableImage(name, _file_reason(error)) from error


def read_file(path):
    """The bytes of a picture file; UnreadableImage if there is no such file, or nothing that can be read as one."""
    # Without O_NONBLOCK, a named pipe would be waited for until somebody writes.
    with file_errors(path), open(path, "rb", buffering=0,
                                 opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UnreadableImage(path, "it is a device or a pipe, not a file")
        try:
            return file.read()
        except MemoryError as error:
            raise UnreadableImage(path, f"its {os.fstat(file.fileno()).st_size:,} bytes do not fit into memory") from error


def decode(data_or_file, *, in_chans=3, name=None):
    """The first picture of a file as a loaded 8-bit PIL image, turned upright by its EXIF orientation.

    Args:
        data_or_file: bytes, a path, or a file opened for reading in binary.
        in_chans: 3 gives 'RGB', 1 'L', 4 'RGBA', 2 'LA'. Without an alpha channel in the result, what is transparent
            becomes white. 16 bits are scaled to 8, not clipped. Any other number needs a file with that many channels.
        name: what an error calls the picture; a path needs none.

    A .npy file, a TIFF of another number than 1, 3 or 4 and one that Pillow does not know keep their numbers, and are
    of the kind that util.images.bands.from_array gives. Raises UnreadableImage also for other pictures without a defined white
    (float and wide integer pixels), and where the channels do not fit.
    """
    return Picture(data_or_file, in_chans=in_chans, name=name).decode()


class Picture:
    """The same before decoding: what its header tells (`width`, `height` and `size` of the upright picture, in pixels).

    Arguments and errors are those of `decode`.
    """

    def __init__(self, data_or_file, *, in_chans=3, name=None):
        self.in_chans = _checked(in_chans)
        self.name = name or (data_or_file if not isinstance(data_or_file, bytes) else "picture")
        data = data_or_file
        if not isinstance(data, bytes):
            data = data.read() if hasattr(data, "read") else read_file(data)
        if not data:
            raise UnreadableImage(self.name, "it is empty (0 bytes)")
        with self._named_errors(DAMAGED):
            self.image = self._opened(data)
        orientation = _orientation(self.image)
        self.turn = UPRIGHT.get(orientation)
        self.lies = orientation in LYING
        self.size = self.width, self.height = self._turned(self.image.size)

    def _opened(self, data):
        if band_files.is_npy(data) or (band_files.is_tiff(data) and self.in_chans not in AS_PICTURES):
            return band_files.read(data, self.in_chans)
        try:
            image = Image.open(io.BytesIO(data))
        except UnidentifiedImageError:
            if not band_files.is_tiff(data):
                raise
            return band_files.read(data, self.in_chans)
        if image.format == "TIFF" and 1 < getattr(image, "n_frames", 1) == self.in_chans and len(image.getbands()) == 1:
            return band_files.read(data, self.in_chans)  # a page for each channel
        if image.format not in ("JPEG", "MPO"):
            # Pillow turns TIFFs while it loads them, and finds the orientation of a PNG behind its pixels.
            image.load()
        return image

    def decode(self):
        """The whole picture, as the function `decode` gives it."""
        if isinstance(self.image, Bands):
            return self.image
        with self._named_errors(DAMAGED):
            self.image.load()
        with self._named_errors(ValueError):  # no white, or pixels of which Pillow makes no others
            return _convert(self.image if self.turn is None else self.image.transpose(self.turn), self.in_chans)

    def decode_reduced(self, least):
        """The whole picture, reduced by the decoder as far as it can and `least` (width, height) allows.

        Returns: a PIL image, and by what its size was divided: 1, or for a JPEG 2, 4 or 8 too. Such a decoder computes
            less detail in the first place, which is fast. Decodes once: afterwards the detail is gone.
        """
        if isinstance(self.image, Bands):
            return self.image, 1.0
        with self._named_errors(DAMAGED):
            reduced = self.image.draft(None, self._turned(least))
        return self.decode(), 1.0 if reduced is None else max(self.size) / max(reduced[1])

    def _turned(self, size):
        return size[::-1] if self.lies else size

    @contextlib.contextmanager
    def _named_errors(self, kinds):
        try:
            yield
        except kinds as error:
            raise UnreadableImage(self.name, _decoder_reason(error)) from error


def from_pil(image, *, in_chans=3, name=None):
    """What `decode` gives for the file that a PIL image was opened from."""
    in_chans, name = _checked(in_chans), name or getattr(image, "filename", "") or "picture"
    try:
        image.load()
        turn = UPRIGHT.get(_orientation(image))
        return _convert(image if turn is None else image.transpose(turn), in_chans)
    except DAMAGED as error:
        raise UnreadableImage(name, _decoder_reason(error)) from error


def to_channels(image, in_chans):
    """A loaded PIL image of any mode as 8-bit 'RGB' (`in_chans` 3), 'L' (1), 'LA' (2) or 'RGBA' (4); itself if so."""
    return _convert(image, _checked(in_chans))


def _printable(text):
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def _file_reason(error):
    """What an OSError of opening or reading a file says, in words."""
    if isinstance(error, FileNotFoundError):
        if error.filename and os.path.islink(error.filename):
            return f"it is a link to {os.readlink(error.filename)}, and there is no such file"
        return "there is no such file (any more)"
    if isinstance(error, PermissionError):
        return "there is no permission to read it"
    return "it is a folder" if isinstance(error, IsADirectoryError) else error.strerror or repr(error)


def _decoder_reason(error):
    """What one of DAMAGED says, in words."""
    if isinstance(error, UnidentifiedImageError):
        return "it is in no picture format that Pillow knows"
    if isinstance(error, WORDED) and str(error):
        return str(error).rstrip(".")
    return f"its contents are damaged ({error!r})"


def _checked(in_chans):
    if in_chans < 1:
        raise ValueError(f"--in_chans {in_chans}: a picture has 1 channel or more.")
    return in_chans


def _orientation(image):
    if isinstance(image, Bands):
        return None
    try:
        return image.getexif().get(EXIF_ORIENTATION)
    except DAMAGED:  # a damaged EXIF block beside sound pixels
        return None


def _convert(image, in_chans):
    mode = MODES.get(in_chans)
    if mode is None:
        raise ValueError(f"it has the channels {' '.join(image.getbands())}, and --in_chans asks for {in_chans}")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    elif image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, which do not say what white is; a .npy file "
                         "keeps them as they are")
    if image.mode == mode and "transparency" not in image.info:
        return image
    if mode == "LA":
        return image.convert("RGBA").convert("LA")  # by way of RGBA, which knows each way to be transparent
    if mode != "RGBA" and image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.new("RGB", image.size, "white")
        page.paste(image, mask=image.getchannel("A"))
        image = page
    return image.convert(mode)


def _eight_bits(image):
    """16-bit grey (in the modes I;16*, or I from PGM and signed TIFF) -> L, or LA if one grey value is transparent."""
    grey = np.asarray(image).astype(np.int64)
    tags = getattr(image, "tag_v2", {})
    white = 4095 if tags.get(TIFF_BITS_PER_SAMPLE) == (12,) else 65535
    if grey.min() < 0 or grey.max() > white:
        raise ValueError(f"its pixels run from {grey.min()} to {grey.max()}, outside of 16 bits (0 to {white}), "
                         "and do not say what white is")
    scaled = (grey * 255 + white // 2) // white
    if tags.get(TIFF_PHOTOMETRIC) == 0:  # white is zero; PIL turns it round for 8 bits only
        scaled = 255 - scaled
    result = Image.fromarray(scaled.astype(np.uint8))
    if "transparency" in image.info:
        alpha = Image.fromarray(np.where(grey == image.info["transparency"], 0, 255).astype(np.uint8))
        result = Image.merge("LA", (result, alpha))
    return result
