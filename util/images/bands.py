"""A picture of any number of channels, of 8 bits or of wider numbers, for most of which PIL has no mode."""
import numpy as np
from PIL import Image


class Bands:
    """Grey PIL images of one size, each a channel, with what the transforms use of a PIL image.

    Each channel is cropped, turned and resized by Pillow as a picture of its own. None is alpha, by which PIL would
    multiply the others before it resizes them.

    Args:
        bands: PIL images, all of mode L (8 bits) or all of mode F (float32).
    """

    def __init__(self, bands):
        self.bands = tuple(bands)
        self.size = self.width, self.height = self.bands[0].size

    def split(self):
        return self.bands

    def crop(self, box):
        return Bands(band.crop(box) for band in self.bands)

    def transpose(self, method):
        return Bands(band.transpose(method) for band in self.bands)

    def resize(self, size, resample):
        return Bands(band.resize(size, resample) for band in self.bands)


def from_array(pixels):
    """uint8 or float32 [H, W, C] -> a picture: for 8 bits a PIL image L or RGB if there are 1 or 3, else Bands."""
    if pixels.dtype == np.uint8 and pixels.shape[2] in (1, 3):
        return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))
    return Bands(Image.fromarray(np.ascontiguousarray(pixels[:, :, channel])) for channel in range(pixels.shape[2]))
