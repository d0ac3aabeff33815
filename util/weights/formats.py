"""Files of weights: which kind a file is, its named arrays, and writing them in each kind.

Read: PyTorch (.pth, .bin; both its formats), Paddle's pickles (.pd, .pdparams), .safetensors and .npz, told apart by
their first bytes. Written: the same kinds, by the suffix. A file may hold more than weights; of that, only what is
plain values is kept, and optimizer state never.
"""
import contextlib
import hashlib
import math
import os
import pickle
import stat
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from util.system import npz, safe_pickle
from util.system.atomic_file import atomic_write
from util.weights import bfloat16, sealed_pickle, torch_file

# Where files with more than weights keep them, in the order of preference; `*_ema` are running means of the same.
ENTRIES = ("model", "state_dict", "model_state_dict", "module", "model_ema", "state_dict_ema")
SUFFIXES = (".pd", ".pdparams", ".safetensors", ".npz", ".pth")

_NAME_TABLE = "StructuredToParameterName@@"  # what paddle.save adds to a state dict

# Exceptions that the libraries raise while they read a damaged file.
_DAMAGE = (*npz.DAMAGE, pickle.UnpicklingError, ImportError, struct.error, safetensors.SafetensorError)

# What else is met under the name of a weight file: English, Chinese, advice in both, how it begins.
_UNPACK = "; unpack it and give the file in it", "，请先解压，再指定其中的文件"
_OTHERS = (("a picture", "图片", "", "", (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")),
           ("a gzip file", "gzip 压缩文件", *_UNPACK, (b"\x1f\x8b",)),
           ("an xz file", "xz 压缩文件", *_UNPACK, (b"\xfd7zXZ",)),
           ("a 7-Zip archive", "7-Zip 压缩文件", *_UNPACK, (b"7z\xbc\xaf",)),
           ("a tar archive", "tar 归档文件", *_UNPACK, ()),
           ("an HDF5 file, as of Keras,", "HDF5 文件（如 Keras）", "", "", (b"\x89HDF",)))
_NEVER_IN_TEXT = {*range(32)} - set(b"\t\n\r\f\x1b")

_SAFETENSORS_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2",
                      "I8": "<i1", "U8": "<u1", "BOOL": "?"}


class WeightFileError(ValueError):
    """A file that cannot be read or written; the message says what it is, in English and in Chinese."""

    def __init__(self, path, english, chinese):
        super().__init__(f"{path}: {english}\n{path}：{chinese}")
        self.english, self.chinese = english, chinese


@dataclass(frozen=True)
class WeightFile:
    """What a file holds.

    weights: {name: array} as in the file, numbers as float32, integers as int64.
    kind: "torch", "torch_legacy", "paddle", "safetensors" or "npz".
    entry: the name under which the weights stood, or "" where the file is nothing else.
    stored_as: {type in the file: number of tensors}.
    beside: {name: value} of the other entries.
    """

    weights: dict
    kind: str
    entry: str = ""
    stored_as: dict = field(default_factory=dict)
    beside: dict = field(default_factory=dict)


def kind_of(path):
    """The kind of the file at `path` by its first bytes: see WeightFile.kind; "zip" for torch or npz.

    Raises WeightFileError for what is no weight file at all.
    """
    path = Path(path)
    _check_place(path)
    with _explained(path), open(path, "rb") as f:
        head = f.read(512)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        raise WeightFileError(path, "the file is empty; download or copy it again", "文件是空的，请重新下载或复制")
    if text.startswith(b"version https://git-lfs"):
        raise WeightFileError(path, "this is a Git LFS pointer, not the weights that it points to; run 'git lfs pull' "
                              "in its repository", "这是 Git LFS 指针，不是权重本身，请在其仓库中运行 git lfs pull")
    if text.startswith(b"<"):
        raise WeightFileError(path, "this is a web page, not a weight file; the link leads to a page, so download the "
                              "file itself", "这是网页，不是权重文件，请下载文件本身")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(torch_file.LEGACY_MAGIC):
        return "torch_legacy"
    if head.startswith(b"\x80"):
        return "paddle"
    if head[8:9] == b"{":
        return "safetensors"
    for english, chinese, advice, advised, beginnings in _OTHERS:
        if head.startswith(beginnings) or (english == "a tar archive" and head[257:262] == b"ustar"):
            raise WeightFileError(path, f"this is {english}, not a weight file{advice}",
                                  f"这是{chinese}，不是权重文件{advised}")
    if not set(head) & _NEVER_IN_TEXT:
        raise WeightFileError(path, f"this is a text file, not a weight file; it begins with {head[:40]!r}",
                              f"这是文本文件，不是权重文件，开头为 {head[:40]!r}")
    raise WeightFileError(path, f"neither PyTorch, Paddle, safetensors nor npz: it begins with {head[:16]!r}",
                          f"不是 PyTorch、Paddle、safetensors 或 npz 文件，开头为 {head[:16]!r}")


def _check_place(path):
    """WeightFileError unless there is a file at `path`, which can then be opened without waiting for anything."""
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        if path.is_symlink():
            raise WeightFileError(path, f"this is a link to {os.readlink(path)}, which is not there",
                                  f"这是指向 {os.readlink(path)} 的链接，目标不存在") from error
        raise WeightFileError(path, "there is no such file", "文件不存在") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise _unreadable(path, error) from error
    if stat.S_ISDIR(status.st_mode):
        try:
            inside = ", ".join(sorted(entry.name for entry in path.iterdir() if entry.suffix in (*SUFFIXES, ".bin")))
        except OSError:
            inside = ""
        raise WeightFileError(path, f"this is a folder; give the weight file in it ({inside or 'there is none'})",
                              f"这是文件夹，请指定其中的权重文件（{inside or '没有找到'}）")
    if not stat.S_ISREG(status.st_mode):
        raise WeightFileError(path, "this is a pipe or a device, which cannot be read as a file of weights; copy what it "
                              "gives to a file", "这是管道或设备，不能作为权重文件读取，请先将内容保存为文件")


def _unreadable(path, error):
    reason = getattr(error, "strerror", None) or str(error)
    if isinstance(error, PermissionError):
        return WeightFileError(path, "there is no permission to read it; ask its owner, or chmod it",
                               "没有读取权限，请联系文件所有者或修改权限")
    return WeightFileError(path, f"it cannot be read ({reason})", f"无法读取（{reason}）")


def read(path, *, entry=None, trusted=False):
    """The WeightFile at `path`. Runs no code that the file may bring, unless it is `trusted`.

    Args:
        entry: which part of a file with several models to take; by default the first that it has of ENTRIES.
    Raises WeightFileError.
    """
    path, kind = Path(path), kind_of(path)
    if kind == "paddle":
        state = read_pickle(path, trusted=trusted)
        with _explained(path):
            return _collect(path, kind, state, entry)
    with _explained(path):
        if kind == "safetensors":
            return _collect(path, kind, _safetensors(path), entry)
        if kind == "zip":
            with open(path, "rb") as f, npz.open_archive(f) as archive:
                kind = _kind_of_archive(path, archive.namelist())
                if kind == "npz":
                    return _collect(path, kind, npz.read_arrays(archive), entry)
        _announce(path, trusted)
        with torch_file.opened(path, trusted=trusted) as state:
            return _collect(path, kind, state, entry)


def read_pickle(path, *, trusted=False):
    """All that a Paddle file holds, whose checksum agrees if it is one of ours. Runs no code unless it is `trusted`.

    Raises WeightFileError.
    """
    _announce(path, trusted)
    with _explained(path), open(path, "rb") as f:
        return sealed_pickle.load(f, trusted=trusted)


@contextlib.contextmanager
def _explained(path):
    """Turns what reading a damaged or hostile file raises into a WeightFileError."""
    try:
        yield
    except WeightFileError:
        raise
    except safe_pickle.ForbiddenError as error:
        raise WeightFileError(
            path, f"refused: {error}. A pickle can carry code, so only tensors and plain values are read; if you trust "
            "the file, --trust_checkpoint reads it all the same, and runs whatever code it brings",
            f"拒绝读取（{error}）。pickle 可以携带代码，因此只读取张量和普通数据；"
            "如果信任该文件，可以加上 --trust_checkpoint 读取，但会运行其中的任何代码") from error
    except sealed_pickle.SealError as error:
        raise WeightFileError(path, str(error), error.chinese) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    except MemoryError as error:
        raise WeightFileError(path, "there is not enough memory for what it holds, or claims to hold",
                              "内存不足以容纳该文件的内容") from error
    except _DAMAGE as error:
        said = safe_pickle.printable(f"{type(error).__name__}: {error}", 300)
        raise WeightFileError(path, f"this is not a whole file of tensors ({said}); if it was cut short or damaged, "
                              "download or copy it again",
                              f"不是完整的权重文件（{said}），如果不完整或已损坏，请重新下载或复制") from error


def _announce(path, trusted):
    if trusted:
        print(f"{path}: trusted (--trust_checkpoint), so whatever code it brings is run", file=sys.stderr, flush=True)


def write(path, weights, *, tensor_format="pd", beside=None):
    """Write {name: array} in the kind that the suffix of `path` names; the file appears once it is whole.

    Args:
        tensor_format: what a .safetensors file calls itself: "pt" for PyTorch's layout, else "pd".
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
            np.savez(f, **weights)
        else:
            torch_file.save(weights, f)


def check_suffix(path):
    """The suffix of a file to be written; WeightFileError unless it names a kind."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise WeightFileError(path, f"the suffix must be one of {', '.join(SUFFIXES)}",
                              f"后缀必须是 {'、'.join(SUFFIXES)} 之一")
    return suffix


def checksum(weights):
    """SHA256, in hexadecimal, of {name: array}: of names, types, shapes and values, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = np.asarray(weights[name], order="C")
        digest.update(f"{name}\0{value.dtype.str}\0{list(value.shape)}\0".encode())
        digest.update(value.data if value.size else b"")
    return digest.hexdigest()


def md5(path):
    """MD5 of a file, in hexadecimal: publishers print its beginning."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as f:
        while block := f.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _kind_of_archive(path, names):
    """"npz" or "torch" by the names in a zip archive; WeightFileError for one of something else."""
    if any(name.endswith(".npy") for name in names):
        return "npz"
    if any(name.endswith("/data.pkl") for name in names):
        return "torch"
    inside = safe_pickle.printable(", ".join(names[:4])) + (", ..." if len(names) > 4 else "")
    raise WeightFileError(path, f"this is a zip archive of something else than weights ({inside or 'it is empty'})",
                          f"这是其他内容的 zip 文件（{inside or '空'}），不是权重文件")


def _safetensors(path):
    # The library's own arrays lack bfloat16, so the bytes come from its checked reader.
    arrays = {}
    for name, stored in safetensors.deserialize(path.read_bytes()):
        if stored["dtype"] not in _SAFETENSORS_TYPES:
            raise ValueError(f"{name} is of the type {stored['dtype']}, which is not read")
        arrays[name] = np.frombuffer(stored["data"], _SAFETENSORS_TYPES[stored["dtype"]]).reshape(stored["shape"])
    return arrays


def _collect(path, kind, state, entry):
    """The WeightFile in what a file holds."""
    weights, entry = _choose(path, state, entry)
    arrays, stored_as, volume, size = {}, {}, 0, path.stat().st_size
    for name, value in weights.items():
        if name == _NAME_TABLE:
            continue
        if isinstance(value, tuple) and len(value) == 2:  # paddle.save: (its generated name, its values)
            value = value[1]
        if not _is_tensor(value):
            raise WeightFileError(path, f"'{name}' among its weights is not a tensor but {type(value).__name__}",
                                  f"权重中的 {name} 不是张量，而是 {type(value).__name__}")
        volume += 4 * math.prod(value.shape)
        safe_pickle.check_volume(volume, size)  # many names can mean the same bytes
        stored = value.dtype if isinstance(value, torch_file.StoredTensor) else value.dtype.name
        value = value.numpy() if isinstance(value, torch_file.StoredTensor) else value
        if stored == "uint16":  # numpy's stand-in for bfloat16, in Paddle's files as in safetensors
            stored, value = "bfloat16", bfloat16.widen(value)
        stored_as[stored] = stored_as.get(stored, 0) + 1
        if value.dtype.kind not in ("iub" if value.ndim == 0 else "f"):  # a single integer is a counter of BatchNorm
            raise WeightFileError(path, f"'{name}' among its weights holds {stored}, not floating-point numbers",
                                  f"权重中的 {name} 不是浮点数，而是 {stored}")
        arrays[str(name)] = value.astype("float32" if value.dtype.kind == "f" else "int64", copy=False)
    beside = {name: value for name, value in state.items() if name != entry} if entry else {}
    return WeightFile(arrays, kind, entry, stored_as, beside)


def _choose(path, state, entry):
    """The dict of weights in `state`, and the name under which it stands there."""
    if not isinstance(state, dict) or not state:
        raise WeightFileError(path, "expected a dict of weights, or one under 'model' or 'state_dict'", "文件中没有模型权重")
    holders = [name for name, value in state.items() if isinstance(value, dict) and _has_tensors(value)]
    if entry is not None:
        if entry not in holders:
            known = ", ".join(map(str, holders))
            raise WeightFileError(path, f"it has no weights under '{entry}'; under these it has: {known or 'none'}",
                                  f"{entry} 下没有权重，有权重的是：{known or '无'}")
        return state[entry], entry
    for name in ("model_ema", *ENTRIES) if has_average(state) else ENTRIES:
        if name in holders:
            return state[name], name
    if not _has_tensors(state):
        found = ", ".join(map(str, state))
        raise WeightFileError(path, f"it has no weights under any of {', '.join(ENTRIES)}, but the entries {found}; "
                              "if one of them holds weights, name it with --entry",
                              f"没有找到权重，文件内容为 {found}，可用 --entry 指定")
    return state, ""


def has_average(state):
    """Whether what a file holds is a checkpoint of this project with the averages of --ema, made to be used first."""
    return isinstance(state, dict) and "kind" in state and isinstance(state.get("model_ema"), dict)


def _has_tensors(values):
    return any(_is_tensor(value[1] if isinstance(value, tuple) and len(value) == 2 else value)
               for value in values.values())


def _is_tensor(value):
    return isinstance(value, (np.ndarray, torch_file.StoredTensor))
