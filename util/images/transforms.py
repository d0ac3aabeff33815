"""From a picture to the batches a model takes, in two halves.

A call (image, rng) -> tuple makes an item of a batch: pixels, of 8 bits if the picture has them, and what else belongs
to the image. Workers make them: of 8 bits, a quarter of the bytes of float32 has to travel. `finish(batch) -> list`
normalises the pixels of a whole batch where the model is, and does what follows normalisation.

Every transform can be pickled, takes a PIL image of mode L, LA, RGB or RGBA, Bands or an image_io.Picture, and gets
all its randomness from `rng`, a numpy.random.Generator. Sizes are (height, width); boxes are PIL's (left, top, right,
bottom).
"""
import math
import warnings
from functools import partial

import numpy as np
from PIL import Image, ImageEnhance

from util.images import decode, resize
from util.images.autoaugment import AutoAugment
from util.images.bands import Bands
from util.images.normalize import Normalize, is_of_unit_scale
from util.images.randaugment import RandAugment
from util.images.random_erasing import RandomErasing, fill_boxes

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LUMA = (0.299, 0.587, 0.114)    # ITU-R 601, by which PIL turns RGB into L

RATIO = (3 / 4, 4 / 3)          # width / height of a random crop, log-uniform
PRETRAIN_CROPS = ("random", "fixed", "center")
TRIES = 10                      # for a random crop that fits; then the centre is taken


def check_normalization(*, mean=(), std=()):
    """ValueError for numbers by which pixels cannot be normalised."""
    if not all(map(math.isfinite, mean)):
        raise ValueError(f"--mean {' '.join(map(str, mean))}: expected numbers")
    if not all(math.isfinite(value) and value > 0 for value in std):
        raise ValueError(f"--std {' '.join(map(str, std))}: expected numbers above 0")


def normalization(in_chans):
    """(mean, std) per channel of images in [0, 1], for 1 (L), 3 (RGB) or 4 (RGBA) channels; ValueError for others.

    RGB: ImageNet. L: the luma of the ImageNet values, which is exact for the mean, and for the standard deviation as
    far as the three channels rise and fall together. Alpha: 0.5 and 0.5, so that it spans -1 to 1.
    """
    if in_chans == 1:
        return tuple((sum(weight * value for weight, value in zip(LUMA, values)),)
                     for values in (IMAGENET_MEAN, IMAGENET_STD))
    if in_chans == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    if in_chans == 4:
        return (*IMAGENET_MEAN, 0.5), (*IMAGENET_STD, 0.5)
    if in_chans < 1:
        raise ValueError(f"--in_chans {in_chans}: a picture has 1 channel or more.")
    raise ValueError(f"--in_chans {in_chans}: a usual mean and standard deviation are there for 1, 3 and 4 channels "
                     f"only; pass --mean and --std, {in_chans} numbers each, which tools/channel_statistics.py takes "
                     "from the data.")


class Transform:
    """What all have in common.

    Args:
        input_size: (height, width) of the result.
        mean, std: a number a channel; see `normalization`.
        image_backend: of util.images.resize.BACKENDS.
    """

    def __init__(self, input_size, *, mean, std, image_backend="pillow"):
        self.input_size = input_size
        self.normalize = Normalize(mean, std)
        self.usual = len(mean) in (1, 3, 4) and (tuple(mean), tuple(std)) == normalization(len(mean))
        self.crop_and_resize = resize.backend(image_backend)

    def finish(self, batch):
        """[pixels uint8 or float32 [N, C, H, W], ...] -> the same with normalised float32 images."""
        pixels, *others = batch
        return [self._normalized(pixels), *others]

    def _normalized(self, pixels, erased=()):
        """Normalised pixels of a batch, on their device; `erased` has for each image what RandomErasing drew."""
        if not pixels.place.is_cpu_place():
            return fill_boxes(self.normalize.tensor(pixels), erased)
        import paddle  # not for a single image, which may be prepared where there is no Paddle
        # The same in numpy, which needs a quarter of the time of Paddle's broadcasts on a CPU.
        return paddle.to_tensor(fill_boxes(self.normalize(pixels.numpy()), erased))

    def _resized(self, image):
        """The whole picture at the size of which evaluation shows the middle."""
        width, height = eval_size(image.width, image.height, self.input_size)
        return self.crop_and_resize(image, (0, 0, image.width, image.height), (height, width))

    def _pixels(self, image):
        """PIL image or Bands -> uint8 or float32 [C, H, W]."""
        channels, bands = len(self.normalize.mean), image.split()
        if len(bands) != channels or not (isinstance(image, Bands) or image.mode in decode.MODES.values()):
            what = f"{len(bands)} channels" if isinstance(image, Bands) else f"an image of mode {image.mode}"
            raise ValueError(f"--in_chans {channels} does not fit {what}: 1 channel is L, 3 are RGB, 4 are RGBA; "
                             "convert the image or change --in_chans.")
        pixels = np.stack([np.asarray(band) for band in bands])
        if pixels.dtype == np.uint8 and self.normalize.mean.max() > 1:
            raise ValueError(f"--mean {self.normalize.mean.max():g}: the pixels of this picture have 8 bits and count from "
                             "0 to 1; give means of such pixels, and do not mix them with wider numbers")
        if self.usual and pixels.dtype != np.uint8 and not is_of_unit_scale(pixels):
            raise ValueError(f"--mean, --std: a picture has values from {pixels.min():g} to {pixels.max():g}, and the "
                             "usual numbers are for values from 0 to 1; tools/channel_statistics.py takes others from "
                             "the data.")
        return pixels


class PretrainTransform(Transform):
    """Crop, flip, what --aa or --color_jitter ask for -> image uint8 [C, H, W], mask noise float32 [num_patches].

    The order of the noise's values decides which patches this image keeps.

    Args:
        crop: random: of 0.2 to 1 of the area; fixed: of the size that EvalTransform cuts out, anywhere; center: what
            EvalTransform cuts out, and no flip.
        color_jitter, aa: see `augmentation`.
        draw_noise: (rng) -> noise, such as util.data.masking.Mask.draw.
    """

    def __init__(self, input_size, *, draw_noise, mean, std, image_backend="pillow", crop="random",
                 color_jitter=None, aa=""):
        super().__init__(input_size, mean=mean, std=std, image_backend=image_backend)
        self.draw_noise, self.crop = draw_noise, crop
        self.augment = augmentation(aa, color_jitter, mean=mean)

    def __call__(self, image, rng):
        if self.crop == "random":
            box = random_resized_crop_box(image.width, image.height, rng, scale=(0.2, 1.0), ratio=RATIO)
            image = self.crop_and_resize(image, box, self.input_size)
        else:
            image = self._resized(image)
            box = center_box(image, self.input_size)
            if self.crop == "fixed":
                box = _place_crop(image.width, image.height, self.input_size[1], self.input_size[0], rng)
            image = image.crop(box)
        if self.crop != "center":
            image = random_flip(image, rng)
        pixels = self._pixels(self.augment(image, rng))
        return pixels, self.draw_noise(rng)


class FinetuneTransform(Transform):
    """Random crop of 0.08 to 1 of the area, flip, RandAugment or the like -> (uint8 [C, H, W], erased boxes).

    timm 0.3.2's training transform, which the official fine-tuning uses. `finish` fills the boxes and drops them.

    Args:
        color_jitter, aa: see `augmentation`.
        reprob, remode, recount: see RandomErasing. It follows normalisation, so that its noise has the data's scale.
    """

    def __init__(self, input_size, *, mean, std, color_jitter=None, aa="rand-m9-mstd0.5-inc1", reprob=0.25,
                 remode="pixel", recount=1, image_backend="pillow"):
        super().__init__(input_size, mean=mean, std=std, image_backend=image_backend)
        self.augment = augmentation(aa, color_jitter, mean=mean)
        self.erasing = RandomErasing(reprob, remode, recount)

    def __call__(self, image, rng):
        box = self._draw_box(image, rng)
        image = random_flip(self.crop_and_resize(image, box, self.input_size), rng)
        pixels = self._pixels(self.augment(image, rng))
        return pixels, self.erasing.draw(pixels.shape, rng)

    def _draw_box(self, image, rng):
        return random_resized_crop_box(image.width, image.height, rng, scale=(0.08, 1.0), ratio=RATIO)

    def finish(self, batch):
        pixels, erased, *others = batch
        return [self._normalized(pixels, erased), *others]


class LinprobeTransform(FinetuneTransform):
    """As FinetuneTransform, but the crop is drawn once (see clamped_crop_box), and the rest is off unless given."""

    def __init__(self, input_size, *, aa="", reprob=0.0, **options):
        super().__init__(input_size, aa=aa, reprob=reprob, **options)

    def _draw_box(self, image, rng):
        return clamped_crop_box(image.width, image.height, rng, scale=(0.08, 1.0), ratio=RATIO)


class EvalTransform(Transform):
    """Whole image resized, centre crop -> (uint8 [C, H, W],). Nothing random: `rng` is there for the common call.

    Up to 224 pixels the crop is 224/256 of the resized image, above that all of it (of its short side).
    """

    def __call__(self, image, rng=None):
        image = self._resized(image)
        return (self._pixels(image.crop(center_box(image, self.input_size))),)

    def normalized(self, image):
        """float32 [C, H, W] of one image, without a batch."""
        return self.normalize(self(image)[0])


class MaskedEvalTransform(EvalTransform):
    """As EvalTransform, for the loss of an autoencoder -> (uint8 [C, H, W], mask noise float32 [num_patches]).

    Args:
        draw_noise: (rng) -> noise, such as util.data.masking.Mask.draw.
    """

    def __init__(self, input_size, *, draw_noise, mean, std, image_backend="pillow"):
        super().__init__(input_size, mean=mean, std=std, image_backend=image_backend)
        self.draw_noise = draw_noise

    def __call__(self, image, rng):
        return *super().__call__(image), self.draw_noise(rng)


def center_box(image, size):
    """(left, top, right, bottom) of the middle of an image, of `size` (height, width)."""
    height, width = size
    # Python rounds halves to the even number, and so does torchvision's CenterCrop.
    left = round((image.width - width) / 2)
    top = round((image.height - height) / 2)
    return left, top, left + width, top + height


def random_resized_crop_box(width, height, rng, *, scale, ratio):
    """(left, top, right, bottom) of a part `scale` of the area with a width / height in `ratio` (arXiv 1409.4842).

    torchvision's RandomResizedCrop: ten tries, then the largest central box within `ratio`.
    """
    for _ in range(TRIES):
        crop_width, crop_height = _draw_crop_size(width, height, rng, scale, ratio)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            return _place_crop(width, height, crop_width, crop_height, rng)
    crop_width, crop_height = width, height
    if width / height < ratio[0]:
        crop_height = round(width / ratio[0])
    elif width / height > ratio[1]:
        crop_width = round(height * ratio[1])
    left = (width - crop_width) // 2
    top = (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def clamped_crop_box(width, height, rng, *, scale, ratio):
    """As random_resized_crop_box, but of one try, cut to the image where it is too large: the official linear probe's.

    The area can therefore be smaller than `scale` asks for.
    """
    crop_width, crop_height = _draw_crop_size(width, height, rng, scale, ratio)
    # At least one pixel: the size can round to 0 on images of 1 to 3 pixels.
    return _place_crop(width, height, max(1, min(crop_width, width)), max(1, min(crop_height, height)), rng)


def _draw_crop_size(width, height, rng, scale, ratio):
    area = rng.uniform(*scale) * (width * height)
    aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
    return round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))


def _place_crop(width, height, crop_width, crop_height, rng):
    top = int(rng.integers(0, height - crop_height + 1))
    left = int(rng.integers(0, width - crop_width + 1))
    return left, top, left + crop_width, top + crop_height


def random_flip(image, rng):
    """Mirrored left to right with probability 1/2."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


def crop_share(input_size):
    """What part of the resized evaluation image the central crop (height, width) shows, along each side."""
    return 224 / 256 if max(input_size) <= 224 else 1.0


def eval_size(width, height, input_size):
    """(width, height) to resize an evaluation image to: its shape, just covering input_size / crop share.

    For a square input this is torchvision's Resize of the short side, with its rounding.
    """
    target_height, target_width = (int(side / crop_share(input_size)) for side in input_size)
    if target_width * height >= target_height * width:
        return target_width, target_width * height // width
    return target_height * width // height, target_height


def augmentation(aa, color_jitter, *, mean):
    """What changes a picture of its final size: (PIL image, rng) -> image of the same size and mode.

    Args:
        aa: RandAugment or AutoAugment in timm's notation, filled with the mean; empty for none.
        color_jitter: None, or the strength for brightness, contrast and saturation alike; only used if `aa` is empty.
    """
    if color_jitter is not None and not 0 <= color_jitter < math.inf:
        raise ValueError(f"--color_jitter must not be negative, got {color_jitter}.")
    if aa:
        if color_jitter is not None:
            warnings.warn(f"--color_jitter {color_jitter} has no effect beside --aa {aa}; pass --aa '' to use it.")
        policy = RandAugment if aa.partition("-")[0] == "rand" else AutoAugment
        fill = tuple(min(255, round(255 * value)) for value in mean)
        flag, change = f"--aa {aa}", policy.parse(aa, fill=fill)
    elif color_jitter is not None:
        flag, change = f"--color_jitter {color_jitter}", partial(jittered, color_jitter)
    else:
        return unchanged
    check_colours(flag, len(mean))
    return partial(recoloured, change, flag, len(mean))


def unchanged(image, rng):
    return image


def jittered(strength, image, rng):
    return apply_color_jitter(image, draw_color_jitter(strength, rng))


def recoloured(change, flag, channels, image, rng):
    check_colours(flag, channels, image)
    return change(image, rng)


def check_colours(flag, channels, image=None):
    """ValueError unless `flag` can change the colours: of pictures of 8 bits and 1, 3 or 4 channels.

    Args:
        image: a picture, if there is one yet.
    """
    if channels not in (1, 3, 4) or isinstance(image, Bands):
        what = f"--in_chans is {channels}" if image is None else "one has wider numbers, or 4 without alpha"
        way_out = "pass --aa ''" if flag.startswith("--aa") else "leave it out"
        raise ValueError(f"{flag}: it is for 8-bit pictures of 1, 3 or 4 channels, and {what}; {way_out}")


def draw_color_jitter(strength, rng):
    """Brightness, contrast and saturation in random order: list of (PIL enhancer, factor in 1 -+ strength, >= 0)."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    return [(enhancers[index], rng.uniform(max(0.0, 1 - strength), 1 + strength)) for index in rng.permutation(3)]


def apply_color_jitter(image, drawn):
    """`drawn` (see draw_color_jitter) applied to a PIL image in order."""
    for enhancer, factor in drawn:
        image = enhancer(image).enhance(factor)
    return image
