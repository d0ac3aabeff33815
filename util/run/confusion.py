"""Confusion matrix of the best epoch: confusion.npz beside checkpoint-best.pd, and in every checkpoint.

confusion  int64 [C, C]   images by label (row) and prediction (column)
classes    str [C]        class names
epoch      int
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from util.system import npz
from util.system.atomic_file import atomic_write

FILE = "confusion.npz"

ALLOWANCE = 8 << 30  # bytes; matrices compress well, and the 21,841 classes of ImageNet-21k have to fit


def pack(counts: np.ndarray | None, epoch: int) -> dict[str, Any]:
    """Return what a checkpoint keeps, in the smallest integer type; {} without a matrix.

    Args:
        counts: int64 [C, C], or None.
        epoch: epoch of the evaluation.
    """
    return (
        {} if counts is None else {"counts": counts.astype(np.min_scalar_type(counts.max())), "epoch": epoch}
    )


def write(folder: Path | str, packed: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Write confusion.npz, or remove it if there is no matrix.

    Args:
        folder: of the run.
        packed: result of `pack`.
        classes: names by label; outputs of the model beyond them are named by their number.
    """
    path = Path(folder, FILE)
    if not packed:
        return path.unlink(missing_ok=True)
    counts = packed["counts"].astype("int64")
    names = [*classes, *(f"output {number}" for number in range(len(classes), len(counts)))]
    with atomic_write(path) as f:
        np.savez_compressed(f, confusion=counts, classes=np.array(names, str), epoch=packed["epoch"])


def read(folder: Path | str) -> tuple[np.ndarray, list[str], int] | None:
    """Read confusion.npz of a run.

    Returns the matrix, int64 [C, C], the class names and the epoch; None if there is no such file. Raises
    ValueError if it is damaged.
    """
    path = Path(folder, FILE)
    if not path.exists():
        return None
    try:
        arrays = npz.read_npz(path, allowance=ALLOWANCE)
        counts, classes, epoch = arrays["confusion"], np.atleast_1d(arrays["classes"]), int(arrays["epoch"])
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if counts.dtype.kind not in "iu" or counts.shape != (len(classes), len(classes)) or counts.min() < 0:
        raise ValueError(
            f"{path}: expected counts, a row and a column for each class; found "
            f"{counts.dtype} {list(counts.shape)} for {len(classes)} classes"
        )
    if counts.sum(dtype="float64") > 2**53:
        raise ValueError(f"{path}: more images than there can be")
    return counts.astype("int64"), [str(name) for name in classes], epoch
