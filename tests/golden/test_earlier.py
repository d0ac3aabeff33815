"""Files of an earlier version, tests/golden/earlier: they load, and give what that version gave."""

import json
import pickle
from pathlib import Path

import numpy as np
import paddle
import pytest
from scripts import read_state, write_pictures

import main_finetune
import main_infer
import main_linprobe
import main_pretrain
import models_mae
import models_vit
from tools import convert_checkpoint
from util.infer import trained_model
from util.infer.model_spec import read_model_spec
from util.look import feature_file
from util.run import confusion
from util.weights import checkpoint, formats

EARLIER = Path(__file__).resolve().parent / "earlier"
SIZE = (
    "--embed_dim 8 --depth 1 --num_heads 2 --input_size 16 --patch_size 4 --batch_size 4 --num_workers 0 "
    "--device cpu "
    "--seed 3 --warmup_epochs 0 --log_dir= --epochs 3 --save_every 1"
).split()
RUNS = {
    "mae": (
        main_pretrain,
        "--model mae_vit_tiny_patch4 --decoder_embed_dim 8 --decoder_depth 1 "
        "--decoder_num_heads 2 "
        "--lr 0.01 --ema --ema_decay 0.5 --norm_pix_loss",
    ),
    "vit": (
        main_finetune,
        "--model vit_tiny_patch4 --nb_classes 2 --lr 0.01 --ema --ema_decay 0.5 --mixup 0.8",
    ),
    "linprobe": (main_linprobe, "--model vit_tiny_patch4 --nb_classes 2 --lr 0.1"),
}


@pytest.fixture(scope="module")
def expected():
    with np.load(EARLIER / "expected.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_ends_as_the_earlier_version_did(tmp_path, monkeypatch, call_script, expected, name):
    write_pictures(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    script, flags = RUNS[name]
    call_script(
        script,
        *SIZE,
        *flags.split(),
        "--data_path",
        "pictures",
        "--resume",
        EARLIER / f"{name}.pd",
        "--output_dir",
        "run",
    )
    ended = read_state(tmp_path / "run" / "checkpoint-latest.pd")
    assert ended["epoch"] == 2
    before = read_state(EARLIER / f"{name}.pd")["model"]
    changed = 0
    for parameter, value in ended["model"].items():
        np.testing.assert_allclose(
            value, expected[f"{name}.end.{parameter}"], rtol=1e-3, atol=1e-4, err_msg=parameter
        )
        changed += np.abs(value - before[parameter]).max() > 1e-3
    assert changed > 1


def test_a_loaded_autoencoder_gives_the_same_loss_and_prediction(expected):
    model = trained_model.load_model(
        trained_model.read_autoencoder_spec(EARLIER / "mae.pd", models_mae.MODELS)
    )
    loss, pred, _ = model(paddle.to_tensor(expected["images"]), 0.75, paddle.to_tensor(expected["noise"]))
    np.testing.assert_allclose(loss.numpy(), expected["mae.loss"], rtol=1e-5)
    np.testing.assert_allclose(pred.numpy(), expected["mae.pred"], atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "linprobe"])
def test_a_loaded_classifier_gives_the_same_logits(expected, name):
    model = trained_model.load_model(read_model_spec(EARLIER / f"{name}.pd", models_vit.MODELS))
    np.testing.assert_allclose(
        model(paddle.to_tensor(expected["images"])).numpy(), expected[f"{name}.logits"], atol=1e-5
    )


@pytest.mark.parametrize("suffix", formats.SUFFIXES)
def test_bare_weights_of_every_kind(suffix):
    wanted = read_state(EARLIER / "mae.pd")["model"]
    found = checkpoint.read_checkpoint(EARLIER / f"mae_weights{suffix}")["model"]
    assert found.keys() == wanted.keys()
    assert all((found[name] == wanted[name]).all() for name in wanted)


@pytest.mark.parametrize(
    "name, source",
    [("encoder_timm.npz", "mae"), ("vit_timm.safetensors", "vit"), ("linprobe_official.pth", "linprobe")],
)
def test_converted_weights(tmp_path, name, source):
    assert convert_checkpoint.main([str(EARLIER / name), str(tmp_path / "back.pdparams")]) == 0
    state = read_state(EARLIER / f"{source}.pd")
    wanted = state.get("model_ema", state["model"])
    found = pickle.loads((tmp_path / "back.pdparams").read_bytes())
    assert len(found) > 15 and all((value == wanted[name]).all() for name, value in found.items())


@pytest.mark.parametrize(
    "name, answers",
    [
        ("vit.pd", "vit"),
        ("linprobe.pd", "linprobe"),
        ("vit.onnx", "vit"),
        ("vit_paddle", "vit"),
        ("vit_paddle2", "vit"),
    ],
)
def test_answers(tmp_path, monkeypatch, call_script, name, answers):
    if name == "vit_paddle" and paddle.__version__.startswith("2."):
        pytest.skip("Paddle 2.6 does not read programs of Paddle 3")
    if name == "vit.onnx":
        pytest.importorskip("onnxruntime")
    write_pictures(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    said, _ = call_script(
        main_infer,
        "--resume",
        EARLIER / name,
        "--img_path",
        "pictures/val",
        "--output",
        "jsonl",
        "--device",
        "cpu",
    )
    found = [json.loads(line) for line in said.splitlines()]
    wanted = [
        json.loads(line) for line in (EARLIER / f"{answers}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [each["file"] for each in found] == [each["file"] for each in wanted]
    for each, then in zip(found, wanted):
        probabilities = [
            {entry["class"]: entry["probability"] for entry in answer["classes"]} for answer in (each, then)
        ]
        assert probabilities[0] == pytest.approx(probabilities[1], abs=1e-5)


def test_features_and_confusion():
    features = feature_file.read(EARLIER / "features.npz")
    with np.load(EARLIER / "features.npz", allow_pickle=False) as arrays:
        assert (features["mean"] == arrays["mean"]).all() and arrays["mean"].shape == (5, 8)
    counts, classes, epoch = confusion.read(EARLIER)
    assert counts.tolist() == read_state(EARLIER / "vit.pd")["confusion"]["counts"].tolist()
    assert classes == ["cat", "dog"] and epoch == 0
