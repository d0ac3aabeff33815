"""Files of weights: their format, the arrays in them, and writing them.

Read are PyTorch's files (.pth, .bin; both of its formats), Paddle's pickles (.pd, .pdparams), .safetensors
and .npz. The first bytes tell the format when a file is read, the suffix chooses it when one is written. A
file may hold more
than weights: plain values are kept, optimizer state of other programs is not.
"""

import contextlib
import hashlib
import math
import os
import pickle
import stat
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from util.system import npz, safe_pickle
from util.system.atomic_file import atomic_write
from util.weights import sealed_pickle, torch_file

# Names of the entry that holds the weights, in order of preference. Entries `*_ema` are moving averages.
ENTRIES = ("model", "state_dict", "model_state_dict", "module", "model_ema", "state_dict_ema")
SUFFIXES = (".pd", ".pdparams", ".safetensors", ".npz", ".pth")

_NAME_TABLE = "StructuredToParameterName@@"  # paddle.save adds it to a state dict

# Exceptions that the libraries raise while they read a damaged file.
_DAMAGE = (*npz.DAMAGE, pickle.UnpicklingError, ImportError, struct.error, safetensors.SafetensorError)

# Files that are mistaken for weights: (name, advice, first bytes).
_UNPACK = "; unpack it and give the file in it"
_OTHERS = (
    ("a picture", "", (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")),
    ("a gzip file", _UNPACK, (b"\x1f\x8b",)),
    ("an xz file", _UNPACK, (b"\xfd7zXZ",)),
    ("a 7-Zip archive", _UNPACK, (b"7z\xbc\xaf",)),
    ("a tar archive", _UNPACK, ()),
    ("an HDF5 file (Keras)", "", (b"\x89HDF",)),
)
_NEVER_IN_TEXT = {*range(32)} - set(b"\t\n\r\f\x1b")

_SAFETENSORS_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "<i1",
    "U8": "<u1",
    "BOOL": "?",
}


class WeightFileError(ValueError):
    """A file that cannot be read or written. The message says what it is and what to do."""

    def __init__(self, path: Path | str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")


@dataclass(frozen=True)
class WeightFile:
    """Content of a file.

    Args:
        weights: {name in the file: array}; floating-point numbers as float32, integers as int64.
        file_format: "torch", "torch_legacy", "paddle", "safetensors" or "npz".
        entry: name of the entry that holds the weights, "" if the file holds nothing else.
        stored_as: {type in the file: number of tensors}.
        beside: {name: value} of the other entries.
    """

    weights: dict[str, np.ndarray]
    file_format: str
    entry: str = ""
    stored_as: dict[str, int] = field(default_factory=dict)
    beside: dict[str, Any] = field(default_factory=dict)


def file_format(path: Path | str) -> str:
    """Tell the format of a file from its first bytes: as WeightFile.file_format, or "zip" for torch or npz.

    Raises WeightFileError for any other file.
    """
    path = Path(path)
    _check_is_file(path)
    with _explained(path), open(path, "rb") as f:
        head = f.read(512)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise WeightFileError(path, "the file is empty; download or copy it again")
    if text.startswith(b"version https://git-lfs"):
        raise WeightFileError(
            path, "this is a Git LFS pointer, not the weights; run 'git lfs pull' in its repository"
        )
    if text.startswith(b"<"):
        raise WeightFileError(
            path, "this is a web page, not a weight file; download the file that the page links to"
        )
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(torch_file.LEGACY_MAGIC):
        return "torch_legacy"
    if head.startswith(b"\x80"):
        return "paddle"
    if head[8:9] == b"{":
        return "safetensors"
    for name, advice, beginnings in _OTHERS:
        if head.startswith(beginnings) or (name == "a tar archive" and head[257:262] == b"ustar"):
            raise WeightFileError(path, f"this is {name}, not a weight file{advice}")
    if not set(head) & _NEVER_IN_TEXT:
        raise WeightFileError(path, f"this is a text file, not a weight file; it begins with {head[:40]!r}")
    raise WeightFileError(path, f"neither PyTorch, Paddle, safetensors nor npz; it begins with {head[:16]!r}")


def _check_is_file(path: Path) -> None:
    """Raise WeightFileError unless `path` is a regular file, because opening a pipe would wait."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise WeightFileError(
                path, f"this is a link to {os.readlink(path)}, which does not exist"
            ) from error
        raise WeightFileError(path, "there is no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise _unreadable(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        try:
            inside = ", ".join(
                sorted(entry.name for entry in path.iterdir() if entry.suffix in (*SUFFIXES, ".bin"))
            )
        except OSError:
            inside = ""
        raise WeightFileError(
            path, f"this is a folder; give the weight file in it ({inside or 'there is none'})"
        )
    if not stat.S_ISREG(status.st_mode):
        raise WeightFileError(
            path, "this is a pipe or a device, not a file; write its content to a file first"
        )


def _unreadable(path: Path, error: Exception) -> WeightFileError:
    if isinstance(error, PermissionError):
        return WeightFileError(path, "there is no permission to read it; ask its owner, or use chmod")
    return WeightFileError(path, f"it cannot be read ({getattr(error, 'strerror', None) or error})")


def read_weights(
    path: Path | str, *, entry: str | None = None, trusted: bool = False, prefer_average: bool = True
) -> WeightFile:
    """Read a file of weights. Code in the file is not run, unless it is `trusted`.

    Args:
        entry: entry that holds the weights; by default the first of ENTRIES that the file has.
        trusted: read a pickle with whatever it asks for, which runs its code (--trust_checkpoint).
        prefer_average: take "model_ema" first from a checkpoint of this project.

    Raises WeightFileError.
    """
    path = Path(path)
    kind = file_format(path)
    with _explained(path), contextlib.ExitStack() as stack:
        if kind == "safetensors":
            state = _read_safetensors(path)
        elif kind == "zip" and (kind := _kind_of_archive(path)) == "npz":
            archive = stack.enter_context(npz.open_archive(stack.enter_context(open(path, "rb"))))
            state = npz.read_arrays(archive)
        else:
            if trusted:
                print(
                    f"{path}: trusted (--trust_checkpoint), so any code in it is run",
                    file=sys.stderr,
                    flush=True,
                )
            if kind == "paddle":
                state = sealed_pickle.load(stack.enter_context(open(path, "rb")), trusted=trusted)
            else:
                state = stack.enter_context(torch_file.open_torch_file(path, trusted=trusted))
        return _weights_in(path, kind, state, entry, prefer_average)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the exceptions of reading a damaged or hostile file into WeightFileError."""
    try:
        yield
    except WeightFileError:
        raise
    except safe_pickle.ForbiddenError as error:
        raise WeightFileError(
            path,
            f"refused: {error}. A pickle can carry code, so only tensors and plain values are read; "
            "if you trust the file, --trust_checkpoint reads it, and runs any code in it",
        ) from error
    except sealed_pickle.SealError as error:
        raise WeightFileError(path, str(error)) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    except MemoryError as error:
        raise WeightFileError(path, "there is not enough memory for the arrays that it declares") from error
    except _DAMAGE as error:
        said = safe_pickle.printable(f"{type(error).__name__}: {error}", 300)
        raise WeightFileError(
            path,
            f"this is not a complete file of tensors ({said}); if it is truncated "
            "or damaged, download or copy it again",
        ) from error


def write_weights(
    path: Path | str,
    weights: Mapping[str, np.ndarray],
    *,
    tensor_format: str = "pd",
    beside: Mapping[str, Any] | None = None,
) -> None:
    """Write {name: array} in the format of the suffix of `path`. The file appears once it is complete.

    Args:
        tensor_format: "format" in the header of a .safetensors file: "pt" for PyTorch's layout, "pd" for
            Paddle's.
        beside: {name: value} to keep beside the weights; only a .pd file can.
    """
    path, suffix = Path(path), check_suffix(path)
    weights = {name: np.asarray(value, order="C") for name, value in weights.items()}
    with atomic_write(path) as f:
        if suffix == ".pd":
            sealed_pickle.dump({"model": weights, **(beside or {})}, f)
        elif suffix == ".pdparams":
            pickle.dump(weights, f, protocol=4)
        elif suffix == ".safetensors":
            f.write(safetensors.numpy.save(weights, {"format": tensor_format}))
        elif suffix == ".npz":
            np.savez(f, **weights)  # type: ignore[arg-type] # of `allow_pickle`
        else:
            torch_file.save(weights, f)


def check_suffix(path: Path | str) -> str:
    """Return the suffix of a file to be written. Raises WeightFileError if it names no format."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise WeightFileError(path, f"unknown suffix; choose one of {', '.join(SUFFIXES)}")
    return suffix


def checksum(weights: Mapping[str, np.ndarray]) -> str:
    """Compute the SHA-256, in hexadecimal, of names, types, shapes and values, in any order of the names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = np.asarray(weights[name], order="C")
        digest.update(f"{name}\0{value.dtype.str}\0{list(value.shape)}\0".encode())
        digest.update(value.data if value.size else b"")
    return digest.hexdigest()


def md5(path: Path | str) -> str:
    """Compute the MD5 of a file, in hexadecimal. The official code publishes its first digits."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _kind_of_archive(path: Path) -> str:
    """Tell "npz" from "torch" by the names in a zip archive. Raises WeightFileError for any other archive."""
    with open(path, "rb") as f, npz.open_archive(f) as archive:
        names = archive.namelist()
    if any(name.endswith(".npy") for name in names):
        return "npz"
    if any(name.endswith("/data.pkl") for name in names):
        return "torch"
    inside = safe_pickle.printable(", ".join(names[:4])) + (", ..." if len(names) > 4 else "")
    raise WeightFileError(path, f"this is a zip archive without weights ({inside or 'it is empty'})")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    # safetensors.numpy does not support bfloat16, so the checked bytes are taken from the reader below it.
    arrays = {}
    for name, stored in safetensors.deserialize(path.read_bytes()):
        if stored["dtype"] not in _SAFETENSORS_TYPES:
            raise ValueError(f"{name} is of the type {stored['dtype']}, which is not supported")
        arrays[name] = np.frombuffer(stored["data"], _SAFETENSORS_TYPES[stored["dtype"]]).reshape(
            stored["shape"]
        )
    return arrays


def _weights_in(path: Path, kind: str, state: Any, entry: str | None, prefer_average: bool) -> WeightFile:
    """Find and convert the weights in the content of a file."""
    weights, entry = _choose_entry(path, state, entry, prefer_average)
    arrays: dict[str, np.ndarray] = {}
    stored_as: dict[str, int] = {}
    volume, size = 0, path.stat().st_size
    for name, value in weights.items():
        if name == _NAME_TABLE:
            continue
        value = _unpaired(value)
        if not _is_tensor(value):
            raise WeightFileError(
                path, f"'{name}' among its weights is not a tensor but {type(value).__name__}"
            )
        volume += 4 * math.prod(value.shape)
        safe_pickle.check_volume(volume, size)  # many names can refer to the same bytes
        stored = value.dtype if isinstance(value, torch_file.StoredTensor) else value.dtype.name
        value = value.numpy() if isinstance(value, torch_file.StoredTensor) else value
        if stored == "uint16":  # Paddle's pickles and safetensors keep bfloat16 so
            stored, value = "bfloat16", torch_file.widen_bfloat16(value)
        stored_as[stored] = stored_as.get(stored, 0) + 1
        # BatchNorm counts its batches in an integer
        if value.dtype.kind not in ("iub" if value.ndim == 0 else "f"):
            raise WeightFileError(
                path, f"'{name}' among its weights holds {stored}, not floating-point numbers"
            )
        arrays[str(name)] = value.astype("float32" if value.dtype.kind == "f" else "int64", copy=False)
    beside = {name: value for name, value in state.items() if name != entry} if entry else {}
    return WeightFile(arrays, kind, entry, stored_as, beside)


def _choose_entry(path: Path, state: Any, entry: str | None, prefer_average: bool) -> tuple[dict, str]:
    """Return the dict of weights in `state`, and the name of its entry."""
    if not isinstance(state, dict) or not state:
        raise WeightFileError(path, "expected a dict of weights, or one under 'model' or 'state_dict'")
    holders = [name for name, value in state.items() if isinstance(value, dict) and _has_tensors(value)]
    if entry is not None:
        if entry not in holders:
            known = ", ".join(map(str, holders))
            raise WeightFileError(path, f"--entry {entry}: no weights there; choose from: {known or 'none'}")
        return state[entry], entry
    ours = prefer_average and "kind" in state  # other programs do not write "kind"
    for name in ("model_ema", *ENTRIES) if ours else ENTRIES:
        if name in holders:
            return state[name], name
    if not _has_tensors(state):
        found = ", ".join(map(str, state))
        raise WeightFileError(
            path,
            f"it has no weights under any of {', '.join(ENTRIES)}, but the entries "
            f"{found}; if one of them holds weights, name it with --entry",
        )
    return state, ""


def _unpaired(value: Any) -> Any:
    """Return the values of a tensor that paddle.save wrote as (generated name, values)."""
    return value[1] if isinstance(value, tuple) and len(value) == 2 else value


def _has_tensors(values: dict) -> bool:
    return any(_is_tensor(_unpaired(value)) for value in values.values())


def _is_tensor(value: Any) -> bool:
    return isinstance(value, (np.ndarray, torch_file.StoredTensor))
