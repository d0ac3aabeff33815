"""Calibration: values by hand, a search over many temperatures, and tools/calibrate.py."""

import math
import pickle
import re

import numpy as np
import pytest
from PIL import Image

import models_mae
import models_vit
from tools import calibrate
from util.infer import calibration

TINY = {"img_size": 8, "in_chans": 3, "depth": 2}


def logs(*rows):
    """Return logits with these probabilities."""
    return np.log(np.array(rows))


def test_nll_by_hand():
    logits = np.array([[1000.0, 1000.0], [0.0, math.log(4)]])
    assert calibration.nll(logits, np.array([0, 1])) == pytest.approx((math.log(2) + math.log(5 / 4)) / 2)
    assert calibration.nll(logits, np.array([0, 1]), 2) == pytest.approx((math.log(2) + math.log(3 / 2)) / 2)


def test_calibration_error_by_hand():
    """0.61 and 0.65 share a bin from 9/15 to 10/15; 0.98 and 0.55 have one each."""
    logits = logs([0.61, 0.39], [0.35, 0.65], [0.98, 0.02], [0.55, 0.45])
    assert calibration.ece(logits, np.array([0, 0, 0, 0])) == pytest.approx(
        (0.61 + 0.65 - 1 + 0.02 + 0.45) / 4
    )
    flat = logits * 1000  # all of them sure
    assert calibration.ece(flat, np.array([0, 0, 0, 0]), 1e-3) == pytest.approx(1 / 4)


def test_a_bin_has_its_right_edge():
    """With two bins, 0.5 falls into the lower one, as 0.4 does."""
    logits = np.array([[0.0, 0.0, -1000.0], *logs([0.4, 0.3, 0.3])])
    assert calibration.ece(logits, np.array([0, 1]), bins=2) == pytest.approx((0.5 + 0.4 - 1) / -2)


def test_accuracy():
    assert calibration.accuracy(
        logs([0.6, 0.4], [0.3, 0.7], [0.1, 0.9]), np.array([0, 0, 1])
    ) == pytest.approx(2 / 3)


@pytest.mark.parametrize("factor", [3.0, 0.2])
def test_logits_times_a_factor_have_it_as_temperature(factor):
    """Labels are drawn from the softmax of the logits; the reference is a grid search over temperatures."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2, size=(5000, 6))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    found = calibration.fit_temperature((factor * logits + 50).astype("float32"), labels)
    tried = factor * np.geomspace(0.9, 1.1, 401)
    shares = [np.exp(factor * logits / each) for each in tried]
    losses = [-np.log(each[np.arange(5000), labels] / each.sum(axis=1)).mean() for each in shares]
    assert 0 < np.argmin(losses) < 400
    assert found == pytest.approx(tried[np.argmin(losses)], rel=3e-4)  # half of the distance between those
    assert found == pytest.approx(factor, rel=0.04)
    assert calibration.nll(factor * logits, labels, tried[200]) == pytest.approx(losses[200])


def test_where_no_temperature_is_best():
    """All answers right, all wrong, or no pictures: the likelihood has no maximum."""
    for labels, logits in (
        ([0, 1], [[2, 1], [1, 2]]),
        ([0, 1], [[2, 1], [1, 1000]]),
        ([1, 0], [[2, 1], [1, 2]]),
        ([1, 0], [[2, 2], [1, 1]]),
        ([], np.zeros([0, 2])),
    ):
        with pytest.raises(ValueError, match="temperature"):
            calibration.fit_temperature(np.array(logits, "float32"), np.array(labels, "int64"))


def save(path, model, **more):
    with open(path, "wb") as f:
        pickle.dump({"model": {name: value.numpy() for name, value in model.state_dict().items()}, **more}, f)
    return path


def classifier(path, probabilities, **more):
    """Write a checkpoint that gives these probabilities to every picture."""
    model = models_vit.vit_tiny_patch4(**TINY, num_classes=len(probabilities), global_pool=True)
    model.head.weight.set_value(np.zeros(model.head.weight.shape, "float32"))
    model.head.bias.set_value(np.log(np.array(probabilities, "float32")))
    return save(
        path,
        model,
        architecture={
            "name": "vit_tiny_patch4",
            **TINY,
            "num_classes": len(probabilities),
            "global_pool": True,
        },
        **more,
    )


def pictures(root, counts, split="val"):
    for name, count in counts.items():
        (root / split / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture
def call(call_script, tmp_path):
    """Function that calibrates tmp_path/classifier.pd on tmp_path/data and returns its output or error."""

    def call(*words, code=0):
        words = [
            "--resume",
            tmp_path / "classifier.pd",
            "--data_path",
            tmp_path / "data",
            "--num_workers",
            0,
            "--device",
            "cpu",
            *words,
        ]
        return call_script(calibrate, *words, code=code)[bool(code)]

    return call


@pytest.mark.parametrize("times, split", [(1, "val"), (10, "train")])
def test_the_script(call, tmp_path, times, split):
    """Cats have probability 0.9 and are 0.6 of the pictures: ln 9 / T = ln (0.6 / 0.4)."""
    classifier(tmp_path / "classifier.pd", [0.9, 0.1], classes=["cat", "dog"])
    pictures(tmp_path / "data", {"cat": 6 * times, "dog": 4 * times}, split)
    said = call("--split", split, "--batch_size", 7)
    expected = math.log(9) / math.log(1.5)
    assert f"{10 * times} {split} pictures, accuracy 60.00%, with and without" in said
    found = np.array(
        re.findall(r"temperature (\S+) +NLL (\S+)  expected calibration error (\S+)", said), float
    )
    np.testing.assert_allclose(
        found,
        [
            [1, -0.6 * math.log(0.9) - 0.4 * math.log(0.1), 0.3],
            [expected, -0.6 * math.log(0.6) - 0.4 * math.log(0.4), 0],
        ],
        atol=5e-4,
    )
    assert [line.split()[1::4] for line in said.splitlines()[-2:]] == [
        [script, f"{expected:.4g}"] for script in ("main_infer.py", "tools/export.py")
    ]
    assert ("only 10 pictures: " in said, "only" in said) == ((True, True) if times == 1 else (False, False))


def test_data_and_classifier_must_have_the_same_classes(call, tmp_path):
    pictures(tmp_path / "data", {"cat": 1, "cow": 1, "dog": 1})
    for probabilities, classes in (
        ([0.9, 0.1], None),
        ([0.7, 0.1, 0.1, 0.1], None),
        ([0.9, 0.1], ["cat", "cow", "dog"]),
        ([0.8, 0.1, 0.1], ["cat", "cow", "eel"]),
    ):
        classifier(
            tmp_path / "classifier.pd", probabilities, **({} if classes is None else {"classes": classes})
        )
        assert "classes" in call(code=2)


def test_spare_outputs_are_allowed_if_the_classes_are_the_same(call, tmp_path):
    classifier(tmp_path / "classifier.pd", [0.6, 0.2, 0.2], classes=["cat", "dog"])
    pictures(tmp_path / "data", {"cat": 3, "dog": 2})
    assert "accuracy 60.00%" in call()


def test_other_checkpoints_and_missing_flags(call, tmp_path):
    save(
        tmp_path / "classifier.pd",
        models_mae.mae_vit_tiny_patch4(**TINY, decoder_depth=1),
        architecture={"name": "mae_vit_tiny_patch4", **TINY, "decoder_depth": 1},
    )
    assert "masked autoencoder" in call(code=2)
    for flag, value in (("--resume", ""), ("--data_path", ""), ("--batch_size", 0)):
        assert flag in call(flag, value, code=2)


def test_nan_in_the_weights(call, tmp_path):
    classifier(tmp_path / "classifier.pd", [float("nan"), 0.1], classes=["cat", "dog"])
    pictures(tmp_path / "data", {"cat": 1, "dog": 1})
    assert "not finite" in call(code=2)


def test_a_picture_that_cannot_be_read(call, tmp_path):
    classifier(tmp_path / "classifier.pd", [0.9, 0.1], classes=["cat", "dog"])
    pictures(tmp_path / "data", {"cat": 6, "dog": 4})
    (tmp_path / "data" / "val" / "cat" / "5.png").write_bytes(b"no picture")
    assert "5.png" in call(code=2)
    assert "9 val pictures, accuracy 55.56%" in call("--bad_images", "skip")
