"""The sine-cosine position embedding against its formula, written in numpy."""

import numpy as np
import pytest
from numpy_transformer import sincos

from layer import sincos_2d


@pytest.mark.parametrize("dim, grid", [(8, (2, 3)), (12, (3, 2)), (16, (4, 4)), (4, (1, 5))])
def test_the_table_is_the_formula_written_out(dim, grid):
    np.testing.assert_allclose(sincos_2d(dim, grid, cls_token=True), sincos(dim, *grid), atol=1e-6)
    np.testing.assert_allclose(sincos_2d(dim, grid), sincos(dim, *grid)[1:], atol=1e-6)


def test_the_first_half_tells_the_column_by_hand():
    # 8 channels: sin x, sin x/100, cos x, cos x/100, and the same of y, for x = 2 and y = 1.
    expected = [0.909297, 0.019999, -0.416147, 0.999800, 0.841471, 0.010000, 0.540302, 0.999950]
    table = sincos_2d(8, (2, 3))
    np.testing.assert_allclose(table[5], expected, atol=1e-6)
    assert table.dtype == np.float32
