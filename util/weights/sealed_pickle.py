"""Pickles of our own with their format's version and a checksum, which is checked when they are read.

The checksum covers every array (name path, type, shape and bytes) and every plain value with its type. It finds damage,
not intent: who can write the file can write the sum. A file without both is one of an earlier version, or another
program's, and is read unchecked.
"""
import collections
import hashlib
import os
import pickle
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from util.system import safe_pickle

FORMAT = 1  # raised when older versions of this project could misread a file

_MOST_NESTED = 100
_LARGE = 1 << 16  # bytes of an array that is worth a thread
_OURS = {"format", "checksum"}


class SealError(ValueError):
    """A file that is not as it was written, or too new; the message says so in English, `chinese` in Chinese."""

    def __init__(self, english, chinese):
        super().__init__(english)
        self.chinese = chinese


def dump(state, file):
    """Pickle `state`, a dict of arrays, plain values and containers of them, with its seal to an open binary file.

    Raises TypeError for anything else in it, which could not be read again.
    """
    sealed = {"format": FORMAT, **state}
    pickle.dump({**sealed, "checksum": checksum(sealed)}, file, protocol=4)


def load(file, *, trusted=False):
    """The object in an open binary file, checked, and without the seal.

    Raises SealError, and what safe_pickle.load raises.
    """
    ours = b"format" in file.read(32)
    file.seek(0)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        hashing = {}  # begun while the rest is read

        def begin(array):
            if array.nbytes > _LARGE:
                hashing[id(array)] = array, pool.submit(_of_array, array)

        state = safe_pickle.load(file, trusted=trusted, on_array=begin if ours else None)
        return _checked(state, file, pool, hashing)


def _checked(state, file, pool, hashing):
    """What was read from `file`, without its seal; SealError if that is broken."""
    if file.read(1):
        raise SealError("it goes on after its end: it is damaged, so copy it again or use the checkpoint before it",
                        "文件末尾有多余内容，已损坏，请重新复制，或使用前一个权重文件")
    if not isinstance(state, dict) or not _OURS & state.keys():
        return state
    version, found = state.get("format"), state.get("checksum")
    if type(version) is int and version > FORMAT:
        raise SealError(f"it is of format {version}, and this version of the code reads format {FORMAT} and older; "
                        "use the code that wrote it or a newer one",
                        f"文件格式版本为 {version}，当前代码只支持到 {FORMAT}，请使用写入它的代码或更新的代码")
    if type(version) is not int or version < 1 or not isinstance(found, str):
        raise SealError("its format version or its checksum is missing: it is damaged, so copy it again or use the "
                        "checkpoint before it", "缺少格式版本或校验和，文件已损坏，请重新复制，或使用前一个权重文件")
    del state["checksum"]
    try:
        agrees = _checksum(state, pool, hashing) == found
    except TypeError:  # something that we never write
        agrees = False
    if not agrees:
        raise SealError("it is damaged: its content does not agree with its checksum; copy it again or use the "
                        "checkpoint before it", "文件已损坏：内容与校验和不符，请重新复制，或使用前一个权重文件")
    del state["format"]
    return state


def checksum(state):
    """SHA256, in hexadecimal, of a nest of dicts, lists and tuples with arrays and plain values; see the module.

    Arrays are hashed by as many threads as there are cores, without copies. Raises TypeError for other content.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return _checksum(state, pool, {})


def _checksum(state, pool, hashing):
    """See `checksum`; `hashing` is {id: (array, Future of its digest)} of those that have been begun."""
    arrays, seen, left = {}, set(), [state]
    while left:
        value = left.pop()
        if type(value) is np.ndarray:
            arrays[id(value)] = value
        elif type(value) in (dict, collections.OrderedDict, list, tuple) and id(value) not in seen:
            seen.add(id(value))
            left.extend(value.values() if isinstance(value, dict) else value)
    largest_first = sorted(arrays, key=lambda key: -arrays[key].nbytes)
    futures = {key: hashing[key][1] if key in hashing else pool.submit(_of_array, arrays[key])
               for key in largest_first}
    return _digest(state, {key: future.result() for key, future in futures.items()}, 0).hex()


def _digest(value, digests, depth):
    """The digest of `value`.

    Args:
        digests: {id: digest} of what has been digested; a container that stands in many places is looked at once.
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
    encoders = {type(None): lambda _: b"", bool: lambda v: b"%d" % v, int: lambda v: b"%x" % v,
                float: lambda v: struct.pack("<d", v), str: lambda v: v.encode("utf-8", "surrogatepass"), bytes: bytes}
    if type(value) not in encoders:
        raise TypeError(f"a checkpoint cannot hold a {type(value).__name__}")
    return f"{type(value).__name__}\0".encode() + encoders[type(value)](value)


def _check_numbers(array):
    if array.dtype.kind not in "biufc":
        raise TypeError(f"a checkpoint cannot hold an array of {array.dtype}")
