"""The .npz files that keep the features of many images, and more of them than fit into memory.

names          [N] str: the pictures, in the order in which they were given
cls, mean, tokens    float32 [N, D], [N, D], [N, L, D]: those that were asked for, see util.look.encoder_features
labels         [N] int64, and classes [C] str, an index of which is a label; only of labelled images
and, of no axis, where they come from:
block          the block whose output they are; norm: what of the final norms follows it, "norm", "fc_norm" or "none"
checkpoint     path of the file; weights_sha256: of its weights, as util.weights.formats.checksum has it
model          its name; img_size [2]: height and width; image_mean, image_std [channels]: of the normalisation
image_backend, precision     what resized the pictures, and the type in which products were computed
git_revision   of the code; "" where it is in no repository
"""
import contextlib
import shutil
import tempfile
import zipfile
from pathlib import Path

import numpy as np

from util.system import npz
from util.system.atomic_file import atomic_write

KINDS = ("mean", "cls", "tokens")

# What two files of features must have in common to be compared.
ORIGIN = ("weights_sha256", "block", "norm", "img_size", "image_mean", "image_std", "image_backend",
          "precision")


class Rows:
    """The growing arrays of a file to be: on the disk, but nameless, so that nothing is left of an interrupted one.

    A context manager.

    Args:
        path: where the file shall be; its folder gets the rows.
        shapes: {name: shape of a row}; rows are float32.
    """

    def __init__(self, path, shapes):
        self.path, self.shapes, self.length = Path(path), shapes, 0
        with _named_errors(self.path):
            self.files = {name: tempfile.TemporaryFile(dir=self.path.parent) for name in shapes}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for file in self.files.values():
            file.close()

    def append(self, rows):
        """Add {name: float32 array [n, *shape]} to all arrays."""
        with _named_errors(self.path):
            for name, array in rows.items():
                self.files[name].write(np.ascontiguousarray(array, "<f4").data)
        self.length += len(array)

    def write(self, more):
        """The file appears, whole, with these arrays and those of {name: array} `more`. Equal contents, equal bytes."""
        with atomic_write(self.path) as f, zipfile.ZipFile(f, "w") as archive:
            # Largest first: each is removed from the disk once it is in the archive.
            for name in sorted(self.shapes, key=lambda name: -np.prod(self.shapes[name])):
                with _entry(archive, name) as entry, self.files[name] as rows:
                    header = {"descr": "<f4", "fortran_order": False, "shape": (self.length, *self.shapes[name])}
                    np.lib.format.write_array_header_1_0(entry, header)
                    rows.seek(0)
                    shutil.copyfileobj(rows, entry, 2 ** 24)
            for name, array in more.items():
                with _entry(archive, name) as entry:
                    np.lib.format.write_array(entry, np.asarray(array), allow_pickle=False)


def space(shapes, length):
    """Bytes on the disk that `Rows` of this length take: all arrays, and for a moment the largest of them twice."""
    sizes = [4 * length * int(np.prod(shape)) for shape in shapes.values()]
    return sum(sizes) + max(sizes)


def read(path, kinds=None):
    """{name: array} of a file: its `kinds` of features, and everything else.

    Args:
        kinds: of KINDS; None: "mean" and "cls", as far as the file has them.
    Raises ValueError for a file that is none, or that lacks one of `kinds`.
    """
    left_out = {"tokens"} if kinds is None else {*KINDS} - {*kinds}
    try:
        found = npz.read_npz(path, leave_out=left_out)
        if missing := [name for name in ("names", *ORIGIN) if name not in found]:
            raise ValueError(f"it has no {', '.join(missing)}")
        held = [kind for kind in KINDS if kind in npz.list_npz(path)]
    except ValueError as error:
        raise ValueError(f"{path}: not a file of tools/extract_features.py ({error})") from error
    if missing := [kind for kind in kinds or () if kind not in held]:
        raise ValueError(f"{path}: it holds {', '.join(held)}, not {', '.join(missing)}; extract it with "
                         f"--features {' '.join([*held, *missing])}")
    return found


def check_same_origin(path, features, other_path, other):
    """ValueError unless two files that were read have features of the same weights, made in the same way."""
    for name in ORIGIN:
        if not np.array_equal(features[name], other[name]):
            raise ValueError(f"{path} and {other_path} cannot be compared: {name} is {features[name]} in one and "
                             f"{other[name]} in the other; extract both in the same way")


def _entry(archive, name):
    return archive.open(f"{name}.npy", "w", force_zip64=True)


@contextlib.contextmanager
def _named_errors(path):
    try:
        yield
    except OSError as error:
        error.filename = str(path)  # a nameless file does not say whose disk is full
        raise
