"""From a picture, in whatever form it comes, to what a model takes."""
import os

import numpy as np
from PIL import Image

from util.images import band_files, decode
from util.images.transforms import EvalTransform

LONGEST = 100  # times the short side: resized by its short side, a longer picture would take gigabytes


class Preprocess:
    """A picture -> float32 [C, height, width]: upright, resized, cropped and normalised as in evaluation.

    A picture is a path, the bytes of a file, a file opened for reading in binary, a PIL image, a uint8 array [H, W],
    [H, W, 1] (grey), [H, W, 3] (RGB) or [H, W, 4] (RGBA), or for another number of channels an array as a .npy file has
    it, see util.images.band_files.

    Args:
        input_size: (height, width).
        mean, std: one number a channel, of 8-bit pixels as values from 0 to 1.
    """

    def __init__(self, input_size, in_chans, *, mean, std):
        self.input_size, self.in_chans = tuple(input_size), in_chans
        self.mean, self.std = list(mean), list(std)
        self.transform = EvalTransform(self.input_size, mean=mean, std=std)

    def __call__(self, picture, name=None):
        """Raises UnreadableImage, which calls the picture `name`; ValueError for an array that is none."""
        return self.transform.normalized(self.decode(picture, name))

    def decode(self, picture, name=None):
        """The PIL image of which __call__ makes its array."""
        image = self._decode(picture, name)
        if max(image.size) > LONGEST * min(image.size):
            known = picture if isinstance(picture, (str, os.PathLike)) else getattr(picture, "filename", "")
            raise decode.UnreadableImage(name or known or "picture", (
                f"{image.width} x {image.height} pixels, one side more than {LONGEST} times the other, of which the "
                "crop would show next to nothing"))
        return image

    def _decode(self, picture, name):
        if isinstance(picture, np.ndarray):
            if self.in_chans not in decode.AS_PICTURES:
                return _bands(picture, self.in_chans)
            picture = _image(picture)
        if isinstance(picture, Image.Image):
            return decode.from_pil(picture, in_chans=self.in_chans, name=name)
        if not (isinstance(picture, (bytes, str, os.PathLike)) or hasattr(picture, "read")):
            raise ValueError("expected a path, the bytes of a file, an open binary file, a PIL image or a uint8 array, "
                             f"got {type(picture).__name__}")
        return decode.decode(picture, in_chans=self.in_chans, name=name)


def _image(pixels):
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,), (4,)):
        raise ValueError("an array must be uint8 [height, width] (grey), [height, width, 1], [height, width, 3] (RGB) "
                         f"or [height, width, 4] (RGBA), got {pixels.dtype} {list(pixels.shape)}")
    if 0 in pixels.shape:
        raise ValueError(f"an array of the shape {list(pixels.shape)} has no pixels")
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2:] == (1,) else pixels)


def _bands(array, in_chans):
    try:
        return band_files.from_array(array, in_chans)
    except ValueError as error:
        raise ValueError(f"an array cannot be taken as a picture: {error}") from error
