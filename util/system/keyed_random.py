"""Randomness as a function of what it is for, not of what was drawn before.

A counter-based generator (Philox 4x64) is started at a place that the seed, the stream and two numbers name. The same
names give the same draws in any process, in any order, however often: the number of workers and of processes does not
change a run, and a resumed run needs no saved generator.
"""
import numpy as np

# One stream a subject, so that two subjects never share draws.
EPOCH_ORDER = 0    # (epoch, 0): the order of the images; (0, 1): that in which they are packed
IMAGE = 1          # (epoch, index): crop, flip, augmentation and mask noise of one image
MIXUP = 2          # (step, rank): partners and boxes of one batch
MODEL = 3          # (step, rank): drop path inside the network
REPLACEMENT = 4    # (epoch, index): which images stand in for one that cannot be read
WATCHED = 5        # which patches are hidden of an image that is looked at: (place, 0) again and again while a run goes
                   # on, (checksum of its name, 1) on its own
EVALUATION = 6     # (0, index): which patches are hidden of an image of the validation, whatever run it is of
TARGET = 7         # (0, 0): the images whose patches --pca_target looks at


def keyed_generator(seed, stream, first, second):
    """numpy.random.Generator for `stream` of the run `seed`, at the place (`first`, `second`); whole numbers >= 0."""
    # The lowest word of the counter runs as numbers are drawn; 2 ** 64 of them fit before the next place begins.
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, first, second, 0]))
