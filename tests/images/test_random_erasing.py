import math

import numpy as np
import paddle
import pytest

from util.images.random_erasing import RandomErasing, draw_box, fill_boxes


class Given:
    """A generator that hands out given numbers; whole numbers must lie in the range they are drawn from."""

    def __init__(self, uniform, integers, random=()):
        self.uniforms, self.whole, self.randoms = list(uniform), list(integers), list(random)
        self.ranges = []

    def random(self):
        return self.randoms.pop(0)

    def uniform(self, low, high):
        self.ranges.append((low, high))
        return self.uniforms.pop(0)

    def integers(self, low, high):
        value = self.whole.pop(0)
        assert low <= value < high
        return value


def test_a_box_has_the_drawn_area_aspect_and_place():
    rng = Given(uniform=[0.25, math.log(2)], integers=[10, 7])
    # 0.25 * 100 * 200 = 5000 pixels; height / width = 2 gives 100 x 50, as high as the image: the next try
    assert draw_box(200, 100, rng, count=1) == (10, 7, 110, 57)
    np.testing.assert_allclose(rng.ranges, [(0.02, 1 / 3), (math.log(0.3), math.log(1 / 0.3))])


def test_the_boxes_of_an_image_share_the_area_of_one():
    rng = Given(uniform=[0.25, math.log(2)], integers=[0, 0])
    # sqrt(2500 * 2) = 70.7, sqrt(2500 / 2) = 35.4
    assert draw_box(200, 100, rng, count=2) == (0, 0, 71, 35)


def test_a_box_as_large_as_the_image_is_drawn_again_at_most_ten_times():
    too_high = [0.25, math.log(2)]  # 100 x 50 on an image of 100 x 200
    rng = Given(uniform=too_high * 9 + [0.25, 0.0], integers=[29, 129])
    # sqrt(5000) = 70.7: 71 x 71 in the last corner
    assert draw_box(100, 200, rng, count=1) == (29, 129, 100, 200)
    too_wide = [0.25, math.log(1 / 2)]
    rng = Given(uniform=too_wide + [0.25, 0.0], integers=[129, 29])
    assert draw_box(200, 100, rng, count=1) == (129, 29, 200, 100)
    rng = Given(uniform=too_high * 10, integers=[])
    assert draw_box(100, 200, rng, count=1) is None


@pytest.mark.parametrize("kind", [np.array, paddle.to_tensor])
def test_only_the_boxes_change_and_the_last_wins(kind):
    images = np.arange(3 * 3 * 6 * 8, dtype=np.float32).reshape(3, 3, 6, 8)
    expected = images.copy()
    for channel in range(3):
        for y in (1, 2, 3):
            for x in (2, 3, 4):
                expected[2, channel, y, x] = -1 - channel
        expected[2, channel, 3, 4] = 1000 + channel
        for x in range(4):
            expected[0, channel, 5, x] = 100 * channel + x
    color, corner = (np.float32(values).reshape(3, 1, 1) for values in ([-1, -2, -3], [1000, 1001, 1002]))
    noise = np.float32([[[0, 1, 2, 3]], [[100, 101, 102, 103]], [[200, 201, 202, 203]]])
    filled = fill_boxes(
        kind(images), [[((5, 0, 6, 4), noise)], [], [((1, 2, 4, 5), color), ((3, 4, 4, 5), corner)]]
    )
    np.testing.assert_array_equal(np.asarray(filled), expected)


def noise_of(mode):
    """The values that one erased image [3, 64, 64] of fives received, as [3, pixels]."""
    drawn = RandomErasing(1.0, mode).draw((3, 64, 64), np.random.default_rng(1))
    erased = fill_boxes(np.full((1, 3, 64, 64), 5, np.float32), [drawn])[0]
    hit = (erased != 5).all(axis=0)
    assert 0.02 * 64 * 64 * 0.9 < hit.sum() < 64 * 64 / 3 * 1.1
    assert erased.dtype == np.float32
    return erased[:, hit]


def test_const_fills_with_zero():
    assert (noise_of("const") == 0).all()


def test_rand_fills_with_one_color():
    values = noise_of("rand")
    assert (values == values[:, :1]).all() and len(np.unique(values)) == 3 and (values != 0).all()


def test_pixel_fills_with_standard_normal_noise():
    values = noise_of("pixel")
    assert len(np.unique(values)) > 0.99 * values.size
    assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.1


def test_erases_with_the_probability():
    erasing = RandomErasing(0.25)
    rng = np.random.default_rng(0)
    hits = sum(bool(erasing.draw((3, 32, 32), rng)) for _ in range(4000))
    assert abs(hits / 4000 - 0.25) < 0.03  # 4 standard deviations are 0.027
    assert all(RandomErasing(0.0).draw((3, 32, 32), rng) == [] for _ in range(20))


def test_up_to_recount_boxes_equally_often():
    rng = np.random.default_rng(0)
    erasing = RandomErasing(1.0, "const", 3)
    counts = np.bincount([len(erasing.draw((3, 64, 64), rng)) for _ in range(3000)], minlength=4)
    assert counts[0] == 0 and (np.abs(counts[1:] / 3000 - 1 / 3) < 0.035).all()


WRONG = [((1.5, "pixel", 1), "--reprob"), ((0.5, "noise", 1), "--remode"), ((0.5, "pixel", 0), "--recount")]


def test_impossible_settings_name_their_flag():
    for arguments, flag in WRONG:
        with pytest.raises(ValueError, match=flag):
            RandomErasing(*arguments)
