import math
import pickle

import numpy as np
import paddle
import pytest
from PIL import Image, ImageEnhance

from util.data.masking import Mask
from util.images.augmentation import ColorJitter
from util.images.crops import clamped_crop_box, eval_size, random_flip, random_resized_crop_box
from util.images.normalize import IMAGENET_MEAN, IMAGENET_STD, default_mean_std
from util.images.random_erasing import RandomErasing
from util.images.resize import crop_and_resize
from util.images.transforms import EvalTransform, FinetuneTransform, LinprobeTransform, PretrainTransform
from util.system.keyed_random import IMAGE, keyed_generator

MASK = Mask("random", (2, 2), 0.5)
RATIO = (3 / 4, 4 / 3)
RGB = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
PLAIN = {"mean": (0.0,), "std": (1.0,)}  # grey images as they are, in [0, 1]


class Given:
    """A generator that hands out given numbers; whole numbers must lie in the range they are drawn from."""

    def __init__(self, uniform, integers):
        self.uniforms, self.whole = list(uniform), list(integers)
        self.ranges = []

    def uniform(self, low, high):
        self.ranges.append((low, high))
        return self.uniforms.pop(0)

    def integers(self, low, high):
        value = self.whole.pop(0)
        assert low <= value < high
        return value


# Half of 100 x 80 is 4000; sqrt(4000 * 4/3) = 73.03, sqrt(4000 * 3/4) = 54.77. The top is drawn before the
# left.

CROP_HAS_THE_DRAWN_AREA_RATIO_AND_PLACE = [
    (4 / 3, 25, 27, (27, 25, 100, 80)),
    (3 / 4, 7, 45, (45, 7, 100, 80)),
]


def test_crop_has_the_drawn_area_ratio_and_place():
    for ratio, top, left, box in CROP_HAS_THE_DRAWN_AREA_RATIO_AND_PLACE:
        rng = Given(uniform=[0.5, math.log(ratio)], integers=[top, left])
        assert random_resized_crop_box(100, 80, rng, scale=(0.2, 1.0), ratio=RATIO) == box
        np.testing.assert_allclose(rng.ranges, [(0.2, 1.0), (math.log(3 / 4), math.log(4 / 3))])


def test_a_crop_that_does_not_fit_is_drawn_again():
    # First 89.4 x 89.4: too high for 80. Then 63.2 x 63.2.
    rng = Given(uniform=[1.0, 0.0, 0.5, 0.0], integers=[17, 0])
    assert random_resized_crop_box(100, 80, rng, scale=(0.2, 1.0), ratio=RATIO) == (0, 17, 63, 80)


def test_after_ten_tries_the_crop_is_the_centre():
    # round(10 * 4/3) = 13 wide, (1000 - 13) // 2 = 493
    for width, height, box in (
        (1000, 10, (493, 0, 506, 10)),
        (10, 1000, (0, 493, 10, 506)),
        (100, 80, (0, 0, 100, 80)),
    ):  # within the ratios: all of it
        rng = Given(uniform=[1.0, 0.0] * 10, integers=[])
        assert random_resized_crop_box(width, height, rng, scale=(0.2, 1.0), ratio=RATIO) == box
        assert rng.uniforms == []


def test_linear_probe_crop_is_cut_instead_of_drawn_again():
    rng = Given(uniform=[1.0, 0.0], integers=[0, 11])
    # 89 x min(89, 80)
    assert clamped_crop_box(100, 80, rng, scale=(0.08, 1.0), ratio=RATIO) == (11, 0, 100, 80)
    assert clamped_crop_box(1, 1, Given([0.08, 0.0], [0, 0]), scale=(0.08, 1.0), ratio=RATIO) == (0, 0, 1, 1)


def finished(transform, *items):
    """Images float32 [N, C, H, W] of the batch of these items of a transform, as training gets them."""
    pixels, *others = zip(*items, strict=True)
    return transform.finish([paddle.to_tensor(np.stack(pixels)), *others])[0].numpy()


def coordinates(height, width):
    """A grey image [height, width] whose value tells the column in steps of two."""
    return Image.fromarray(np.broadcast_to(np.arange(width) * 2, (height, width)).astype(np.uint8))


def test_values_are_normalized_per_channel():
    # A whole number of pixels in, the same number out: nothing is resampled.
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    transform = EvalTransform((256, 256), **RGB)
    image = Image.fromarray(pixels).resize((256, 256), Image.Resampling.NEAREST)
    values = transform.normalized(image)
    expected = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert values.dtype == np.float32 and values.shape == (3, 256, 256) and values.flags.c_contiguous
    for channel in range(3):
        np.testing.assert_allclose(values[channel, ::32, ::32], expected[:, :, channel], atol=1e-6)
    batch = finished(transform, transform(image), transform(image))
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch, [values, values])


EVALUATION_CROPS = [  # size, resized to, top, left
    ((224, 224), (256, 343), 16, 60),  # (343 - 224) / 2 = 59.5, halves go to the even number
    ((224, 224), (256, 341), 16, 58),  # 58.5
    ((32, 32), (36, 36), 2, 2),  # int(32 / 0.875) = 36
    ((225, 225), (225, 300), 0, 38),  # above 224 the whole short side
    ((32, 64), (36, 73), 2, 4),  # int(64 / 0.875) = 73
    ((64, 32), (73, 40), 4, 4),
]  # covers 36 columns, not just


def test_evaluation_crop():
    rng = np.random.default_rng(0)
    for size, resized_to, top, left in EVALUATION_CROPS:
        # has the size that it is resized to: stays the same
        pixels = rng.integers(0, 256, resized_to).astype(np.uint8)
        (cropped,) = EvalTransform(size, **PLAIN)(Image.fromarray(pixels))
        np.testing.assert_array_equal(cropped, pixels[None, top : top + size[0], left : left + size[1]])


EVALUATION_SIZES = [  # width, height, size of the crop, resized to
    # torchvision 0.28's Resize(int(size / share)) for the squares
    (500, 375, (224, 224), (341, 256)),
    (375, 500, (224, 224), (256, 341)),
    (10, 7, (32, 32), (51, 36)),
    (333, 250, (224, 224), (340, 256)),
    (250, 333, (224, 224), (256, 340)),  # 340.99 is cut off
    (640, 427, (448, 448), (671, 448)),
    # the smallest that covers 256 x 128 (height x width) or 128 x 256
    (500, 375, (224, 112), (341, 256)),
    (100, 300, (224, 112), (128, 384)),
    (500, 375, (112, 224), (256, 192)),
    # the longer side decides about the share
    (100, 100, (448, 224), (448, 448)),
]


def test_evaluation_size():
    for width, height, size, expected in EVALUATION_SIZES:
        assert eval_size(width, height, size) == expected
        (pixels,) = EvalTransform(size, **PLAIN)(Image.new("L", (width, height)))
        assert pixels.shape == (1, *size)


def test_evaluation_of_an_image_smaller_than_the_crop_has_no_border():
    (pixels,) = EvalTransform((32, 48), **PLAIN)(Image.new("L", (3, 11), 200))
    np.testing.assert_array_equal(pixels, np.full((1, 32, 48), 200))


def crops(transform, count=600, size=(96, 120)):
    """Share of the columns that random crops of the column image show, and True for flipped ones."""
    image = coordinates(*size)
    ends = []
    for index in range(count):
        row = transform(image, keyed_generator(0, IMAGE, 0, index))[0][0, 0] / 2
        ends.append((row[0], row[-1]))
    ends = np.array(ends)
    return np.abs(ends[:, 1] - ends[:, 0]) / size[1], ends[:, 0] > ends[:, 1]


@pytest.mark.parametrize(
    "transform, least",
    [
        (PretrainTransform((16, 64), draw_noise=MASK.draw, **PLAIN), 0.2),
        (FinetuneTransform((16, 64), aa="", erasing=RandomErasing(0), **PLAIN), 0.08),
        (LinprobeTransform((16, 64), **PLAIN), 0.08),
    ],
)
def test_crops_cover_their_scale_and_half_are_flipped(transform, least):
    shares, flipped = crops(transform)
    # The narrowest crop has the least area at ratio 3/4; on 120 x 96 its width is sqrt(least * 96 * 120 *
    # 3/4) / 120.
    narrowest = math.sqrt(least * 96 * 120 * 3 / 4) / 120
    assert narrowest - 0.03 < shares.min() < narrowest + 0.08
    assert shares.max() > 0.94
    assert abs(flipped.mean() - 0.5) < 0.08


def test_mask_noise_is_uniform_and_the_images_own():
    transform = PretrainTransform((8, 8), draw_noise=Mask("random", (80, 50), 0.5).draw, **PLAIN)
    image = coordinates(20, 20)
    first, again, other = (transform(image, keyed_generator(0, IMAGE, 0, index))[1] for index in (1, 1, 2))
    assert first.dtype == np.float32 and first.shape == (4000,) and 0 <= first.min() and first.max() < 1
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.corrcoef(first, other)[0, 1]) < 0.08
    assert np.abs(np.sort(first) - np.arange(4000) / 4000).max() < 0.03  # Kolmogorov-Smirnov, 0.1 %: 0.031


def test_erasing_follows_normalization():
    transform = FinetuneTransform((32, 32), aa="", erasing=RandomErasing(1.0, "const"), **RGB)
    (values,) = finished(
        transform, transform(Image.new("RGB", (50, 40), (255, 255, 255)), np.random.default_rng(0))
    )
    white = (1 - np.array(IMAGENET_MEAN)) / IMAGENET_STD
    for channel in range(3):
        erased = values[channel] == 0  # the mean color, not black
        assert 10 < erased.sum() < 400
        np.testing.assert_allclose(values[channel][~erased], white[channel], atol=1e-6)


@pytest.mark.parametrize(
    "mode, in_chans, fill", [("L", 1, [117]), ("RGB", 3, [124, 116, 104]), ("RGBA", 4, [124, 116, 104, 128])]
)
def test_randaugment_fills_with_the_mean(mode, in_chans, fill):
    mean, std = default_mean_std(in_chans)
    transform = FinetuneTransform((16, 16), erasing=RandomErasing(0), mean=mean, std=std)
    white = Image.new(mode, (20, 20), "white")
    filled = plain = 0
    for index in range(60):
        pixels, _ = transform(white, keyed_generator(0, IMAGE, 0, index))
        assert pixels.shape == (in_chans, 16, 16)
        filled += (np.abs(pixels - np.reshape(fill, (-1, 1, 1))).max(axis=0) < 1.01).any()
        plain += (pixels == 255).all()
    assert filled > 8 and plain > 8


def test_color_jitter_instead_of_randaugment():
    image = Image.new("RGB", (20, 20), (100, 100, 100))
    plain = {"erasing": RandomErasing(0), "mean": (0, 0, 0), "std": (1, 1, 1)}
    with_jitter = FinetuneTransform((8, 8), aa="", color_jitter=0.4, **plain)
    # Contrast and saturation leave an even grey as it is; brightness multiplies it by 0.6 to 1.4.
    values = np.array([with_jitter(image, np.random.default_rng(i))[0].mean() for i in range(200)])
    assert 59 <= values.min() < 63 and 137 < values.max() <= 141 and abs(np.median(values) - 100) < 8
    without = FinetuneTransform((8, 8), aa="", **plain)
    assert (without(image, np.random.default_rng(0))[0] == 100).all()
    with pytest.warns(UserWarning, match="--color_jitter 0.4.*--aa"):
        FinetuneTransform((8, 8), color_jitter=0.4, **RGB)


def test_the_linear_probe_draws_its_crop_once_and_does_the_rest_if_asked():
    # narrow: its crops are clamped
    pixels = np.random.default_rng(1).integers(0, 256, (40, 12, 3)).astype(np.uint8)
    image = Image.fromarray(pixels)
    plain = LinprobeTransform((8, 8), **RGB)
    augmented = LinprobeTransform((8, 8), aa="v0", erasing=RandomErasing(1.0), **RGB)
    changed = 0
    for index in range(20):
        rng = keyed_generator(0, IMAGE, 0, index)
        box = clamped_crop_box(12, 40, rng, scale=(0.08, 1.0), ratio=RATIO)
        cropped = np.asarray(random_flip(crop_and_resize(image, box, (8, 8)), rng)).transpose(2, 0, 1)
        found, erased = plain(image, keyed_generator(0, IMAGE, 0, index))
        np.testing.assert_array_equal(found, cropped)
        assert erased == []
        found, erased = augmented(image, keyed_generator(0, IMAGE, 0, index))
        changed += (found != cropped).any()
        assert erased
    assert changed > 10


def test_pretraining_with_randaugment():
    image = Image.fromarray(np.random.default_rng(1).integers(0, 256, (20, 20, 3)).astype(np.uint8))
    plain, augmented = (
        PretrainTransform((8, 8), draw_noise=MASK.draw, aa=aa, **RGB) for aa in ("", "rand-m9-n8-inc1")
    )
    expected, noise = plain(image, np.random.default_rng(0))
    found, other = augmented(image, np.random.default_rng(0))
    assert (found != expected).any() and (noise != other).any()  # the mask is drawn behind it
    with pytest.warns(UserWarning, match="--color_jitter 0.4.*--aa"):
        PretrainTransform((8, 8), draw_noise=MASK.draw, aa="v0", color_jitter=0.4, **RGB)


def test_color_jitter_draws_every_order_and_applies_it():
    rng = np.random.default_rng(0)
    drawn = [ColorJitter(1.5).draw(rng) for _ in range(600)]
    orders = [tuple(enhancer.__name__ for enhancer, _ in operations) for operations in drawn]
    assert len(set(orders)) == 6 and min(map(orders.count, set(orders))) > 60
    factors = [factor for operations in drawn for _, factor in operations]
    assert 0 <= min(factors) < 0.02 and 2.48 < max(factors) <= 2.5
    bright_first = [(ImageEnhance.Brightness, 2.0), (ImageEnhance.Contrast, 0.0)]
    image = Image.fromarray(np.uint8([[0, 100, 200]]))
    # 0, 200, 255 (cut off): mean 151.7; the other way round the mean of 100 doubles
    assert np.asarray(ColorJitter.apply(image, bright_first)).tolist() == [[152, 152, 152]]
    assert np.asarray(ColorJitter.apply(image, bright_first[::-1])).tolist() == [[200, 200, 200]]


def every_transform(size, mean, std):
    options = {"mean": mean, "std": std}
    return [
        PretrainTransform(size, draw_noise=MASK.draw, **options),
        FinetuneTransform(size, **options),
        LinprobeTransform(size, **options),
        EvalTransform(size, **options),
    ]


@pytest.mark.parametrize("in_chans, mode", [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_every_transform_takes_every_mode_and_survives_pickling(in_chans, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, in_chans)).astype(np.uint8)
    image = Image.fromarray(pixels.squeeze())
    assert image.mode == mode
    for transform in every_transform((16, 24), *default_mean_std(in_chans)):
        for index in range(8):
            arrays = transform(image, keyed_generator(0, IMAGE, 0, index))
            copies = pickle.loads(pickle.dumps(transform))(image, keyed_generator(0, IMAGE, 0, index))
            assert arrays[0].shape == (in_chans, 16, 24) and arrays[0].dtype == np.uint8
            assert str(arrays) == str(copies) and np.array_equal(arrays[0], copies[0])


def test_an_image_of_another_mode_is_refused():
    for in_chans, mode in ((3, "L"), (1, "RGB"), (3, "RGBA"), (4, "CMYK"), (1, "P"), (3, "HSV")):
        mean, std = default_mean_std(in_chans)
        with pytest.raises(ValueError, match=f"--in_chans {in_chans}: .*mode {mode}"):
            EvalTransform((8, 8), mean=mean, std=std)(Image.new(mode, (9, 9)))


def test_normalization():
    assert default_mean_std(3) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    (mean,), (std,) = default_mean_std(1)
    assert (mean, std) == pytest.approx((0.458971, 0.225609))  # 0.299 R + 0.587 G + 0.114 B
    assert default_mean_std(4) == ((0.485, 0.456, 0.406, 0.5), (0.229, 0.224, 0.225, 0.5))
    with pytest.raises(ValueError, match="--in_chans.*2"):
        default_mean_std(2)


def test_eight_bits_are_not_normalised_by_the_mean_of_wider_numbers():
    picture = Image.new("RGB", (8, 8), (10, 20, 30))
    with pytest.raises(ValueError, match="--mean 500: .*8-bit"):
        EvalTransform((8, 8), mean=(0.5, 500, 0.5), std=(0.5, 290, 0.5)).normalized(picture)
    EvalTransform((8, 8), mean=(1, 0, 0.5), std=(1, 1, 1)).normalized(picture)
