"""Files of many channels, put together from the specifications of their formats."""

import io
import struct
import zlib

import numpy as np


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npy_with_header(header, data=b""):
    """A .npy file of format 1.0 with any text as its header."""
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + data


def tiff(array, *, planar=False, deflate=False, order="<", tags=()):
    """A TIFF of one page, in one strip, or with `planar` one a channel, of the [H, W, C] array.

    Args:
        order: "<" or ">"; tags: {number: value} that replace or add to what is right.
    """
    return tiff_pages([array], planar=planar, deflate=deflate, order=order, tags=tags)


def tiff_pages(arrays, *, planar=False, deflate=False, order="<", tags=()):
    """A TIFF of a page for each array."""
    data = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 0)
    link = 4  # where the place of the next page is to be written
    for array in arrays:
        height, width, channels = array.shape
        stored = array.astype(array.dtype.newbyteorder(order))
        parts = (
            [np.ascontiguousarray(stored[:, :, channel]) for channel in range(channels)]
            if planar
            else [stored]
        )
        strips = [zlib.compress(part.tobytes()) if deflate else part.tobytes() for part in parts]
        places = np.cumsum([len(data), *map(len, strips)])[:-1].tolist()
        data += b"".join(strips) + b"\0" * (sum(map(len, strips)) % 2)
        values = {
            256: width,
            257: height,
            258: [8 * array.itemsize] * channels,
            259: 8 if deflate else 1,
            262: 1,
            273: places,
            277: channels,
            278: height,
            279: [*map(len, strips)],
            284: 2 if planar else 1,
            338: [0] * (channels - 1),
            339: [{"u": 1, "i": 2, "f": 3}[array.dtype.kind]] * channels,
            **dict(tags),
        }
        entries = b""
        for tag, value in sorted(values.items()):
            numbers = value if isinstance(value, list) else [value]
            if numbers:
                packed = struct.pack(
                    f"{order}{len(numbers)}I", *numbers
                )  # LONG, which every reader takes for SHORT
                if len(numbers) > 1:
                    place, data = len(data), data + packed
                    packed = struct.pack(order + "I", place)
                entries += struct.pack(order + "HHI", tag, 4, len(numbers)) + packed
        data = data[:link] + struct.pack(order + "I", len(data)) + data[link + 4 :]
        link = len(data) + 2 + len(entries)
        data += struct.pack(order + "H", len(entries) // 12) + entries + b"\0\0\0\0"
    return data
