"""The reader of .npz files: it agrees with numpy's, and refuses what is damaged or hostile."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from util.system import npz

ARRAYS = {
    "a": np.arange(6, dtype="<f4").reshape(2, 3),
    "fortran": np.asfortranarray(np.eye(3, 2)),
    "scalar": np.array(7),
    "names": np.array(["x", "größer"]),
    "empty": np.zeros([0, 3]),
    "big_endian": np.arange(3, dtype=">i2"),
    "flags": np.array([True, False]),
}


def archive(compression=zipfile.ZIP_STORED, **entries):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as z:
        for name, content in entries.items():
            z.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(array, **header):
    """The bytes of an .npy file; the header may lie."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": array.dtype.str, "fortran_order": False, "shape": array.shape, **header}
    )
    return file.getvalue() + array.tobytes()


def objects():
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_are_those_of_numpy(tmp_path, save):
    save(tmp_path / "x.npz", **ARRAYS)
    found = npz.read_npz(tmp_path / "x.npz", leave_out=["flags"])
    assert found.keys() == ARRAYS.keys() - {"flags"} and npz.list_npz(tmp_path / "x.npz") == [*ARRAYS]
    for name, value in found.items():
        assert value.dtype == ARRAYS[name].dtype and value.flags.writeable
        np.testing.assert_array_equal(value, ARRAYS[name], strict=True)
    np.save(tmp_path / "x.npy", ARRAYS["a"])
    np.testing.assert_array_equal(npz.read_npy(tmp_path / "x.npy"), ARRAYS["a"])


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "not a zip file"),
        (archive(a=npy(np.ones(50)))[:300], "not a zip file"),
        (archive(a=b"no array"), "magic"),
        (archive(a=objects()), "a holds Python objects"),
        (archive(a=npy(np.ones(3), shape=(1 << 40,))), "a has 24 bytes"),
        (archive(a=npy(np.ones(3), shape=(2,))), "a has 24 bytes"),
        (archive(a=npy(np.ones(3), shape=(-3,))), "a has 24 bytes"),
        (archive(a=npy(np.ones(3), descr="<f8,,")), "."),
        (archive(a=npy(np.ones(3))).replace(np.ones(3).tobytes(), np.zeros(3).tobytes()), "Bad CRC-32"),
        (archive(zipfile.ZIP_DEFLATED, a=bytes(100 << 20)), "would become more than"),
        (archive(zipfile.ZIP_LZMA, a=npy(np.ones(3))), "another method than deflate"),
    ],
)
def test_damaged_and_hostile_files(tmp_path, content, reason):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(ValueError, match=reason):
        npz.read_npz(path)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_what_is_no_file(tmp_path):
    for path in (tmp_path, tmp_path / "absent.npz"):
        for read in (npz.read_npz, npz.read_npy, npz.list_npz):
            with pytest.raises(ValueError, match="directory|No such file"):
                read(path)
