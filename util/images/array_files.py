"""Arrays from the bytes of .npy files, and of TIFFs that Pillow cannot read.

Values keep their units: satellite reflectances (0 to 10000), Hounsfield units, decibels. --mean and --std are
in the same units.

Files are not trusted, and no code in them is run. Memory is bounded by the size of the file, or, for a
compressed TIFF, by Pillow's limit for an image.
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

NPY = b"\x93NUMPY"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}

# numpy raises one of these for a damaged header, and tifffile for damaged pages.
DAMAGED_HEADER = (
    ValueError,
    TypeError,
    SyntaxError,
    LookupError,
    RecursionError,
    MemoryError,
    tokenize.TokenError,
)
DAMAGED_TIFF = (
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    AttributeError,
    EOFError,
    OSError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
    lzma.LZMAError,
)


def is_npy(data: bytes) -> bool:
    """Return True if the bytes begin like an .npy file."""
    return data.startswith(NPY)


def is_tiff(data: bytes) -> bool:
    """Return True if the bytes begin like a TIFF."""
    return data.startswith(TIFF)


def read_npy(data: bytes) -> np.ndarray:
    """Return the array in the bytes of an .npy file, without a copy.

    numpy.load is not used, because it allocates whatever shape the header claims. Raises ValueError if the
    header is damaged, claims more bytes than there are, or its type is not that of real numbers.
    """
    file = io.BytesIO(data)
    try:
        shape, fortran_order, dtype = HEADERS[np.lib.format.read_magic(file)](file)
        count = math.prod(shape)
        fits = min(shape, default=0) >= 0
    except DAMAGED_HEADER as error:
        raise ValueError(f"its .npy header is damaged ({str(error)[:200]})") from error
    if dtype.kind not in "iuf":  # Python objects would be unpickled, which can run code
        raise ValueError(f"it holds {dtype}, not whole or floating-point numbers")
    available = len(data) - file.tell()
    if not fits or available < count * dtype.itemsize:
        raise ValueError(
            f"its header claims an array {list(shape)} of {dtype}, {count * dtype.itemsize:,} "
            f"bytes; {available:,} are there"
        )
    return np.frombuffer(data, dtype, count, file.tell()).reshape(shape, order="F" if fortran_order else "C")


def read_tiff(data: bytes, in_chans: int) -> np.ndarray:
    """Return the array [H, W, C] in the bytes of a TIFF, C = in_chans.

    The channels are the samples of the first page. If it has only one, each page of the same size is a
    channel. Raises ValueError if the file cannot be read, or has another number of channels.
    """
    try:
        import tifffile  # an optional package, only for such files
    except ImportError as error:
        raise ValueError(
            f"reading it needs a package that is missing ({error}): pip install tifffile"
        ) from error
    logging.getLogger("tifffile").disabled = True  # its warnings would repeat the error below
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            first = tiff.pages.first
            pages: list = [first]
            if first.samplesperpixel == 1:  # pages of its size are channels, smaller ones are overviews
                channels = (page for page in tiff.pages if page.shaped == first.shaped)
                pages = [*islice(channels, in_chans + 1)]
            _check_size(pages, len(data))
            # Each is [S, depth, H, W, C], where S or C is 1.
            arrays: list[np.ndarray] = [page.asarray().reshape(page.shaped) for page in pages]
    except DAMAGED_TIFF as error:
        reason = str(error).strip("'\"").rstrip(".")[:200]
        raise ValueError(reason or f"its contents are damaged ({error!r})") from error
    if arrays[0].shape[1] != 1:
        raise ValueError(f"it is a volume of {arrays[0].shape[1]} slices, not an image")
    if len({array.dtype for array in arrays}) > 1:
        raise ValueError(
            f"its pages have different types ({', '.join(str(array.dtype) for array in arrays)})"
        )
    arrays = [np.moveaxis(array[:, 0], 0, -1).reshape(*array.shape[2:4], -1) for array in arrays]
    array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=2)
    if array.shape[2] != in_chans:
        raise ValueError(
            f"its shape is {list(array.shape)}, and --in_chans {in_chans} expects as many channels"
        )
    return array


def _check_size(pages, length):
    """Raise ValueError unless the pages lie within the `length` bytes and below Pillow's size limit."""
    if not pages or any(page.dtype is None or page.dtype.kind not in "iuf" for page in pages):
        raise ValueError("its samples are not whole or floating-point numbers of 8, 16, 32 or 64 bits")
    if any(
        start + size > length
        for page in pages
        for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)
    ):
        raise ValueError("image file is truncated")
    # A single tile may claim to be larger than the whole image.
    for shapes in ([page.shaped for page in pages], [page.chunks for page in pages]):
        size = sum(
            math.prod(shape) * max(4, page.dtype.itemsize) for shape, page in zip(shapes, pages, strict=True)
        )
        if Image.MAX_IMAGE_PIXELS is None:
            continue
        limit = 2 * 4 * Image.MAX_IMAGE_PIXELS  # Pillow refuses twice as many pixels; 4 bytes each
        if size > limit:
            raise ValueError(f"its pixels would take {size:,} bytes of memory, and the limit is {limit:,}")
    if any(page.compression == 1 and sum(page.databytecounts) < page.nbytes for page in pages):
        raise ValueError("image file is truncated")
