"""Zip archives and .npz files from untrusted sources, which can neither run code nor fill memory."""

import contextlib
import math
import os
import zipfile
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np

from util.system.safe_pickle import ALLOWANCE, check_volume

# Exceptions that zipfile, zlib and numpy raise while they read a damaged file.
DAMAGE = (
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    OverflowError,
    SyntaxError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_BLOCK = 1 << 20  # bytes read at once


@contextlib.contextmanager
def open_archive(f: BinaryIO, *, allowance: int = ALLOWANCE) -> Iterator[zipfile.ZipFile]:
    """Open the zip archive in an open file.

    Args:
        allowance: bytes that it may have unpacked, whatever its size.

    Raises ValueError if it would unpack to far more bytes than the file has, and zipfile.BadZipFile.
    """
    with zipfile.ZipFile(f) as archive:
        entries = archive.infolist()
        if not all(entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
            raise ValueError("it is compressed by another method than deflate")
        check_volume(
            sum(entry.file_size for entry in entries), os.fstat(f.fileno()).st_size, allowance=allowance
        )
        yield archive


def read_entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read an entry of an archive, but not more bytes than its directory says.

    zipfile.ZipFile.read would unpack more. Raises EOFError if there are fewer.
    """
    entry = archive.getinfo(name)
    with archive.open(entry) as f:
        content = f.read(entry.file_size)
    if len(content) != entry.file_size:
        raise EOFError(f"{name} ends before its last byte")
    return content


def read_arrays(archive: zipfile.ZipFile, *, leave_out: Collection[str] = ()) -> dict[str, np.ndarray]:
    """Read {name: array} of an archive that numpy.savez wrote. Raises one of DAMAGE if that is not possible.

    Args:
        leave_out: names of arrays that are not read.
    """
    arrays = {}
    for entry in archive.infolist():
        name = entry.filename.removesuffix(".npy")
        if name != entry.filename and name not in leave_out:
            with archive.open(entry) as f:
                arrays[name] = _read_array(f, entry.file_size, name)
    return arrays


def read_npz(
    path: Path | str, *, leave_out: Collection[str] = (), allowance: int = ALLOWANCE
) -> dict[str, np.ndarray]:
    """Read {name: array} of an .npz file.

    Args:
        leave_out: names of arrays that are not read.
        allowance: bytes that the arrays may have, whatever the size of the file.

    Raises ValueError if there is no such file, or if it is damaged or holds anything but arrays.
    """
    with _explained(), open(path, "rb") as f, open_archive(f, allowance=allowance) as archive:
        return read_arrays(archive, leave_out=leave_out)


def list_npz(path: Path | str) -> list[str]:
    """Read the names of the arrays of an .npz file. Raises ValueError as `read_npz`."""
    with _explained(), open(path, "rb") as f, zipfile.ZipFile(f) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def read_npy(path: Path | str) -> np.ndarray:
    """Read the array of an .npy file. Raises ValueError as `read_npz`."""
    with _explained(), open(path, "rb") as f:
        return _read_array(f, os.fstat(f.fileno()).st_size, "the array")


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (OSError, *DAMAGE) as error:
        raise ValueError(getattr(error, "strerror", None) or str(error) or type(error).__name__) from error


def _read_array(f: IO[bytes], size: int, name: str) -> np.ndarray:
    """Read an array in numpy's format from `f`, which has `size` bytes. Errors begin with `name`."""
    version = np.lib.format.read_magic(f)
    if version not in _HEADERS:  # later ones are for arrays with named columns
        raise ValueError(f"{name} is of npy version {version}, which is not supported")
    shape, fortran, dtype = _HEADERS[version](f)
    if dtype.hasobject:
        raise ValueError(f"{name} holds Python objects")
    length = math.prod(shape) * dtype.itemsize
    if min(shape, default=1) < 0 or length != size - f.tell():  # checked before memory is taken
        raise ValueError(f"{name} has {size - f.tell()} bytes, which do not fit {dtype} {list(shape)}")
    content, filled = np.empty(length, np.uint8), 0
    while block := f.read(_BLOCK):  # read to the end, where zipfile checks its checksum
        content[filled : filled + len(block)] = np.frombuffer(block, np.uint8)
        filled += len(block)
    if filled != length:
        raise EOFError(f"{name} ends after {filled} of {length} bytes")
    return content.view(dtype).reshape(shape, order="F" if fortran else "C")
