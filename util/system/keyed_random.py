"""Random numbers as a function of their purpose, not of earlier draws.

A counter-based generator (Philox 4x64) starts at a position given by the seed, a stream and two numbers. The
same position gives the same draws in any process and any order. A run therefore does not depend on the number
of workers or processes, and a resumed run needs no saved generator state.
"""

import numpy as np

# One stream for each purpose, so that no two purposes share draws. In parentheses: the two numbers.
EPOCH_ORDER = 0  # (epoch, 0): order of the images; (0, 1): order in which tools/pack_dataset.py packs them
IMAGE = 1  # (epoch, index): crop, flip, augmentation and mask noise of one image
MIXUP = 2  # (step, rank): partners and boxes of a batch
MODEL = 3  # (step, rank): drop path
REPLACEMENT = 4  # (epoch, index): images that replace an unreadable one
WATCHED = 5  # (place, 0): masks drawn during a run; (CRC-32 of the file name, 1): masks drawn in inference
EVALUATION = 6  # (0, index): mask of a validation image, the same in every run
TARGET = 7  # (0, 0): images from which --pca_target computes its components


def keyed_generator(seed: int, stream: int, first: int, second: int) -> np.random.Generator:
    """Return the generator of `stream` at the position (`first`, `second`), integers >= 0."""
    # Draws advance the lowest word of the counter, so the next position is 2 ** 64 steps away.
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, first, second, 0]))
