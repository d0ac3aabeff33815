"""From 8-bit pixels to what a model takes: values in [0, 1], minus the mean, over the standard deviation."""
import numpy as np


class Normalize:
    """uint8 [..., C, H, W] -> float32 of the same shape; `mean` and `std` have a number a channel.

    A call takes a numpy array, `tensor` a Paddle tensor on its device, and both give the same bits.
    """

    def __init__(self, mean, std):
        self.mean = np.asarray(mean, np.float32).reshape(-1, 1, 1)
        self.std = np.asarray(std, np.float32).reshape(-1, 1, 1)

    def __call__(self, pixels):
        values = pixels.astype(np.float32)
        values /= 255
        values -= self.mean
        values /= self.std
        return values

    def tensor(self, pixels):
        import paddle
        # A tensor instead of the number 255: by a number Paddle 2.6 would multiply with the rounded 1 / 255.
        values = pixels.astype("float32") / paddle.full([1], 255.0)
        return (values - paddle.to_tensor(self.mean)) / paddle.to_tensor(self.std)
