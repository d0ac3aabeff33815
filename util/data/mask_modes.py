"""Which patches a masked autoencoder is shown: at random, in blocks, or on a grid (MAE, section 4.1 and figure 6).

A mask is drawn as noise [L], float32 from 0 to 1: the model keeps the patches with the smallest values, in every mode
exactly as many. Grids are (rows, columns) of patches.
"""
import math

import numpy as np

LEAST_BLOCK = 16 / 196      # of the patches: BEiT's blocks have at least 16 of 14 x 14 (arXiv 2106.08254, algorithm 1)
ASPECT = (0.3, 1 / 0.3)     # height to width of a block there


def random_noise(grid, visible, rng):
    """Each patch alike."""
    return rng.random(grid[0] * grid[1], dtype=np.float32)


def block_noise(grid, visible, rng):
    """All but `visible` patches are hidden, by rectangles at random places, which may overlap.

    BEiT ends once enough is hidden; here the last block may end within a row, so that the number is exact. A block
    has 16 patches or more, and in a grid of less than 14 x 14 as much of the picture as 16 have there.
    """
    rows, columns = grid
    wanted = rows * columns - visible
    least = min(16, max(1, round(LEAST_BLOCK * rows * columns)))
    hidden = np.zeros(grid, bool)
    missing = wanted
    while missing > 0:
        area = rng.uniform(least, max(least, missing))
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        height = min(rows, max(1, round(math.sqrt(area * aspect))))
        width = min(columns, max(1, round(math.sqrt(area / aspect))))
        top, left = int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1))
        block = hidden[top:top + height, left:left + width]
        new = np.argwhere(~block)[:missing]
        block[new[:, 0], new[:, 1]] = True
        missing = wanted - np.count_nonzero(hidden)
    return ((hidden.ravel() + rng.random(hidden.size, dtype=np.float32)) / 2).astype(np.float32)


def grid_noise(grid, visible, rng):
    """Visible are one patch of each 2 x 2 if a quarter is to be, and as even a pattern for any other number.

    The order in which patches become visible is that of ordered dithering (Bayer's matrix): one of each 4 x 4 until a
    sixteenth is, one of each 2 x 2 at a quarter, every second one, like a chessboard, at a half. Where the pattern
    begins is drawn.
    """
    side = 1 << (max(grid) - 1).bit_length()
    above, left = rng.integers(side, size=2).tolist()
    order = _bayer(side)[(above + np.arange(grid[0])[:, None]) % side, (left + np.arange(grid[1])) % side]
    return (order.ravel() / side ** 2).astype(np.float32)


def _bayer(side):
    """Bayer's matrix [side, side]: each whole number below side ** 2 once; side is a power of 2."""
    matrix = np.zeros((1, 1), np.int64)
    while len(matrix) < side:
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    return matrix


MODES = {"random": random_noise, "block": block_noise, "grid": grid_noise}


def draw(mode, grid, visible, rng):
    """Noise [L] float32 by which a masked autoencoder keeps `visible` patches of a picture.

    Args:
        mode: of MODES; grid: (rows, columns) of patches; rng: numpy.random.Generator, whose draws are used up.
    """
    return MODES[mode](grid, visible, rng)
