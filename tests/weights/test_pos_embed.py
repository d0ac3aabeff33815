"""Position tables against formulas written out in numpy."""
import math

import numpy as np
import pytest
from numpy_transformer import sincos

from layer import sincos_2d
from util.weights.pos_embed import interpolate


@pytest.mark.parametrize("dim, grid", [(8, (2, 3)), (12, (3, 2)), (16, (4, 4)), (4, (1, 5))])
def test_the_table_is_the_formula_written_out(dim, grid):
    np.testing.assert_allclose(sincos_2d(dim, grid, cls_token=True), sincos(dim, *grid), atol=1e-6)
    np.testing.assert_allclose(sincos_2d(dim, grid), sincos(dim, *grid)[1:], atol=1e-6)


def test_the_first_half_tells_the_column_by_hand():
    # 8 channels: sin x, sin x/100, cos x, cos x/100, and the same of y; row 1, column 2 of a 2 x 3 grid is the last.
    expected = [0.909297, 0.019999, -0.416147, 0.999800, 0.841471, 0.010000, 0.540302, 0.999950]
    table = sincos_2d(8, (2, 3))
    np.testing.assert_allclose(table[5], expected, atol=1e-6)
    assert table.dtype == np.float32


def cubic(distance):
    """The kernel of bicubic convolution with the coefficient -0.75, as PyTorch's (Keys 1981, equation 4)."""
    a, d = -0.75, abs(distance)
    if d <= 1:
        return (a + 2) * d ** 3 - (a + 3) * d ** 2 + 1
    return a * d ** 3 - 5 * a * d ** 2 + 8 * a * d - 4 * a if d < 2 else 0.0


def bicubic(old, new):
    """[new, old] matrix that resizes a line: pixel centres at halves, the border repeated, no smoothing."""
    matrix = np.zeros([new, old])
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            matrix[i, min(max(tap, 0), old - 1)] += cubic(place - tap)
    return matrix


@pytest.mark.parametrize("old, new", [((4, 4), (7, 7)), ((7, 7), (4, 4)), ((3, 3), (5, 2)), ((2, 4), (4, 4))])
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
    with pytest.raises(ValueError, match="4 rows has no grid of 3 x 2 patches"):
        interpolate(np.zeros([1, 4, 4], "float32"), (3, 2), (2, 2))
