"""Pictures of a reconstruction, pixel by pixel."""

import numpy as np
import paddle
import pytest

from util.look.reconstruction import STATISTICS, from_visible, panel, pictures, predict, reconstruct, rows

# With patches of 4 pixels, two in a row: patches 0, 1 and 4 of the first image stay, 2, 3 and 5 of the
# second.
NOISE = np.array([[0.3, 0.2, 0.9, 0.5, 0.1, 0.8], [0.7, 0.6, 0.0, 0.4, 0.5, 0.3]], "float32")
VISIBLE = [{0, 1, 4}, {2, 3, 5}]


def patch(picture, number):
    """[C, 4, 4], a view."""
    row, column = divmod(number, 2)
    return picture[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_reconstruction(make_mae, scramble, images, norm_pix_loss):
    model = scramble(make_mae(norm_pix_loss=norm_pix_loss))
    noise = paddle.to_tensor(NOISE)
    pred = model(images, 0.5, noise)[1].numpy()
    found = reconstruct(model, images, noise, 3)
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
            if visible:
                np.testing.assert_array_equal(patch(found["pasted"][image], number), true)
            else:
                np.testing.assert_allclose(patch(found["pasted"][image], number), shown, atol=1e-5)


def test_the_loss_of_each_image(make_mae, scramble, images):
    model = scramble(make_mae(norm_pix_loss=True))
    _, _, losses = predict(model, images, paddle.to_tensor(NOISE), 3)
    for image in (0, 1):
        alone = model(images[image : image + 1], 0.5, paddle.to_tensor(NOISE[image : image + 1]))[0].item()
        assert losses[image] == pytest.approx(alone, rel=1e-5)


def test_statistics_of_visible_patches_tell_nothing_of_the_hidden_ones(make_mae, scramble, images):
    model = scramble(make_mae(norm_pix_loss=True))
    pred, mask, _ = predict(model, images, paddle.to_tensor(NOISE), 3)
    other = images.numpy().copy()
    for image in (0, 1):
        for number in set(range(6)) - VISIBLE[image]:
            patch(other[image], number)[:] = (
                7 * patch(other[image], number) - 3
            )  # the hidden ones, and only they
    seen, changed = (
        pictures(model, paddle.to_tensor(one), pred, mask, "visible") for one in (images.numpy(), other)
    )
    np.testing.assert_array_equal(changed["pasted"], seen["pasted"])
    leaking = pictures(model, paddle.to_tensor(other), pred, mask, "true")
    assert abs(leaking["pasted"] - seen["pasted"]).max() > 1
    # Visible patches have their own statistics in both.
    true = pictures(model, images, pred, mask, "true")
    np.testing.assert_allclose(
        patch(seen["reconstruction"][0], 4), patch(true["reconstruction"][0], 4), atol=1e-6
    )


def test_interpolation_by_hand():
    # A row of four: the second is 1 from the first and 2 from the last visible one, so their weights are 16 :
    # 1.
    found = from_visible(np.array([[3.0, 99, 99, 20]]), np.array([[0.0, 1, 1, 0]]), (1, 4))
    np.testing.assert_allclose(found, [[3, (16 * 3 + 20) / 17, (3 + 16 * 20) / 17, 20]])
    # In a square the diagonal is the root of two away.
    found = from_visible(np.array([[1.0, 0, 0, 5]]), np.array([[0.0, 1, 1, 0]]), (2, 2))
    np.testing.assert_allclose(found, [[1, 3, 3, 5]])
    found = from_visible(np.array([[2.0, 4, 0, 0]]), np.array([[0.0, 0, 1, 1]]), (2, 2))
    np.testing.assert_allclose(found, [[2, 4, (2 + 4 / 4) / 1.25, (4 + 2 / 4) / 1.25]])


def test_flat_patches_are_brought_back_to_their_colour(make_mae, scramble):
    model = scramble(make_mae(norm_pix_loss=True))
    for statistics in STATISTICS:
        found = reconstruct(
            model, paddle.full([1, 3, 12, 8], 0.25), paddle.to_tensor(NOISE[:1]), 3, statistics
        )
        # The spread of a flat patch is the root of the epsilon, 0.001.
        assert 0 < abs(found["reconstruction"] - 0.25).max() < 0.01


def picture_in(image, place, height, width, scale, top):
    """The picture at a place of a row, at its own size, as [height, width, 3]."""
    left = 8 + place * (width * scale + 8)
    cut = np.asarray(image)[top : top + height * scale, left : left + width * scale]
    assert (cut == cut[::scale, ::scale].repeat(scale, axis=0).repeat(scale, axis=1)).all()
    return cut[::scale, ::scale]


@pytest.mark.parametrize("norm_pix_loss, top", [(False, 48), (True, 74)], ids=["", "with a heading"])
def test_the_panel_shows_original_masked_reconstruction_both_and_the_error(norm_pix_loss, top):
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.25, 0.5])
    rng = np.random.default_rng(0)
    drawn = {name: rng.integers(0, 256, [12, 8, 3]) for name in ("original", "reconstruction")}
    hidden = np.zeros([12, 8, 1], bool)
    hidden[4:8, 0:4] = True
    drawn["pasted"] = np.where(hidden, drawn["reconstruction"], drawn["original"])
    normalised = {
        name: (values.transpose([2, 0, 1]) / 255 - mean[:, None, None]) / std[:, None, None]
        for name, values in drawn.items()
    }
    mask = hidden.transpose(2, 0, 1).repeat(3, axis=0).astype("float32")
    image = panel(
        normalised.pop("original"),
        {**normalised, "mask": mask},
        mean=mean,
        std=std,
        norm_pix_loss=norm_pix_loss,
    )
    scale = 28  # magnified until the shorter side has 224 pixels
    assert image.size == (5 * (8 * scale + 8) + 8, 12 * scale + top + 8)
    masked = np.where(hidden, 128, drawn["original"])
    for place, expected in enumerate([drawn["original"], masked, drawn["reconstruction"], drawn["pasted"]]):
        np.testing.assert_array_equal(picture_in(image, place, 12, 8, scale, top), expected)
    error = picture_in(image, 4, 12, 8, scale, top)
    assert (error[~hidden[..., 0]] == error[0, 0]).all() and error[
        0, 0
    ].sum() < 10  # black: nothing to be wrong about
    # Brighter where the pixels differ more, up to half of the range.
    true = abs(drawn["reconstruction"] - drawn["original"]).mean(axis=2)[4:8, 0:4].flatten()
    shown = error[4:8, 0:4].reshape([-1, 3]).astype(int).sum(axis=1)
    order = np.argsort(true)
    assert (np.diff(shown[order]) >= 0).all() and len(set(shown[order])) > 8


def test_rows_of_a_model(make_mae, scramble, images):
    mean, std = [0.5] * 3, [0.5] * 3
    plain, numbers = rows(scramble(make_mae()), images[0].numpy(), NOISE[0], 3, "both", mean=mean, std=std)
    assert [heading for heading, _ in plain] == [f"loss {numbers['loss']:.3f}"]
    assert numbers["mask"].tolist() == [[0, 0], [1, 1], [0, 1]] and numbers["prediction"].shape == (6, 48)
    model = scramble(make_mae(norm_pix_loss=True))
    for asked, kinds in (("both", ["true", "visible"]), ("visible", ["visible"])):
        drawn, _ = rows(model, images[0].numpy(), NOISE[0], 3, asked, mean=mean, std=std)
        assert [heading.partition("; ")[2] for heading, _ in drawn] == [STATISTICS[kind] for kind in kinds]
        for (_, cells), kind in zip(drawn, kinds):
            found = reconstruct(model, images[:1], paddle.to_tensor(NOISE[:1]), 3, kind)["reconstruction"][0]
            np.testing.assert_allclose(cells[2][2], (found * 0.5 + 0.5).clip(0, 1), atol=1e-6)
            assert [title for title, _, _ in cells] == [
                "original",
                "masked",
                "reconstruction",
                "reconstruction + visible",
                "error",
            ]
