"""Pictures that cannot be read, and odd ones that can."""

import io
import os
import socket
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def noise(file_format, **options):
    """The bytes of a picture of 64 x 48 random pixels."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(
        file, file_format, **options
    )
    return file.getvalue()


def half(file_format, **options):
    data = noise(file_format, **options)
    return data[: len(data) // 2]


def png(width, height, pixels, *, checksum=0):
    """A PNG of RGB pixels, put together from its specification; `checksum` is added to the header's own."""

    def chunk(kind, data, more=0):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) + more)

    header = struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header, checksum)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


def float_tiff():
    file = io.BytesIO()
    Image.fromarray(np.full((3, 4), 0.5, np.float32)).save(file, "TIFF")
    return file.getvalue()


def replaced_by(make):
    """Of a picture: it was one when the folder was listed, and is something else now."""

    def replace(path):
        path.unlink()
        make(path)

    return replace


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(os.path.relpath(path))  # an absolute name may be too long


# What is in the file, or what becomes of it once it is listed; and what the sentence about it says.
ZOO = {
    "half.jpg": (half("JPEG"), "image file is truncated"),
    "half_progressive.jpg": (half("JPEG", progressive=True), "image file is truncated"),
    "half.png": (half("PNG"), "truncated|broken PNG"),
    "half.webp": (half("WEBP"), r"\S"),
    "half.tif": (half("TIFF"), r"\S"),
    "half.bmp": (half("BMP"), "truncated"),
    "half.ppm": (half("PPM"), "truncated|too few|not enough"),
    "twenty_bytes.jpg": (noise("JPEG")[:20], r"\S"),
    "signature_only.png": (noise("PNG")[:8], r"\S"),
    "no_pixels.png": (noise("PNG")[:33], r"\S"),
    "wrong_checksum.png": (png(4, 3, bytes(39), checksum=1), "no picture format"),
    "bomb.png": (png(20_000, 20_000, bytes(100)), r"400000000 pixels.*decompression bomb"),
    "empty.jpg": (b"", r"it is empty \(0 bytes\)"),
    "zeros.png": (bytes(4096), "no picture format"),
    "web_page.jpg": (b"<!DOCTYPE html><html>404</html>", "no picture format"),
    "lfs_pointer.png": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n",
        "no picture format",
    ),
    "archive.jpg": (b"PK\x03\x04" + bytes(30), "no picture format"),
    "float.tif": (float_tiff(), "floating-point"),
    "vanished.jpg": (Path.unlink, "there is no such file"),
    "broken_link.jpg": (
        replaced_by(lambda path: path.symlink_to("no\nwhere.jpg")),
        r"a link to "
        r"no\\nwhere.jpg",
    ),
    "link_to_itself.jpg": (replaced_by(lambda path: path.symlink_to(path.name)), "symbolic links"),
    "folder.jpg": (replaced_by(Path.mkdir), "it is a folder"),
    "link_to_zeros.jpg": (replaced_by(lambda path: path.symlink_to("/dev/zero")), "a device or a pipe"),
    "pipe.jpg": (replaced_by(os.mkfifo), "a device or a pipe"),
    "socket.jpg": (replaced_by(make_socket), r"\S"),
    "tab\tline\nname.jpg": (b"no picture", "no picture format"),
    os.fsdecode(b"\xe4.jpg"): (b"no picture", "no picture format"),
}

ODD_BUT_READABLE = {
    "png.jpg": noise("PNG"),
    "gif.png": noise("GIF"),
    "jpeg.webp": noise("JPEG"),
    "more_behind.jpg": noise("JPEG") + bytes(1000),
    "CAPITALS.JPG": noise("JPEG"),
}
