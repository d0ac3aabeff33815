"""From pixels to what a model takes: values, minus the mean, over the standard deviation.

8-bit pixels have values in [0, 1]; all others are float32, and values already.
"""
import numpy as np

UNIT_SCALE = (-1, 2)    # what values from 0 to 1 stay within, however far the bicubic filter overshoots


def is_of_unit_scale(values):
    """Whether all values are such as 8-bit pixels have, from 0 to 1, and not counts, reflectances or the like."""
    least, most = UNIT_SCALE
    return bool(least <= values.min() and values.max() <= most)


class Normalize:
    """uint8 or float32 [..., C, H, W] -> float32 of the same shape; `mean` and `std` have a number a channel.

    A call takes a numpy array, `tensor` a Paddle tensor on its device, and both give the same bits.
    """

    def __init__(self, mean, std):
        self.mean = np.asarray(mean, np.float32).reshape(-1, 1, 1)
        self.std = np.asarray(std, np.float32).reshape(-1, 1, 1)

    def __call__(self, pixels):
        values = pixels.astype(np.float32)
        if pixels.dtype == np.uint8:
            values /= 255
        values -= self.mean
        values /= self.std
        return values

    def tensor(self, pixels):
        import paddle
        values = pixels.astype("float32")
        if pixels.dtype == paddle.uint8:
            # A tensor instead of the number 255: by a number Paddle 2.6 would multiply with the rounded 1 / 255.
            values = values / paddle.full([1], 255.0)
        return (values - paddle.to_tensor(self.mean)) / paddle.to_tensor(self.std)
