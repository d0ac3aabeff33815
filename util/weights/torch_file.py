"""PyTorch's file format, read and written without PyTorch. A hostile file cannot run code.

Since PyTorch 1.6 a file is a zip archive. `<folder>/data.pkl` is a pickle in which a tensor is the call
`torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)`, and a storage is the persistent id
`("storage", class, key, device, length)` of the bytes in `<folder>/data/<key>`. Tensors may share a storage.

The older format is a sequence of pickles (a magic number, a version, the machine's properties, the object,
the keys of the storages), followed by the length and the bytes of each storage.

Source: https://docs.pytorch.org/docs/stable/notes/serialization.html
"""

import contextlib
import functools
import io
import math
import os
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from util.system import npz, safe_pickle

# The first pickle of the older format.
LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"

_REPEATED = 1 << 20  # values that a tensor may have though its storage has fewer: strides of 0 repeat them

# {PyTorch's name of a type: (class of its storages, numpy's name)}
_TYPES = {
    "float32": ("FloatStorage", "<f4"),
    "float64": ("DoubleStorage", "<f8"),
    "float16": ("HalfStorage", "<f2"),
    "bfloat16": ("BFloat16Storage", "<u2"),
    "int64": ("LongStorage", "<i8"),
    "int32": ("IntStorage", "<i4"),
    "int16": ("ShortStorage", "<i2"),
    "int8": ("CharStorage", "<i1"),
    "uint8": ("ByteStorage", "<u1"),
    "bool": ("BoolStorage", "?"),
}


def widen_bfloat16(bits: np.ndarray) -> np.ndarray:
    """Convert bfloat16, given as uint16 bit patterns because numpy lacks the type, to float32. Exact."""
    return (bits.astype("uint32") << 16).view("float32")


class StoredTensor:
    """A tensor in a file. Its values are read when `numpy` is called."""

    def __init__(
        self, storage: "_Storage", offset: int, shape: tuple[int, ...], stride: tuple[int, ...]
    ) -> None:
        numbers = (offset, *shape, *stride)
        if len(shape) != len(stride) or not all(type(n) is int and n >= 0 for n in numbers):
            raise ValueError(f"a tensor of shape {shape} with strides {stride} at {offset}")
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride

    @property
    def dtype(self) -> str:
        """PyTorch's name of the type, such as "bfloat16"."""
        return self.storage.dtype

    def numpy(self) -> np.ndarray:
        """Read the values in the tensor's own type, bfloat16 as float32.

        Raises ValueError if the tensor reaches beyond its storage.
        """
        steps = zip(self.shape, self.stride, strict=True)
        last = self.offset + sum((side - 1) * step for side, step in steps)
        if 0 not in self.shape and last >= self.storage.length:
            raise ValueError(
                f"a tensor of shape {self.shape} reaches beyond the {self.storage.length} "
                "values of its storage"
            )
        if math.prod(self.shape) > max(self.storage.length, _REPEATED):
            raise ValueError(
                f"a tensor of shape {self.shape} repeats a storage of {self.storage.length} values"
            )
        stored = np.frombuffer(self.storage.read(), _TYPES[self.dtype][1])
        view = np.lib.stride_tricks.as_strided(
            stored[self.offset :],
            self.shape,
            [step * stored.itemsize for step in self.stride],
            writeable=False,
        )
        return widen_bfloat16(view) if self.dtype == "bfloat16" else view.copy()


class _Storage:
    def __init__(self, dtype: str, length: int, fetch: Callable[[], bytes]) -> None:
        self.dtype, self.length, self.fetch = dtype, length, fetch

    def read(self) -> bytes:
        content = self.fetch()
        if len(content) != self.length * _itemsize(self.dtype):
            raise ValueError(f"a storage of {self.length} {self.dtype} has {len(content)} bytes")
        return content


def _itemsize(dtype):
    return np.dtype(_TYPES[dtype][1]).itemsize


# Functions that a file may call, with any arguments.


def _rebuild_tensor(storage, offset, shape, stride, *_):  # the rest: requires_grad, hooks and metadata
    if not isinstance(storage, _Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise ValueError("a tensor without storage or shape")
    return StoredTensor(storage, offset, shape, stride)


def _rebuild_parameter(tensor, *_):
    return tensor


def _path(*parts):
    """Stand-in for pathlib's classes, which occur in the options of the official code's runs."""
    return str(PurePosixPath(*parts))


def _device(kind, *number):
    if not isinstance(kind, str) or len(number) > 1 or not all(type(n) is int for n in number):
        raise ValueError("a device without name or number")
    return ":".join([kind, *map(str, number)])


class _Unpickler(safe_pickle.Unpickler):
    admitted = {
        **safe_pickle.ADMITTED,
        ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
        ("torch", "Size"): safe_pickle.ADMITTED["builtins", "tuple"],
        ("torch", "device"): _device,
        **{("torch", name): name for name in _TYPES},
        **{
            (module, name): dtype for dtype, (name, _) in _TYPES.items() for module in ("torch", "torch.cuda")
        },
        **{
            (module, name): _path
            for module in ("pathlib", "pathlib._local")
            for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
        },
    }

    def __init__(self, file, storage, trusted):
        super().__init__(file, trusted=trusted)
        self.storage = storage

    def persistent_load(self, pid):
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or pid[1] not in _TYPES:
            raise safe_pickle.ForbiddenError("it refers to something other than the numbers of a tensor")
        if len(pid) > 5 and pid[5] is not None:
            raise safe_pickle.ForbiddenError("its storages are views of others, as before PyTorch 0.4")
        if not isinstance(pid[2], str) or type(pid[4]) is not int or pid[4] < 0:
            raise ValueError("a storage without name or length")
        return self.storage(dtype=pid[1], key=pid[2], length=pid[4])


@contextlib.contextmanager
def open_torch_file(path: Path | str, *, trusted: bool = False) -> Iterator[Any]:
    """Open a file and return its object, with a StoredTensor for each tensor, readable inside the `with`.

    Args:
        trusted: find and call whatever the file asks for, as plain pickle does.

    Raises safe_pickle.ForbiddenError if the file asks for anything but tensors, arrays and plain containers.
    Raises zipfile.BadZipFile, ValueError or an exception of pickle if it is damaged.
    """
    with open(path, "rb") as f:
        if f.read(len(LEGACY_MAGIC)) == LEGACY_MAGIC:
            f.seek(0)
            yield _load_legacy(f, trusted)
        else:
            with npz.open_archive(f) as archive:
                yield _load_zip(archive, trusted)


def _load_zip(archive, trusted):
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ValueError(f"expected one data.pkl in the archive, found {len(pickles)}")
    folder = pickles[0][: -len("data.pkl")]
    order = f"{folder}byteorder"
    if order in archive.namelist() and npz.read_entry(archive, order) != b"little":
        raise ValueError("its numbers are big-endian")

    @functools.lru_cache(maxsize=1)  # tensors that share a storage mostly follow one another
    def fetch(key):
        return npz.read_entry(archive, f"{folder}data/{key}")

    def storage(dtype, key, length):
        return _Storage(dtype, length, lambda: fetch(key))

    return _Unpickler(io.BytesIO(npz.read_entry(archive, pickles[0])), storage, trusted).load()


def _load_legacy(f, trusted):
    _, _, machine = (safe_pickle.load(f) for _ in range(3))
    if not machine["little_endian"]:
        raise ValueError("its numbers are big-endian")
    storages: dict[str, _Storage] = {}

    def storage(dtype, key, length):
        return storages.setdefault(key, _Storage(dtype, length, bytes))

    state = _Unpickler(f, storage, trusted).load()
    size = os.fstat(f.fileno()).st_size
    for key in safe_pickle.load(f):
        (length,) = struct.unpack("<q", f.read(8))
        start, num_bytes = f.tell(), length * _itemsize(storages[key].dtype)
        if num_bytes < 0 or start + num_bytes > size:
            raise EOFError("it ends before the last of its tensors")
        storages[key].fetch = functools.partial(_read_at, f, start, num_bytes)
        f.seek(start + num_bytes)
    return state


def _read_at(f, start, num_bytes):
    f.seek(start)
    return f.read(num_bytes)


def save(weights: Mapping[str, np.ndarray], f: IO[bytes], *, entry: str = "model") -> None:
    """Write {entry: {name: tensor}} to an open file in the zip format, as `torch.save` does.

    Args:
        weights: {name: array} of float32 or int64.
    """
    names = {
        np.dtype(numpy_name): dtype
        for dtype, (_, numpy_name) in _TYPES.items()
        if dtype in ("float32", "int64")
    }
    with zipfile.ZipFile(f, "w") as archive:
        tensors = [
            (_text(name), _tensor(str(key), names[value.dtype], value.shape))
            for key, (name, value) in enumerate(weights.items())
        ]
        _store(archive, "data.pkl", b"\x80\x02" + _dict([(_text(entry), _dict(tensors))]) + b".")
        _store(archive, "byteorder", b"little")
        for key, value in enumerate(weights.values()):
            _store(archive, f"data/{key}", value.tobytes())
        _store(archive, "version", b"3\n")


def _store(archive, name, content):
    # The date is a constant, so that equal files have equal bytes.
    archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)


# Opcodes of pickle's protocol 2. The pickle module itself can only name classes that can be imported.


def _text(text):
    encoded = text.encode("utf-8")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _number(number):
    return b"J" + struct.pack("<i", number)


def _global(module, name):
    return f"c{module}\n{name}\n".encode()


def _tuple(*items):
    return b"(" + b"".join(items) + b"t"


def _dict(items):
    return b"}(" + b"".join(key + value for key, value in items) + b"u"


def _tensor(key, dtype, shape):
    storage = _tuple(
        _text("storage"),
        _global("torch", _TYPES[dtype][0]),
        _text(key),
        _text("cpu"),
        _number(math.prod(shape)),
    )
    stride = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    no_hooks = _global("collections", "OrderedDict") + b")R"
    return (
        _global("torch._utils", "_rebuild_tensor_v2")
        + _tuple(
            storage + b"Q",
            _number(0),
            _tuple(*map(_number, shape)),
            _tuple(*map(_number, stride)),
            b"\x89",
            no_hooks,
        )
        + b"R"
    )
