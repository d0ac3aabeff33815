"""Crop and resize in one step: exactly as Pillow does, or faster with nearly the same result.

Both backends are functions (image, box, (height, width)) -> image, with PIL's box (left, top, right, bottom).
Both filter with Keys' cubic kernel (a = -0.5), widened by the reduction factor (antialiasing).
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable

from PIL import Image

from util.images.bands import Bands, ImageLike
from util.images.decode import EncodedImage

Box = tuple[float, float, float, float]
Backend = Callable[["ImageLike | EncodedImage", Box, tuple[int, int]], ImageLike]


def crop_and_resize(image: ImageLike | EncodedImage, box: Box, size: tuple[int, int]) -> ImageLike:
    """Crop and resize with Pillow, as the published recipes do."""
    height, width = size
    if isinstance(image, EncodedImage):
        image = image.decode()
    if box != (0, 0, *image.size):
        # Not resize(box=...), whose filter would use pixels outside the box.
        image = image.crop(box)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def crop_and_resize_fast(image: ImageLike | EncodedImage, box: Box, size: tuple[int, int]) -> ImageLike:
    """Crop and resize with cykooz-resizer, which uses AVX2, SSE4 or Neon.

    JPEGs are decoded at 1/2, 1/4 or 1/8 of their size if that is enough.

    It was compared with Pillow on 150 ImageNet files, two pretraining crops of 224 pixels each. A fifth of
    the values differ, nearly all by 1 (median PSNR 55 dB, worst 50.6). 4 % of the crops come from a reduced
    decode. There, more than half of the values differ (42 dB, worst 30.7), because the decoder keeps more
    detail than the cubic filter. If EXIF rotates a reduced image whose sides are not multiples of 8, the crop
    is off by less than one reduced pixel.
    """
    height, width = size
    left, top, right, bottom = box
    scale = 1.0
    if isinstance(image, EncodedImage):
        min_size = (
            math.ceil(image.width * width / (right - left)),
            math.ceil(image.height * height / (bottom - top)),
        )
        image, scale = image.decode_reduced(min_size)
    return _resize_fast(image, (left / scale, top / scale, right / scale, bottom / scale), size)


def _resize_fast(image, box, size):
    """Crop and resize a decoded image. The corners of `box` may be fractional."""
    from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer  # an optional package

    if isinstance(image, Bands):
        return Bands(_resize_fast(band, box, size) for band in image.split())
    if image.mode == "LA":  # a mode that cykooz-resizer does not know
        return _resize_fast(image.convert("RGBA"), box, size).convert("LA")
    (left, top, right, bottom), (height, width) = box, size
    # Crop to whole pixels first, because the filter also uses pixels outside its box. Less than one pixel
    # remains on each side.
    outer_left, outer_top = math.floor(left), math.floor(top)
    image = image.crop((outer_left, outer_top, math.ceil(right), math.ceil(bottom)))
    inner = CropBox(left - outer_left, top - outer_top, right - left, bottom - top)
    resized = Image.new(image.mode, (width, height))
    options = ResizeOptions(ResizeAlg.convolution(FilterType.catmull_rom), crop_box=inner)
    Resizer().resize_pil(image, resized, options)
    return resized


BACKENDS: dict[str, Backend] = {"pillow": crop_and_resize, "fast": crop_and_resize_fast}


def backend(name: str) -> Backend:
    """Return the function of BACKENDS for --image_backend. Raises ValueError if unknown or not installed."""
    if name not in BACKENDS:
        raise ValueError(f"--image_backend {name}: unknown; choose from {', '.join(BACKENDS)}")
    if name == "fast":
        try:
            importlib.import_module("cykooz_resizer")
        except ImportError as error:
            raise ValueError(
                f"--image_backend fast: needs a package that is missing ({error}); "
                "pip install cykooz-resizer, or pass --image_backend pillow"
            ) from error
    return BACKENDS[name]
