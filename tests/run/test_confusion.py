"""confusion.npz: its contents, and errors for damaged files."""

import numpy as np
import pytest

from util.run import confusion

COUNTS = np.array([[5, 1, 0], [300, 7, 0], [0, 0, 0]])


def test_what_is_written_can_be_read(tmp_path):
    packed = confusion.pack(COUNTS, 4)
    assert packed["counts"].dtype == "uint16"  # a checkpoint is not to grow much
    confusion.write(tmp_path, packed, ["猫", "<dog>"])
    counts, classes, epoch = confusion.read(tmp_path)
    assert counts.dtype == "int64" and counts.tolist() == COUNTS.tolist() and epoch == 4
    assert classes == ["猫", "<dog>", "output 2"]
    with np.load(tmp_path / "confusion.npz") as arrays:  # without a pickle in it
        assert arrays["confusion"].dtype == "int64" and arrays["classes"].tolist() == classes


def test_without_a_matrix_there_is_no_file(tmp_path):
    (tmp_path / "confusion.npz").write_text("of an earlier one")
    confusion.write(tmp_path, confusion.pack(None, 4), [])
    assert confusion.read(tmp_path) is None


@pytest.mark.parametrize(
    "arrays",
    [
        None,
        {"confusion": COUNTS, "classes": ["a", "b"], "epoch": 1},
        {"confusion": COUNTS - 1, "classes": ["a", "b", "c"], "epoch": 1},
        {"confusion": COUNTS, "classes": np.array(["a", "b", None]), "epoch": 1},
        {"confusion": COUNTS, "classes": ["a", "b", "c"], "epoch": [1, 2]},
    ],
)
def test_a_damaged_file_is_a_sentence(tmp_path, arrays):
    if arrays is None:
        confusion.write(tmp_path, confusion.pack(COUNTS, 1), ["a", "b", "c"])
        content = (tmp_path / "confusion.npz").read_bytes()
        (tmp_path / "confusion.npz").write_bytes(content[: len(content) // 2])
    else:
        np.savez(tmp_path / "confusion.npz", **arrays)
    with pytest.raises(ValueError, match="confusion.npz: (damaged|expected counts)"):
        confusion.read(tmp_path)


def test_counts_of_any_type(tmp_path):
    """Whose products would overflow, or whose sum."""
    np.savez(
        tmp_path / "confusion.npz",
        confusion=np.array([[200, 3], [4, 250]], "uint8"),
        classes=["a", "b"],
        epoch=1,
    )
    assert confusion.read(tmp_path)[0].dtype == "int64"
    for counts in (np.full([2, 2], 2**62), np.full([2, 2], 2**63, "uint64")):
        np.savez(tmp_path / "confusion.npz", confusion=counts, classes=["a", "b"], epoch=1)
        with pytest.raises(ValueError, match="confusion.npz: more images"):
            confusion.read(tmp_path)


def test_no_damage_is_more_than_a_sentence(tmp_path):
    confusion.write(tmp_path, {"counts": np.arange(9).reshape(3, 3), "epoch": 1}, ["a", "b", "c"])
    whole = (tmp_path / "confusion.npz").read_bytes()
    rng, refused = np.random.default_rng(0), 0
    for _ in range(60):
        place, bit = int(rng.integers(len(whole))), 1 << int(rng.integers(8))
        (tmp_path / "confusion.npz").write_bytes(
            whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :]
        )
        try:
            counts, classes, epoch = confusion.read(tmp_path)
        except ValueError:
            refused += 1
        else:  # harmless, such as a date
            assert counts.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]] and (classes, epoch) == (
                ["a", "b", "c"],
                1,
            )
    assert refused > 20
    for classes, epoch in (("alone", 1), (["a", "b", "c"], np.inf)):
        np.savez(tmp_path / "confusion.npz", confusion=np.eye(3, dtype=int), classes=classes, epoch=epoch)
        with pytest.raises(ValueError, match="confusion.npz"):
            confusion.read(tmp_path)
