"""Position embeddings: the sine-cosine table, and the resizing of a table to another grid."""
import numpy as np
import paddle
import paddle.nn.functional as F


def sincos_2d(dim, grid_size, *, cls_token=False):
    """float32 [height * width, dim], or [1 + height * width, dim] with a leading zero row for the class token.

    The first half of the channels encodes the column and the second half the row, as in the official code.

    Args:
        grid_size: (height, width) in patches.
    """
    if dim % 4:
        raise ValueError(f"a 2-D sine-cosine embedding needs a multiple of 4 channels, got {dim}")
    height, width = grid_size
    row, column = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    table = np.concatenate([sincos_1d(dim // 2, column.reshape(-1)), sincos_1d(dim // 2, row.reshape(-1))], axis=1)
    if cls_token:
        table = np.concatenate([np.zeros([1, dim]), table], axis=0)
    return table.astype("float32")


def sincos_1d(dim, positions):
    """positions [M] -> float64 [M, dim]: sines in the first half of the channels, cosines in the second."""
    omega = 1.0 / 10000 ** (np.arange(dim // 2, dtype="float64") / (dim / 2))
    angles = np.outer(positions, omega)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def interpolate(pos_embed, old_grid, new_grid):
    """Resize a table to another grid of patches: [1, extra + h * w, D] -> [1, extra + h' * w', D], float32 arrays.

    Bicubic without aligned corners, as in the official code; the extra leading rows (the class token) stay as they are.

    Args:
        old_grid, new_grid: (height, width) in patches.
    """
    extra = pos_embed.shape[1] - old_grid[0] * old_grid[1]
    if extra < 0:
        raise ValueError(f"a position embedding with {pos_embed.shape[1]} rows has no grid of "
                         f"{old_grid[0]} x {old_grid[1]} patches")
    if tuple(old_grid) == tuple(new_grid):
        return pos_embed
    grid = paddle.to_tensor(pos_embed[:, extra:]).reshape([1, *old_grid, -1]).transpose([0, 3, 1, 2])
    grid = F.interpolate(grid, size=list(new_grid), mode="bicubic", align_corners=False)
    rows = grid.transpose([0, 2, 3, 1]).reshape([1, new_grid[0] * new_grid[1], -1]).numpy()
    return np.concatenate([pos_embed[:, :extra], rows], axis=1)
