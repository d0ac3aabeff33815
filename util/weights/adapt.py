"""Weights for another image size, patch size or number of channels."""

from collections.abc import Sequence

import numpy as np
import paddle
import paddle.nn.functional as F


def interpolate(pos_embed: np.ndarray, old_grid: Sequence[int], new_grid: Sequence[int]) -> np.ndarray:
    """Resize a position embedding to another grid: [1, extra + h * w, D] -> [1, extra + h' * w', D], float32.

    Bicubic, with align_corners=False, as in the official code. The `extra` leading rows (class token) do not
    change.

    Args:
        old_grid, new_grid: (height, width) in patches.

    Raises ValueError if the embedding has fewer rows than the old grid.
    """
    extra = pos_embed.shape[1] - old_grid[0] * old_grid[1]
    if extra < 0:
        raise ValueError(
            f"a position embedding of {pos_embed.shape[1]} rows does not fit a grid of "
            f"{old_grid[0]} x {old_grid[1]} patches"
        )
    if tuple(old_grid) == tuple(new_grid):
        return pos_embed
    grid = paddle.to_tensor(pos_embed[:, extra:]).reshape([1, *old_grid, -1]).transpose([0, 3, 1, 2])
    grid = F.interpolate(grid, size=list(new_grid), mode="bicubic", align_corners=False)
    rows = grid.transpose([0, 2, 3, 1]).reshape([1, new_grid[0] * new_grid[1], -1]).numpy()
    return np.concatenate([pos_embed[:, :extra], rows], axis=1)


def resample_patches(kernel: np.ndarray, patch_size: int) -> np.ndarray:
    """Resize the weights of a patch embedding: [D, C, p, p] -> [D, C, patch_size, patch_size].

    PI-resize of FlexiViT (arXiv 2212.08013, section 3.4). Let B be the matrix that resizes a patch x. The new
    weights w' = (B^T)^+ w satisfy <w', B x> = <w, x> for every x if patches grow. If they shrink, pixels are
    lost, and w' minimises the mean squared difference over white noise. B is bicubic, as in timm and in
    util.images.resize; the paper's is bilinear.
    """
    # B is a Kronecker product of two matrices, and so is its pseudo-inverse. Rows and columns can therefore
    # be resized separately.
    inverse = np.linalg.pinv(resize_matrix(kernel.shape[-1], patch_size))  # [p, patch_size]
    return (inverse.T @ kernel @ inverse).astype(kernel.dtype)


def resize_matrix(old: int, new: int) -> np.ndarray:
    """Return the matrix [new, old] that resizes a row of pixels, by Keys' cubic (a = -0.5) as in Pillow."""
    scale = old / new
    centres = (np.arange(new)[:, None] + 0.5) * scale
    t = abs(np.arange(old) + 0.5 - centres) / max(scale, 1)  # the filter is wider when it downsamples
    weights = np.where(
        t < 1, 1.5 * t**3 - 2.5 * t**2 + 1, np.where(t < 2, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2, 0)
    )
    return weights / weights.sum(axis=1, keepdims=True)


def spread_channels(kernel: np.ndarray, in_chans: int) -> np.ndarray:
    """Adapt a patch embedding to another number of channels: [D, C, p, p] -> [D, in_chans, p, p].

    Each new channel gets the sum over the old ones, divided by `in_chans`. A grey image, equal in every
    channel, is therefore embedded as before, and later layers see values of the magnitude that they were
    trained on. For one channel this is the sum itself, as in timm.
    """
    total = kernel.sum(axis=1, keepdims=True) / np.float32(in_chans)
    return np.repeat(total.astype(kernel.dtype), in_chans, axis=1)
