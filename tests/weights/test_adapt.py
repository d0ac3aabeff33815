"""Weights for other sizes: positions against PyTorch's formula, patches against Pillow and timm."""

import math

import numpy as np
import pytest
from PIL import Image

from util.weights.adapt import interpolate, resample_patches


def cubic(distance):
    """The kernel of bicubic convolution with the coefficient -0.75, as PyTorch's (Keys 1981, equation 4)."""
    a, d = -0.75, abs(distance)
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else 0.0


def bicubic(old, new):
    """[new, old] matrix that resizes a line: pixel centres at halves, the border repeated, no smoothing."""
    matrix = np.zeros([new, old])
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            matrix[i, min(max(tap, 0), old - 1)] += cubic(place - tap)
    return matrix


@pytest.mark.parametrize("old, new", [((4, 4), (7, 7)), ((7, 7), (4, 4)), ((2, 4), (5, 2))])
def test_interpolation_is_bicubic_and_leaves_the_class_row(old, new):
    table = np.random.default_rng(0).standard_normal([1, 1 + old[0] * old[1], 6]).astype("float32")
    before = table.copy()
    resized = interpolate(table, old, new)
    grid = table[0, 1:].reshape([*old, 6]).astype("float64")
    expected = np.einsum("yr,xc,rcd->yxd", bicubic(old[0], new[0]), bicubic(old[1], new[1]), grid)
    np.testing.assert_allclose(resized[0, 1:], expected.reshape([-1, 6]), atol=1e-5)
    np.testing.assert_array_equal(resized[:, 0], table[:, 0])
    np.testing.assert_array_equal(table, before)
    assert resized.dtype == np.float32


def test_the_same_grid_stays_bit_for_bit():
    table = np.random.default_rng(0).standard_normal([1, 10, 4]).astype("float32")
    np.testing.assert_array_equal(interpolate(table, (3, 3), [3, 3]), table)


def test_a_table_without_extra_rows_can_be_resized():
    resized = interpolate(np.ones([1, 4, 4], "float32"), (2, 2), (3, 3))
    np.testing.assert_allclose(resized, np.ones([1, 9, 4]), rtol=1e-5)


def test_a_table_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match="4 rows.* 3 x 2 patches"):
        interpolate(np.zeros([1, 4, 4], "float32"), (3, 2), (2, 2))


def pillow_matrix(old, new):
    """[new * new, old * old]: what Pillow makes of each picture with a single white pixel."""
    pictures = np.eye(old * old, dtype="float32").reshape(-1, old, old)
    return np.stack(
        [
            np.asarray(Image.fromarray(picture).resize((new, new), Image.Resampling.BICUBIC)).ravel()
            for picture in pictures
        ],
        axis=1,
    )


@pytest.mark.parametrize("old, new", [(4, 8), (2, 7), (8, 4), (7, 2)])
def test_it_solves_what_the_paper_asks_for(old, new):
    """Least squares for <w', B x> = <w, x> over all patches x, with the smallest norm; exact if patches grow."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal([3, 2, old, old]).astype("float32")
    found = resample_patches(kernel, new)
    assert found.shape == (3, 2, new, new) and found.dtype == np.float32
    matrix = pillow_matrix(old, new)
    expected, *_ = np.linalg.lstsq(matrix.T.astype("float64"), kernel.reshape(6, -1).T, rcond=None)
    np.testing.assert_allclose(found.reshape(6, -1), expected.T, atol=1e-4)
    if new >= old:
        patch = rng.standard_normal(old * old)
        np.testing.assert_allclose(
            found.reshape(6, -1) @ (matrix @ patch), kernel.reshape(6, -1) @ patch, atol=1e-4
        )


# resample_patch_embed of timm 1.0.31 with torch 2.13, of the kernels (n ** 2 mod 11) for pixel n = 0, 1, ...
@pytest.mark.parametrize(
    "kernel, expected",
    [
        (
            [[0, 1], [4, 9]],
            [[-0.31464, -0.21189, -0.10913], [0.67184, 1.55555, 2.43927], [1.65832, 3.323, 4.98768]],
        ),
        (
            [[0, 1, 4, 9], [5, 3, 3, 5], [9, 4, 1, 0], [1, 4, 9, 5]],
            [[0.13083, 3.68501, 16.74013], [16.44848, 0.39347, 0.68612], [3.30945, 12.23492, 9.37159]],
        ),
    ],
)
def test_the_numbers_of_timm(kernel, expected):
    np.testing.assert_allclose(
        resample_patches(np.array([[kernel]], "float32"), 3)[0, 0], expected, atol=1e-4
    )


def test_the_same_size_is_the_same_kernel():
    kernel = np.random.default_rng(0).standard_normal([2, 3, 16, 16]).astype("float32")
    np.testing.assert_allclose(resample_patches(kernel, 16), kernel, atol=1e-5)
