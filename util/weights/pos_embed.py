"""Resizing of a position embedding to another grid of patches."""
import numpy as np
import paddle
import paddle.nn.functional as F


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
