"""Masks of one's own."""
import numpy as np
import paddle
import pytest
from PIL import Image

from models_mae import random_masking
from util.data import masks

MASK = np.array([[1, 0], [1, 1], [0, 0]])


def test_every_kind_of_file_gives_the_same_mask(tmp_path):
    np.save(tmp_path / "m.npy", MASK)
    np.savez(tmp_path / "m.npz", mask=MASK.astype("uint8"), other=1)
    Image.fromarray((255 * MASK).astype("uint8")).save(tmp_path / "small.png")
    large = np.kron(255 * MASK, np.ones([20, 30])).astype("uint8")
    large[:9, :30] = 0        # less than half of a patch is black
    large[:4, 30:] = 200      # a fifth of another is nearly white
    Image.fromarray(large).convert("RGB").save(tmp_path / "large.png")
    for name in ("m.npy", "m.npz", "small.png", "large.png"):
        found = masks.read(tmp_path / name, (3, 2))
        assert found.dtype == bool and found.tolist() == (MASK > 0).tolist(), name


@pytest.mark.parametrize("mask", [MASK, 1 - MASK, np.eye(5), 1 - np.eye(5), np.eye(14)[:, :13]])
def test_the_model_hides_just_this(mask):
    noise, ratio = masks.as_noise(mask > 0)
    _, _, hidden, _ = random_masking(1, mask.size, ratio, paddle.to_tensor(noise[None]))
    assert hidden.numpy().reshape(mask.shape).tolist() == mask.tolist()


def refusal(path):
    with pytest.raises(ValueError) as caught:
        masks.read(path, (3, 2))
    return str(caught.value)


def test_what_is_no_mask_is_refused(tmp_path):
    for name, array, words in (("shape", MASK.T, "shape [3, 2]"), ("values", MASK * 2, "expected 0 and 1"),
                               ("all", MASK * 0 + 1, "hides every patch"), ("none", MASK * 0, "hides no patch")):
        np.save(tmp_path / f"{name}.npy", array)
        assert words in refusal(tmp_path / f"{name}.npy") and "--mask_file" in refusal(tmp_path / f"{name}.npy")
    np.savez(tmp_path / "other.npz", prediction=MASK)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.npy").write_text("no array")
    for name in ("other.npz", "text.png", "text.npy", "gone.npy", "gone.png"):
        assert f"--mask_file {tmp_path / name}" in refusal(tmp_path / name), name
