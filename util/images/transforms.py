"""Transforms: from an image to the batches that a model takes, in two steps.

1. A call (image, rng) -> tuple runs in a worker and makes one item of a batch: the pixels and what else
   belongs to the image. 8-bit pixels stay uint8, so that a quarter of the bytes of float32 goes to the parent
   process.
2. `finish(batch) -> list` normalises the pixels of a whole batch on the device of the model, and does what
   follows normalisation.

Images are PIL images of mode L, LA, RGB or RGBA, multi-band images, or files that are not decoded yet
(util.images.decode.EncodedImage). All randomness comes from `rng`. Sizes are (height, width).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from util.images import resize
from util.images.augmentation import Augmentation
from util.images.bands import MULTIBAND, ImageLike, array_from_image
from util.images.crops import (
    Box,
    center_box,
    clamped_crop_box,
    eval_size,
    random_box,
    random_flip,
    random_resized_crop_box,
)
from util.images.decode import MODES, EncodedImage
from util.images.normalize import Normalize, default_mean_std, has_unit_scale
from util.images.random_erasing import Erased, RandomErasing, fill_boxes

if TYPE_CHECKING:
    import paddle

PRETRAIN_CROPS = ("random", "fixed", "center")
PRETRAIN_SCALE = (0.2, 1.0)  # share of the area that a random crop covers (paper, Appendix A.1)
FINETUNE_SCALE = (0.08, 1.0)


class Transform:
    """Common part of all transforms.

    Args:
        img_size: (height, width) of the result.
        mean, std: one number for each channel; see util.images.normalize.
        image_backend: key of util.images.resize.BACKENDS.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        image_backend: str = "pillow",
    ) -> None:
        self.img_size = img_size
        self.normalize = Normalize(mean, std)
        channels = len(mean)
        self.has_default_mean_std = channels in (1, 3, 4) and (tuple(mean), tuple(std)) == default_mean_std(
            channels
        )
        self.crop_and_resize = resize.backend(image_backend)

    def finish(self, batch: Sequence[Any]) -> list[Any]:
        """Normalise the pixels [N, C, H, W] of a batch to float32. The rest of the batch stays as it is."""
        pixels, *others = batch
        return [self._normalized(pixels), *others]

    def _normalized(self, pixels: paddle.Tensor, erased: Sequence[Sequence[Erased]] = ()) -> paddle.Tensor:
        """Normalise a batch on its device, and fill the boxes that RandomErasing drew for each image."""
        if not pixels.place.is_cpu_place():
            return fill_boxes(self.normalize.tensor(pixels), erased)
        import paddle  # not at module level: single images are prepared without Paddle

        # numpy gives the same bits, in a quarter of the time of Paddle's broadcasts on a CPU.
        return paddle.to_tensor(fill_boxes(self.normalize(pixels.numpy()), erased))

    def _resized(self, image: ImageLike | EncodedImage) -> ImageLike:
        """Resize a whole image to the size of which evaluation takes the central crop."""
        width, height = eval_size(image.width, image.height, self.img_size)
        return self.crop_and_resize(image, (0, 0, image.width, image.height), (height, width))

    def _pixels(self, image: ImageLike) -> np.ndarray:
        """Return the pixels [C, H, W], uint8 or float32. Raises ValueError if channels or mean do not fit."""
        channels, bands = len(self.normalize.mean), image.split()
        if len(bands) != channels or image.mode not in (MULTIBAND, *MODES.values()):
            found = f"{len(bands)} channels" if image.mode == MULTIBAND else f"an image of mode {image.mode}"
            raise ValueError(
                f"--in_chans {channels}: does not fit {found} (1 is L, 3 RGB, 4 RGBA); convert "
                "the image, or change --in_chans"
            )
        pixels = array_from_image(image)
        if pixels.dtype == np.uint8 and self.normalize.mean.max() > 1:
            raise ValueError(
                f"--mean {self.normalize.mean.max():g}: an image has 8-bit pixels, whose values "
                "go from 0 to 1; give the mean of such values, and do not mix 8-bit images with "
                "wider numbers"
            )
        if self.has_default_mean_std and pixels.dtype != np.uint8 and not has_unit_scale(pixels):
            raise ValueError(
                "--mean, --std: the defaults are for values from 0 to 1, and an image has "
                f"values from {pixels.min():g} to {pixels.max():g}; give others "
                "(tools/channel_statistics.py computes them)"
            )
        return pixels


class PretrainTransform(Transform):
    """Crop, flip and augment an image -> pixels [C, H, W], mask noise float32 [L].

    Args:
        draw_noise: (rng) -> noise, such as util.data.masking.Mask.draw.
        crop: random: 0.2 to 1 of the area; fixed: the size of the evaluation crop, at a random place; center:
            the evaluation crop, without a flip.
        color_jitter, aa: see Augmentation.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        *,
        draw_noise: Callable[[np.random.Generator], np.ndarray],
        mean: Sequence[float],
        std: Sequence[float],
        image_backend: str = "pillow",
        crop: str = "random",
        color_jitter: float | None = None,
        aa: str = "",
    ) -> None:
        super().__init__(img_size, mean=mean, std=std, image_backend=image_backend)
        self.draw_noise, self.crop = draw_noise, crop
        self.augment = Augmentation(aa, color_jitter, mean=mean)

    def __call__(
        self, image: ImageLike | EncodedImage, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Transform one image."""
        cropped = self._cropped(image, rng)
        if self.crop != "center":
            cropped = random_flip(cropped, rng)
        pixels = self._pixels(self.augment(cropped, rng))
        return pixels, self.draw_noise(rng)

    def _cropped(self, image, rng):
        if self.crop == "random":
            box = random_resized_crop_box(image.width, image.height, rng, scale=PRETRAIN_SCALE)
            return self.crop_and_resize(image, box, self.img_size)
        image = self._resized(image)
        if self.crop == "fixed":
            return image.crop(random_box(image.width, image.height, self.img_size, rng))
        return image.crop(center_box(image.width, image.height, self.img_size))


class FinetuneTransform(Transform):
    """Crop 0.08 to 1 of the area, flip, augment and erase -> pixels [C, H, W], boxes of RandomErasing.

    timm 0.3.2's training transform, which the official fine-tuning uses. `finish` fills the boxes after
    normalisation, so that their noise has the scale of the data, and drops them from the batch.

    Args:
        color_jitter, aa: see Augmentation.
        erasing: None for RandomErasing's default, probability 0.25.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        color_jitter: float | None = None,
        aa: str = "rand-m9-mstd0.5-inc1",
        erasing: RandomErasing | None = None,
        image_backend: str = "pillow",
    ) -> None:
        super().__init__(img_size, mean=mean, std=std, image_backend=image_backend)
        self.augment = Augmentation(aa, color_jitter, mean=mean)
        self.erasing = erasing or RandomErasing(0.25)

    def __call__(
        self, image: ImageLike | EncodedImage, rng: np.random.Generator
    ) -> tuple[np.ndarray, list[Erased]]:
        """Transform one image."""
        box = self._draw_box(image.width, image.height, rng)
        flipped = random_flip(self.crop_and_resize(image, box, self.img_size), rng)
        pixels = self._pixels(self.augment(flipped, rng))
        return pixels, self.erasing.draw(pixels.shape, rng)

    def _draw_box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        return random_resized_crop_box(width, height, rng, scale=FINETUNE_SCALE)

    def finish(self, batch: Sequence[Any]) -> list[Any]:
        """Normalise the pixels and fill the boxes: [pixels, boxes, ...] -> [images, ...]."""
        pixels, erased, *others = batch
        return [self._normalized(pixels, erased), *others]


class LinprobeTransform(FinetuneTransform):
    """FinetuneTransform with the crop of the official linear probing.

    By default there is no augmentation and no erasing.
    """

    def __init__(
        self, img_size: tuple[int, int], *, aa: str = "", erasing: RandomErasing | None = None, **options: Any
    ) -> None:
        super().__init__(img_size, aa=aa, erasing=erasing or RandomErasing(0), **options)

    def _draw_box(self, width: int, height: int, rng: np.random.Generator) -> Box:
        return clamped_crop_box(width, height, rng, scale=FINETUNE_SCALE)


class EvalTransform(Transform):
    """Resize the whole image and take its centre -> (pixels [C, H, W],). Nothing is random.

    Up to 224 pixels the crop is 224/256 of the resized image, above that all of its short side.
    """

    def __call__(
        self, image: ImageLike | EncodedImage, rng: np.random.Generator | None = None
    ) -> tuple[np.ndarray, ...]:
        """Transform one image."""
        resized = self._resized(image)
        return (self._pixels(resized.crop(center_box(resized.width, resized.height, self.img_size))),)

    def normalized(self, image: ImageLike | EncodedImage) -> np.ndarray:
        """Transform and normalise a single image -> float32 [C, H, W]."""
        return self.normalize(self(image)[0])


class MaskedEvalTransform(EvalTransform):
    """EvalTransform for the validation loss of a masked autoencoder -> pixels [C, H, W], mask noise [L].

    Args:
        draw_noise: (rng) -> noise, such as util.data.masking.Mask.draw.
    """

    def __init__(
        self,
        img_size: tuple[int, int],
        *,
        draw_noise: Callable[[np.random.Generator], np.ndarray],
        mean: Sequence[float],
        std: Sequence[float],
        image_backend: str = "pillow",
    ) -> None:
        super().__init__(img_size, mean=mean, std=std, image_backend=image_backend)
        self.draw_noise = draw_noise

    def __call__(
        self, image: ImageLike | EncodedImage, rng: np.random.Generator | None = None
    ) -> tuple[np.ndarray, ...]:
        """Transform one image."""
        assert rng is not None
        return *super().__call__(image), self.draw_noise(rng)
