"""main_infer.py: answers about pictures in every form, and its refusals."""

import csv
import io
import json
import os
import pickle
import signal
import sys

import numpy as np
import paddle
import pytest
from PIL import Image
from processor import assert_same_in_any_batch
from scripts import run

import main_infer
import models_mae
import models_vit
from util.compute import cpu_runtime, operations
from util.infer import picture_answers, trained_model
from util.infer.model_spec import checkpoint_spec
from util.look import feature_file
from util.weights import checkpoint

SIZE = {"img_size": 8}
SHALLOW = {**SIZE, "depth": 2}
CLASSIFIER = {"name": "vit_tiny_patch4", **SHALLOW, "in_chans": 3, "num_classes": 3, "global_pool": True}


@pytest.fixture
def infer(call_script):
    """Function that runs the script in this process; returns its output, error (code 2) or both (code 1)."""

    def infer(*words, code=0):
        said, complaint = call_script(main_infer, *words, code=code)
        return complaint.partition("error: ")[2] if code == 2 else (said, complaint) if code else said

    return infer


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, [10, 12, 3]).astype("uint8")).save(path)
    return path


def save(path, model, **more):
    with open(path, "wb") as f:
        pickle.dump({"model": {name: value.numpy() for name, value in model.state_dict().items()}, **more}, f)
    return path


def classifier(tmp_path, probabilities, *, probe=False, architecture=CLASSIFIER, **more):
    """Write a checkpoint that gives these probabilities to every picture, by the bias of its head."""
    architecture = {**architecture, "num_classes": len(probabilities), "global_pool": not probe}
    name, sizes = architecture["name"], {key: value for key, value in architecture.items() if key != "name"}
    model = models_vit.MODELS[name](**sizes)
    model.head.weight.set_value(np.zeros(model.head.weight.shape, "float32"))
    model.head.bias.set_value(np.log(np.array(probabilities, "float32")))
    if probe:
        model.make_linear_probe()
    return save(tmp_path / "classifier.pd", model, architecture=architecture, **more)


@pytest.mark.parametrize("probe", [False, True], ids=["finetuned", "linear probe"])
def test_the_top_five_classes_in_order(tmp_path, infer, picture, probe):
    for probabilities, classes, lines in (
        ([1.0], ["cat"], ["cat: 1.0000"]),
        ([0.125, 0.625, 0.25], ["cat", "dog", "eel"], ["dog: 0.6250", "eel: 0.2500", "cat: 0.1250"]),
        (
            [0.02, 0.03, 0.3, 0.4, 0.1, 0.05, 0.1001],
            [*"abcdefg"],
            ["d: 0.4000", "c: 0.3000", "g: 0.1001", "e: 0.1000", "f: 0.0500"],
        ),
        ([0.25, 0.625, 0.125], None, ["class 1: 0.6250", "class 0: 0.2500", "class 2: 0.1250"]),
        # --nb_classes was larger than the number of names.
        ([0.25, 0.625, 0.125], ["cat"], ["class 1: 0.6250", "cat: 0.2500", "class 2: 0.1250"]),
    ):
        path = classifier(
            tmp_path, probabilities, probe=probe, **({} if classes is None else {"classes": classes})
        )
        assert infer("--resume", path, "--img_path", picture).splitlines() == lines


def test_a_thousand_classes_have_the_names_of_imagenet(tmp_path, infer, picture):
    probabilities = np.full(1000, 0.2 / 997)
    probabilities[[0, 281, 999]] = 0.1, 0.5, 0.2  # their places in ILSVRC 2012
    lines = infer("--resume", classifier(tmp_path, probabilities), "--img_path", picture).splitlines()
    assert lines[:3] == ["tabby: 0.5000", "toilet tissue: 0.2000", "tench: 0.1000"] and len(lines) == 5
    lines = infer(
        "--resume",
        classifier(tmp_path, probabilities, classes=[f"my {n}" for n in range(1000)]),
        "--img_path",
        picture,
    ).splitlines()
    assert lines[0] == "my 281: 0.5000"


def test_bare_weights_need_only_the_model(tmp_path, infer, picture):
    """A file of another project has no architecture; the weights determine pooling and number of classes."""
    for pooled in (True, False):
        model = models_vit.vit_tiny_patch4(**SIZE, num_classes=2, global_pool=pooled)
        model.head.weight.set_value(np.zeros([96, 2], "float32"))
        model.head.bias.set_value(np.log(np.array([0.25, 0.75], "float32")))
        paddle.save(model.state_dict(), str(tmp_path / "bare.pd"))
        said = infer(
            "--model",
            "vit_tiny_patch4",
            "--input_size",
            8,
            "--resume",
            tmp_path / "bare.pd",
            "--img_path",
            picture,
        )
        assert said.splitlines() == ["class 1: 0.7500", "class 0: 0.2500"]


def whole_model(tmp_path, in_chans=3, **sizes):
    """Write a checkpoint whose answer depends on the picture."""
    sizes = {**SHALLOW, "in_chans": in_chans, "num_classes": 3, "global_pool": True, **sizes}
    model = models_vit.vit_tiny_patch4(**sizes)
    model.head.weight.set_value(paddle.randn([96, 3]))
    return save(
        tmp_path / "whole.pd", model, architecture={"name": "vit_tiny_patch4", **sizes}, classes=[*"abc"]
    )


@pytest.mark.isa
def test_it_computes_what_the_model_computes(tmp_path, infer):
    """Resizing does not change a picture of one colour, so the input is known."""
    path = tmp_path / "grey.png"
    Image.new("RGB", (30, 20), (51, 102, 204)).save(path)
    paddle.seed(3)
    whole = whole_model(tmp_path)
    paddle.seed(3)
    model = models_vit.vit_tiny_patch4(**SHALLOW, num_classes=3, global_pool=True)
    model.head.weight.set_value(paddle.randn([96, 3]))
    model.eval()
    colour = [(0.2 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (0.8 - 0.406) / 0.225]
    logits = model(
        paddle.to_tensor(np.broadcast_to(np.reshape(colour, [1, 3, 1, 1]), [1, 3, 8, 8]).astype("float32"))
    )
    shares = np.exp(logits.numpy()[0].astype("float64"))
    expected = dict(zip("abc", (shares / shares.sum()).tolist()))
    found = {
        name: float(value)
        for name, value in (
            line.split(": ") for line in infer("--resume", whole, "--img_path", path).splitlines()
        )
    }
    assert found == pytest.approx(expected, abs=1e-4)
    # Another normalisation, from the checkpoint or from the flags, is another input.
    words = ["--resume", whole, "--img_path", path, "--mean", 0.1, 0.2, 0.3, "--std", 1, 1, 1]
    assert infer(*words) != infer(*words[:4])


def test_normalization_comes_from_the_checkpoint_unless_flags_say_otherwise(tmp_path, infer, picture):
    state = pickle.loads(whole_model(tmp_path).read_bytes())
    own = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0]}
    (tmp_path / "own.pd").write_bytes(pickle.dumps({**state, "normalization": own}))
    words = ["--img_path", picture, "--resume"]
    by_flags = infer("--mean", 0.1, 0.2, 0.3, "--std", 1, 2, 3, *words, tmp_path / "whole.pd")
    assert infer(*words, tmp_path / "own.pd") == by_flags != infer(*words, tmp_path / "whole.pd")


def test_pictures_of_every_mode(tmp_path, infer):
    """A picture in another mode gets the answer of the same picture in RGB."""
    whole, answers_by_colour = whole_model(tmp_path), {}
    for mode, colour, same_as in (
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("L", 77, (77, 77, 77)),
        ("RGBA", (0, 255, 0, 255), (0, 255, 0)),
        ("RGBA", (9, 9, 9, 0), (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
        ("I;16", 77 * 257, (77, 77, 77)),
    ):
        Image.new(mode, (9, 9), colour).save(tmp_path / "other.tif")
        Image.new("RGB", (9, 9), same_as).save(tmp_path / "rgb.png")
        answers_by_colour[same_as] = infer("--resume", whole, "--img_path", tmp_path / "rgb.png")
        assert infer("--resume", whole, "--img_path", tmp_path / "other.tif") == answers_by_colour[same_as], (
            mode
        )
    assert len(set(answers_by_colour.values())) == 5


def test_a_model_of_grey_pictures_takes_coloured_ones(tmp_path, infer, picture):
    whole = whole_model(tmp_path, in_chans=1, img_size=(8, 12))
    assert len(infer("--resume", whole, "--img_path", picture).splitlines()) == 3


def test_other_sizes_on_the_command_line(tmp_path, infer, picture):
    whole = whole_model(tmp_path)
    small = infer("--resume", whole, "--img_path", picture)
    assert (
        infer("--resume", whole, "--img_path", picture, "--input_size", 8, "--model", "vit_tiny_patch4")
        == small
    )
    # Position embeddings are interpolated.
    large = infer("--resume", whole, "--img_path", picture, "--input_size", 12, 16)
    assert large != small and len(large.splitlines()) == 3


# Reconstruction


def autoencoder(tmp_path, **more):
    model = models_mae.mae_vit_tiny_patch4(img_size=(8, 12), norm_pix_loss=True)
    architecture = {"name": "mae_vit_tiny_patch4", "img_size": [8, 12], "in_chans": 3, "norm_pix_loss": True}
    return save(tmp_path / "mae.pd", model, architecture=architecture, **more)


def test_an_autoencoder_writes_a_picture(tmp_path, infer, picture):
    out = tmp_path / "new" / "folder"
    words = ["--resume", autoencoder(tmp_path), "--img_path", picture, "--output_dir", out]
    assert infer(*words) == f"wrote {out / 'picture_reconstruction.png'}\n"
    assert [path.name for path in out.iterdir()] == ["picture_reconstruction.png"]

    def content():
        with Image.open(out / "picture_reconstruction.png") as panel:
            assert panel.format == "PNG" and panel.mode == "RGB" and panel.width > 3 * panel.height
            return panel.tobytes()

    first = content()
    infer(*words)
    assert content() == first  # the mask is a function of the seed
    for other in (["--seed", 2], ["--mask_ratio", 0.5]):
        infer(*words, *other)
        assert content() != first


def test_norm_pix_loss_of_a_file_that_does_not_say(tmp_path, infer, picture):
    state = pickle.loads(autoencoder(tmp_path).read_bytes())
    (tmp_path / "bare.pd").write_bytes(pickle.dumps({"model": state["model"]}))
    words = ["--model", "mae_vit_tiny_patch4", "--input_size", 8, 12, "--img_path", picture]
    pictures = {}
    for name, more in {"mae": [], "bare": [], "flag": ["--norm_pix_loss"]}.items():
        file = tmp_path / ("mae.pd" if name == "mae" else "bare.pd")
        infer(*words, *more, "--resume", file, "--output_dir", tmp_path / name)
        pictures[name] = (tmp_path / name / "picture_reconstruction.png").read_bytes()
    assert pictures["flag"] == pictures["mae"] != pictures["bare"]


# What it cannot do


def test_missing_flags(tmp_path, infer, picture):
    assert "--resume" in infer("--img_path", picture, code=2)
    assert "--img_path" in infer("--resume", classifier(tmp_path, [1.0]), code=2)


def test_unreadable_pictures(tmp_path, infer, picture):
    path = classifier(tmp_path, [1.0])
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "half.png").write_bytes(picture.read_bytes()[:100])
    for name in ("text.jpg", "half.png", "none.png"):
        assert str(tmp_path / name) in infer("--resume", path, "--img_path", tmp_path / name, code=2)


def test_unsuitable_checkpoints(tmp_path, infer, picture):
    words = ["--img_path", picture, "--resume"]
    assert "none.pd" in infer(*words, tmp_path / "none.pd", code=2)
    (tmp_path / "text.pd").write_text("no checkpoint")
    assert "text.pd" in infer(*words, tmp_path / "text.pd", code=2)
    state = pickle.loads(autoencoder(tmp_path).read_bytes())
    encoder = {
        name: value
        for name, value in state["model"].items()
        if "decoder" not in name and name != "mask_token"
    }
    (tmp_path / "encoder.pd").write_bytes(pickle.dumps({"model": encoder}))
    said = infer("--model", "vit_tiny_patch4", "--input_size", 8, 12, *words, tmp_path / "encoder.pd", code=2)
    assert "main_finetune.py --finetune" in said and "(2): head.bias, head.weight" in said
    said = infer(
        "--model", "mae_vit_tiny_patch4", "--input_size", 8, 12, *words, tmp_path / "encoder.pd", code=2
    )
    assert "decoder_pred.weight" in said


def test_an_autoencoder_is_no_classifier(tmp_path, infer, picture):
    """The sizes in its file are not those of the model on the command line."""
    words = ["--resume", autoencoder(tmp_path), "--img_path", picture]
    assert "decoder" in infer(*words, "--model", "vit_tiny_patch4", code=2)


def test_flags_that_contradict_the_checkpoint(tmp_path, infer, picture):
    words = ["--resume", classifier(tmp_path, [0.5, 0.5]), "--img_path", picture]
    assert "head.bias [2] instead of [7]" in infer(*words, "--nb_classes", 7, code=2)
    assert "(2): norm.bias, norm.weight" in infer(*words, "--cls_token", code=2)
    assert "[96, 3, 4, 4] instead of [96, 1, 4, 4]" in infer(*words, "--in_chans", 1, code=2)
    said = infer(*words, "--model", "vit", code=2)
    assert "--model vit: " in said and all(name in said for name in main_infer.load_models("paddle"))


def test_through_the_command_line(tmp_path, picture):
    path = classifier(tmp_path, [0.25, 0.75], classes=["cat", "dog"])
    assert run("main_infer.py", "--resume", path, "--img_path", picture) == "dog: 0.7500\ncat: 0.2500\n"
    said = run("main_infer.py", "--resume", path, "--img_path", tmp_path / "none.png", code=2)
    assert said.startswith("main_infer.py: error: ") and "there is no such file" in said
    assert "Traceback" not in said


# Many pictures

COLOURS = {
    "b/2.png": (200, 10, 10),
    "b/10.png": (10, 200, 10),
    "a.jpg": (10, 10, 200),
    "b/c/1.webp": (90, 90, 90),
    "d.png": (250, 250, 250),
}


@pytest.fixture
def folder(tmp_path):
    """Folder of five pictures with different answers, and of files that are no pictures."""
    for name, colour in COLOURS.items():
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), colour).save(path)
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    (tmp_path / "pictures" / "._a.jpg").write_text("hidden")
    return tmp_path / "pictures"


def answers(said):
    """Parse the answer about several pictures into {name: lines without indentation}, in order."""
    found, name = {}, ""
    for line in said.splitlines():
        if line.startswith("  "):
            found[name].append(line[2:])
        else:
            name = line
            assert name not in found
            found[name] = []
    return found


def test_folders_and_files_in_the_order_given(tmp_path, infer, folder, picture):
    whole = whole_model(tmp_path)
    Image.new("RGB", (9, 9), (0, 128, 255)).save(tmp_path / "first.png")
    said = answers(
        infer("--resume", whole, "--batch_size", 2, "--img_path", picture, folder, tmp_path / "first.png")
    )
    below = ["a.jpg", "b/10.png", "b/2.png", "b/c/1.webp", "d.png"]  # sorted as text, hidden ones left out
    assert list(said) == [str(picture), *(str(folder / name) for name in below), str(tmp_path / "first.png")]
    for name, lines in said.items():
        assert lines == infer("--resume", whole, "--img_path", name).splitlines()
    assert len({tuple(lines) for lines in said.values()}) == 7


def test_a_folder_of_one_picture_names_it(tmp_path, infer, folder):
    """The form of the answer does not depend on the number of pictures in a folder."""
    said = infer("--resume", classifier(tmp_path, [0.25, 0.75]), "--img_path", folder / "b" / "c")
    assert said == f"{folder / 'b' / 'c' / '1.webp'}\n  class 1: 0.7500\n  class 0: 0.2500\n"


@pytest.mark.isa
@pytest.mark.parametrize("engine", ["paddle", "inference"])
def test_answers_do_not_depend_on_the_batch_size(tmp_path, infer, folder, engine):
    words = ["--resume", whole_model(tmp_path), "--img_path", folder, "--engine", engine]
    one = infer(*words, "--batch_size", 1)
    assert len(answers(one)) == 5
    for size in (2, 5, 100):
        assert infer(*words, "--batch_size", size) == one
    assert "--batch_size must be at least 1, got 0" in infer(*words, "--batch_size", 0, code=2)


def test_many_batches_prepack_the_weights(tmp_path, infer, folder, monkeypatch):
    words = ["--resume", whole_model(tmp_path), "--img_path", folder]
    prepared, packed = [], operations.packed
    monkeypatch.setattr(
        operations, "packed", lambda model, dtype: prepared.append(dtype) or packed(model, dtype)
    )
    monkeypatch.setattr(main_infer, "MANY_BATCHES", 5)
    few = infer(*words, "--batch_size", 2)
    assert prepared == []
    assert infer(*words, "--batch_size", 1) == few
    assert prepared == ["float32"]


def test_unreadable_pictures_among_others(tmp_path, infer, folder):
    words = ["--resume", whole_model(tmp_path), "--batch_size", 2, "--img_path", folder]
    sound = infer(*words)
    (folder / "b" / "11.png").write_text("no picture")
    (folder / "z.jpg").write_bytes((folder / "a.jpg").read_bytes()[:50])
    said, complaints = infer(*words, tmp_path / "none.png", code=1)
    assert said == sound
    lines = complaints.splitlines()
    assert len(lines) == 4 and lines[-1] == "main_infer.py: 3 of 8 pictures could not be read"
    for line, path in zip(lines, (folder / "b/11.png", folder / "z.jpg", tmp_path / "none.png")):
        assert line.startswith("main_infer.py: error: ") and str(path) in line
    for path in [*folder.rglob("*.png"), *folder.rglob("*.jpg"), *folder.rglob("*.webp")]:
        path.write_text("no picture")
    said, complaints = infer(*words, code=1)
    assert said == "" and "7 of 7 pictures" in complaints


def test_a_folder_without_pictures(tmp_path, infer):
    (tmp_path / "empty").mkdir()
    said = infer("--resume", classifier(tmp_path, [1.0]), "--img_path", tmp_path / "empty", code=2)
    assert f"--img_path {tmp_path / 'empty'}: no pictures in this folder" in said


def test_reconstructions_of_many(tmp_path, infer, folder, picture):
    mae, out = autoencoder(tmp_path), tmp_path / "out"
    words = ["--resume", mae, "--img_path", picture, folder]
    files = [out / f"{name}_reconstruction.png" for name in ("picture", "a", "b/10", "b/2", "b/c/1", "d")]
    assert infer(*words, "--output_dir", out, "--batch_size", 4) == "".join(
        f"wrote {file}\n" for file in files
    )
    contents = [file.read_bytes() for file in files]
    infer(*words, "--output_dir", tmp_path / "one", "--batch_size", 1)
    assert [(tmp_path / "one" / file.relative_to(out)).read_bytes() for file in files] == contents
    infer("--resume", mae, "--img_path", picture, "--output_dir", tmp_path / "alone")
    assert (tmp_path / "alone" / "picture_reconstruction.png").read_bytes() == contents[0]
    said = infer("--resume", mae, "--img_path", picture, folder / "a.jpg", tmp_path / "picture.jpg", code=2)
    assert str(picture) in said and "picture_reconstruction.png" in said


def test_each_picture_has_a_mask_of_its_own(tmp_path, infer, picture):
    other = tmp_path / "other.png"
    other.write_bytes(picture.read_bytes())
    infer("--resume", autoencoder(tmp_path), "--img_path", picture, other, "--output_dir", tmp_path)
    assert (tmp_path / "picture_reconstruction.png").read_bytes() != (
        tmp_path / "other_reconstruction.png"
    ).read_bytes()


# Which pictures


def test_patterns_lists_and_standard_input(tmp_path, infer, folder, picture, monkeypatch):
    """Patterns work without a shell; lists may name folders, and keep their order."""
    whole = whole_model(tmp_path)
    said = answers(infer("--resume", whole, "--img_path", folder / "b" / "*.png", picture))
    assert list(said) == [str(folder / "b" / "10.png"), str(folder / "b" / "2.png"), str(picture)]
    said = answers(infer("--resume", whole, "--img_path", folder / "**" / "*[02].*"))
    assert list(said) == [str(folder / "b" / "10.png"), str(folder / "b" / "2.png")]
    names = [str(folder / "d.png"), str(folder / "b"), str(folder / "a.jpg")]
    expected = [
        str(folder / "d.png"),
        *(str(folder / "b" / name) for name in ("10.png", "2.png", "c/1.webp")),
        str(folder / "a.jpg"),
    ]
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*names[:1], "", *names[1:]]).encode())
    assert list(answers(infer("--resume", whole, "--img_path", tmp_path / "names.txt"))) == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("\n".join(names).encode())))
    assert list(answers(infer("--resume", whole, "--img_path", "-"))) == expected
    # One that exists is itself, whatever is in its name.
    odd = tmp_path / "odd[1].png"
    odd.write_bytes(picture.read_bytes())
    assert infer("--resume", whole, "--img_path", odd) == infer("--resume", whole, "--img_path", picture)


def test_paths_without_pictures(tmp_path, infer, monkeypatch):
    words = ["--resume", classifier(tmp_path, [1.0]), "--img_path"]
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "zero.txt").write_bytes(b"a.png\0b.png")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    for path in (
        tmp_path / "*.gif",
        tmp_path / "none.txt",
        tmp_path / "empty.txt",
        tmp_path / "zero.txt",
        "-",
    ):
        assert f"--img_path {path}: " in infer(*words, path, code=2)
    assert "--img_path -: " in infer(*words, "-", "-", code=2)


# Forms of answers


def test_answers_as_json_lines_csv(tmp_path, infer, folder):
    """An unreadable picture has an entry in its place, and the exit code is 1."""
    path = classifier(tmp_path, [0.125, 0.625, 0.25], classes=["cat", 'a "dog", small', "鳗"])
    (folder / "b" / "11.png").write_text("no picture")
    names = [
        str(folder / name) for name in ("a.jpg", "b/10.png", "b/11.png", "b/2.png", "b/c/1.webp", "d.png")
    ]
    classes = [
        {"class": 'a "dog", small', "label": 1, "probability": 0.625},
        {"class": "鳗", "label": 2, "probability": 0.25},
    ]
    why = "it is in no picture format that Pillow knows"
    expected = [
        {"file": name, "error": why} if name.endswith("11.png") else {"file": name, "classes": classes}
        for name in names
    ]
    words = ["--resume", path, "--img_path", folder, "--topk", 2, "--batch_size", 4]
    said, complaint = infer(*words, "--output", "json", code=1)
    assert json.loads(said) == expected and "1 of 6 pictures could not be read" in complaint
    said, _ = infer(*words, "--output", "jsonl", code=1)
    assert [json.loads(line) for line in said.splitlines()] == expected
    said, _ = infer(*words, "--output", "csv", code=1)
    rows = list(csv.reader(io.StringIO(said)))
    assert rows[0] == ["file", "rank", "class", "label", "probability", "error"]
    assert rows[1:] == [
        row
        for name in names
        for row in (
            [[name, "", "", "", "", why]]
            if name.endswith("11.png")
            else [[name, "1", 'a "dog", small', "1", "0.625000", ""], [name, "2", "鳗", "2", "0.250000", ""]]
        )
    ]


def test_answers_are_written_completely_or_not_at_all(tmp_path, infer, folder, monkeypatch):
    words = ["--resume", whole_model(tmp_path), "--img_path", folder]
    for name, form in (
        ("a.json", "json"),
        ("a.jsonl", "jsonl"),
        ("a.csv", "csv"),
        ("a.txt", "text"),
        ("a", "text"),
    ):
        printed = infer(*words, "--output", form)
        assert infer(*words, "--save_to", tmp_path / name) == ""
        assert (tmp_path / name).read_text() == printed
    printed = infer(*words, "--output", "csv", "--topk", 1)
    infer(*words, "--output", "csv", "--topk", 1, "--save_to", tmp_path / "a.json")
    assert (tmp_path / "a.json").read_text() == printed
    monkeypatch.setattr(
        picture_answers.Batches, "__iter__", lambda self: (_ for _ in ()).throw(ValueError("stopped"))
    )
    with pytest.raises(ValueError, match="stopped"):
        main_infer.main(
            main_infer.get_args_parser().parse([*map(str, words), "--save_to", str(tmp_path / "a.csv")])
        )
    assert (tmp_path / "a.csv").read_text().startswith("file,rank") and not list(tmp_path.glob(".*"))
    monkeypatch.undo()
    assert "is one of the input files" in infer(*words, "--save_to", folder / "a.jpg", code=2)
    assert "is one of the input files" in infer(*words, "--save_to", tmp_path / "whole.pd", code=2)
    for place in (tmp_path, tmp_path / "none" / "a.csv"):
        assert f"--save_to {place}: " in infer(*words, "--save_to", place, code=2)


def test_answers_go_through_links_pipes_and_devices(tmp_path, infer, picture):
    words = ["--resume", classifier(tmp_path, [0.25, 0.75]), "--img_path", picture, "--save_to"]
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    infer(*words, tmp_path / "link.txt")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_text().startswith(
        "class 1: 0.7500"
    )
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    infer(*words, tmp_path / "pipe")
    assert os.read(reader, 100) == (tmp_path / "real.txt").read_bytes()
    os.close(reader)
    (tmp_path / "pipe.npz").symlink_to("/dev/null")
    assert "features need a regular file" in infer(*words, tmp_path / "pipe.npz", "--features", code=2)
    assert ".npz files hold --features" in infer(*words, tmp_path / "x.npz", code=2)
    (tmp_path / "names.txt").write_text("a\nb\n")
    said = infer(*words, tmp_path / "names.txt", "--class_names", tmp_path / "names.txt", code=2)
    assert "is one of the input files" in said
    (tmp_path / "lost.csv").symlink_to(tmp_path / "nowhere" / "x.csv")
    assert "in a folder that exists" in infer(*words, tmp_path / "lost.csv", code=2)
    (tmp_path / "link.npz").symlink_to(tmp_path / "real.npz")
    infer(*words, tmp_path / "link.npz", "--features")
    assert (tmp_path / "link.npz").is_symlink() and (tmp_path / "real.npz").is_file()
    long = tmp_path / ("n" * 251 + ".txt")
    infer(*words, long)
    assert long.read_bytes() == (tmp_path / "real.txt").read_bytes()


def test_a_stopped_run_leaves_nothing_half_written(tmp_path, infer, picture, monkeypatch):
    def stopped(self):
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN)
        assert list(tmp_path.glob(".*.part"))
        os.kill(os.getpid(), signal.SIGTERM)
        yield

    words = ["--resume", classifier(tmp_path, [1.0]), "--img_path", picture, "--save_to", tmp_path / "a.txt"]
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    monkeypatch.setattr(picture_answers.Batches, "__iter__", stopped)
    monkeypatch.setattr(sys, "argv", ["main_infer.py", *map(str, words)])
    try:
        with pytest.raises(SystemExit) as ended:
            main_infer.command_line.run(main_infer.main, main_infer.get_args_parser(), cleans_up=True)
    finally:
        for number, handler in zip((signal.SIGTERM, signal.SIGHUP), before):
            signal.signal(number, handler)
    assert ended.value.code == 128 + signal.SIGTERM and not list(tmp_path.glob("*a.txt*"))


def test_a_single_unreadable_picture_has_an_entry_in_json(tmp_path, infer):
    (tmp_path / "text.png").write_text("no picture")
    words = ["--resume", classifier(tmp_path, [1.0]), "--output", "jsonl", "--img_path"]
    for name, why in (("text.png", "no picture format"), ("none.png", "no such file")):
        said, complaint = infer(*words, tmp_path / name, code=1)
        assert why in json.loads(said)["error"] and "1 of 1 pictures" in complaint


def test_a_file_larger_than_memory_is_named(tmp_path, infer, picture):
    with open(tmp_path / "huge.jpg", "wb") as f:
        f.truncate(2**43)
    said, complaint = infer(
        "--resume", classifier(tmp_path, [1.0]), "--img_path", tmp_path / "huge.jpg", picture, code=1
    )
    assert said.startswith(str(picture)) and "8,796,093,022,208 bytes do not fit into memory" in complaint


def test_file_names_that_are_not_utf8(tmp_path, infer, picture):
    """File names may be any bytes. JSON escapes them; the other forms hold the bytes."""
    odd = os.fsencode(tmp_path) + b"/\xff.png"
    with open(odd, "wb") as f:
        f.write(picture.read_bytes())
    broken = tmp_path / "carriage\rreturn.png"
    broken.write_bytes(picture.read_bytes())
    said = infer("--resume", classifier(tmp_path, [1.0]), "--img_path", broken, "--output", "csv")
    assert [row[0] for row in csv.reader(io.StringIO(said, newline=""))] == ["file", str(broken)]
    for form in ("json", "jsonl", "csv", "text"):
        infer(
            "--resume",
            classifier(tmp_path, [1.0]),
            "--img_path",
            os.fsdecode(odd),
            picture,
            "--output",
            form,
            "--save_to",
            tmp_path / "out",
        )
        written = (tmp_path / "out").read_bytes()
        if form.startswith("json"):
            assert (
                os.fsencode(json.loads(written.split(b"\n")[1 if form == "json" else 0].strip(b" ,"))["file"])
                == odd
            )
        else:
            assert odd in written


def test_class_names_of_a_file(tmp_path, infer, picture):
    words = ["--resume", classifier(tmp_path, [0.125, 0.625, 0.25], classes=[*"abc"]), "--img_path", picture]
    lines = ["hund: 0.6250", "aal: 0.2500", "kätzchen: 0.1250"]
    for name, text in {
        "lines.txt": "\ufeffkätzchen\nhund\n aal\n\n",
        "list.json": '["kätzchen", "hund", "aal"]',
        "dict.json": '{"0": "kätzchen", "2": "aal", "1": "hund"}',
        "keras.json": '{"0": ["n0", "kätzchen"], "1": ["n1", "hund"], "2": ["n2", "aal"]}',
    }.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert infer(*words, "--class_names", tmp_path / name).splitlines() == lines
    for name, text in (
        ("two.txt", "a\nb"),
        ("gap.txt", "a\n\nb"),
        ("bad.json", "{"),
        ("gap.json", '{"0": "a", "3": "b"}'),
        ("number.json", "[1, 2, 3]"),
        ("none.txt", None),
    ):
        if text is not None:
            (tmp_path / name).write_text(text, encoding="utf-8")
        assert f"--class_names {tmp_path / name}: " in infer(*words, "--class_names", tmp_path / name, code=2)


def test_flags_of_another_kind_of_answer_are_refused(tmp_path, infer, picture):
    vit = ["--resume", classifier(tmp_path, [1.0]), "--img_path", picture]
    mae = ["--resume", autoencoder(tmp_path), "--img_path", picture]
    for flag, value in (
        ("--mask_ratio", 0.5),
        ("--mask_mode", "grid"),
        ("--seed", 0),
        ("--output_dir", "out"),
    ):
        assert f"{flag}: is for reconstructions" in infer(*vit, flag, value, code=2)
    for flag, value in (("--topk", 1), ("--temperature", 2), ("--tta", "flip"), ("--output", "csv")):
        assert f"{flag}: is for classes" in infer(*mae, flag, value, code=2)
        assert f"{flag}: is for classes" in infer(
            *vit, "--features", "--save_to", "x.npz", flag, value, code=2
        )
    for flag, value in (("--save_to", "x.csv"), ("--nb_classes", 3), ("--trt", None), ("--cls_token", None)):
        assert "is for classes" in infer(*mae, flag, *([] if value is None else [value]), code=2)
    assert "--temperature must be a number above 0" in infer(*vit, "--temperature", 0, code=2)
    assert "--topk must be at least 1" in infer(*vit, "--topk", 0, code=2)


# Features


@pytest.mark.isa
@pytest.mark.parametrize("source", ["classifier", "autoencoder"])
def test_features_are_those_of_extract_features(tmp_path, infer, call_script, folder, source):
    from tools import extract_features

    path = whole_model(tmp_path) if source == "classifier" else autoencoder(tmp_path)
    (folder / "b" / "11.png").write_text("no picture")
    call_script(
        extract_features,
        "--resume",
        path,
        "--img_path",
        folder,
        "--output",
        tmp_path / "a.npz",
        "--num_workers",
        0,
        code=1,
    )
    said, complaint = infer(
        "--resume",
        path,
        "--img_path",
        folder,
        "--features",
        "--save_to",
        tmp_path / "b.npz",
        "--batch_size",
        2,
        code=1,
    )
    assert said == f"wrote {tmp_path / 'b.npz'}: mean, cls of 5 pictures\n" and "1 of 6 pictures" in complaint
    expected, found = (feature_file.read(tmp_path / name) for name in ("a.npz", "b.npz"))
    feature_file.check_same_origin("a.npz", expected, "b.npz", found)
    assert found["names"].tolist() == expected["names"].tolist()
    for kind in ("mean", "cls"):
        assert_same_in_any_batch(found[kind], expected[kind], kind)
        assert np.ptp(found[kind], axis=0).max() > 0.01
    assert "--save_to FILE.npz" in infer("--resume", path, "--img_path", folder, "--features", code=2)


# Engines


@pytest.mark.parametrize("words, exported", [([], False), (["--engine", "inference"], False), ([], True)])
def test_bfloat16_is_refused_where_the_processor_has_none(
    tmp_path, infer, call_script, picture, monkeypatch, words, exported
):
    from tools import export

    path = whole_model(tmp_path)
    if exported:
        call_script(export, "--resume", path, "--output", tmp_path / "program")
        path = tmp_path / "program"
    monkeypatch.setattr(cpu_runtime, "features", lambda: frozenset({"avx2"}))
    assert "--amp bf16: this CPU has neither avx512_bf16 nor amx_bf16" in infer(
        "--resume", path, "--img_path", picture, "--amp", "bf16", *words, code=2
    )


@pytest.mark.parametrize(
    "probe", [pytest.param(False, marks=pytest.mark.isa), True], ids=["finetuned", "linear probe"]
)
def test_engine_inference_gives_the_same_answers(tmp_path, infer, picture, probe):
    path = classifier(tmp_path, [0.125, 0.625, 0.25], probe=probe, classes=["cat", "dog", "eel"])
    lines = ["dog: 0.6250", "eel: 0.2500", "cat: 0.1250"]
    for _ in range(2):  # exported, and from the cache
        assert infer("--resume", path, "--img_path", picture, "--engine", "inference").splitlines() == lines
    if not probe:
        words = ["--resume", whole_model(tmp_path), "--img_path", picture, "--input_size", 12, 16]
        assert infer(*words, "--engine", "inference") == infer(*words)


def test_engine_inference_refuses_what_it_cannot_do(tmp_path, infer, picture):
    mae = ["--resume", autoencoder(tmp_path), "--img_path", picture]
    assert "--engine inference" in infer(*mae, "--engine", "inference", code=2)
    vit = ["--resume", classifier(tmp_path, [1.0]), "--img_path", picture]
    assert "--trt: needs --engine inference" in infer(*vit, "--trt", code=2)
    assert "--trt: TensorRT needs a GPU" in infer(*vit, "--engine", "inference", "--trt", code=2)
    assert "--amp fp16" in infer(*vit, "--engine", "inference", "--amp", "fp16", code=2)


def test_a_model_is_made_without_initial_weights(tmp_path):
    """Drawing them would take longer than everything else."""
    state = checkpoint.read_checkpoint(classifier(tmp_path, [0.5, 0.5], probe=True))
    spec = checkpoint_spec(tmp_path / "classifier.pd", state, models_vit.MODELS)
    model = trained_model.build_model(spec)
    assert not any(p._is_initialized() for p in model.state_dict().values())
    trained_model.load_weights(spec, model)
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state["model"][name], err_msg=name)
        assert value.data_ptr() == state["model"][name].ctypes.data  # nor copied
