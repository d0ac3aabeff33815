"""The format version and the checksum of our own pickles."""

import collections
import hashlib
import io
import pickle

import numpy as np
import pytest

from util.weights import sealed_pickle
from util.weights.sealed_pickle import SealError, checksum, dump, load

STATE = {
    "model": {"w": np.arange(6, dtype="float32").reshape(2, 3), "b": np.array(2, "int64")},
    "optimizer": {"w": {"moment1_0": np.linspace(0, 1, 7)}},
    "epoch": 3,
    "args": {"lr": None, "blr": 1e-3, "e": True},
    "classes": ["猫", "dog"],
    "pair": (1, b"x"),
    "scale": np.float64(2.5),
    "counter": 2**100,
}


def written(state):
    stream = io.BytesIO()
    dump(state, stream)
    return stream.getvalue()


def read(content, **more):
    return load(io.BytesIO(content), **more)


@pytest.mark.parametrize("trusted", [False, True])
def test_what_is_written_is_read_without_the_seal(trusted):
    found = read(written(STATE), trusted=trusted)
    assert list(found) == list(STATE) and checksum(found) == checksum(STATE)
    assert {name: found[name] for name in ("epoch", "args", "classes", "pair", "scale", "counter")} == {
        name: STATE[name] for name in ("epoch", "args", "classes", "pair", "scale", "counter")
    }
    assert found["model"]["w"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_file_says_its_format_first_and_its_checksum_last():
    state = pickle.loads(written(STATE))
    assert list(state) == ["format", *STATE, "checksum"] and state["format"] == sealed_pickle.FORMAT == 1
    assert state["checksum"] == checksum({"format": 1, **STATE})


def test_the_checksum_by_hand():
    """A dict is the digest of the digests of its names and values."""

    def sha(*parts):
        return hashlib.sha256(b"".join(parts)).digest()

    array = sha(b"array <f4 [2]\0", np.float32([1, 2]).tobytes())
    expected = sha(
        b"dict 4\0",
        sha(b"str\0w"),
        array,
        sha(b"str\0n"),
        sha(b"list 2\0", sha(b"int\0ff"), sha(b"NoneType\0")),
    )
    assert checksum({"w": np.float32([1, 2]), "n": [255, None]}) == expected.hex()


OTHERS = [
    ("model", {"w": STATE["model"]["w"], "c": STATE["model"]["b"]}),
    ("model", dict(reversed(STATE["model"].items()))),
    ("model", {**STATE["model"], "w": STATE["model"]["w"].reshape(3, 2)}),
    ("model", {**STATE["model"], "w": STATE["model"]["w"].astype(">f4")}),
    ("model", {**STATE["model"], "w": np.nextafter(STATE["model"]["w"], np.float32(9))}),
    ("model", {**STATE["model"], "b": np.array(2, "uint64")}),
    ("epoch", 3.0),
    ("epoch", "3"),
    ("epoch", -3),
    ("args", {**STATE["args"], "e": 1}),
    ("args", {**STATE["args"], "blr": np.nextafter(1e-3, 1)}),
    ("classes", ["猫", "dog", ""]),
    ("classes", ("猫", "dog")),
    ("pair", (1, "x")),
    ("scale", 2.5),
]


def test_every_difference_changes_the_checksum():
    for name, value in OTHERS:
        assert checksum({**STATE, name: value}) != checksum(STATE), name


def test_what_does_not_matter_does_not():
    same = {
        **STATE,
        "args": collections.OrderedDict(STATE["args"]),
        "model": {**STATE["model"], "w": np.asfortranarray(STATE["model"]["w"])},
    }
    assert checksum(same) == checksum(STATE)


def changed(**changes):
    state = {**pickle.loads(written(STATE)), **changes}
    return pickle.dumps({name: value for name, value in state.items() if value is not None}, protocol=4)


@pytest.mark.parametrize("trusted", [False, True])
def test_broken_seals(trusted):
    for changes, said in [
        ({"checksum": None}, "missing"),
        ({"format": None}, "missing"),
        ({"format": "1"}, "missing"),
        ({"format": True}, "missing"),
        ({"format": 0}, "missing"),
        ({"format": 2}, "format 2 .*format 1"),
        ({"epoch": 4}, "does not agree"),
        ({"checksum": "0" * 64}, "does not agree"),
        ({"more": {1, 2}}, "does not agree"),
    ]:
        with pytest.raises(SealError, match=said):
            read(changed(**changes), trusted=trusted)


def test_files_from_before_are_read_unchecked():
    assert read(pickle.dumps({"model": {}, "epoch": 3}, protocol=4)) == {"model": {}, "epoch": 3}


def test_nothing_follows_the_end():
    for content in (written(STATE), pickle.dumps({"epoch": 3})):
        with pytest.raises(SealError, match="after its end"):
            read(content + b"\0")


def test_large_arrays_are_hashed_while_they_are_read(monkeypatch):
    state = {"a": np.arange(10**5), "b": np.arange(3), "c": np.ones([10**4, 3], order="F")}
    content, begun, of_array = written(state), [], sealed_pickle._of_array
    monkeypatch.setattr(sealed_pickle, "_of_array", lambda array: begun.append(array.size) or of_array(array))
    read(content)
    assert sorted(begun) == [3, 3 * 10**4, 10**5]  # each once
    place = content.index(np.arange(5000, 5010).tobytes())
    with pytest.raises(SealError, match="does not agree"):
        read(content[:place] + b"\xff" + content[place + 1 :])


def test_what_could_not_be_read_is_not_written():
    for value in ({1}, object(), np.array(["x"]), np.array([None]), bytearray(b"x")):
        with pytest.raises(TypeError, match="a checkpoint cannot hold"):
            written({"x": [value]})


def test_what_contains_itself_has_no_checksum():
    circle = []
    circle.append(circle)
    with pytest.raises(TypeError, match="nested too deeply, or contains itself"):
        checksum({"x": circle})
