"""Source of the images in the CIFAR archives.

A missing archive is downloaded from the address that paddle.vision.datasets uses. An archive in Paddle's
cache is also used.
"""

from __future__ import annotations

import io
import os
import pathlib
import pickle
import posixpath
import tarfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from util.images import decode
from util.system import console, safe_pickle

ADDRESS = "https://dataset.bj.bcebos.com/cifar/"  # Paddle's copies of the official archives
MD5 = {"cifar10": "c58f30108f718f92721af3b95e74349a", "cifar100": "eb9058c3a382ffc7106e4002c42a8d85"}
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")


class Format(NamedTuple):
    """Names in an official archive ("python version")."""

    archive: str
    folder: str
    meta: str  # file of the class names
    classes_key: bytes  # key of the class names there
    labels_key: bytes
    files: dict[str, list[str]]  # of each split


FORMATS = {
    "cifar10": Format(
        "cifar-10-python.tar.gz",
        "cifar-10-batches-py",
        "batches.meta",
        b"label_names",
        b"labels",
        {"train": [f"data_batch_{number}" for number in range(1, 6)], "val": ["test_batch"]},
    ),
    "cifar100": Format(
        "cifar-100-python.tar.gz",
        "cifar-100-python",
        "meta",
        b"fine_label_names",
        b"fine_labels",
        {"train": ["train"], "val": ["test"]},
    ),
}


class CifarSource:
    """CIFAR-10 or CIFAR-100 (fine labels) in the order of the official archive, all of it in memory.

    Args:
        data_path: the official "python version" archive, its folder, or the folder of the unpacked batches.
            If there is none of these, the archive is looked up in Paddle's cache, and otherwise downloaded:
            to data_path, or to the cache if data_path is "".
        split: "train" or "val"; "val" is the test set.
        dataset: key of FORMATS.
    """

    classes: list[str] | None
    labels: np.ndarray | None

    def __init__(
        self, data_path: str, split: str, *, dataset: str, labelled: bool, in_chans: int = 3
    ) -> None:
        names = FORMATS[dataset]
        self.in_chans, self.title = in_chans, f"{dataset} {split}"
        files = names.files[{"test": "val"}.get(split, split)]
        contents = _read_files(data_path, [names.meta, *files], dataset)
        try:
            batches = [_unpickle(contents[file]) for file in files]
            self.pixels = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
            labels = np.concatenate([batch[names.labels_key] for batch in batches]).astype(np.int64)
            classes = [name.decode() for name in _unpickle(contents[names.meta])[names.classes_key]]
        except (
            pickle.UnpicklingError,
            EOFError,
            LookupError,
            TypeError,
            ValueError,
            AttributeError,
        ) as error:
            raise ValueError(
                f"--data_path {data_path}: does not hold {dataset} as it was published "
                f"({error}). {_expected_layout(dataset)}"
            ) from error
        self.labels, self.classes = (labels, classes) if labelled else (None, None)

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        """Return the data set, the split and the number of an image."""
        return f"{self.title} {index}"

    def open(self, index: int) -> Image.Image:
        """Return an image. There is nothing to decode."""
        return self.load(index)

    def load(self, index: int) -> Image.Image:
        """Return an image."""
        return decode.to_channels(Image.fromarray(self.pixels[index].transpose(1, 2, 0)), self.in_chans)


def _expected_layout(dataset):
    names = FORMATS[dataset]
    return (
        f'For --dataset {dataset} it is {names.archive} ("python version"), its folder, or the '
        f"unpacked {names.folder}/."
    )


def _read_files(data_path: str, wanted: Sequence[str], dataset: str) -> dict[str, bytes]:
    """Read {name: bytes} of the `wanted` files, from the archive or from its unpacked folder."""
    names = FORMATS[dataset]
    if os.path.isdir(data_path):
        for folder in (data_path, os.path.join(data_path, names.folder)):
            if all(os.path.isfile(os.path.join(folder, name)) for name in wanted):
                return {name: pathlib.Path(folder, name).read_bytes() for name in wanted}
    archive = _find_or_download(data_path, names.archive, dataset)
    contents = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = posixpath.basename(member.name)
                if member.isreg() and name in wanted and (file := tar.extractfile(member)):
                    contents[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"--data_path: {archive} cannot be read as a tar file ({error}); download it again"
        ) from error
    missing = [name for name in wanted if name not in contents]
    if missing:
        raise ValueError(f"--data_path: {archive} lacks {', '.join(missing)}. {_expected_layout(dataset)}")
    return contents


def _find_or_download(data_path, name, dataset):
    """Return the path of the archive `name`. Downloads it if it is not found."""
    cached = os.path.join(os.path.expanduser("~"), ".cache", "paddle", "dataset", "cifar", name)
    wanted = data_path or cached
    if not wanted.lower().endswith(ARCHIVE_SUFFIXES) and not os.path.isfile(wanted):
        wanted = os.path.join(wanted, name)
    if wanted != cached and os.path.exists(wanted):
        return wanted
    from util.system import download  # not at module level: it imports slow modules that few scripts need

    if download.has(cached, MD5[dataset]):
        if wanted != cached:
            console.tell(f"--dataset {dataset}: there is no {wanted}; {cached} is read")
        return cached
    download.fetch(ADDRESS + name, wanted, md5=MD5[dataset], flag=f"--dataset {dataset}")
    return wanted


def _unpickle(data):
    return safe_pickle.Unpickler(io.BytesIO(data), encoding="bytes").load()  # Python 2 wrote them
