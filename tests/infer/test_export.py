"""tools/export.py: exported models compute what the model does, and describe themselves."""

import json
import pickle
import shutil
import sys
from functools import partial

import numpy as np
import paddle
import pytest
from numpy_transformer import block, embed_patches, layer_norm, linear, weights_of
from PIL import Image

import models_mae
import models_vit
from tools import export
from util.infer import model_info, onnx_engine, program_export, static_engine
from util.infer.classifier import ImageClassifier
from util.infer.engine import Engine, choose_engine
from util.infer.model_spec import read_model_spec
from util.infer.predictors import open_predictor
from util.weights import formats

OWN = program_export.own_format()
FORMATS = (
    {"paddle": "folder", "paddle2": "folder", "onnx": "file.onnx"}
    if OWN == "paddle"
    else {"paddle2": "folder", "onnx": "file.onnx"}
)
SIZE = {"img_size": 8, "in_chans": 3}
SMALL = {"patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}  # 8 channels a head: no power of 4
PROGRAMS = {"paddle": "model.json", "paddle2": "model.pdmodel"}


@pytest.fixture(scope="module", autouse=True)
def small_models():
    """Add a small model to the table, because tracing takes most of the time of an export."""
    paddle.seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models_vit.MODELS, "vit_small_patch4", partial(models_vit.VisionTransformer, **SMALL))
        yield


def save(path, model, **more):
    with open(path, "wb") as f:
        pickle.dump({"model": {name: value.numpy() for name, value in model.state_dict().items()}, **more}, f)
    return path


def scrambled(model):
    rng = np.random.default_rng(1)
    for p in model.parameters():
        p.set_value((0.3 * rng.standard_normal(p.shape)).astype("float32") + p.numpy())
    model.eval()
    return model


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, small_models):
    """(model, its checkpoint): four patches, three classes, global pooling."""
    model = scrambled(models_vit.MODELS["vit_small_patch4"](**SIZE, num_classes=3, global_pool=True))
    described = {"name": "vit_small_patch4", **SIZE, "num_classes": 3, "global_pool": True}
    return model, save(
        tmp_path_factory.mktemp("classifier") / "best.pd",
        model,
        architecture=described,
        classes=["ape", "bee", "cat"],
        normalization={"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    )


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    model = scrambled(
        models_mae.MaskedAutoencoderViT(
            **SIZE, **SMALL, decoder_embed_dim=8, decoder_depth=1, decoder_num_heads=2
        )
    )
    return model, save(
        tmp_path_factory.mktemp("autoencoder") / "mae.pd",
        model,
        architecture={"name": "mae_vit_small_patch4", **SIZE},
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory, classifier):
    """{format: path} of the classifier for any number of images."""
    folder = tmp_path_factory.mktemp("exported")
    for file_format, name in FORMATS.items():
        run(
            classifier[1],
            folder / file_format / name,
            "--format",
            file_format,
            "--dynamic_batch",
            "--temperature",
            2.5,
        )
    return {file_format: folder / file_format / name for file_format, name in FORMATS.items()}


def run(checkpoint, output, *words):
    parser = export.get_args_parser()
    export.main(parser.parse(["--resume", str(checkpoint), "--output", str(output), *map(str, words)]))


@pytest.fixture
def refused(call_script, classifier):
    """Function that exports the classifier, must end with code 2, and returns the error."""

    def refused(*words, resume=classifier[1]):
        out, said = call_script(export, "--resume", resume, *words, code=2)
        assert out == "" and said.startswith("export.py: error: ") and said.count("\n") == 1
        return said

    return refused


def opened(path, **overrides):
    """Open the predictor of an exported model or of a checkpoint."""
    return open_predictor(
        read_model_spec(path, models_vit.MODELS, overrides), Engine(choose_engine(path), "cpu", "off")
    )


def opened_program(path):
    return static_engine.open_exported(path, static_engine.Runtime("cpu"))


def images(count):
    return np.random.default_rng(3).standard_normal([count, 3, 8, 8]).astype("float32")


def numpy_tokens(image, w):
    """Compute the tokens [1 + L, D] after the last block in float64, by the papers."""
    x = np.concatenate([w["cls_token"][0], embed_patches(image, w, 4)]) + w["pos_embed"][0]
    for number in range(2):
        x = block(x, w, f"blocks.{number}", heads=3)
    return x


@pytest.mark.parametrize("file_format", FORMATS)
def test_logits_are_those_of_the_numpy_transformer_at_any_batch_size(classifier, exported, file_format):
    w, predictor = weights_of(classifier[0]), opened(exported[file_format])
    expected = [
        linear(layer_norm(numpy_tokens(image, w)[1:].mean(axis=0), w, "fc_norm"), w, "head")
        for image in images(5).astype("float64")
    ]
    assert np.ptp(expected) > 1
    for count in (1, 5, 2):
        answer = predictor(images(5)[:count])
        assert answer.keys() == {"logits"}
        np.testing.assert_allclose(answer["logits"], expected[:count], atol=2e-5)


@pytest.mark.parametrize("file_format", FORMATS)
def test_the_model_info(classifier, exported, file_format):
    info = opened(exported[file_format]).info
    assert (
        info["task"] == "classification"
        and info["classes"] == ["ape", "bee", "cat"]
        and info["temperature"] == 2.5
    )
    assert info["input"]["shape"] == [None, 3, 8, 8] and info["outputs"] == {"logits": [None, 3]}
    assert info["input"]["mean"] == [0.1, 0.2, 0.3] and info["model"]["name"] == "vit_small_patch4"
    assert info["source"] == {
        "file": "best.pd",
        "weights_sha256": formats.checksum(
            {name: value.numpy() for name, value in classifier[0].state_dict().items()}
        ),
    }
    assert info["versions"]["paddlepaddle"] == paddle.__version__
    assert info["parity"]["images"] == 8 and info["parity"]["limit"] == 1e-4
    assert 0 < info["parity"]["largest_difference"] < 1e-4
    if file_format == "onnx":
        assert info["versions"]["opset"] >= 17
        assert info == json.loads(exported["onnx"].with_name("file.onnx.json").read_text())


def test_nothing_else_is_left(exported):
    for file_format, path in exported.items():
        found = {entry.name for entry in path.parent.iterdir()}
        if file_format == "onnx":
            assert found == {"file.onnx", "file.onnx.json"}
        else:
            assert found == {"folder"}
            assert {entry.name for entry in path.iterdir()} == {
                PROGRAMS[file_format],
                "model.pdiparams",
                "model_info.json",
            }


@pytest.mark.parametrize("file_format", [OWN, "onnx"])
def test_fixed_batch_features_of_an_autoencoder(tmp_path, autoencoder, file_format):
    """All patches are visible, the decoder is not used, and the last batch is padded."""
    output = tmp_path / FORMATS[file_format]
    run(
        autoencoder[1],
        output,
        "--format",
        file_format,
        "--encoder",
        "--features",
        "tokens",
        "mean",
        "cls",
        "--batch_size",
        2,
    )
    predictor = opened(output)
    info = predictor.info
    assert info["input"]["shape"] == [2, 3, 8, 8] and info["norm"] == "norm" and info["classes"] is None
    assert info["outputs"] == {"mean": [2, 24], "cls": [2, 24], "tokens": [2, 4, 24]}
    w, found = weights_of(autoencoder[0]), predictor(images(3))
    for number, image in enumerate(images(3).astype("float64")):
        x = layer_norm(numpy_tokens(image, w), w, "norm")
        for kind, expected in {"mean": x[1:].mean(axis=0), "cls": x[0], "tokens": x[1:]}.items():
            np.testing.assert_allclose(found[kind][number], expected, atol=5e-5, err_msg=kind)


def test_features_of_a_classifier_have_passed_its_norm(tmp_path, classifier):
    run(classifier[1], tmp_path / "e.onnx", "--encoder")
    predictor = opened(tmp_path / "e.onnx")
    info = predictor.info
    w, x = weights_of(classifier[0]), numpy_tokens(images(1)[0].astype("float64"), weights_of(classifier[0]))
    found = predictor(images(1))
    assert info["norm"] == "fc_norm" and list(found) == ["mean", "cls"]
    np.testing.assert_allclose(found["mean"][0], layer_norm(x[1:].mean(axis=0), w, "fc_norm"), atol=2e-5)
    np.testing.assert_allclose(found["cls"][0], x[0], atol=5e-5)


def test_a_linear_probe(tmp_path):
    """The statistics of its BatchNorm differ between channels."""
    model = scrambled(models_vit.MODELS["vit_small_patch4"](**SIZE, num_classes=3))
    model.make_linear_probe()
    model.head[0]._mean.set_value(np.linspace(-1, 2, 24).astype("float32"))
    model.head[0]._variance.set_value(np.linspace(0.1, 3, 24).astype("float32"))
    model.eval()
    run(save(tmp_path / "probe.pd", model), tmp_path / "p.onnx", "--dynamic_batch")
    with paddle.no_grad():
        expected = model(paddle.to_tensor(images(2))).numpy()
    np.testing.assert_allclose(opened(tmp_path / "p.onnx")(images(2))["logits"], expected, atol=2e-5)


def test_another_input_size(tmp_path, classifier):
    """Position embeddings are interpolated, as main_infer.py does for the checkpoint."""
    run(classifier[1], tmp_path / "p.onnx", "--input_size", 12, 8)
    predictor = opened(tmp_path / "p.onnx")
    larger = np.random.default_rng(0).standard_normal([2, 3, 12, 8]).astype("float32")
    expected = opened(classifier[1], img_size=[12, 8])
    assert predictor.info["input"]["shape"] == [1, 3, 12, 8]
    np.testing.assert_allclose(predictor(larger)["logits"], expected(larger)["logits"], atol=2e-5)


def by_the_metadata(path, picture):
    """Compute {class: probability} with numpy, Pillow and ONNX Runtime alone, by util/infer/model_info.py."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    info = json.loads(session.get_modelmeta().custom_metadata_map["model_info"])
    given, (_, _, height, width) = info["input"], info["input"]["shape"]
    image, whole = Image.open(picture).convert(given["channels"]), int(height / given["crop_share"])
    assert height == width and image.width > image.height
    size = whole * image.width // image.height, whole
    image = image.resize(size, getattr(Image.Resampling, given["resize"].upper()))
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    pixels = np.asarray(image.crop((left, top, left + width, top + height)), "float32") / 255
    pixels = ((pixels - np.float32(given["mean"])) / np.float32(given["std"])).transpose(2, 0, 1)[None]
    (logits,) = session.run(list(info["outputs"]), {given["name"]: pixels})
    shares = np.exp(logits[0] / info["temperature"])
    return dict(zip(info["classes"], shares / shares.sum(), strict=True))


def test_the_model_info_is_enough_to_answer(tmp_path, classifier, exported):
    pixels = np.random.default_rng(5).integers(0, 255, [20, 30, 3]).astype("uint8")
    Image.fromarray(pixels).save(tmp_path / "x.png")
    expected = dict(ImageClassifier(opened(classifier[1]), topk=3, temperature=2.5)(str(tmp_path / "x.png")))
    found = by_the_metadata(exported["onnx"], tmp_path / "x.png")
    assert found == pytest.approx(expected, abs=1e-5) and np.ptp(list(found.values())) > 0.05


def test_custom_class_names_and_normalization(tmp_path, classifier):
    (tmp_path / "names.txt").write_text("Affe\nBiene\nKatze\n")
    run(
        classifier[1],
        tmp_path / "p.onnx",
        "--class_names",
        tmp_path / "names.txt",
        "--mean",
        0,
        0,
        0.5,
        "--std",
        1,
        1,
        2,
    )
    info = opened(tmp_path / "p.onnx").info
    assert info["classes"] == ["Affe", "Biene", "Katze"] and info["temperature"] == 1.0
    assert info["input"]["mean"] == [0, 0, 0.5] and info["input"]["std"] == [1, 1, 2]


@pytest.mark.parametrize("file_format", [OWN, "onnx"])
def test_a_program_that_differs_from_the_model_is_not_written(
    tmp_path, classifier, refused, monkeypatch, capsys, file_format
):
    """Half the limit passes and is reported; twice the limit fails, and an earlier export stays unchanged."""
    make, output = program_export.export, tmp_path / FORMATS[file_format]

    def wrong_by(shift):
        def export(model, *args, **more):
            model.head.bias.set_value(model.head.bias.numpy() + np.float32([0, shift, 0]))
            make(model, *args, **more)

        monkeypatch.setattr(program_export, "export", export)

    wrong_by(5e-5)
    run(classifier[1], output, "--format", file_format)
    capsys.readouterr()
    assert opened(output).info["parity"]["largest_difference"] == pytest.approx(5e-5, abs=5e-6)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    wrong_by(2e-4)
    assert "parity: largest difference 2.0e-04 of logits" in refused(
        "--output", output, "--format", file_format
    )
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_model_with_inf_is_not_written(tmp_path, refused):
    model = scrambled(models_vit.MODELS["vit_small_patch4"](**SIZE, num_classes=3))
    model.head.bias.set_value(np.float32([0, np.inf, 0]))
    said = refused("--output", tmp_path / "new" / "p.onnx", resume=save(tmp_path / "inf.pd", model))
    assert "largest difference nan" in said and list((tmp_path / "new").iterdir()) == []


def test_what_is_printed(tmp_path, classifier, call_script):
    output = tmp_path / "a b"
    out, said = call_script(
        export, "--resume", classifier[1], "--output", output, "--format", "paddle2", "--batch_size", 4
    )
    lines = [line[line.index("]") + 2 :] for line in out.splitlines()]
    assert lines[0].startswith("parity: largest difference ") and lines[0].endswith(
        ", 8 images (limit 1e-04)"
    )
    assert lines[1].startswith(f"wrote {output}: model.pdiparams (") and "model_info.json (1." in lines[1]
    assert lines[2:] == [
        "  images float32 4x3x8x8 -> logits 4x3",
        f"  python main_infer.py --resume '{output}' --img_path PICTURES",
    ]
    assert said == ""


def test_an_earlier_export_is_replaced(tmp_path, classifier, exported):
    """Folders lose the files of the other format, files are overwritten, links stay links."""
    real, link = tmp_path / "real", tmp_path / "link"
    link.symlink_to(real)
    real.mkdir()  # empty: it may be replaced
    run(classifier[1], link, "--format", "paddle2")
    run(classifier[1], link, "--temperature", 3)
    assert link.is_symlink() and opened_program(link).info["temperature"] == 3
    assert {path.name for path in real.iterdir()} == {PROGRAMS[OWN], "model.pdiparams", "model_info.json"}
    (tmp_path / "p.onnx").write_bytes(b"an older one")
    run(classifier[1], tmp_path / "p.onnx")
    assert opened(tmp_path / "p.onnx").info["classes"] == ["ape", "bee", "cat"]
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link", "p.onnx", "p.onnx.json"}


def test_places_that_are_refused(tmp_path, classifier, refused):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("important")
    assert "notes.txt" in refused("--output", mine)
    (mine / "model_info.json").write_text("{}")
    assert "notes.txt" in refused("--output", mine)
    (mine / "notes.txt").rename(mine / "model.pdiparams")
    (mine / "model_info.json").unlink()
    assert "model_info.json" in refused("--output", mine)
    assert (mine / "model.pdiparams").read_text() == "important"
    (tmp_path / "x.onnx").mkdir()
    for place, why in (
        (tmp_path / "x.onnx", "is a folder"),
        (__file__, "is a file"),
        (classifier[1], "checkpoint"),
        (mine / "model.pdiparams" / "x.onnx", "cannot be written"),
    ):
        said = refused("--output", place)
        assert f"--output {place}" in said and why in said


def test_options_that_are_refused(refused, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for flag, words in (
        ("--output", ["--output="]),
        ("--resume", ["--output", "x", "--resume="]),
        ("--format onnx", ["--output", "x", "--format", "onnx"]),
        ("--format paddle2", ["--output", "x.onnx", "--format", "paddle2"]),
        ("--opset", ["--output", "x", "--opset", "17"]),
        ("got 16", ["--output", "x.onnx", "--opset", "16"]),
        ("--batch_size", ["--output", "x.onnx", "--dynamic_batch", "--batch_size", "2"]),
        ("got 0", ["--output", "x.onnx", "--batch_size", "0"]),
        ("--features", ["--output", "x.onnx", "--features", "cls"]),
        ("--temperature", ["--output", "x.onnx", "--encoder", "--temperature", "2"]),
        ("--class_names", ["--output", "x.onnx", "--encoder", "--class_names", "x"]),
        ("got nan", ["--output", "x.onnx", "--temperature", "nan"]),
        ("--mean", ["--output", "x.onnx", "--mean", "1"]),
    ):
        assert flag in refused(*words)
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_a_head_needs_encoder(tmp_path, autoencoder, refused):
    said = refused("--output", tmp_path / "x.onnx", resume=autoencoder[1])
    assert "masked autoencoder" in said and "--encoder" in said


def test_a_program_of_paddle_3_is_not_for_paddle_2(tmp_path, refused, exported, monkeypatch):
    newer = tmp_path / "newer"
    if OWN == "paddle":
        newer = exported["paddle"]
        monkeypatch.setattr(program_export, "own_format", lambda: "paddle2")
    else:  # Paddle 2 would crash on it
        newer.mkdir()
        for name in ("model.json", "model.pdiparams"):
            (newer / name).write_text("{}")
        model_info.write_info(newer / "model_info.json", opened(exported["paddle2"]).info)
    assert "--format paddle: " in refused("--output", tmp_path / "x", "--format", "paddle")
    with pytest.raises(ValueError, match="--format paddle2"):
        opened_program(newer)


def test_a_model_too_large_for_an_onnx_file(tmp_path, refused, monkeypatch):
    monkeypatch.setattr(onnx_engine, "LARGEST", 20_000)
    said = refused("--output", tmp_path / "x.onnx")
    assert "20 kB" in said and f"--format {OWN}" in said


def test_a_full_disk(tmp_path, refused, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(export.shutil, "disk_usage", lambda path: usage._replace(free=12_000))
    assert "12 kB are free, and about" in refused("--output", tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["paddle2onnx", "onnx"])
def test_without_the_converter(tmp_path, refused, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    assert "pip install -r requirements/export.txt" in refused("--output", tmp_path / "x.onnx")


def test_a_program_is_opened_by_its_folder_or_its_file(exported):
    for path in (exported["paddle2"], exported["paddle2"] / "model.pdmodel"):
        predictor = opened_program(path)
        assert list(predictor(images(1))) == list(predictor.info["outputs"])
        assert predictor.precision == "float32"


@pytest.mark.parametrize("file_format", [name for name in FORMATS if name != "onnx"])
def test_damaged_folders(tmp_path, exported, file_format):
    """A damaged program could crash the process, so it is not given to Paddle."""

    def flip(path):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)

    program = PROGRAMS[file_format]
    for name, harm, said in (
        (program, lambda path: path.unlink(), "is missing"),
        ("model_info.json", lambda path: path.unlink(), "is missing"),
        ("model_info.json", lambda path: path.write_text("[]"), "model info"),
        ("model.pdiparams", lambda path: path.unlink(), "is missing"),
        ("model.pdiparams", flip, "checksum"),
        (program, flip, "checksum"),
    ):
        folder = tmp_path / "copy"
        shutil.copytree(exported[file_format], folder)
        opened_program(folder)
        harm(folder / name)
        with pytest.raises(ValueError, match=said):
            opened_program(folder)
        shutil.rmtree(folder)


def test_places_without_an_export(tmp_path):
    with pytest.raises(ValueError, match="there is no such file or folder"):
        opened_program(tmp_path / "nothing")
    with pytest.raises(ValueError, match="is missing"):
        opened_program(tmp_path)
