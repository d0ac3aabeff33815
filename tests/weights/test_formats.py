"""Files of weights in every format, complete and damaged."""

import hashlib
import io
import json
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import paddle
import pytest
import safetensors.numpy

from util.weights import formats
from util.weights.formats import WeightFileError, checksum, md5, read_weights, write_weights

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

# -0.1 as bfloat16, and what it then is: 0xbdcd is 1 01111011 1001101, so -(1 + 77/128) / 16.
BRAIN, BRAIN_VALUE = np.uint16([0x3F80, 0xBDCD]), [1.0, -0.10009765625]

WEIGHTS = {
    "a.weight": np.arange(6, dtype="float32").reshape(2, 3),
    "a.bias": np.float32([np.nan, -0.0]),
    "counter": np.array(3, "int64"),
}


def bits(weights):
    return {name: (value.dtype.str, value.shape, value.tobytes()) for name, value in weights.items()}


@pytest.mark.parametrize("suffix", formats.SUFFIXES)
def test_written_and_read_bit_for_bit(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    turned = {**WEIGHTS, "turned": WEIGHTS["a.weight"].T}
    write_weights(path, turned)
    found = read_weights(path)
    assert bits(found.weights) == bits(turned)
    assert found.stored_as == {"float32": 3, "int64": 1}
    assert (found.file_format, found.entry) == {
        ".pd": ("paddle", "model"),
        ".pdparams": ("paddle", ""),
        ".npz": ("npz", ""),
        ".safetensors": ("safetensors", ""),
        ".pth": ("torch", "model"),
    }[suffix]
    assert found.beside == {}
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_others_read_what_we_write(tmp_path):
    floats = {name: value for name, value in WEIGHTS.items() if value.dtype == "float32"}
    for suffix in (".pd", ".pdparams", ".npz", ".safetensors"):
        write_weights(
            tmp_path / f"w{suffix}",
            floats,
            tensor_format="pt",
            beside={"classes": ["cat"]} if suffix == ".pd" else None,
        )
    state = paddle.load(str(tmp_path / "w.pd"))
    assert state["classes"] == ["cat"]
    for loaded in (
        state["model"],
        paddle.load(str(tmp_path / "w.pdparams")),
        np.load(tmp_path / "w.npz"),
        safetensors.numpy.load_file(tmp_path / "w.safetensors"),
    ):
        assert bits({name: np.asarray(loaded[name]) for name in loaded.keys()}) == bits(floats)
    header = (tmp_path / "w.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert json.loads(header[8 : 8 + length])["__metadata__"] == {"format": "pt"}  # transformers asks for it


@pytest.mark.parametrize("name, kind", [("torch_zip.pth", "torch"), ("torch_legacy.pth", "torch_legacy")])
def test_a_training_checkpoint_of_torch(name, kind):
    found = read_weights(GOLDEN / name)
    assert (found.file_format, found.entry) == (kind, "model")
    assert found.stored_as == {"float32": 6, "int64": 1, "float16": 1, "bfloat16": 1, "float64": 1}
    assert found.weights["brain"].tolist() == [1, -0.10009765625, 9.969209968386869e37]
    assert found.weights["turned"][:, 0].tolist() == [0, 1, 2, 3, 4, 5] and found.weights["scalar"] == 7
    assert list(found.beside) == ["optimizer", "epoch", "scaler", "args", "integers"]


def test_types_become_float32(tmp_path):
    values = {
        "F64": np.float64([0.1, 1e10]),
        "F32": np.float32([0.1, 1]),
        "F16": np.float16([0.1, 1]),
        "BF16": BRAIN,
        "I64": np.array(5, "int64"),
    }
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, value in values.items():
        header[name] = {
            "dtype": name,
            "shape": value.shape,
            "data_offsets": [len(data), len(data) + value.nbytes],
        }
        data += value.tobytes()
    header = json.dumps(header).encode()
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    found = read_weights(path)
    assert found.stored_as == {"float64": 1, "float32": 1, "float16": 1, "bfloat16": 1, "int64": 1}
    assert {value.dtype.name for value in found.weights.values()} == {"float32", "int64"}
    assert found.weights["BF16"].tolist() == BRAIN_VALUE
    assert found.weights["F16"].tolist() == [0.0999755859375, 1]
    assert found.weights["F64"].tolist() == [0.10000000149011612, 1e10]


def test_bfloat16_of_paddle(tmp_path):
    path = str(tmp_path / "w.pdparams")
    paddle.save({"w": paddle.to_tensor(BRAIN_VALUE).astype("bfloat16")}, path)
    found = read_weights(path)
    assert found.weights["w"].tolist() == BRAIN_VALUE and found.stored_as == {"bfloat16": 1}


@pytest.mark.parametrize("nested, protocol", [(True, 2), (False, 3), (True, 4)])
def test_files_of_paddle_save(tmp_path, nested, protocol):
    path = str(tmp_path / "w.pdparams")
    layer = paddle.nn.Linear(2, 3)
    paddle.save(
        {"model": layer.state_dict(), "epoch": 1} if nested else layer.state_dict(), path, protocol=protocol
    )
    found = read_weights(path)
    assert bits(found.weights) == bits({name: value.numpy() for name, value in layer.state_dict().items()})
    assert (found.entry, found.beside) == (("model", {"epoch": 1}) if nested else ("", {}))


def pickled(path, state):
    path.write_bytes(pickle.dumps(state, protocol=4))
    return path


def arrays(number):
    return {"w": np.full([2], number, "float32")}


@pytest.mark.parametrize(
    "names, taken",
    [
        (["model_ema", "model"], "model"),
        (["state_dict_ema", "state_dict"], "state_dict"),
        (["model_ema"], "model_ema"),
        (["optimizer", "module"], "module"),
        (["optimizer", "state_dict", "model"], "model"),
    ],
)
def test_which_entry_is_taken(tmp_path, names, taken):
    state = {**{name: arrays(number) for number, name in enumerate(names)}, "epoch": 4}
    found = read_weights(pickled(tmp_path / "w.pd", state))
    assert found.entry == taken and found.weights["w"][0] == names.index(taken)
    assert found.beside.keys() == {*names, "epoch"} - {taken}
    for number, name in enumerate(names):
        assert read_weights(tmp_path / "w.pd", entry=name).weights["w"][0] == number


def test_an_entry_that_holds_no_weights(tmp_path):
    path = pickled(tmp_path / "w.pd", {"model": arrays(0), "epoch": 4})
    for entry in ("epoch", "ema"):
        with pytest.raises(WeightFileError, match=f"--entry {entry}: .*model"):
            read_weights(path, entry=entry)
    with pytest.raises(WeightFileError, match="net, epoch; .*--entry"):
        read_weights(pickled(path, {"net": {"encoder": arrays(0)}, "epoch": 4}))
    assert read_weights(pickled(path, {"net": arrays(3), "epoch": 4}), entry="net").weights["w"][0] == 3


def test_what_is_no_set_of_weights(tmp_path):
    for state, said in (
        ([], "dict of weights"),
        ({}, "dict of weights"),
        ({"model": {"w": np.ones(2), "n": 3}}, "'n'.*int"),
        ({"model": {"w": np.ones(2, "int8")}}, "'w'.*int8"),
        ({"model": {"w": np.ones(2, "complex64")}}, "'w'.*complex64"),
    ):
        with pytest.raises(WeightFileError, match=said):
            read_weights(pickled(tmp_path / "w.pd", state))


def test_many_names_of_the_same_bytes_do_not_fill_the_memory(tmp_path):
    """Each name would get a float32 array of its own."""
    path = pickled(tmp_path / "w.pd", {"model": dict.fromkeys(map(str, range(200)), np.zeros(2**18))})
    assert path.stat().st_size < 3 << 20
    with pytest.raises(WeightFileError, match="would become more"):
        read_weights(path)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * b"4" + b"\nsize 12345\n"


class Calls:
    def __reduce__(self):
        return print, ("ran",)


def zipped(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def object_array():
    stream = io.BytesIO()
    np.savez(stream, w=np.array([Calls()], dtype=object))
    return stream.getvalue()


FOREIGN = [
    (b"", "empty"),
    (b"<!DOCTYPE html><html>Not Found", "web page"),
    (b"\xef\xbb\xbf\n  <HTML>", "web page"),
    (LFS, "git lfs pull"),
    (b"Entry not found", "text file.*'Entry not found'"),
    (b"\x1f\x8b\x08\x00", "gzip.*unpack"),
    (b"\x89PNG\r\n\x1a\n\0", "a picture, not a weight file$"),
    (b"a.txt".ljust(257, b"\0") + b"ustar\0", "tar archive"),
    (b"\x00\x01\x02\x03", "neither PyTorch, Paddle, safetensors nor npz"),
    (pickle.dumps({"model": Calls()}, protocol=4), "refused: .*builtins.print.*--trust_checkpoint"),
    (zipped(**{"x/data.pkl": pickle.dumps({"model": Calls()}, protocol=2)}), "refused: .*__builtin__.print"),
    (object_array(), "Python objects"),
    (zipped(**{"word/document.xml": b"x"}), "zip archive .*word/document.xml"),
    (zipped(**{"a/data.pkl": b"x", "b/data.pkl": b"x"}), "one data.pkl in the archive, found 2"),
]


def test_files_that_are_something_else(tmp_path, capsys):
    path = tmp_path / "mae.pth"
    for content, said in FOREIGN:
        path.write_bytes(content)
        with pytest.raises(WeightFileError, match=f"^{re.escape(str(path))}: .*{said}"):
            read_weights(path)
    assert capsys.readouterr().out == ""


def test_paths_that_are_no_file(tmp_path):
    with pytest.raises(WeightFileError, match="no such file"):
        read_weights(tmp_path / "none.pth")
    with pytest.raises(WeightFileError, match="a folder.*none"):
        read_weights(tmp_path)
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "config.json").touch()
    with pytest.raises(WeightFileError, match="model.safetensors"):
        read_weights(tmp_path)


def whole_files(folder):
    """One small file of each kind."""
    for suffix in formats.SUFFIXES:
        write_weights(folder / f"w{suffix}", WEIGHTS)
    shutil.copy(GOLDEN / "torch_legacy.pth", folder / "legacy.pth")
    return sorted(folder.iterdir())


def test_a_file_cut_anywhere_is_refused(tmp_path):
    for whole in whole_files(tmp_path):
        content = whole.read_bytes()
        read_weights(whole)
        for length in {*range(0, len(content), 61), *range(len(content) - 12, len(content))}:
            (tmp_path / "cut").write_bytes(content[:length])
            with pytest.raises(WeightFileError):
                read_weights(tmp_path / "cut")


@pytest.mark.filterwarnings("ignore")  # numpy on forged type names
def test_damage_never_raises_anything_else(tmp_path):
    rng = np.random.default_rng(0)
    refused = 0
    for whole in whole_files(tmp_path):
        for _ in range(60):
            content = bytearray(whole.read_bytes())
            for place in rng.integers(0, len(content), 3):
                content[place] = rng.integers(256)
            (tmp_path / "damaged").write_bytes(content)
            try:
                read_weights(tmp_path / "damaged")
            except WeightFileError:
                refused += 1
    assert 120 < refused < 360  # of 360; the rest has other values or names


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "w.pth"
    write_weights(path, WEIGHTS)
    before = path.read_bytes()
    with pytest.raises(KeyError):  # a type that the format has no name for
        write_weights(path, {"w": np.ones(2, "complex64")})
    assert path.read_bytes() == before and [entry.name for entry in tmp_path.iterdir()] == ["w.pth"]


def test_only_known_suffixes_are_written(tmp_path):
    for name in ("w.bin", "w", "w.pd.txt"):
        with pytest.raises(WeightFileError, match=".pd, .pdparams, .safetensors, .npz, .pth"):
            write_weights(tmp_path / name, WEIGHTS)
    assert not list(tmp_path.iterdir())


def test_the_checksum_covers_names_types_shapes_and_values():
    # By hand, in the order of the names: name, type, shape, bytes.
    expected = hashlib.sha256(
        b"a\0<f4\0[2, 1]\0" + np.float32([1, 2]).tobytes() + b"b\0<i8\0[]\0" + bytes(8)
    ).hexdigest()
    weights = {"b": np.array(0, "int64"), "a": np.float32([[1], [2]])}
    assert checksum(weights) == checksum(dict(reversed(weights.items()))) == expected
    assert checksum({**weights, "a": np.asfortranarray(weights["a"])}) == expected
    others = [
        {**weights, "a": weights["a"].T},
        {**weights, "a": np.float32([[1], [2.0000002]])},
        {"b": weights["b"], "c": weights["a"]},
        {**weights, "b": np.array(0, "int32")},
        {"a": weights["a"]},
    ]
    assert len({expected, *map(checksum, others)}) == 1 + len(others)


def test_md5(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert md5(tmp_path / "abc") == "900150983cd24fb0d6963f7d28e17f72"  # RFC 1321
