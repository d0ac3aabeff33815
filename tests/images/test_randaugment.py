from collections import Counter

import numpy as np
import pytest
from PIL import Image

from util.images.randaugment import IMAGENET_FILL, INCREASING, RandAugment, apply_operation

NAMES = {
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "Posterize",
    "Solarize",
    "SolarizeAdd",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
}
SIGNED = {
    "Rotate",
    "Color",
    "Contrast",
    "Brightness",
    "Sharpness",
    "ShearX",
    "ShearY",
    "TranslateX",
    "TranslateY",
}


@pytest.fixture
def noise():
    return np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)


def changed(pixels, name, level, fill=IMAGENET_FILL):
    return np.asarray(apply_operation(Image.fromarray(pixels), name, INCREASING[name](level), fill))


# Thresholds, bits and factors below are timm 0.3.2's, written out for the level.


def test_posterize(noise):
    for level, kept in ((0, 0xF0), (2.4, 0xF0), (2.5, 0xE0), (5, 0xC0), (9, 0x80), (10, 0x00)):
        np.testing.assert_array_equal(changed(noise, "Posterize", level), noise & kept)


def test_solarize(noise):
    for level, threshold in ((0, 256), (5, 128), (9, 26), (10, 0)):
        np.testing.assert_array_equal(
            changed(noise, "Solarize", level), np.where(noise < threshold, noise, 255 - noise)
        )


def test_solarize_add(noise):
    for level, added in ((0, 0), (5, 55), (9, 99), (10, 110)):
        np.testing.assert_array_equal(
            changed(noise, "SolarizeAdd", level), np.where(noise < 128, noise + added, noise)
        )


def test_invert(noise):
    np.testing.assert_array_equal(changed(noise, "Invert", 3), 255 - noise)


def test_auto_contrast_stretches_each_channel(noise):
    pixels = noise // 4 + np.uint8([10, 80, 150])
    low, high = pixels.min(axis=(0, 1)), pixels.max(axis=(0, 1))
    expected = (pixels - low) * 255.0 / (high - low)
    assert np.abs(changed(pixels, "AutoContrast", 9) - expected).max() <= 1  # PIL cuts the fraction off


def test_equalize_flattens_the_histogram():
    pixels = np.repeat(np.uint8([10, 11, 12, 13]), 2040).reshape(68, 120)
    # Four values with as many pixels each become evenly spaced.
    np.testing.assert_array_equal(
        changed(pixels, "Equalize", 9, (117,)), np.uint8([0, 85, 170, 255])[pixels - 10]
    )


def test_brightness_color_contrast(noise):
    for level, factor in ((10, 1.9), (-10, 0.1), (5, 1.45), (-2, 0.82)):
        grey = np.rint(noise @ [0.299, 0.587, 0.114])[..., None]
        for name, unchanged in (("Brightness", 0), ("Color", grey), ("Contrast", np.rint(grey.mean()))):
            expected = np.clip(unchanged + factor * (noise - unchanged), 0, 255)
            difference = np.abs(changed(noise, name, level) - expected)
            assert difference.max() <= 2, name  # PIL cuts fractions off and rounds the grey by itself


def test_sharpness(noise):
    for level, factor in ((9, 1.81), (-9, 0.19)):
        pixels = noise.astype(float)
        around = sum(np.roll(pixels, (y, x), (0, 1)) for y in (-1, 0, 1) for x in (-1, 0, 1))
        smooth = (around + 4 * pixels) / 13
        expected = np.clip(smooth + factor * (pixels - smooth), 0, 255)
        assert np.abs(changed(noise, "Sharpness", level) - expected)[1:-1, 1:-1].max() <= 2


def test_translate_moves_by_part_of_the_side_and_fills(noise):
    # 0.45 * level / 10 of 40 columns or 30 rows
    moved = changed(noise, "TranslateX", 5)  # 9 columns to the left
    np.testing.assert_array_equal(moved[:, :31], noise[:, 9:])
    assert (moved[:, 31:] == [124, 116, 104]).all()
    moved = changed(noise, "TranslateX", -10)  # 18 columns to the right
    np.testing.assert_array_equal(moved[:, 18:], noise[:, :22])
    moved = changed(noise, "TranslateY", 20 / 13.5 * 4.5)  # 9 rows up
    np.testing.assert_array_equal(moved[:21], noise[9:])
    assert (moved[21:] == [124, 116, 104]).all()


def ramp(name, level, a, b):
    """Apply `name` to the plane 128 + a x + b y with its centre at (0, 0), [60, 80], x and y [60, 80]."""
    y, x = np.mgrid[-29.5:30, -39.5:40]
    plane = np.rint(128 + a * x + b * y).astype(np.uint8)
    return changed(plane, name, level, (117,)), x, y


# Cubic interpolation keeps a plane, so that each value says where its pixel came from.


def test_shear():
    for level, factor in ((10, 0.3), (-5, -0.15)):
        sheared, x, y = ramp("ShearX", level, 1.5, 0)
        source = x + factor * (y + 30)  # distance from the upper edge
        inside = np.abs(source) < 36
        assert np.abs(sheared - (128 + 1.5 * source))[inside].max() <= 1.5 and inside.mean() > 0.7
        sheared, x, y = ramp("ShearY", level, 0, 1.5)
        source = y + factor * (x + 40)  # distance from the left edge
        inside = np.abs(source) < 26
        assert np.abs(sheared - (128 + 1.5 * source))[inside].max() <= 1.5 and inside.mean() > 0.6


def test_rotate_turns_counter_clockwise_about_the_centre():
    for level, degrees in ((10, 30), (-5, -15)):
        rotated, x, y = ramp("Rotate", level, 1.5, 0.4)
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        # y points down: clockwise back to the source
        source_x, source_y = cos * x - sin * y, sin * x + cos * y
        inside = (np.abs(source_x) < 36) & (np.abs(source_y) < 26)
        assert (
            np.abs(rotated - (128 + 1.5 * source_x + 0.4 * source_y))[inside].max() <= 1.5
            and inside.mean() > 0.6
        )
        assert (changed(np.full((20, 20, 3), 255, np.uint8), "Rotate", 10)[0, 0] == IMAGENET_FILL).all()


def test_geometric_operations_interpolate_with_a_cubic():
    # A vertical edge moved by half a column. The weights of PIL's cubic (a = -1) at a half: -1/8, 5/8, 5/8,
    # -1/8.
    pixels = np.zeros((4, 8), np.uint8)
    pixels[:, 4:] = 160
    moved = changed(pixels, "TranslateX", 0.5 / 8 / 0.45 * 10, (117,))
    np.testing.assert_array_equal(moved[1, 1:6], [0, 0, 80, 180, 160])  # -20 is cut off to 0


def test_alpha_is_moved_but_not_recolored():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (20, 40, 4)).astype(np.uint8)
    for name in NAMES - {"Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"}:
        result = changed(pixels, name, 9)
        np.testing.assert_array_equal(result[..., 3], pixels[..., 3])
        np.testing.assert_array_equal(result[..., :3], changed(pixels[..., :3], name, 9), err_msg=name)
    moved = changed(pixels, "TranslateX", 5, (124, 116, 104, 128))
    np.testing.assert_array_equal(moved[:, :31, 3], pixels[:, 9:, 3])
    assert np.abs(moved[:, 31:].astype(int) - [124, 116, 104, 128]).max() <= 1


def test_draws_from_all_15_operations_with_replacement():
    augment = RandAugment.parse("rand-m9-n4-mstd0.5-inc1")
    rng = np.random.default_rng(0)
    drawn = [augment.draw(rng) for _ in range(6000)]
    counts = Counter(name for operations in drawn for name, _ in operations)
    assert set(counts) == NAMES
    # 24,000 draws: 1,600 of each operation, applied half of the time; standard deviation 28
    assert all(abs(count - 800) < 120 for count in counts.values())
    lengths = np.bincount([len(operations) for operations in drawn], minlength=5) / 6000
    np.testing.assert_allclose(lengths, [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16], atol=0.03)
    twice = np.mean(
        [len({name for name, _ in operations}) < 2 for operations in drawn if len(operations) == 2]
    )
    assert abs(twice - 1 / 15) < 0.03


def test_levels_are_normal_clipped_and_signed_for_two_directions():
    augment = RandAugment.parse("rand-m9-mstd0.5-inc1")
    rng = np.random.default_rng(0)
    drawn = [operation for _ in range(10000) for operation in augment.draw(rng)]
    levels = np.abs([level for _, level in drawn])
    assert levels.max() == 10 and abs(np.mean(levels == 10) - 0.0228) < 0.006  # P(N(9, 0.5) > 10)
    assert abs(np.median(levels) - 9) < 0.03
    assert abs(np.percentile(levels, 84.13) - 9.5) < 0.03 and abs(np.percentile(levels, 15.87) - 8.5) < 0.03
    negative = Counter(name for name, level in drawn if level < 0)
    total = Counter(name for name, _ in drawn)
    assert set(negative) == SIGNED
    assert all(abs(negative[name] / total[name] - 0.5) < 0.1 for name in SIGNED)


def test_levels_are_clipped_at_zero():
    augment = RandAugment.parse("rand-m0-mstd1-inc1")
    rng = np.random.default_rng(0)
    levels = [level for _ in range(300) for name, level in augment.draw(rng) if name not in SIGNED]
    assert min(levels) == 0 < max(levels)


def test_applies_the_drawn_operations_in_order(noise):
    augment = RandAugment(9)
    augment.draw = lambda rng: [("SolarizeAdd", 10), ("Invert", 9)]
    expected = 255 - np.where(noise < 128, noise + 110, noise)
    np.testing.assert_array_equal(np.asarray(augment(Image.fromarray(noise), None)), expected)


NOTATIONS = [
    ("rand-m9-mstd0.5-inc1", 9, 0.5, 2, True, False),
    ("rand-inc1-n3", 10, 0, 3, True, False),
    ("rand-m5-mstd.25-inc0", 5, 0.25, 2, True, False),
    ("rand-m9-mstd0.5", 9, 0.5, 2, False, False),
    ("rand-mstd1-w0", 10, 1, 2, False, True),
    ("rand", 10, 0, 2, False, False),
]


def test_parse():
    for text, magnitude, std, num_ops, increasing, weighted in NOTATIONS:
        augment = RandAugment.parse(text, fill=(1, 2, 3))
        assert (augment.magnitude, augment.magnitude_std, augment.num_ops) == (magnitude, std, num_ops)
        assert augment.fill == (1, 2, 3) and augment.weighted is weighted
        assert (augment.magnitudes["Solarize"](2.5) == 192) is increasing


UNSUPPORTED = [
    ("rand-m9-x3-inc1", "'x3'"),
    ("rand-m9-w1-inc1", "'w1'"),
    ("rand-m9-inc", "'inc'"),
    ("rand-m11-inc1", "11"),
    ("rand-m9-m5-inc1", "twice"),
    ("rand-m9.5-inc1", "'m9.5'"),
    ("rand-w0-n14", "13 operations"),
]


def test_parse_refuses_what_is_not_supported():
    for text, part in UNSUPPORTED:
        with pytest.raises(ValueError, match=f"--aa.*{part}"):
            RandAugment.parse(text)


def test_weighted_operations_come_once():
    """No operation is drawn twice; without inc only geometric operations have a direction."""
    augment = RandAugment.parse("rand-m9-n13-w0")
    rng = np.random.default_rng(0)
    drawn = [augment.draw(rng) for _ in range(200)]
    assert all(len({name for name, _ in operations}) == len(operations) for operations in drawn)
    names = {name for operations in drawn for name, _ in operations}
    assert names == NAMES - {"Posterize", "Invert"}
    assert {name for operations in drawn for name, level in operations if level < 0} == {
        "Rotate",
        "ShearX",
        "ShearY",
        "TranslateX",
        "TranslateY",
    }
    single = RandAugment.parse("rand-m9-n1-w0")
    counts = Counter(name for _ in range(8000) for name, _ in single.draw(rng))
    total = sum(counts.values())
    # timm 0.3.2's weights: 0.3 Rotate, 0.2 each shear, 0.1 each translation, 0.025 Color; three standard
    # deviations
    for name, weight in (
        ("Rotate", 0.3),
        ("ShearX", 0.2),
        ("ShearY", 0.2),
        ("TranslateX", 0.1),
        ("Color", 0.025),
    ):
        assert abs(counts[name] / total - weight) < 3 * (weight * (1 - weight) / total) ** 0.5, name
