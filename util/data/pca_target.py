"""Principal components of patches, whose coefficients an autoencoder can predict instead of pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np
import paddle

from util.images.decode import UnreadableImage
from util.system.console import progress, say
from util.system.keyed_random import TARGET, keyed_generator

if TYPE_CHECKING:
    from util.data.loaders import Samples
    from util.images.transforms import Transform

NUM_IMAGES = 1000  # images whose patches are used; the paper gives no number


def fit(
    samples: Samples, patchify: Callable[[paddle.Tensor], paddle.Tensor], num: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Compute the first `num` principal components of the patches of up to NUM_IMAGES images.

    The images and their crops depend only on the seed of `samples`, so they are the same in every process.
    Unreadable images are reported and skipped.

    Args:
        samples: training images, transformed as in training.
        patchify: normalised images [N, C, height, width] -> patches [N, L, P].
        num: number of components (--pca_target).

    Returns the mean [P] and the components [P, num], float32, and the share of variance that they explain.
    Components have unit norm, and their value of largest magnitude is positive. Raises ValueError if no image
    can be read.
    """
    normalize = cast("Transform", samples.transform).normalize
    total, products, count = np.float64(0), np.float64(0), 0
    order = keyed_generator(samples.seed, TARGET, 0, 0).permutation(len(samples))[:NUM_IMAGES]
    for index in progress(order.tolist(), "principal components of patches"):
        try:
            pixels, *_ = samples[0, index]
        except UnreadableImage as error:
            say(f"--pca_target skips an image: {error}")
            continue
        patches = patchify(paddle.to_tensor(normalize(pixels[None])))[0].numpy()  # [L, P]
        total = total + patches.sum(axis=0, dtype="float64")
        products = products + (patches.T @ patches).astype("float64")
        count += len(patches)
    if not count:
        raise ValueError(f"--pca_target {num}: none of the {len(order)} images can be read; repair them")
    mean = total / count
    variances, components = np.linalg.eigh(products / count - np.outer(mean, mean))  # in ascending order
    largest = components[:, : -num - 1 : -1]
    largest = largest * np.sign(largest[abs(largest).argmax(axis=0), np.arange(num)])
    return mean.astype("float32"), largest.astype("float32"), float(variances[-num:].sum() / variances.sum())
