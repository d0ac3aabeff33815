"""Sheets and colours."""

import numpy as np
import pytest

from util.look.figures import enlarge, heat, sheet, spotlight, stack, to_image, to_pixels


def test_every_picture_has_its_place():
    rng = np.random.default_rng(0)
    first, second, third = (rng.integers(0, 256, [3, 2, 3]) for _ in range(3))
    image = np.asarray(
        sheet(
            [("", [("", "", first / 255), ("", "", second / 255)]), ("", [("", "", third / 255)])],
            least_side=6,
        )
    )
    assert image.shape == (8 + 2 * (6 + 8), 8 + 2 * (9 + 8), 3)
    for (top, left), expected in (((8, 8), first), ((8, 25), second), ((22, 8), third)):
        np.testing.assert_array_equal(
            image[top : top + 6 : 3, left : left + 9 : 3], expected.transpose(1, 2, 0)
        )
    assert (image[22:28, 25:34] == 255).all()  # no fourth one


def test_text_takes_room_only_where_there_is_any():
    picture = np.zeros([1, 10, 10])
    for row, lines in (
        (("", [("", "", picture)]), 0),
        (("a", [("", "", picture)]), 26),
        (("", [("a", "", picture)]), 22),
        (("a", [("a", "a", picture)]), 66),
    ):
        image = sheet([row], least_side=10)
        assert image.size == (26, 26 + lines)
        assert (np.asarray(image)[8 : 8 + lines] < 128).any() == bool(lines)
    assert sheet([("a heading alone", []), ("", [("", "", picture)])], least_side=10).height == 26 + 26


def test_large_pictures_keep_their_size():
    assert sheet([("", [("a", "", np.zeros([3, 300, 250]))])]).size == (250 + 16, 300 + 16 + 22)


def test_stacked_sheets():
    image = np.asarray(stack([to_image(np.zeros([3, 2, 3])), to_image(np.full([3, 4, 5], 0.2))]))
    assert image.shape == (6, 5, 3)
    assert (image[:2, :3] == 0).all() and (image[:2, 3:] == 255).all() and (image[2:] == 51).all()


@pytest.mark.parametrize("in_chans, expected", [(1, [0, 0, 0]), (3, [0, 51, 102]), (4, [0, 51, 102])])
def test_channels_of_a_picture(in_chans, expected):
    values = np.arange(in_chans).reshape([in_chans, 1, 1]) * np.full([1, 2, 3], 0.2)
    image = to_image(values)
    assert image.mode == "RGB" and image.size == (3, 2)
    assert (np.asarray(image) == expected).all()


def test_pixels_are_brought_back_and_cut_off():
    values = np.array([[[-9.0, 0.0, 9.0]], [[0.5, 1.0, -0.5]]])
    found = to_pixels(values, mean=[0.5, 0.2], std=[0.25, 0.4])
    np.testing.assert_allclose(found, [[[0, 0.5, 1]], [[0.4, 0.6, 0]]])


def test_heat_rises_from_black():
    shown = heat(np.array([[0.0, 1.0, 2.0, 4.0]])).transpose(1, 2, 0)[0]
    assert shown[0].max() < 0.02 and (np.diff(shown.sum(axis=1)) > 0.3).all() and shown[3].sum() > 2.5
    np.testing.assert_array_equal(heat(np.array([[1.0]]), 4.0)[:, 0, 0], shown[1])  # a quarter of the largest
    assert heat(np.zeros([2, 2])).max() < 0.02


def test_a_value_a_patch():
    np.testing.assert_array_equal(
        enlarge(np.array([[1, 2], [3, 4]]), (4, 6)), [[1, 1, 1, 2, 2, 2]] * 2 + [[3, 3, 3, 4, 4, 4]] * 2
    )
    lit = spotlight(np.full([1, 2, 4], 0.8), np.array([[0.1, 0.4]]))
    np.testing.assert_allclose(lit, [[[0.2, 0.2, 0.8, 0.8]] * 2])
