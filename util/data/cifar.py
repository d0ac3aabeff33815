"""The CIFAR archives as a source of images, see util.data.sources.

An archive that is not there is downloaded as paddle.vision.datasets does, from the same address; what that has put into
its cache is used, too.
"""
import io
import os
import pathlib
import pickle
import posixpath
import tarfile
import zlib

import numpy as np
from PIL import Image

from util.images import decode
from util.system import console, safe_pickle

ADDRESS = "https://dataset.bj.bcebos.com/cifar/"  # of Paddle's copies of the official archives
MD5 = {"cifar10": "c58f30108f718f92721af3b95e74349a", "cifar100": "eb9058c3a382ffc7106e4002c42a8d85"}
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")


class CifarImages:
    """CIFAR-10 or CIFAR-100 (fine labels) in the order of the official archive, all of it in memory.

    Args:
        data_path: the official "python version" archive, the folder that holds it, or that of its unpacked batches.
            Where there is none of these, the archive is looked for in Paddle's cache, and else downloaded: to that
            place, or to the cache if `data_path` is "".
    """

    # dataset: archive, folder in it, file of the class names and key there, key of the labels, files of each split
    FORMATS = {
        "cifar10": ("cifar-10-python.tar.gz", "cifar-10-batches-py", "batches.meta", b"label_names", b"labels",
                    {"train": [f"data_batch_{number}" for number in range(1, 6)], "val": ["test_batch"]}),
        "cifar100": ("cifar-100-python.tar.gz", "cifar-100-python", "meta", b"fine_label_names", b"fine_labels",
                     {"train": ["train"], "val": ["test"]}),
    }

    def __init__(self, data_path, split, *, dataset, labelled, in_chans=3):
        archive, folder, meta, names_key, labels_key, splits = self.FORMATS[dataset]
        self.in_chans, self.title = in_chans, f"{dataset} {split}"
        files = splits[{"test": "val"}.get(split, split)]
        contents = _cifar_files(data_path, archive, folder, [meta, *files], dataset)
        try:
            batches = [_unpickle(contents[file]) for file in files]
            self.pixels = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
            labels = np.concatenate([batch[labels_key] for batch in batches]).astype(np.int64)
            classes = [name.decode() for name in _unpickle(contents[meta])[names_key]]
        except (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"--data_path {data_path} does not hold {dataset} as it was published ({error}). "
                             f"{_layout(dataset)}") from error
        self.labels, self.classes = (labels, classes) if labelled else (None, None)

    def __len__(self):
        return len(self.pixels)

    def name(self, index):
        return f"{self.title} {index}"

    def open(self, index):
        return self.load(index)  # there is nothing to decode

    def load(self, index):
        return decode.to_channels(Image.fromarray(self.pixels[index].transpose(1, 2, 0)), self.in_chans)


def _layout(dataset):
    """What --data_path should be, in a sentence."""
    archive, folder, *_ = CifarImages.FORMATS[dataset]
    return f"For --dataset {dataset} it is {archive} (\"python version\"), its folder, or the unpacked {folder}/."


def _cifar_files(data_path, archive, folder, wanted, dataset):
    """{name: bytes} of the `wanted` files, from the archive or from its unpacked folder."""
    if os.path.isdir(data_path):
        for place in (data_path, os.path.join(data_path, folder)):
            if all(os.path.isfile(os.path.join(place, name)) for name in wanted):
                return {name: pathlib.Path(place, name).read_bytes() for name in wanted}
    data_path = _archive(data_path, archive, dataset)
    contents = {}
    try:
        with tarfile.open(data_path) as tar:
            for member in tar:
                if member.isreg() and posixpath.basename(member.name) in wanted:
                    contents[posixpath.basename(member.name)] = tar.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"--data_path: {data_path} cannot be read as a tar file ({error}). "
                         "Download it again.") from error
    missing = [name for name in wanted if name not in contents]
    if missing:
        raise ValueError(f"--data_path: {data_path} lacks {', '.join(missing)}. {_layout(dataset)}")
    return contents


def _archive(data_path, name, dataset):
    """The path of the archive `name`, which is downloaded if it is nowhere."""
    cached = os.path.join(os.path.expanduser("~"), ".cache", "paddle", "dataset", "cifar", name)
    wanted = data_path or cached
    if not wanted.lower().endswith(ARCHIVE_SUFFIXES) and not os.path.isfile(wanted):
        wanted = os.path.join(wanted, name)
    if wanted != cached and os.path.exists(wanted):
        return wanted
    from util.system import download  # what it imports takes a while, and most scripts never need it

    if download.has(cached, MD5[dataset]):
        if wanted != cached:
            console.tell(f"--dataset {dataset}: there is no {wanted}; {cached} is read")
        return cached
    download.fetch(ADDRESS + name, wanted, md5=MD5[dataset], flag=f"--dataset {dataset}")
    return wanted


def _unpickle(data):
    return safe_pickle.Unpickler(io.BytesIO(data), encoding="bytes").load()  # Python 2 wrote them
