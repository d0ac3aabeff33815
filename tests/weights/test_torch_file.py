"""PyTorch's file format, against files of torch 2.13.0 (tools/maintain/make_weight_files.py)."""

import collections
import io
import os
import pickle
import pickletools
import zipfile
from pathlib import Path

import numpy as np
import pytest

from util.system.safe_pickle import ForbiddenError
from util.weights import torch_file

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

BASE = np.arange(24, dtype="float32").reshape(4, 6)
EXPECTED = {
    "whole": BASE,
    "view": BASE[1:, 1::2],
    "turned": BASE.T,
    "spread": np.stack([BASE[0]] * 3),
    "scalar": np.int64(7),
    "parameter": np.float32([-1.5, 2]),
    "empty": np.zeros([0, 3], "float32"),
    "half": np.float16([1, -0.0999755859375, 65504]),
    "brain": np.float32([1, -0.10009765625, 9.969209968386869e37]),  # as float() of torch gives them
    "double": np.float64([0.1]),
}
INTEGERS = {"ints": np.int32([-1, 2]), "bytes": np.uint8([0, 255]), "bools": np.array([True, False])}


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_what_torch_saved(name):
    with torch_file.open_torch_file(GOLDEN / name) as state:
        assert list(state["model"]) == list(EXPECTED) and list(state["integers"]) == list(INTEGERS)
        for key, expected in {**EXPECTED, **INTEGERS}.items():
            found = {**state["model"], **state["integers"]}[key].numpy()
            assert found.dtype == expected.dtype and found.shape == expected.shape, key
            assert np.array_equal(found, expected), key
        assert state["model"]["brain"].dtype == "bfloat16"
        assert state["epoch"] == 3 and state["scaler"] == {"scale": 65536.0}
        assert state["args"] == {"lr": 1e-3, "output_dir": "/checkpoint/run", "device": "cuda:0"}
        # One update of AdamW with gradients of 1: the first moment is 1 - 0.9.
        assert state["optimizer"]["state"][0]["exp_avg"].numpy() == pytest.approx([0.1, 0.1])
        assert state["optimizer"]["param_groups"][0]["params"] == [0]


def test_tensors_that_nobody_asks_for_are_not_read(tmp_path):
    content = (GOLDEN / "torch_zip.pth").read_bytes()
    twos = np.float32([-1.5, 2]).tobytes()
    assert content.count(twos) == 1
    path = tmp_path / "damaged.pth"
    path.write_bytes(content.replace(twos, bytes(len(twos))))
    with torch_file.open_torch_file(path) as state:
        assert np.array_equal(state["model"]["view"].numpy(), EXPECTED["view"])
        with pytest.raises(zipfile.BadZipFile, match="CRC"):
            state["model"]["parameter"].numpy()


class Recorder(pickle.Unpickler):
    """Notes the calls and storages that a file of torch asks for, as plain tuples."""

    def find_class(self, module, name):
        if name == "OrderedDict":
            return collections.OrderedDict
        return (lambda *arguments: arguments) if name == "_rebuild_tensor_v2" else f"{module}.{name}"

    def persistent_load(self, pid):
        return pid


def records(path):
    with zipfile.ZipFile(path) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def test_we_write_what_torch_writes(tmp_path):
    theirs = GOLDEN / "timm_linear_probe.pth"
    with torch_file.open_torch_file(theirs) as state:
        weights = {name: tensor.numpy() for name, tensor in state["model"].items()}
    assert {value.dtype.name for value in weights.values()} == {"float32", "int64"}
    with open(tmp_path / "ours.pth", "wb") as f:
        torch_file.save(weights, f)
    wanted, found = records(theirs), records(tmp_path / "ours.pth")
    assert found.pop("data.pkl") != wanted.pop("data.pkl")  # torch's has memo numbers
    assert {name for name in wanted if name.startswith("data/")} == {
        name for name in found if name.startswith("data/")
    }
    for name, content in found.items():
        assert content == wanted[name], name

    calls = [
        Recorder(io.BytesIO(records(path)["data.pkl"])).load()["model"]
        for path in (theirs, tmp_path / "ours.pth")
    ]
    assert list(calls[0].items()) == list(calls[1].items())
    assert calls[1]["blocks.0.attn.qkv.weight"] == (
        ("storage", "torch.FloatStorage", "6", "cpu", 192),
        0,
        (24, 8),
        (8, 1),
        False,
        {},
    )


def test_a_file_is_the_same_whenever_it_is_written(tmp_path):
    files = []
    for name in "ab":
        with open(tmp_path / name, "wb") as f:
            torch_file.save({"w": np.ones([2, 3], "float32")}, f)
        files.append((tmp_path / name).read_bytes())
    assert files[0] == files[1]
    with zipfile.ZipFile(tmp_path / "a") as archive:
        # PyTorch can then map them into memory.
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}


def test_arrays_that_are_views_are_written_in_order(tmp_path):
    with open(tmp_path / "w.pth", "wb") as f:
        torch_file.save({"turned": BASE.T, "flat": BASE[::2, 1]}, f)
    with torch_file.open_torch_file(tmp_path / "w.pth") as state:
        assert np.array_equal(state["model"]["turned"].numpy(), BASE.T)
        assert np.array_equal(state["model"]["flat"].numpy(), [1, 13])


def altered(tmp_path, **changes):
    """A file of one tensor of 3 numbers, with changed records."""
    with open(tmp_path / "whole.pth", "wb") as f:
        torch_file.save({"w": np.float32([1, 2, 3])}, f)
    with zipfile.ZipFile(tmp_path / "altered.pth", "w") as archive:
        for name, content in {**records(tmp_path / "whole.pth"), **changes}.items():
            archive.writestr(f"archive/{name}", content)
    return tmp_path / "altered.pth"


def number(value):
    return b"J" + value.to_bytes(4, "little", signed=True)


@pytest.mark.parametrize(
    "offset, size, stride, message",
    [
        (1, 3, 1, "reaches beyond the 3 values"),
        (0, 4, 1, "reaches beyond the 3 values"),
        (0, 2, 3, "reaches beyond the 3 values"),
        (-1, 2, 1, r"a tensor of shape \(2,\)"),
        (2, 3, -1, r"a tensor of shape \(3,\)"),
        (0, -3, 1, r"a tensor of shape \(-3,\)"),
    ],
)
def test_a_tensor_must_lie_within_its_storage(tmp_path, offset, size, stride, message):
    with torch_file.open_torch_file(altered(tmp_path)) as state:
        assert state["model"]["w"].numpy().tolist() == [1, 2, 3]
    place = number(0) + b"(" + number(3) + b"t(" + number(1) + b"t"
    content = records(tmp_path / "whole.pth")["data.pkl"]
    assert content.count(place) == 1
    content = content.replace(place, number(offset) + b"(" + number(size) + b"t(" + number(stride) + b"t")
    with pytest.raises(ValueError, match=message):
        with torch_file.open_torch_file(altered(tmp_path, **{"data.pkl": content})) as state:
            state["model"]["w"].numpy()


def test_a_tensor_may_repeat_its_storage_but_not_fill_the_memory(tmp_path):
    place = number(0) + b"(" + number(3) + b"t(" + number(1) + b"t"
    content = records(altered(tmp_path))["data.pkl"]

    def repeated(times):
        new = number(0) + b"(" + number(times) + b"t(" + number(0) + b"t"
        return altered(tmp_path, **{"data.pkl": content.replace(place, new)})

    with torch_file.open_torch_file(repeated(1000)) as state:
        assert (state["model"]["w"].numpy() == np.ones(1000)).all()
    with torch_file.open_torch_file(repeated(10**9)) as state:
        with pytest.raises(ValueError, match="repeats a storage of 3 values"):
            state["model"]["w"].numpy()


def test_a_storage_must_be_whole(tmp_path):
    with torch_file.open_torch_file(altered(tmp_path, **{"data/0": bytes(8)})) as state:
        with pytest.raises(ValueError, match="a storage of 3 float32 has 8 bytes"):
            state["model"]["w"].numpy()


def test_a_truncated_legacy_file_is_noticed_before_anything_is_read(tmp_path):
    content = (GOLDEN / "torch_legacy.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[:-1])
    with pytest.raises(EOFError, match="ends before the last"):
        with torch_file.open_torch_file(tmp_path / "cut.pth"):
            pass


def test_big_endian_numbers_are_refused(tmp_path):
    content = (GOLDEN / "torch_legacy.pth").read_bytes()
    little = b"little_endian" + content.partition(b"little_endian")[2][:3]  # a memo number, then True
    assert little[-1:] == b"\x88"
    (tmp_path / "legacy.pth").write_bytes(content.replace(little, little[:-1] + b"\x89"))
    with pytest.raises(ValueError, match="big-endian"):
        with torch_file.open_torch_file(tmp_path / "legacy.pth"):
            pass
    with pytest.raises(ValueError, match="big-endian"):
        with torch_file.open_torch_file(altered(tmp_path, byteorder=b"big")):
            pass


class Calls:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Refers(pickle.Pickler):
    def persistent_id(self, value):
        return value if isinstance(value, tuple) and value[0] in ("storage", "module") else None


def referring(pid):
    stream = io.BytesIO()
    Refers(stream, protocol=2).dump(pid)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content, message",
    [
        (pickle.dumps({"model": {}, "x": Calls(os.mkdir, "made")}, protocol=2), r"asks for \S+\.mkdir,"),
        (pickle.dumps({"model": {}, "x": Calls(eval, "1")}, protocol=2), r"asks for __builtin__\.eval"),
        (b"ctorch._utils\n_import_dotted_name\n.", "asks for torch._utils._import_dotted_name"),
        (
            b"ctimm.models.vision_transformer\nVisionTransformer\n.",
            "asks for timm.models.vision_transformer.VisionTransformer",
        ),
        (referring(("module", "x", "y", "z", 1)), "something other than the numbers of a tensor"),
        (referring(("module", "float32", "0", "cpu", 1)), "something other than the numbers of a tensor"),
        (referring(("storage", "x")), "something other than the numbers of a tensor"),
        (
            referring(("storage", "float32", "0", "cpu", 3, ("1", 0, 2))),
            "views of others, as before PyTorch 0.4",
        ),
    ],
)
def test_only_tensors_and_plain_containers_are_admitted(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    list(pickletools.genops(content))  # a whole pickle
    path = altered(tmp_path, **{"data.pkl": content})
    with pytest.raises(ForbiddenError, match=message):
        with torch_file.open_torch_file(path):
            pass
    legacy = tmp_path / "legacy.pth"
    head = (GOLDEN / "torch_legacy.pth").read_bytes()
    head = head[: [i for i in range(len(head)) if head.startswith(b".\x80\x02", i)][2] + 1]  # three pickles
    legacy.write_bytes(head + content)
    with pytest.raises(ForbiddenError, match=message):
        with torch_file.open_torch_file(legacy):
            pass
    assert not (tmp_path / "made").exists()
