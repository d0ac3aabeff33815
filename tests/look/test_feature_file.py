"""Files of features: written piece by piece, atomic, and checked when read."""

import errno
import os
import tempfile
import tracemalloc
import zipfile

import numpy as np
import pytest

from util.look import feature_file
from util.look.feature_file import Rows, check_same_origin, read, space

ORIGIN = {
    "weights_sha256": "ab" * 32,
    "block": 6,
    "norm": "norm",
    "img_size": (8, 8),
    "image_mean": (0.5,),
    "image_std": (0.2,),
    "image_backend": "pillow",
    "precision": "float32",
}
CLS = np.arange(15, dtype="float32").reshape(5, 3)
TOKENS = np.arange(30, dtype="float32").reshape(5, 2, 3)
NAMES = ["b.png", "a.png", "été/\udcff.png", "c", "d"]


def written(path, pieces=(5,), **more):
    with Rows(path, {"cls": (3,), "tokens": (2, 3)}) as rows:
        for cls, tokens in zip(
            *(np.split(array, np.cumsum(pieces)[:-1]) for array in (CLS, TOKENS)), strict=True
        ):
            rows.append({"cls": cls, "tokens": tokens})
        rows.write({**ORIGIN, "names": NAMES, **more})
    return path


def test_plain_numpy_reads_what_was_written(tmp_path):
    with np.load(written(tmp_path / "f.npz", [2, 3])) as file:
        assert (file["cls"] == CLS).all() and (file["tokens"] == TOKENS).all()
        assert file["names"].tolist() == NAMES and file["img_size"].tolist() == [8, 8] and file["block"] == 6
        assert file["cls"].dtype == file["tokens"].dtype == "float32"
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"]


def test_equal_contents_are_equal_bytes(tmp_path):
    first = written(tmp_path / "f.npz", [2, 3]).read_bytes()
    assert first == written(tmp_path / "g.npz", [1, 1, 3]).read_bytes()
    with zipfile.ZipFile(tmp_path / "f.npz") as archive:  # also tomorrow
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_rows_are_not_kept_in_memory(tmp_path):
    piece = np.ones([2**20, 1], "float32")  # 4 MB, and 16 MB are copied at a time
    tracemalloc.start()
    with Rows(tmp_path / "f.npz", {"cls": (1,)}) as rows:
        for _ in range(20):
            rows.append({"cls": piece})
        rows.write({})
    assert tracemalloc.get_traced_memory()[1] < 40e6 < (tmp_path / "f.npz").stat().st_size
    tracemalloc.stop()


@pytest.mark.parametrize("stage", ["rows", "write"])
def test_an_interrupted_one_leaves_what_was_there(tmp_path, stage):
    (tmp_path / "f.npz").write_bytes(b"earlier")
    with pytest.raises(KeyboardInterrupt), Rows(tmp_path / "f.npz", {"cls": (3,)}) as rows:
        rows.append({"cls": CLS})
        if stage == "write":
            rows.write({"names": Interrupting()})
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["f.npz"] and (
        tmp_path / "f.npz"
    ).read_bytes() == b"earlier"


class Interrupting:
    def __array__(self, *args, **kwargs):
        raise KeyboardInterrupt


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self):
            pass

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: Full())
    with pytest.raises(OSError) as stop, Rows(tmp_path / "f.npz", {"cls": (3,)}) as rows:
        rows.append({"cls": CLS})
    assert stop.value.errno == errno.ENOSPC and stop.value.filename == str(tmp_path / "f.npz")


def test_space_is_that_of_all_arrays_and_once_more_the_largest():
    assert space({"cls": (3,), "tokens": (2, 3)}, 5) == 4 * 5 * 3 + 2 * 4 * 5 * 6


def test_only_what_is_wanted_is_read(tmp_path):
    path = written(tmp_path / "f.npz", labels=[1, 0, 1, 0, 1], classes=["x", "y"])
    assert "tokens" not in read(path) and (read(path)["cls"] == CLS).all()
    assert "cls" not in read(path, ["tokens"]) and (read(path, ["tokens"])["tokens"] == TOKENS).all()
    assert read(path)["classes"].tolist() == ["x", "y"]


def test_a_file_that_lacks_what_is_wanted(tmp_path):
    path = written(tmp_path / "f.npz")
    with pytest.raises(ValueError, match=r"f\.npz.*--features cls tokens mean"):
        read(path, ["cls", "mean"])


@pytest.mark.parametrize("what", ["absent", "cut", "another npz", "a pickle"])
def test_other_files_are_refused(tmp_path, what):
    path = tmp_path / "x.npz"
    whole = written(tmp_path / "f.npz").read_bytes()
    if what == "cut":
        path.write_bytes(whole[:-40])
    elif what == "another npz":
        np.savez(path, weights=CLS)
    elif what == "a pickle":
        np.savez(path, **{**ORIGIN, "names": np.array([{}], object)})
    with pytest.raises(ValueError, match=r"x\.npz: not a file of tools/extract_features\.py"):
        read(path)


@pytest.mark.parametrize(
    "name, value", [("weights_sha256", "cd"), ("img_size", (8, 16)), ("image_mean", (0.4,))]
)
def test_features_of_another_origin_are_not_compared(name, value):
    ours, other = (
        {key: np.asarray(entry) for key, entry in file.items()} for file in (ORIGIN, {**ORIGIN, name: value})
    )
    check_same_origin("a", ours, "b", dict(ours))
    with pytest.raises(ValueError, match=rf"a and b: {name} is "):
        check_same_origin("a", ours, "b", other)
    assert set(ORIGIN) == set(feature_file.ORIGIN)
