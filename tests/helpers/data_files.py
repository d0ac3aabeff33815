"""Small pictures, folders, archives and CIFAR files, made from the specifications of their formats."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

PHOTOS = sorted((Path(__file__).resolve().parents[2] / "data" / "photos").glob("*.jpg"))

# Path below the split -> grey value of a 2 x 1 picture. In sorted order, which here is not the order of plain
# strings: " " comes before "/".
FILES = {
    "ant/1.png": 10,
    "ant/deep/er/0.PNG": 20,
    "ant b/1.BmP": 30,
    "bee/1.tif": 40,
    "bee/10.png": 50,
    "bee/2.png": 60,
}
JUNK = ["ant/._1.png", "ant/.hidden/2.png", ".cache/3.png", "bee/readme.txt", ".DS_Store", "list.txt"]
FORMATS = {".png": "PNG", ".bmp": "BMP", ".tif": "TIFF"}


def picture(path, value):
    file = io.BytesIO()
    Image.new("RGB", (2, 1), (value, 0, 0)).save(file, FORMATS[os.path.splitext(path)[1].lower()])
    return file.getvalue()


def contents(files=FILES):
    """Junk and pictures as {path: bytes}, out of order."""
    return {
        **{path: b"no picture" for path in JUNK},
        **{path: picture(path, files[path]) for path in reversed(files)},
    }


def make_folder(root, files):
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


def make_tar(path, files, prefix=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def encoded(image, file_format="PNG", **options):
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def python2_pickle(value):
    """Protocol 2 of Python 2 for dicts, lists, str, small int and uint8 [n, m] arrays (pickletools.py)."""
    if isinstance(value, dict):
        items = b"".join(python2_pickle(key) + python2_pickle(item) for key, item in value.items())
        return b"}(" + items + b"u"
    if isinstance(value, list):
        return b"](" + b"".join(map(python2_pickle, value)) + b"e"
    if isinstance(value, str):
        return b"U" + bytes([len(value)]) + value.encode()
    if isinstance(value, int):
        return b"K" + bytes([value])
    rows, columns = (b"M" + number.to_bytes(2, "little") for number in value.shape)
    return (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + rows
        + columns
        + b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + value.size.to_bytes(4, "little") + value.tobytes() + b"tb"
    )


def cifar_pixels(number):
    """Two images, [2, 3072] with red, green and blue one after the other."""
    return np.random.default_rng(number).integers(0, 256, (2, 3072), np.uint8)


def cifar_files(dataset):
    if dataset == "cifar10":
        folder = "cifar-10-batches-py"
        numbers = {**{f"data_batch_{number}": number for number in range(1, 6)}, "test_batch": 6}
        files = {
            name: {
                "batch_label": name,
                "labels": [number, 0],
                "data": cifar_pixels(number),
                "filenames": ["a.png", "b.png"],
            }
            for name, number in numbers.items()
        }
        files["batches.meta"] = {"num_cases_per_batch": 2, "label_names": [f"c{i}" for i in range(10)]}
    else:
        folder = "cifar-100-python"
        files = {
            name: {"data": cifar_pixels(number), "coarse_labels": [9, 9], "fine_labels": [number, 99]}
            for name, number in {"train": 1, "test": 6}.items()
        }
        files["meta"] = {"fine_label_names": [f"f{i}" for i in range(100)], "coarse_label_names": ["s"]}
    return {f"{folder}/{name}": b"\x80\x02" + python2_pickle(value) + b"." for name, value in files.items()}
