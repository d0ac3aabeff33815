"""Files with the features of many images (.npz), written without holding them in memory.

names                [N] str: the pictures in the given order
cls, mean, tokens    float32 [N, D], [N, D], [N, L, D]: the requested kinds, see util.look.encoder_features
labels, classes      [N] int64, indices into [C] str; only for labelled images
block, norm          number of the block, and the norm after it: "norm", "fc_norm" or "none"
checkpoint           path of the checkpoint
weights_sha256       checksum of its weights (util.weights.formats.checksum)
model                name of the model
img_size             [2]: height and width
image_mean, image_std    [channels]: of the normalisation
image_backend        library that resized the pictures
precision            type of the matrix products
git_revision         of the code; "" outside a repository
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from util.system import npz
from util.system.atomic_file import atomic_write

KINDS = ("mean", "cls", "tokens")

# Entries that must agree for two files to be comparable.
ORIGIN = (
    "weights_sha256",
    "block",
    "norm",
    "img_size",
    "image_mean",
    "image_std",
    "image_backend",
    "precision",
)


class Rows:
    """Arrays of a file to be written, kept in temporary files that vanish if the program is interrupted.

    A context manager.
    """

    def __init__(self, path: Path | str, shapes: Mapping[str, Sequence[int]]) -> None:
        """Open temporary files beside `path`; shapes: {name: shape of a float32 row}."""
        self.path, self.shapes, self.length = Path(path), shapes, 0
        with _named_errors(self.path):
            self.files = {name: tempfile.TemporaryFile(dir=self.path.parent) for name in shapes}

    def __enter__(self) -> Rows:
        """Return self."""
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the temporary files."""
        for file in self.files.values():
            file.close()

    def append(self, rows: Mapping[str, np.ndarray]) -> None:
        """Append {name: float32 array [n, *shape]} to all arrays."""
        with _named_errors(self.path):
            for name, array in rows.items():
                self.files[name].write(np.ascontiguousarray(array, "<f4").data)
        self.length += len(array)

    def write(self, more: Mapping[str, Any]) -> None:
        """Write the file atomically, with further arrays {name: array}. Equal contents give equal bytes."""
        with atomic_write(self.path) as f, zipfile.ZipFile(f, "w") as archive:
            # Largest first, because each is removed from the disk once it is in the archive.
            for name in sorted(self.shapes, key=lambda name: -np.prod(self.shapes[name])):
                with _entry(archive, name) as entry, self.files[name] as rows:
                    header = {
                        "descr": "<f4",
                        "fortran_order": False,
                        "shape": (self.length, *self.shapes[name]),
                    }
                    np.lib.format.write_array_header_1_0(entry, header)
                    rows.seek(0)
                    shutil.copyfileobj(rows, entry, 2**24)
            for name, array in more.items():
                with _entry(archive, name) as entry:
                    np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)


def space(shapes: Mapping[str, Sequence[int]], length: int) -> int:
    """Disk space in bytes for `Rows` of this length: all arrays, plus the largest one a second time."""
    sizes = [4 * length * int(np.prod(shape)) for shape in shapes.values()]
    return sum(sizes) + max(sizes)


def read(path: Path | str, kinds: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Read a file as {name: array}, with the given kinds of features and all other entries.

    Args:
        kinds: of KINDS; None for "mean" and "cls" if the file has them.

    Raises:
        ValueError: the file is not a complete file of features, or lacks one of these kinds.
    """
    left_out = {"tokens"} if kinds is None else {*KINDS} - {*kinds}
    try:
        found = npz.read_npz(path, leave_out=left_out)
        if missing := [name for name in ("names", *ORIGIN) if name not in found]:
            raise ValueError(f"no {', '.join(missing)} in it")
        held = [kind for kind in KINDS if kind in npz.list_npz(path)]
    except ValueError as error:
        raise ValueError(f"{path}: not a file of tools/extract_features.py ({error})") from error
    if missing := [kind for kind in kinds or () if kind not in held]:
        raise ValueError(
            f"{path}: holds {', '.join(held)}, not {', '.join(missing)}; extract it with "
            f"--features {' '.join([*held, *missing])}"
        )
    return found


def check_same_origin(
    path: Path | str, features: Mapping[str, Any], other_path: Path | str, other: Mapping[str, Any]
) -> None:
    """Raise ValueError if two files have features of different weights or settings."""
    for name in ORIGIN:
        if not np.array_equal(features[name], other[name]):
            raise ValueError(
                f"{path} and {other_path}: {name} is {features[name]} in one and {other[name]} in the "
                "other; extract both in the same way"
            )


def _entry(archive: zipfile.ZipFile, name: str) -> IO[bytes]:
    return archive.open(f"{name}.npy", "w", force_zip64=True)


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.filename = str(path)  # the errors of temporary files have no name
        raise
