"""Patch embeddings for patches of another size, against Pillow's resizing and timm's numbers."""
import numpy as np
import pytest
from PIL import Image

from util.weights.patch_embed import resample


def pillow_matrix(old, new):
    """[new * new, old * old]: what Pillow makes of each picture with a single white pixel."""
    pictures = np.eye(old * old, dtype="float32").reshape(-1, old, old)
    return np.stack([np.asarray(Image.fromarray(picture).resize((new, new), Image.Resampling.BICUBIC)).ravel()
                     for picture in pictures], axis=1)


@pytest.mark.parametrize("old, new", [(4, 8), (2, 7), (8, 4), (7, 2), (5, 3), (4, 4)])
def test_it_solves_what_the_paper_asks_for(old, new):
    """The w' nearest to <w', B x> = <w, x> for every patch x, the smallest of these; equal, where patches grow."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal([3, 2, old, old]).astype("float32")
    found = resample(kernel, new)
    assert found.shape == (3, 2, new, new) and found.dtype == np.float32
    matrix = pillow_matrix(old, new)
    expected, *_ = np.linalg.lstsq(matrix.T.astype("float64"), kernel.reshape(6, -1).T, rcond=None)
    np.testing.assert_allclose(found.reshape(6, -1), expected.T, atol=1e-4)
    if new >= old:
        patch = rng.standard_normal(old * old)
        np.testing.assert_allclose(found.reshape(6, -1) @ (matrix @ patch), kernel.reshape(6, -1) @ patch, atol=1e-4)


# resample_patch_embed of timm 1.0.31 with torch 2.13, of the kernels (n ** 2 mod 11) for pixel n = 0, 1, ...
@pytest.mark.parametrize("kernel, expected", [
    ([[0, 1], [4, 9]], [[-0.31464, -0.21189, -0.10913], [0.67184, 1.55555, 2.43927], [1.65832, 3.323, 4.98768]]),
    ([[0, 1, 4, 9], [5, 3, 3, 5], [9, 4, 1, 0], [1, 4, 9, 5]],
     [[0.13083, 3.68501, 16.74013], [16.44848, 0.39347, 0.68612], [3.30945, 12.23492, 9.37159]])])
def test_the_numbers_of_timm(kernel, expected):
    np.testing.assert_allclose(resample(np.array([[kernel]], "float32"), 3)[0, 0], expected, atol=1e-4)


def test_the_same_size_is_the_same_kernel():
    kernel = np.random.default_rng(0).standard_normal([2, 3, 16, 16]).astype("float32")
    np.testing.assert_allclose(resample(kernel, 16), kernel, atol=1e-5)
