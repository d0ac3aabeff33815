"""Pickles with a format version and a checksum, which is verified when they are read.

The checksum covers every array (name, type, shape and bytes) and every plain value with its type. It detects
damage, not tampering, because anyone can compute it. Files without version and checksum, from earlier
versions or other programs, are read without verification.
"""

import collections
import hashlib
import os
import pickle
import struct
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, BinaryIO

import numpy as np

from util.system import safe_pickle

FORMAT = 1  # to be raised if older versions of this project could misread a file

_MOST_NESTED = 100
_LARGE = 1 << 16  # larger arrays, in bytes, are hashed in a thread of their own
_OURS = {"format", "checksum"}
_ADVICE = "copy it again, or use the checkpoint before it"


class SealError(ValueError):
    """A file that is damaged or too new."""


def dump(state: Mapping[str, Any], file: IO[bytes]) -> None:
    """Write `state`, a dict of arrays, plain values and containers of them, to an open file.

    Raises TypeError if it holds anything else, because such a file could not be read back.
    """
    sealed = {"format": FORMAT, **state}
    pickle.dump({**sealed, "checksum": checksum(sealed)}, file, protocol=4)


def load(file: BinaryIO, *, trusted: bool = False) -> Any:
    """Read the object in an open file and verify it. Version and checksum are not part of the object.

    Raises SealError, and the exceptions of safe_pickle.load.
    """
    ours = b"format" in file.read(32)
    file.seek(0)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashing: dict[int, tuple] = {}  # large arrays are hashed while the rest is read

        def begin(array):
            if array.nbytes > _LARGE:
                hashing[id(array)] = array, pool.submit(_of_array, array)

        state = safe_pickle.load(file, trusted=trusted, on_array=begin if ours else None)
        return _checked(state, file, pool, hashing)


def _checked(state, file, pool, hashing):
    """Verify the `state` read from `file`. Returns it without version and checksum."""
    if file.read(1):
        raise SealError(f"damaged: there are bytes after its end; {_ADVICE}")
    if not isinstance(state, dict) or not _OURS & state.keys():
        return state
    version, found = state.get("format"), state.get("checksum")
    if type(version) is int and version > FORMAT:
        raise SealError(
            f"its format {version} is newer than format {FORMAT} of this code; use the code that wrote it"
        )
    if type(version) is not int or version < 1 or not isinstance(found, str):
        raise SealError(f"damaged: its format version or its checksum is missing; {_ADVICE}")
    del state["checksum"]
    try:
        agrees = _checksum(state, pool, hashing) == found
    except TypeError:  # it has a type that `dump` does not write
        agrees = False
    if not agrees:
        raise SealError(f"damaged: its content does not agree with its checksum; {_ADVICE}")
    del state["format"]
    return state


def checksum(state: Any) -> str:
    """Compute the SHA-256, in hexadecimal, of nested dicts, lists and tuples of arrays and plain values.

    Arrays are hashed without copies, by one thread per core. Raises TypeError for other content.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return _checksum(state, pool, {})


def _checksum(state, pool, hashing):
    """Compute `checksum`. `hashing` is {id: (array, Future of its digest)} of arrays already submitted."""
    arrays, seen, left = {}, set(), [state]
    while left:
        value = left.pop()
        if type(value) is np.ndarray:
            arrays[id(value)] = value
        elif type(value) in (dict, collections.OrderedDict, list, tuple) and id(value) not in seen:
            seen.add(id(value))
            left.extend(value.values() if isinstance(value, dict) else value)
    largest_first = sorted(arrays, key=lambda key: -arrays[key].nbytes)
    futures = {
        key: hashing[key][1] if key in hashing else pool.submit(_of_array, arrays[key])
        for key in largest_first
    }
    return _digest(state, {key: future.result() for key, future in futures.items()}, 0).hex()


def _digest(value, digests, depth):
    """Return the digest of `value`.

    Args:
        digests: {id: digest} so far, so that a container that occurs many times is digested once.
    """
    if id(value) in digests:
        return digests[id(value)]
    if depth > _MOST_NESTED:
        raise TypeError("it is nested too deeply, or contains itself")
    if type(value) in (list, tuple):
        parts = value
    elif type(value) in (dict, collections.OrderedDict):
        parts = [part for item in value.items() for part in item]
    else:
        return hashlib.sha256(_of_plain(value)).digest()
    kind = "dict" if isinstance(value, dict) else type(value).__name__
    content = b"".join(_digest(part, digests, depth + 1) for part in parts)
    digests[id(value)] = hashlib.sha256(f"{kind} {len(parts)}\0".encode() + content).digest()
    return digests[id(value)]


def _of_array(array):
    _check_numbers(array)
    digest = hashlib.sha256(f"array {array.dtype.str} {list(array.shape)}\0".encode())
    if array.size:
        digest.update(np.asarray(array, order="C").data)
    return digest.digest()


def _of_plain(value):
    if isinstance(value, np.generic):
        _check_numbers(value)
        return f"number {value.dtype.str}\0".encode() + value.tobytes()
    encoders = {
        type(None): lambda _: b"",
        bool: lambda v: b"%d" % v,
        int: lambda v: b"%x" % v,
        float: lambda v: struct.pack("<d", v),
        str: lambda v: v.encode("utf-8", "surrogatepass"),
        bytes: bytes,
    }
    if type(value) not in encoders:
        raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")
    return f"{type(value).__name__}\0".encode() + encoders[type(value)](value)


def _check_numbers(array):
    if array.dtype.kind not in "biufc":
        raise TypeError(f"a checkpoint cannot hold an array of {array.dtype}")
