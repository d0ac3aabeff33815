"""Principal components of patches, whose coefficients an autoencoder can predict instead of pixels (--pca_target)."""
import numpy as np
import paddle

from util.images.decode import UnreadableImage
from util.system.console import progress, say
from util.system.keyed_random import TARGET, keyed_generator

PICTURES = 1000  # whose patches are looked at; the paper does not say how many it took


def fit(samples, patchify, num):
    """The `num` principal components of largest variance of the patches of PICTURES images, or of all of fewer.

    Which images, and how they are cut, follows from the seed of `samples`: it is the same in every process. Those that
    cannot be read are named and passed over.

    Args:
        samples: util.data.loaders.Samples, of pictures as they are trained on.
        patchify: normalised images [N, C, height, width] -> [N, L, P], both Tensors.
    Returns:
        mean [P] and components [P, num] (of length 1, the largest value of each above 0), float32; the part of the
        patches' variance that these explain.
    """
    total, products, count = 0.0, 0.0, 0
    order = keyed_generator(samples.seed, TARGET, 0, 0).permutation(len(samples))[:PICTURES]
    for index in progress(order.tolist(), "principal components of patches"):
        try:
            pixels, *_ = samples[0, index]
        except UnreadableImage as error:
            say(f"--pca_target passes over an image: {error}")
            continue
        patches = patchify(paddle.to_tensor(samples.transform.normalize(pixels[None])))[0].numpy()  # [L, P]
        total = total + patches.sum(axis=0, dtype="float64")
        products = products + (patches.T @ patches).astype("float64")
        count += len(patches)
    if not count:
        raise ValueError(f"--pca_target {num}: none of the {len(order)} images can be read; repair them")
    mean = total / count
    variances, components = np.linalg.eigh(products / count - np.outer(mean, mean))  # in rising order
    largest = components[:, :-num - 1:-1]
    largest = largest * np.sign(largest[abs(largest).argmax(axis=0), np.arange(num)])
    return mean.astype("float32"), largest.astype("float32"), float(variances[-num:].sum() / variances.sum())
