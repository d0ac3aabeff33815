"""A patch embedding's weights for patches of another size: PI-resize of FlexiViT (arXiv 2212.08013, section 3.4)."""
import numpy as np


def resample(kernel, patch_size):
    """[D, C, p, p] -> float array [D, C, patch_size, patch_size]: resized patches are embedded as patches were before.

    With B the matrix that resizes a patch x, w' = (B^T)^+ w gives <w', B x> = <w, x> for every x where patches grow,
    and where they shrink, which loses pixels, the least mean square of the difference over white noise. B is the
    bicubic filter with which pictures are resized, too (util.images.resize), as in timm; the paper's own is bilinear.
    """
    # Rows and columns are resized apart: B is the Kronecker product of two matrices, and so is its pseudo-inverse.
    inverse = np.linalg.pinv(resize_matrix(kernel.shape[-1], patch_size))  # [p, patch_size]
    return (inverse.T @ kernel @ inverse).astype(kernel.dtype)


def resize_matrix(old, new):
    """[new, old]: what each of `new` pixels in a row takes of `old` ones, by Keys' cubic (a = -0.5) as in Pillow."""
    scale = old / new
    centres = (np.arange(new)[:, None] + 0.5) * scale
    t = abs(np.arange(old) + 0.5 - centres) / max(scale, 1)  # a reduction widens the filter
    weights = np.where(t < 1, 1.5 * t ** 3 - 2.5 * t ** 2 + 1,
                       np.where(t < 2, -0.5 * t ** 3 + 2.5 * t ** 2 - 4 * t + 2, 0))
    return weights / weights.sum(axis=1, keepdims=True)
