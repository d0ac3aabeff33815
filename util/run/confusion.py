"""The confusion matrix of a run's best epoch, in confusion.npz beside checkpoint-best.pd and within every checkpoint.

    confusion  int64 [C, C]   images of class `row` that were taken for class `column`
    classes    str [C]        their names
    epoch      int
"""
from pathlib import Path

import numpy as np

from util.system import npz
from util.system.atomic_file import atomic_write

FILE = "confusion.npz"

ALLOWANCE = 8 << 30  # bytes of a matrix, which is compressed well; enough for the 21,841 classes of ImageNet-21k


def pack(counts, epoch):
    """The dict that a checkpoint keeps, in the smallest type of integer; {} without a matrix."""
    return {} if counts is None else {"counts": counts.astype(np.min_scalar_type(counts.max())), "epoch": epoch}


def write(folder, packed, classes):
    """confusion.npz from what `pack` gave, or, where that is empty, no such file.

    Args:
        classes: [name, ...]; outputs of the model beyond them are named by their number.
    """
    path = Path(folder, FILE)
    if not packed:
        return path.unlink(missing_ok=True)
    counts = packed["counts"].astype("int64")
    names = [*classes, *(f"output {number}" for number in range(len(classes), len(counts)))]
    with atomic_write(path) as f:
        np.savez_compressed(f, confusion=counts, classes=np.array(names, str), epoch=packed["epoch"])


def read(folder):
    """(confusion int64 [C, C], [name, ...], epoch) or None where there is no such file; ValueError if it is damaged."""
    path = Path(folder, FILE)
    if not path.exists():
        return None
    try:
        arrays = npz.read_npz(path, allowance=ALLOWANCE)
        counts, classes, epoch = arrays["confusion"], np.atleast_1d(arrays["classes"]), int(arrays["epoch"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if counts.dtype.kind not in "iu" or counts.shape != (len(classes), len(classes)) or counts.min() < 0:
        raise ValueError(f"{path}: expected counts, a row and a column for each class; found "
                         f"{counts.dtype} {list(counts.shape)} for {len(classes)} classes")
    if counts.sum(dtype="float64") > 2 ** 53:
        raise ValueError(f"{path}: more images than there can be")
    return counts.astype("int64"), [str(name) for name in classes], epoch
