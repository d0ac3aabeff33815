"""Pictures of a reconstruction, pixel by pixel."""
import numpy as np
import paddle
import pytest

from util.visualize import panel, reconstruct, side_by_side, to_image

# With patches of 4 pixels, two in a row: patches 0, 1 and 4 of the first image stay, 2, 3 and 5 of the second.
NOISE = np.array([[0.3, 0.2, 0.9, 0.5, 0.1, 0.8], [0.7, 0.6, 0.0, 0.4, 0.5, 0.3]], "float32")
VISIBLE = [{0, 1, 4}, {2, 3, 5}]


def patch(picture, number):
    """[C, 4, 4], a view."""
    row, column = divmod(number, 2)
    return picture[:, 4 * row:4 * row + 4, 4 * column:4 * column + 4]


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_reconstruction(make_mae, scramble, images, norm_pix_loss):
    model = scramble(make_mae(norm_pix_loss=norm_pix_loss))
    noise = paddle.to_tensor(NOISE)
    pred = model(images, 0.5, noise)[1].numpy()
    found = reconstruct(model, images, noise, 0.5)
    assert found.keys() == {"mask", "reconstruction", "pasted"}
    for image in (0, 1):
        pixels = images[image].numpy()
        for number in range(6):
            true = patch(pixels, number)
            shown = pred[image, number].reshape([4, 4, 3]).transpose([2, 0, 1])
            if norm_pix_loss:
                shown = shown * np.sqrt(true.var(ddof=1) + 1e-6) + true.mean()
            visible = number in VISIBLE[image]
            np.testing.assert_array_equal(patch(found["mask"][image], number), 0.0 if visible else 1.0)
            np.testing.assert_allclose(patch(found["reconstruction"][image], number), shown, atol=1e-5)
            np.testing.assert_allclose(patch(found["pasted"][image], number), true if visible else shown, atol=1e-5)


def test_flat_patches_are_brought_back_to_their_colour(make_mae, scramble):
    model = scramble(make_mae(norm_pix_loss=True))
    found = reconstruct(model, paddle.full([1, 3, 12, 8], 0.25), paddle.to_tensor(NOISE[:1]), 0.5)
    # The spread of a flat patch is the root of the epsilon, 0.001.
    assert 0 < abs(found["reconstruction"] - 0.25).max() < 0.01


def picture_in(image, place, height, width, scale):
    """The picture at a place of a row, at its own size, as [height, width, 3]."""
    left = 8 + place * (width * scale + 8)
    cut = np.asarray(image)[40:40 + height * scale, left:left + width * scale]
    assert (cut == cut[::scale, ::scale].repeat(scale, axis=0).repeat(scale, axis=1)).all()
    return cut[::scale, ::scale]


def test_the_panel_shows_original_masked_reconstruction_and_both():
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.5])
    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 256, [12, 8, 3]) for name in ("original", "reconstruction", "pasted")}
    normalised = {name: (values.transpose([2, 0, 1]) / 255 - mean[:, None, None]) / std[:, None, None]
                  for name, values in pictures.items()}
    mask = np.zeros([3, 12, 8])
    mask[:, 4:8, 0:4] = 1
    image = panel(normalised.pop("original"), {**normalised, "mask": mask}, mean=mean, std=std, norm_pix_loss=False)
    scale = 28  # magnified until the shorter side has 224 pixels
    assert image.size == (4 * (8 * scale + 8) + 8, 12 * scale + 48)
    masked = pictures["original"].copy()
    masked[4:8, 0:4] = 128
    for place, expected in enumerate([pictures["original"], masked, pictures["reconstruction"], pictures["pasted"]]):
        np.testing.assert_array_equal(picture_in(image, place, 12, 8, scale), expected)


def test_the_panel_says_when_the_true_spread_was_used():
    image, mask = np.zeros([1, 8, 8]), np.zeros([1, 8, 8])
    pictures = {"mask": mask, "reconstruction": image, "pasted": image}
    plain, told = (np.asarray(panel(image, pictures, mean=[0.5], std=[1], norm_pix_loss=norm_pix_loss))
                   for norm_pix_loss in (False, True))
    differ = np.argwhere((plain != told).any(axis=2))
    assert (plain[20:40, 2 * 232 + 8:] == 255).all()
    assert len(differ) and differ[:, 0].min() >= 20 and differ[:, 0].max() < 40  # in the second line of the title
    assert (differ[:, 1] > 2 * 232).all()  # of the third and fourth picture


def test_values_outside_of_a_picture_are_cut_off():
    image = np.array([[[-9.0, 9.0]]])
    found = panel(image, {"mask": image * 0, "reconstruction": image, "pasted": image}, mean=[0.5], std=[0.25],
                  norm_pix_loss=True)
    assert picture_in(found, 0, 1, 2, 224).tolist() == [[[0, 0, 0], [255, 255, 255]]]


def test_large_pictures_keep_their_size():
    assert side_by_side([("a", "", np.zeros([3, 300, 250]))]).size == (250 + 16, 300 + 48)


@pytest.mark.parametrize("in_chans, expected", [(1, [0, 0, 0]), (3, [0, 51, 102]), (4, [0, 51, 102])])
def test_channels_of_a_picture(in_chans, expected):
    values = np.arange(in_chans).reshape([in_chans, 1, 1]) * np.full([1, 2, 3], 0.2)
    image = to_image(values)
    assert image.mode == "RGB" and image.size == (3, 2)
    assert (np.asarray(image) == expected).all()
