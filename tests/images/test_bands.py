"""Multi-band images against Pillow's: each channel is transformed like a grey image of its own."""

from functools import partial

import numpy as np
import paddle
import pytest
from PIL import Image

from util.data.loaders import Samples, make_loader
from util.data.masking import Mask
from util.data.sampler import EpochSampler
from util.images.bands import Bands, image_from_array
from util.images.normalize import Normalize, default_mean_std
from util.images.random_erasing import RandomErasing
from util.images.transforms import (
    EvalTransform,
    FinetuneTransform,
    LinprobeTransform,
    MaskedEvalTransform,
    PretrainTransform,
)
from util.look.figures import choose, to_image, to_pixels

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, [9, 7, 3], np.uint8).repeat(4, axis=0).repeat(4, axis=1)  # 36 x 28
SIZE = (16, 12)
MASK = Mask("random", (4, 3), 0.5)
TRANSFORMS = {
    "pretrain": partial(PretrainTransform, draw_noise=MASK.draw),
    "fixed": partial(PretrainTransform, draw_noise=MASK.draw, crop="fixed"),
    "finetune": partial(FinetuneTransform, aa=""),
    "linprobe": LinprobeTransform,
    "eval": EvalTransform,
    "masked": partial(MaskedEvalTransform, draw_noise=lambda rng: rng.random(12)),
}


# The fast backend with the two kinds of crops, Pillow's with every transform.
PAIRS = [*((name, "pillow") for name in TRANSFORMS), ("pretrain", "fast"), ("eval", "fast")]


def made(name, channels, backend="pillow"):
    return TRANSFORMS[name](SIZE, mean=[0.25] * channels, std=[0.5] * channels, image_backend=backend)


def drawn(transform, image, seed):
    pixels, *others = transform(image, np.random.default_rng(seed))
    return pixels, others


@pytest.mark.parametrize("name, backend", PAIRS)
def test_each_channel_is_what_it_would_be_in_a_colour_picture(name, backend):
    image = Image.fromarray(COLOURS)
    red, green, blue = image.split()
    for seed in range(4):
        expected, others = drawn(made(name, 3, backend), image, seed)
        got, same = drawn(made(name, 5, backend), Bands([blue, red, green, red, blue]), seed)
        assert got.dtype == np.uint8 and len(others) == len(same)
        np.testing.assert_array_equal(got, expected[[2, 0, 1, 0, 2]])


@pytest.mark.parametrize("name, backend", PAIRS)
def test_wide_numbers_are_neither_rounded_nor_cut_off(name, backend):
    """40 times the pixels less 5000, which is outside of 8 bits on both sides."""
    mild = COLOURS // 2 + 64  # of which the filter's overshoots are not cut off either
    image, wide = Image.fromarray(mild), image_from_array(mild.astype(np.float32) * 40 - 5000)
    for seed in range(4):
        rounded, _ = drawn(made(name, 3, backend), image, seed)
        got, _ = drawn(made(name, 3, backend), wide, seed)
        assert got.dtype == np.float32
        # Pillow rounds 8 bits after each of its two passes
        assert abs((got + 5000) / 40 - rounded).max() < 1.6
        assert (got != got.round()).any()


def test_normalised_batches_in_the_files_units():
    channels = 13
    mean, std = np.arange(channels) * 100.0, np.arange(channels) + 50.0
    array = RNG.integers(0, 10000, [20, 20, channels]).astype(np.float32)
    transform = EvalTransform((20, 20), mean=mean, std=std)
    transform._resized = lambda image: image
    expected = (array.transpose(2, 0, 1) - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(transform.normalized(image_from_array(array)), expected, rtol=1e-6, atol=1e-5)
    (pixels,) = transform(image_from_array(array))
    (batch,) = transform.finish([paddle.to_tensor(pixels[None])])
    np.testing.assert_allclose(batch.numpy()[0], expected, rtol=1e-6, atol=1e-5)


def test_wide_numbers_are_normalised_alike_by_numpy_and_by_tensors():
    normalize, pixels = (
        Normalize([3.0, -7.0], [11.0, 0.3]),
        RNG.normal(0, 99, [2, 2, 4, 4]).astype(np.float32),
    )
    expected = (pixels - np.float32([3, -7])[:, None, None]) / np.float32([11, 0.3])[:, None, None]
    np.testing.assert_array_equal(normalize(pixels), expected)
    np.testing.assert_array_equal(normalize.tensor(paddle.to_tensor(pixels)).numpy(), expected)


def test_erased_boxes_have_all_channels():
    transform = FinetuneTransform(
        SIZE, mean=[1000.0] * 13, std=[500.0] * 13, aa="", erasing=RandomErasing(1.0)
    )
    image = image_from_array(np.full([30, 30, 13], 4000, np.float32))
    pixels, erased = transform(image, np.random.default_rng(0))
    (batch,) = transform.finish([paddle.to_tensor(pixels[None]), [erased]])
    hidden = batch.numpy()[0] != 6.0
    (((top, left, bottom, right), _),) = erased
    assert hidden[:, top:bottom, left:right].all() and hidden.sum() == 13 * (bottom - top) * (right - left)


def test_other_channel_numbers_have_no_default_mean():
    for channels in (2, 5, 13):
        with pytest.raises(
            ValueError, match=rf"--in_chans {channels}: .*--mean and --std, {channels} .*channel_"
        ):
            default_mean_std(channels)


def test_wide_numbers_need_a_mean_of_their_own():
    mean, std = default_mean_std(3)
    transform = EvalTransform((16, 16), mean=mean, std=std)
    values = RNG.random([20, 20, 3], dtype=np.float32)
    assert transform(image_from_array(values))[0].max() < 2  # of values from 0 to 1 the usual ones are right
    with pytest.raises(ValueError, match="--mean, --std: .*values from .* to .*channel_statistics"):
        transform(image_from_array(values * 10000))


@pytest.mark.parametrize(
    "make, flag",
    [
        (
            lambda channels: FinetuneTransform(SIZE, mean=[0.3] * channels, std=[0.5] * channels),
            "--aa rand.*pass --aa ''",
        ),
        (
            lambda channels: PretrainTransform(
                SIZE, draw_noise=MASK.draw, mean=[0.3] * channels, std=[0.5] * channels, color_jitter=0.4
            ),
            "--color_jitter 0.4: .*leave it out",
        ),
    ],
)
def test_colour_augmentation_needs_eight_bits_and_colours(make, flag):
    for channels in (2, 5, 13):
        with pytest.raises(ValueError, match=flag):
            make(channels)
    for channels in (3, 4):
        with pytest.raises(ValueError, match=flag):
            make(channels)(
                image_from_array(np.ones([20, 20, channels], np.float32)), np.random.default_rng(0)
            )
    make(3)(Image.fromarray(COLOURS), np.random.default_rng(0))


class Mixed:
    """A source of one picture of 8 bits and one of wide numbers."""

    labels = classes = None

    def __len__(self):
        return 2

    def open(self, index):
        return image_from_array(np.full([20, 20, 5], 200, (np.uint8, np.float32)[index]))


def test_a_batch_of_both_kinds_is_refused():
    sampler = EpochSampler(2, 2, seed=0, shuffle=False)
    loader = make_loader(Samples(Mixed(), EvalTransform(SIZE, mean=[0.5] * 5, std=[0.5] * 5), 0), sampler, 0)
    with pytest.raises(ValueError, match="8-bit pixels.*wider numbers.*one type"):
        list(loader)


def test_pictures_of_wide_numbers_are_drawn_by_mean_and_spread():
    mean, std = [1000.0, 20.0], [500.0, 4.0]
    values = np.array([[[-2.0, 0.0, 2.0, 9.0]], [[1.0, -1.0, -9.0, 0.0]]])
    np.testing.assert_allclose(
        to_pixels(values, mean=mean, std=std, like=values), [[[0, 0.5, 1, 1]], [[0.75, 0.25, 0, 0.5]]]
    )
    # Of an 8-bit picture nothing changes, not even where a model without normalisation draws it.
    for mean, std in (([0.5, 0.2], [0.5, 0.4]), ([0.0, 0.0], [1.0, 1.0])):
        values = (np.array([[[0.0, 1.0]], [[0.25, 0.5]]]) - np.reshape(mean, [2, 1, 1])) / np.reshape(
            std, [2, 1, 1]
        )
        np.testing.assert_allclose(
            to_pixels(values, mean=mean, std=std, like=values), [[[0, 1]], [[0.25, 0.5]]]
        )


def test_which_channels_are_drawn():
    picture = np.arange(13).reshape(13, 1, 1) / 12 * np.ones([1, 2, 3])
    shown = np.asarray(to_image(choose(picture, [3, 2, 1])))
    assert shown[0, 0].tolist() == [64, 42, 21]  # 255 * 3 / 12, ...
    assert np.asarray(to_image(choose(picture, [12])))[0, 0].tolist() == [255] * 3
    assert np.asarray(to_image(choose(picture, None)))[0, 0].tolist() == [0, 21, 42]
    assert np.asarray(to_image(picture[[6, 12]]))[0, 0].tolist() == [128] * 3  # of two the first, in grey
