"""Damaged files as checkpoints: each script names them, exits with code 2 and writes nothing."""

import io
import json
import os
import re
import resource
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image
from scripts import write_pictures

import main_finetune
import main_infer
import main_linprobe
import main_pretrain
import models_mae
import models_vit
from tools import convert_checkpoint, extract_features
from util.options import command_line
from util.run.training_run import TrainingRun
from util.weights import checkpoint, formats, sealed_pickle
from util.weights.checkpoint import CheckpointError

SIZES = {"img_size": 8}
CLASSIFIER = {**SIZES, "num_classes": 2, "global_pool": True}


def sealed(model, **more):
    stream = io.BytesIO()
    sealed_pickle.dump(
        {"model": {name: value.numpy() for name, value in model.state_dict().items()}, **more}, stream
    )
    return stream.getvalue()


@pytest.fixture(scope="module")
def whole():
    """{kind: bytes} of whole checkpoints of one size."""
    paddle.seed(0)
    probe = models_vit.vit_tiny_patch4(**SIZES, num_classes=2)
    probe.make_linear_probe()
    return {
        "mae": sealed(
            models_mae.mae_vit_tiny_patch4(**SIZES), architecture={"name": "mae_vit_tiny_patch4", **SIZES}
        ),
        "classifier": sealed(
            models_vit.vit_tiny_patch4(**CLASSIFIER),
            architecture={"name": "vit_tiny_patch4", **CLASSIFIER},
            classes=["cat", "dog"],
        ),
        "linear_probe": sealed(probe, architecture={"name": "vit_tiny_patch4", **SIZES, "num_classes": 2}),
    }


def flipped(content):
    place = content.index(b"cls_token") + 2000
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


def picture():
    stream = io.BytesIO()
    Image.new("RGB", (9, 9)).save(stream, "PNG")
    return stream.getvalue()


def archive():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as f:
        f.writestr("notes/readme.txt", "hello")
    return stream.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + 64 * b"4" + b"\nsize 343249461\n"

# Damage: (a function of the whole content, a decisive word of the error).
CONTENTS = {
    "empty": (lambda content: b"", "empty"),
    "truncated": (lambda content: content[: len(content) // 2], "damaged"),
    "without its last byte": (lambda content: content[:-1], "damaged"),
    "a bit flipped": (flipped, "checksum"),
    "longer": (lambda content: content + b"\0", "after its end"),
    "pointer": (lambda content: LFS, "git lfs pull"),
    "page": (lambda content: b"<!doctype html><title>404</title>", "web page"),
    "text": (lambda content: "说明\n".encode(), "text file"),
    "archive": (lambda content: archive(), "zip archive .*notes/readme.txt"),
    "picture": (lambda content: picture(), "picture"),
    "noise": (lambda content: b"\x01\x02\x03\xff" * 99, "neither PyTorch, Paddle, safetensors nor npz"),
    "code": (
        lambda content: b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
        "refused: .*os.system.*--trust_checkpoint",
    ),
}
PLACES = {
    "missing": "no such file",
    "folder": "folder",
    "pipe": "a pipe or a device",
    "device": "a pipe or a device",
    "link": "link to gone.pd",
    "below a file": "no such file",
    "circle": "symbolic links",
    "forbidden": "no permission",
}


def put(path, content, monkeypatch, what):
    """Put the damage `what` at `path`; returns where it is."""
    if what in CONTENTS:
        path.write_bytes(CONTENTS[what][0](content))
    elif what == "folder":
        path.mkdir()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        return Path("/dev/zero")
    elif what in ("link", "circle"):
        path.symlink_to("gone.pd" if what == "link" else path.name)
    elif what == "below a file":
        (path.parent / "file").touch()
        return path.parent / "file" / path.name
    elif what == "forbidden":
        path.write_bytes(content)

        def refuse(file, *mode):
            raise PermissionError(13, "Permission denied", str(file))

        monkeypatch.setattr(formats, "open", refuse, raising=False)  # root could read it
    return path


SAID = {**{what: said for what, (_, said) in CONTENTS.items()}, **PLACES}
TRAINING = [
    "--data_path",
    "data",
    "--input_size",
    "8",
    "--num_workers",
    "0",
    "--batch_size",
    "4",
    "--device",
    "cpu",
    "--epochs",
    "1",
    "--output_dir",
    "out",
]
VIT = ["--model", "vit_tiny_patch4", "--nb_classes", "2", *TRAINING]
FEATURES = ["--img_path", "picture.png", "--output", "features.npz", "--num_workers", "0", "--device", "cpu"]

# How a script is given a checkpoint: its module, words, and the kind that it would take.
USES = {
    "pretrain --resume": (main_pretrain, ["--model", "mae_vit_tiny_patch4", *TRAINING, "--resume"], "mae"),
    "finetune --finetune": (main_finetune, [*VIT, "--finetune"], "mae"),
    "finetune --resume": (main_finetune, [*VIT, "--resume"], "classifier"),
    "finetune --eval": (main_finetune, [*VIT, "--eval", "--resume"], "classifier"),
    "linprobe --finetune": (main_linprobe, [*VIT, "--finetune"], "mae"),
    "linprobe --resume": (main_linprobe, [*VIT, "--resume"], "linear_probe"),
    "linprobe --eval": (main_linprobe, [*VIT, "--eval", "--resume"], "linear_probe"),
    "infer": (main_infer, ["--img_path", "picture.png", "--resume"], "classifier"),
    "infer by a static program": (
        main_infer,
        ["--img_path", "picture.png", "--engine", "inference", "--resume"],
        "classifier",
    ),
    "features": (extract_features, [*FEATURES, "--resume"], "mae"),
    "convert": (convert_checkpoint, ["--info"], "mae"),
    "convert to": (convert_checkpoint, None, "mae"),
}


@pytest.fixture
def ended(tmp_path, monkeypatch, capsys):
    """A function that runs a script in this process: its exit code and what it wrote to standard error."""
    write_pictures(tmp_path / "data", size=(8, 8))
    (tmp_path / "picture.png").write_bytes(picture())
    monkeypatch.chdir(tmp_path)

    def ended(use, path):
        module, words, _ = USES[use]
        words = [*words, str(path)] if words else [str(path), "converted.pd"]
        monkeypatch.setattr("sys.argv", ["script.py", *words])
        if module is convert_checkpoint:
            code = module.main()
        else:
            try:
                code = command_line.run(module.main, module.get_args_parser())
            except SystemExit as stop:
                code = stop.code
        return code, capsys.readouterr().err

    return ended


@pytest.mark.parametrize("what", SAID)
def test_every_script_says_what_is_wrong_and_writes_nothing(tmp_path, monkeypatch, ended, whole, what):
    for use, (_, _, kind) in USES.items():
        folder = tmp_path / use
        folder.mkdir()
        with monkeypatch.context() as patch:
            path = put(folder / "checkpoint.pd", whole[kind], patch, what)
            before = sorted(os.walk(tmp_path))
            code, said = ended(use, path)
        assert code == 2 and "Traceback" not in said, said
        assert re.search(f"error: {re.escape(str(path))}: .*{SAID[what]}", said), said
        assert sorted(os.walk(tmp_path)) == before


@pytest.mark.filterwarnings("ignore:When training, we now always track global mean and variance")
@pytest.mark.parametrize("use", [use for use in USES if "convert" not in use])
def test_other_kinds_and_sizes(tmp_path, ended, whole, use):
    model = models_mae.mae_vit_tiny_patch4 if USES[use][2] == "mae" else models_vit.vit_tiny_patch4
    other = {
        "deeper": sealed(model(**SIZES, depth=7)),
        "patches": sealed(model(**SIZES, patch_size=2)),
        "channels": sealed(model(**SIZES, in_chans=1)),
        "wider": sealed(model(**SIZES, embed_dim=48)),
        **whole,
    }
    if USES[use][2] == "classifier":
        other["classes"] = sealed(model(**{**CLASSIFIER, "num_classes": 3}))
    if use.startswith("infer") or use == "features":  # it takes what the file describes
        other = {name: content for name, content in other.items() if name in ("deeper", "wider")}
    if "--finetune" in use:  # which takes another number of channels, and other patches
        del other["channels"], other["patches"]
    taken = {"mae", USES[use][2]} if "--finetune" in use else {USES[use][2]}
    for name, content in other.items():
        if name in taken:
            continue
        path = tmp_path / f"{name}.pd"
        path.write_bytes(content)
        before = sorted(os.walk(tmp_path))
        code, said = ended(use, path)
        assert code == 2 and "Traceback" not in said, (name, said)
        assert re.search(
            "its weights do not fit this model|--finetune starts from a pretrained encoder", said
        )
        assert "main_" in said  # the command for it
        assert sorted(os.walk(tmp_path)) == before


def test_a_whole_file_is_read_by_all(tmp_path, whole):
    """The tests above can fail."""
    for kind, content in whole.items():
        (tmp_path / "x.pd").write_bytes(content)
        assert checkpoint.role(checkpoint.read_checkpoint(tmp_path / "x.pd")["model"]) == kind


def test_a_file_cut_anywhere(tmp_path, whole):
    content = whole["linear_probe"]
    lengths = np.unique(
        np.r_[
            :200:7,
            np.random.default_rng(0).integers(0, len(content), 60),
            len(content) - 120 : len(content) : 7,
        ]
    )
    for length in lengths:
        (tmp_path / "x.pd").write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="the file is empty" if length == 0 else "."):
            checkpoint.read_checkpoint(tmp_path / "x.pd")


# Small files that claim to be large


def npy(shape, dtype="<f4"):
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header


def zipped(members, compression=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as f:
        for name, content in members.items():
            f.writestr(name, content)
    return stream.getvalue()


def lying(content, name, size):
    """A zip archive whose directory gives another size for an entry."""
    place = content.rindex(b"PK\x01\x02", 0, content.rindex(name.encode()))
    return content[: place + 24] + struct.pack("<I", size) + content[place + 28 :]


def safetensors(shape, length, claimed=None):
    header = json.dumps({"w": {"dtype": "F32", "shape": shape, "data_offsets": [0, length]}}).encode()
    return struct.pack("<Q", claimed or len(header)) + header + bytes(99)


def torch_pickle(count):
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu" + count + b"tQ"
    return (
        b"\x80\x02}X\x05\0\0\0model}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"K\0"
        + count
        + b"\x85K\1\x85\x89)tRss."
    )


HUGE = b"\x8a\x06" + (10**11).to_bytes(6, "little")
BOMBS = {
    "npz shape": lambda: zipped({"w.npy": npy((10**11,)) + bytes(99)}),
    "npz overflow": lambda: zipped({"w.npy": npy((2**32, 2**32)) + bytes(99)}),
    "npz type": lambda: zipped({"w.npy": npy((1,), "V2000000000") + bytes(99)}),
    "npz zeros": lambda: zipped({f"w{n}.npy": npy((2**24,)) + bytes(2**26) for n in range(3)}),
    "npz that lies": lambda: lying(zipped({"w.npy": npy((4,)) + bytes(2**28)}), "w.npy", 80),
    "pth claim": lambda: zipped(
        {"a/data.pkl": torch_pickle(HUGE), "a/data/0": bytes(12)}, zipfile.ZIP_STORED
    ),
    "pth zeros": lambda: zipped({"a/data.pkl": torch_pickle(HUGE), "a/data/0": bytes(2**28)}),
    "pth pickle": lambda: zipped({"a/data.pkl": b"\x80\x02" + b"]" * 2**28}),
    "safetensors shape": lambda: safetensors([10**11], 4 * 10**11),
    "safetensors overflow": lambda: safetensors([2**62, 2**62], 99),
    "safetensors header": lambda: safetensors([1], 4, claimed=2**40),
    "pickle bytes": lambda: b"\x80\x04\x8e" + struct.pack("<Q", 10**11) + bytes(99),
    "pickle frame": lambda: b"\x80\x04\x95" + struct.pack("<Q", 10**11) + bytes(99),
    "pickle depth": lambda: b"\x80\x04}\x8c\5model" + b"]" * 50000 + b"a" * 49999 + b"s.",
    "sealed depth": lambda: (
        b"\x80\x04}(\x8c\6formatK\1\x8c\5model]" + b"]" * 50000 + b"a" * 50000 + b"\x8c\x08checksum\x8c\1xu."
    ),
    "sealed circle": lambda: b"\x80\x04}(\x8c\6formatK\1\x8c\5model]q\0h\0a\x8c\x08checksum\x8c\1xu.",
    "sealed laughs": lambda: (
        b"\x80\x04}(\x8c\6formatK\1\x8c\5model]"
        + b"".join(b"q%c0](%s" % (n, b"h%c" % n * 9 + b"e") for n in range(60))
        + b"\x8c\x08checksum\x8c\1xu."
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_at_once(tmp_path, bomb):
    path = tmp_path / "bomb"
    path.write_bytes(BOMBS[bomb]())
    assert path.stat().st_size < 2**20
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(CheckpointError, match="bomb: "):
        checkpoint.read_checkpoint(path)
    assert time.perf_counter() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # kilobytes


def test_what_a_file_says_of_its_model_must_be_true_of_its_weights(tmp_path, whole):
    """It is used to build the model; 100,000 pixels would be a table of gigabytes."""
    (tmp_path / "x.pd").write_bytes(whole["mae"])
    state = checkpoint.read_checkpoint(tmp_path / "x.pd")
    for change, said in [
        ({"img_size": 10**5}, "img_size is 100000, weights are for 4 patches of 4 pixels"),
        ({"img_size": [8, 10**9]}, "img_size is"),
        ({"img_size": "8"}, "img_size is 8"),
        ({"img_size": [8, 8, 8]}, "img_size is"),
        ({"patch_size": 0}, "patch_size is 0, but the weights have 4"),
        ({"in_chans": [3]}, "in_chans is"),
        ({"depth": 10**9}, "depth is 1000000000, but the weights have 6"),
        ({"mlp_ratio": 4}, "unknown entry mlp_ratio"),
        ({"num_heads": 10**9}, "num_heads is 1000000000"),
        ({"name": 3}, "name is no str"),
        ({"norm_pix_loss": "yes"}, "norm_pix_loss is no bool"),
    ]:
        with open(tmp_path / "y.pd", "wb") as f:
            sealed_pickle.dump({**state, "architecture": {**state["architecture"], **change}}, f)
        with pytest.raises(CheckpointError, match=re.escape(said)):
            checkpoint.read_checkpoint(tmp_path / "y.pd")


def test_an_unknown_model(tmp_path, ended, whole):
    (tmp_path / "x.pd").write_bytes(whole["classifier"])
    state = checkpoint.read_checkpoint(tmp_path / "x.pd")
    with open(tmp_path / "y.pd", "wb") as f:
        sealed_pickle.dump({**state, "architecture": {**state["architecture"], "name": "resnet50"}}, f)
    code, said = ended("infer", tmp_path / "y.pd")
    assert code == 2 and "y.pd" in said and "resnet50" in said


@pytest.mark.filterwarnings("ignore:When training, we now always track global mean and variance")
@pytest.mark.parametrize("use", USES)
def test_every_script_can_be_told_to_trust(tmp_path, ended, whole, monkeypatch, use):
    """The flag reaches the reader, which runs what the file brings and says whose code it is."""
    monkeypatch.setattr(TrainingRun, "begin", stop)
    (tmp_path / "x.pd").write_bytes(whole[USES[use][2]])
    payload = b"cos\nmkdir\nX\x04\0\0\0made\x85R"
    content = (tmp_path / "x.pd").read_bytes()
    (tmp_path / "x.pd").write_bytes(content[:2] + payload + b"0" + content[2:])
    code, said = ended(use, tmp_path / "x.pd")
    assert code == 2 and re.search("x.pd: refused: .*os.mkdir", said) and not (tmp_path / "made").exists()
    monkeypatch.setitem(
        USES, use, (USES[use][0], ["--trust_checkpoint", *(USES[use][1] or [])], USES[use][2])
    )
    if use == "convert to":
        monkeypatch.setattr(
            "sys.argv", ["script.py", "--trust_checkpoint", str(tmp_path / "x.pd"), "converted.pd"]
        )
        assert convert_checkpoint.main() == 0
    else:
        code, said = ended(use, tmp_path / "x.pd")
        assert code in (None, 0, "began") and f"{tmp_path / 'x.pd'}: trusted (--trust_checkpoint)" in said, (
            said
        )
    assert (tmp_path / "made").is_dir()


def stop(run):
    """Instead of TrainingRun.begin: the checkpoint has been read by then."""
    raise SystemExit("began")
