"""Masks: the patches that a masked autoencoder hides (MAE, section 4.1 and figure 6).

A mask reaches the model as noise [L], float32 in [0, 1): the model keeps the patches with the smallest
values, so the values of a mode must be distinct. Every mask hides exactly the same number of patches.
Grids are (rows, columns) of patches, L = rows * columns.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from util.images import decode
from util.system import npz
from util.system.keyed_random import WATCHED, keyed_generator

# BEiT's blocks (arXiv 2106.08254, algorithm 1) cover at least 16 of 14 x 14 patches.
MIN_BLOCK_SHARE = 16 / 196
BLOCK_ASPECT = (0.3, 1 / 0.3)  # height / width of a block in BEiT


@dataclass(frozen=True)
class Mask:
    """Distribution of random masks with a fixed number of visible patches.

    Args:
        mode: key of MODES (--mask_mode).
        grid: (rows, columns) of patches.
        ratio: share of hidden patches (--mask_ratio). The number of visible patches is rounded down, as in
            the model.

    Raises ValueError for an unknown mode, or unless at least one patch is visible and one is hidden.
    """

    mode: str
    grid: tuple[int, int]
    ratio: float

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"--mask_mode {self.mode}: unknown; choose from {', '.join(MODES)}")
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"--mask_ratio {self.ratio}: expected a number above 0 and below 1")
        if not 0 < self.visible < self.num_patches:
            raise ValueError(
                f"--mask_ratio {self.ratio}: leaves {self.visible} of {self.num_patches} "
                "patches visible; at least one must be visible and one hidden"
            )

    @property
    def num_patches(self) -> int:
        """Number of patches of the grid."""
        return self.grid[0] * self.grid[1]

    @property
    def visible(self) -> int:
        """Number of visible patches."""
        return int(self.num_patches * (1 - self.ratio))

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Draw the noise [L] of one image."""
        return MODES[self.mode](self.grid, self.visible, rng)


@dataclass(frozen=True, eq=False)
class CustomMask:
    """Custom mask, the same for every image.

    Args:
        hidden: [rows, columns] bool, True = hidden.

    Raises ValueError unless at least one patch is visible and one is hidden.
    """

    hidden: np.ndarray

    def __post_init__(self) -> None:
        if not 0 < self.visible < self.hidden.size:
            raise ValueError(
                f"hides {'no' if self.visible else 'every'} patch; at least one must be visible "
                "and one hidden"
            )

    @property
    def visible(self) -> int:
        """Number of visible patches."""
        return int((~self.hidden).sum())

    def draw(self, rng: np.random.Generator | None = None) -> np.ndarray:
        """Return the noise [L] of this mask. `rng` is ignored; it is there to match Mask.draw."""
        return self.hidden.flatten().astype(np.float32)


def read_custom_mask(path: Path | str, grid: tuple[int, int]) -> CustomMask:
    """Read a custom mask for `grid` from a file (--mask_file).

    An .npy file, or the entry "mask" of an .npz file, holds 0 and 1 (1 = hidden) in the shape of the grid.
    Any other file is read as a picture of any size: a patch is hidden if its mean is closer to white than to
    black.

    Raises ValueError if the file cannot be read, does not fit the grid, or hides every patch or none.
    """
    is_array = Path(path).suffix.lower() in (".npy", ".npz")
    hidden = _read_mask_array(path, grid) if is_array else _read_mask_picture(path, grid)
    try:
        return CustomMask(hidden)
    except ValueError as error:
        raise ValueError(f"--mask_file {path}: {error}") from error


def _read_mask_picture(path, grid):
    try:
        picture = decode.decode(path, in_chans=1)
    except decode.UnreadableImage as error:
        raise ValueError(
            f"--mask_file {error} Give a picture (white = hidden), or an .npy or .npz file of 0 "
            f"and 1 with the shape {list(grid)}"
        ) from error
    return np.asarray(picture.resize((grid[1], grid[0]), Image.Resampling.BOX)) >= 128


def _read_mask_array(path, grid):
    try:
        mask = npz.read_npy(path) if Path(path).suffix.lower() == ".npy" else npz.read_npz(path)["mask"]
        if mask.dtype.kind not in "biuf":
            raise ValueError(f"its dtype is {mask.dtype}")
    except (ValueError, KeyError) as error:
        raise ValueError(f"--mask_file {path}: cannot be read ({error})") from error
    if mask.shape != tuple(grid) or not np.isin(mask, (0, 1)).all():
        raise ValueError(
            f"--mask_file {path}: expected 0 and 1 (1 = hidden) of the shape {list(grid)}, one "
            f"for each patch, got {mask.dtype} {list(mask.shape)}"
        )
    return mask > 0


def noise_of_picture(mask: Mask | CustomMask, seed: int, path: Path | str) -> np.ndarray:
    """Draw the noise [L] of an image file. It depends only on the seed and the name of the file."""
    name = PurePath(path).name.encode(errors="surrogateescape")
    return mask.draw(keyed_generator(seed, WATCHED, zlib.crc32(name), 1))


def random_noise(grid: tuple[int, int], visible: int, rng: np.random.Generator) -> np.ndarray:
    """Draw noise [L] that keeps every patch with the same probability."""
    return rng.random(grid[0] * grid[1], dtype=np.float32)


def block_noise(grid: tuple[int, int], visible: int, rng: np.random.Generator) -> np.ndarray:
    """Draw noise [L] that hides all but `visible` patches with random rectangles, which may overlap.

    BEiT stops once enough patches are hidden. Here the last block may end within a row, so that the number is
    exact. A block covers at least 16 patches, or in a grid smaller than 14 x 14 the same share of the image.
    """
    rows, columns = grid
    num_hidden = rows * columns - visible
    min_area = min(16, max(1, round(MIN_BLOCK_SHARE * rows * columns)))
    hidden = np.zeros(grid, bool)
    missing = num_hidden
    while missing > 0:
        area = rng.uniform(min_area, max(min_area, missing))
        aspect = math.exp(rng.uniform(math.log(BLOCK_ASPECT[0]), math.log(BLOCK_ASPECT[1])))
        height = min(rows, max(1, round(math.sqrt(area * aspect))))
        width = min(columns, max(1, round(math.sqrt(area / aspect))))
        top, left = int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1))
        block = hidden[top : top + height, left : left + width]
        new = np.argwhere(~block)[:missing]
        block[new[:, 0], new[:, 1]] = True
        missing = num_hidden - int(np.count_nonzero(hidden))
    return ((hidden.ravel() + rng.random(hidden.size, dtype=np.float32)) / 2).astype(np.float32)


def grid_noise(grid: tuple[int, int], visible: int, rng: np.random.Generator) -> np.ndarray:
    """Draw noise [L] that keeps a regular pattern: one patch of each 2 x 2 if a quarter is visible.

    Patches become visible in the order of ordered dithering (Bayer's matrix): one of each 4 x 4 at a
    sixteenth, one of each 2 x 2 at a quarter, a chessboard at a half. The offset of the pattern is random.
    """
    side = 1 << (max(grid) - 1).bit_length()
    above, left = rng.integers(side, size=2).tolist()
    rows, columns = (above + np.arange(grid[0])[:, None]) % side, (left + np.arange(grid[1])) % side
    order = _bayer_matrix(side)[rows, columns]
    return (order.ravel() / side**2).astype(np.float32)


def _bayer_matrix(side):
    """Return Bayer's matrix [side, side] of the integers below side ** 2. `side` is a power of 2."""
    matrix = np.zeros((1, 1), np.int64)
    while len(matrix) < side:
        matrix = np.block([[4 * matrix, 4 * matrix + 2], [4 * matrix + 3, 4 * matrix + 1]])
    return matrix


# A mode is a function (grid, visible, rng) -> noise [L]. Exactly `visible` patches must stay, and the values
# must be distinct, because ties would leave the choice of patches to the sorting.
MODES: dict[str, Callable[[tuple[int, int], int, np.random.Generator], np.ndarray]] = {
    "random": random_noise,
    "block": block_noise,
    "grid": grid_noise,
}
