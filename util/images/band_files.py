"""Pictures of any number of channels from .npy files and from TIFFs that Pillow does not read, and from arrays.

8-bit pixels stay what they are. All other numbers become float32 and are taken as they stand, which is what --mean and
--std are of: reflectances of a satellite (0 to 10000), Hounsfield units, decibels. None of them says what white is.

A file is not trusted: nothing in it is run, and no more memory is taken than it has bytes, or, for a compressed TIFF,
than Pillow would take for a picture.
"""
import io
import logging
import lzma
import math
import struct
import tokenize
import zlib
from itertools import islice

import numpy as np
from PIL import Image

from util.images import bands

NPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")     # the last two: BigTIFF
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

# What numpy raises on a damaged header, and tifffile on damaged pages.
DAMAGED_HEADER = (ValueError, TypeError, SyntaxError, LookupError, RecursionError, MemoryError, tokenize.TokenError)
DAMAGED_TIFF = (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, AttributeError, EOFError, OSError,
                AssertionError, MemoryError, struct.error, zlib.error, lzma.LZMAError)


def is_npy(data):
    return data.startswith(NPY)


def is_tiff(data):
    return data.startswith(TIFF)


def read(data, in_chans):
    """The picture in the bytes of a .npy file or a TIFF, see `bands.from_array`; ValueError with the reason if none."""
    return from_array(_read_npy(data), in_chans) if is_npy(data) else _picture(_read_tiff(data, in_chans), in_chans)


def from_array(array, in_chans):
    """[H, W, C], [C, H, W] or, of one channel, [H, W], of real numbers -> a picture, see `bands.from_array`.

    C is the axis as long as `in_chans`. ValueError if none of the two is, or both.
    """
    if array.dtype.kind not in "iuf":
        raise ValueError(f"it holds {array.dtype}, not whole or floating-point numbers")
    shape = list(array.shape)
    if array.ndim == 2 and in_chans == 1:
        array = array[:, :, None]
    elif array.ndim != 3:
        raise ValueError(f"its shape is {shape}, and --in_chans {in_chans} expects [height, width, {in_chans}] or "
                         f"[{in_chans}, height, width]")
    elif shape[0] == shape[2] == in_chans:
        raise ValueError(f"its shape is {shape}, of which the first and the last axis could be the {in_chans} channels")
    elif shape[0] == in_chans:
        array = array.transpose(1, 2, 0)
    return _picture(array, in_chans)


def _picture(array, in_chans):
    if array.shape[2] != in_chans:
        raise ValueError(f"its shape is {list(array.shape)}, and --in_chans {in_chans} expects [height, width, "
                         f"{in_chans}] or [{in_chans}, height, width]")
    if 0 in array.shape:
        raise ValueError(f"its shape is {list(array.shape)}: it has no pixels")
    if array.dtype != np.uint8:
        with np.errstate(over="ignore", invalid="ignore"):
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise ValueError("some of its numbers are not finite, or too large for float32; replace them "
                             "(numpy.nan_to_num)")
    return bands.from_array(array)


def _read_npy(data):
    """The array in the bytes of a .npy file, without a copy. Not numpy.load, which believes any shape."""
    file = io.BytesIO(data)
    try:
        shape, by_columns, dtype = HEADERS[np.lib.format.read_magic(file)](file)
        count = math.prod(shape)
        fits = min(shape, default=0) >= 0
    except DAMAGED_HEADER as error:
        raise ValueError(f"its .npy header is damaged ({str(error)[:200]})") from error
    if dtype.kind not in "iuf":  # Python objects would be unpickled, which can run code
        raise ValueError(f"it holds {dtype}, not whole or floating-point numbers")
    there = len(data) - file.tell()
    if not fits or there < count * dtype.itemsize:
        raise ValueError(f"its header tells of an array {list(shape)} of {dtype}, {count * dtype.itemsize:,} bytes; "
                         f"{there:,} are there")
    return np.frombuffer(data, dtype, count, file.tell()).reshape(shape, order="F" if by_columns else "C")


def _read_tiff(data, in_chans):
    """[H, W, C] in the bytes of a TIFF: the samples of its first page, or pages of one sample as channels."""
    try:
        import tifffile  # only for such files
    except ImportError as error:
        raise ValueError(f"reading it needs a package that is missing ({error}): pip install tifffile") from error
    logging.getLogger("tifffile").disabled = True  # what is wrong with a file is told by the error
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            first = tiff.pages[0]
            pages = [first]
            if first.samplesperpixel == 1:  # others of its size are channels, and smaller ones are overviews
                alike = (page for page in tiff.pages if page.shaped == first.shaped)
                pages = [*islice(alike, in_chans + 1)]
            _check_size(pages, len(data))
            arrays = [page.asarray().reshape(page.shaped) for page in pages]  # [S, depth, H, W, C], S or C is 1
    except DAMAGED_TIFF as error:
        said = str(error).strip("'\"").rstrip(".")[:200]
        raise ValueError(said or f"its contents are damaged ({error!r})") from error
    if arrays[0].shape[1] != 1:
        raise ValueError(f"it is a volume, {arrays[0].shape[1]} pictures deep")
    if len({array.dtype for array in arrays}) > 1:
        raise ValueError(f"its pages hold numbers of several types ({', '.join(str(array.dtype) for array in arrays)})")
    arrays = [np.moveaxis(array[:, 0], 0, -1).reshape(*array.shape[2:4], -1) for array in arrays]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=2)


def _check_size(pages, length):
    """ValueError unless the pages are in the file's `length` bytes, and of a size that Pillow would decode."""
    if not pages or any(page.dtype is None or page.dtype.kind not in "iuf" for page in pages):
        raise ValueError("its samples are not whole or floating-point numbers of 8, 16, 32 or 64 bits")
    if any(start + size > length for page in pages
           for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)):
        raise ValueError("image file is truncated")
    for shapes in ([page.shaped for page in pages], [page.chunks for page in pages]):  # a tile may be larger than all
        size = sum(math.prod(shape) * max(4, page.dtype.itemsize) for shape, page in zip(shapes, pages, strict=True))
        if Image.MAX_IMAGE_PIXELS is not None and size > 2 * 4 * Image.MAX_IMAGE_PIXELS:  # 4 bytes a pixel of Pillow's
            raise ValueError(f"its pixels would take {size:,} bytes of memory, and the limit is "
                             f"{2 * 4 * Image.MAX_IMAGE_PIXELS:,}")
    if any(page.compression == 1 and sum(page.databytecounts) < page.nbytes for page in pages):
        raise ValueError("image file is truncated")
