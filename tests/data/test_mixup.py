import numpy as np
import paddle
import pytest

from util.data.mixup import Mixup, draw_boxes, draw_boxes_minmax, mix_images, mix_targets

EMPTY = [0, 0, 0, 0]


@pytest.fixture
def images():
    return np.random.default_rng(0).standard_normal((4, 3, 5, 6)).astype(np.float32)


def mixed(images, shares, boxes):
    return mix_images(paddle.to_tensor(images), np.array(shares, float), np.array(boxes)).numpy()


def test_one_share_blends_every_image_with_the_flipped_batch(images):
    expected = 0.3 * images + 0.7 * images[::-1]
    np.testing.assert_allclose(mixed(images, [0.3], [EMPTY]), expected, atol=1e-6)


def test_one_box_holds_the_partners_pixels(images):
    expected = images.copy()
    expected[:, :, 1:3, 2:6] = images[::-1, :, 1:3, 2:6]
    np.testing.assert_array_equal(mixed(images, [22 / 30], [[1, 2, 3, 6]]), expected)


def test_each_image_has_its_own_share_and_box(images):
    expected = images.copy()
    expected[0, :, 0:2, 0:1] = images[3, :, 0:2, 0:1]
    expected[1] = 0.25 * images[1] + 0.75 * images[2]
    expected[3] = images[0]
    result = mixed(images, [28 / 30, 0.25, 1, 0], [[0, 0, 2, 1], EMPTY, EMPTY, [0, 0, 5, 6]])
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_targets_are_smoothed_and_blended():
    labels = paddle.to_tensor(np.array([0, 2, 1, 4]))
    targets = mix_targets(labels, np.array([0.3]), 5, 0.1).numpy()
    # on: 1 - 0.1 + 0.1 / 5 = 0.92, off: 0.1 / 5 = 0.02
    np.testing.assert_allclose(
        targets,
        [
            [0.3 * 0.92 + 0.7 * 0.02, 0.02, 0.02, 0.02, 0.3 * 0.02 + 0.7 * 0.92],
            [0.02, 0.7 * 0.92 + 0.3 * 0.02, 0.3 * 0.92 + 0.7 * 0.02, 0.02, 0.02],
            [0.02, 0.3 * 0.92 + 0.7 * 0.02, 0.7 * 0.92 + 0.3 * 0.02, 0.02, 0.02],
            [0.7 * 0.92 + 0.3 * 0.02, 0.02, 0.02, 0.02, 0.3 * 0.92 + 0.7 * 0.02],
        ],
        atol=1e-6,
    )
    targets = mix_targets(labels, np.array([1, 0.5, 0.25, 0]), 5, 0.0).numpy()
    np.testing.assert_allclose(
        targets, [[1, 0, 0, 0, 0], [0, 0.5, 0.5, 0, 0], [0, 0.25, 0.75, 0, 0], [1, 0, 0, 0, 0]]
    )


class Given:
    """A generator whose whole numbers are given, one array a call."""

    def __init__(self, *integers):
        self.whole = list(integers)

    def integers(self, low, high, size=None):
        values = np.array(self.whole.pop(0))
        assert (low <= values).all() and (values < high).all() and size in (None, len(values))
        return values


def test_cutmix_box_has_one_minus_the_share_of_the_area():
    # A share of 0.75 leaves half of each side: 20 x 30 of 40 x 60, 10 and 15 to either side of the centre (y,
    # x).
    boxes = draw_boxes(40, 60, np.array([0.75, 0.75, 0.75, 1.0]), Given([20, 0, 39, 5], [30, 59, 2, 5]))
    np.testing.assert_array_equal(boxes[:3], [[10, 15, 30, 45], [0, 44, 10, 60], [29, 0, 40, 17]])
    assert boxes[3, 0] == boxes[3, 2]
    # An odd side of 7 becomes 2 * 3 in timm 0.3.2.
    np.testing.assert_array_equal(draw_boxes(14, 14, np.array([0.75]), Given([7], [7])), [[4, 4, 10, 10]])


def test_minmax_box_lies_inside_with_both_sides_drawn():
    boxes = draw_boxes_minmax(40, 60, (0.2, 0.8), 2, Given([8, 31], [47, 12], [31, 8], [0, 47]))
    np.testing.assert_array_equal(boxes, [[31, 0, 39, 47], [8, 47, 39, 59]])
    with pytest.raises(ValueError, match="--cutmix_minmax"):
        draw_boxes_minmax(4, 4, (0.3, 0.4), 1, np.random.default_rng(0))


def test_the_share_of_a_cut_image_is_the_area_outside_its_box():
    mixup = Mixup(0, 1.0, mode="elem", num_classes=5)
    shares, boxes = mixup.draw(400, 40, 60, np.random.default_rng(0))
    for share, (top, left, bottom, right) in zip(shares, boxes, strict=True):
        assert share == pytest.approx(1 - (bottom - top) * (right - left) / 2400)
    assert len(np.unique(shares)) > 150


def many(mixup, count=4000):
    """shares, boxes of `count` batches of 2 images, one draw each."""
    rng = np.random.default_rng(0)
    drawn = [mixup.draw(2, 32, 32, rng) for _ in range(count)]
    return np.concatenate([shares for shares, _ in drawn]), np.concatenate([boxes for _, boxes in drawn])


def test_mixup_shares_follow_the_beta_distribution():
    shares, boxes = many(Mixup(0.8, 0, num_classes=5))
    assert (boxes == 0).all()
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1))
    assert abs(shares.mean() - 0.5) < 0.02 and abs(shares.var() - 1 / (4 * 2.6)) < 0.005


def test_cutmix_sides_follow_its_own_alpha():
    _, boxes = many(Mixup(0, 1.0, num_classes=5))
    inside = boxes[(boxes.min(axis=1) > 0) & (boxes.max(axis=1) < 32)]
    assert len(inside) > 300
    # a square on a square
    np.testing.assert_array_equal(inside[:, 2] - inside[:, 0], inside[:, 3] - inside[:, 1])
    uncut = many(Mixup(0, 20.0, num_classes=5))[1]
    sides = (uncut[:, 2] - uncut[:, 0])[(uncut[:, 0] > 0) & (uncut[:, 2] < 32)]
    # Beta(20, 20) stays near 1/2: 2 * (int(32 * sqrt(0.5)) // 2) = 22
    assert abs(np.median(sides) - 22) <= 1


def test_probabilities_of_mixing_and_of_cutmix():
    shares, boxes = many(Mixup(0.8, 1.0, prob=0.6, switch_prob=0.25, num_classes=5))
    cut = boxes[:, 2] > 0
    untouched = (shares == 1) & ~cut
    assert abs(untouched.mean() - 0.4) < 0.035
    assert abs(cut.mean() - 0.6 * 0.25) < 0.025
    # Mixup's own alpha where both are on: Beta(0.1, 0.1) is nearly always close to 0 or 1.
    shares, boxes = many(Mixup(0.1, 50.0, num_classes=5))
    blended = shares[boxes[:, 2] == 0]
    assert 0.3 < np.mean((blended < 0.05) | (blended > 0.95)) and blended.var() > 0.18


def test_minmax_switches_cutmix_on():
    shares, boxes = many(Mixup(0, 0, (0.25, 0.75), num_classes=5), 2000)
    for side in (boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]):
        assert side.min() == 8 and side.max() == 23
    # timm 0.3.2 never reaches the lower and the right border
    assert boxes.min() == 0 and boxes.max() == 31
    np.testing.assert_allclose(shares, 1 - (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 1024)
    shares, boxes = many(Mixup(0.8, 0, (0.25, 0.75), prob=0.5, num_classes=5), 2000)
    assert abs((boxes[:, 2] > 0).mean() - 0.25) < 0.04 and (shares[boxes[:, 2] > 0] < 0.94).all()


def test_mode_says_who_shares_a_draw():
    for mode, distinct in (("batch", 1), ("pair", 3), ("elem", 6)):
        shares, boxes = Mixup(0.8, 0, mode=mode, num_classes=5).draw(6, 8, 8, np.random.default_rng(0))
        assert len(np.unique(shares)) == distinct and len(shares) == len(boxes)
        if mode == "pair":
            np.testing.assert_array_equal(shares, shares[::-1])
            _, boxes = Mixup(0, 1.0, mode=mode, num_classes=5).draw(6, 8, 8, np.random.default_rng(0))
            np.testing.assert_array_equal(boxes, boxes[::-1])


def test_targets_count_the_pixels_of_each_image():
    for mode in ("batch", "pair", "elem"):
        # Image i is filled with i: the pixels that carry a value say how much of its label a target must
        # hold.
        images = np.broadcast_to(np.arange(6, dtype=np.float32)[:, None, None, None], (6, 3, 16, 24)).copy()
        mixup = Mixup(0, 1.0, mode=mode, label_smoothing=0.0, num_classes=6)
        result, targets = mixup(paddle.to_tensor(images), paddle.arange(6), np.random.default_rng(3))
        for i, (image, target) in enumerate(zip(result.numpy(), targets.numpy(), strict=True)):
            np.testing.assert_allclose(target, [(image == label).mean() for label in range(6)], atol=1e-6)
            assert target[i] < 1


def test_same_generator_same_batch(images):
    labels = paddle.to_tensor(np.array([0, 1, 2, 3]))
    mixup = Mixup(0.8, 1.0, num_classes=4)
    results = [
        mixup(paddle.to_tensor(images), labels, np.random.default_rng(seed))[1].numpy() for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    assert np.abs(results[0] - results[2]).max() > 0.01


def test_an_odd_batch_is_refused(images):
    with pytest.raises(ValueError, match="--batch_size.*3"):
        Mixup(0.8, 0, num_classes=5)(paddle.to_tensor(images[:3]), paddle.arange(3), np.random.default_rng(0))


WRONG = [
    ((-0.1, 0), {}, "--mixup -0.1"),
    ((0, -1), {}, "--cutmix -1"),
    ((0, 0), {}, "--mixup or --cutmix"),
    ((0, 0, (0.8, 0.2)), {}, "--cutmix_minmax"),
    ((0, 0, (0.8,)), {}, "--cutmix_minmax"),
    ((1, 0), {"prob": 1.1}, "--mixup_prob"),
    ((1, 0), {"switch_prob": -1}, "--mixup_switch_prob"),
    ((1, 0), {"label_smoothing": 2}, "--smoothing"),
    ((1, 0), {"mode": "half"}, "--mixup_mode"),
]


def test_wrong_settings_name_their_flag():
    for arguments, options, flag in WRONG:
        with pytest.raises(ValueError, match=flag):
            Mixup(*arguments, **options, num_classes=5)
