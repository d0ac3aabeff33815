"""Principal components of patches: found among pictures, predicted, and turned into pixels again."""

import numpy as np
import paddle
import pytest
from numpy_transformer import patches_of

from util.data import pca_target
from util.data.loaders import Samples
from util.images.decode import UnreadableImage
from util.images.normalize import Normalize
from util.look import reconstruction

NORMALIZE = Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])


class Pictures:
    """A source of random uint8 [3, 12, 8] whose patches vary in some directions more than in others."""

    labels = None

    def __init__(self, count, *, broken=()):
        rng = np.random.default_rng(5)
        base = rng.integers(0, 200, [1, 3, 12, 8]) + 20 * rng.standard_normal([count, 1, 12, 1])
        self.pixels = (base + 8 * rng.standard_normal([count, 3, 12, 8])).clip(0, 255).astype("uint8")
        self.opened, self.broken = [], broken

    def __len__(self):
        return len(self.pixels)

    def open(self, index):
        self.opened.append(index)
        if index in self.broken:
            raise UnreadableImage(f"{index}.png", "truncated")
        return self.pixels[index]


class Whole:
    """A transform that draws nothing."""

    normalize = NORMALIZE

    def __call__(self, image, rng):
        return image, rng.random(6)


def flat_patches(pixels):
    """Normalised images [N, C, height, width] -> [N, L, P], row, column, channel."""
    return np.stack(
        [patches_of(image, 4).transpose(0, 2, 3, 1).reshape(6, -1) for image in pixels.astype("float64")]
    )


def test_they_are_those_of_the_singular_value_decomposition(make_mae, capsys):
    images = Pictures(40, broken=[3])
    mean, components, share = pca_target.fit(Samples(images, Whole(), seed=0), make_mae().patchify, 5)
    readable = [number for number in range(40) if number != 3]
    patches = flat_patches(NORMALIZE(images.pixels[readable])).reshape(-1, 48)
    np.testing.assert_allclose(mean, patches.mean(axis=0), atol=1e-5)
    _, values, rows = np.linalg.svd(patches - patches.mean(axis=0), full_matrices=False)
    for found, row in zip(components.T, rows[:5], strict=True):
        np.testing.assert_allclose(found, row * np.sign(row[abs(row).argmax()]), atol=2e-3)
        assert found[abs(found).argmax()] > 0
    assert share == pytest.approx((values[:5] ** 2).sum() / (values**2).sum(), rel=1e-5)
    assert "--pca_target skips an image: 3.png" in capsys.readouterr().out


def test_the_pictures_are_drawn_by_the_seed(make_mae, monkeypatch):
    monkeypatch.setattr(pca_target, "NUM_IMAGES", 6)
    opened = []
    for seed in (1, 1, 2):
        images = Pictures(30)
        pca_target.fit(Samples(images, Whole(), seed), make_mae().patchify, 2)
        opened.append(images.opened)
    assert opened[0] == opened[1] != opened[2] and len(set(opened[0])) == 6
    assert max(opened[0]) > 15  # of all of the data
    with pytest.raises(ValueError, match="--pca_target 2: none of the 4 images can be read"):
        pca_target.fit(Samples(Pictures(4, broken=range(4)), Whole(), 0), make_mae().patchify, 2)


@pytest.fixture
def model(make_mae, scramble):
    """A model that predicts 5 coefficients of orthonormal components."""
    rng = np.random.default_rng(2)
    model = scramble(make_mae(pca_target=5))
    model.pca_mean.set_value(rng.standard_normal(48).astype("float32"))
    model.pca_components.set_value(np.linalg.qr(rng.standard_normal([48, 5]))[0].astype("float32"))
    return model


@pytest.mark.parametrize("only_loss", [False, True])
def test_the_loss_is_that_of_the_coefficients_of_hidden_patches(model, images, only_loss):
    noise = np.random.default_rng(3).random([2, 6]).astype("float32")
    _, pred, mask = model(images, 0.5, paddle.to_tensor(noise))
    assert pred.shape == [2, 6, 5]
    mean, components = (
        model.pca_mean.numpy().astype("float64"),
        model.pca_components.numpy().astype("float64"),
    )
    targets = (flat_patches(images.numpy()) - mean) @ components
    errors = [
        ((pred.numpy()[image, patch] - targets[image, patch]) ** 2).mean()
        for image, patch in zip(*np.nonzero(mask.numpy()), strict=True)
    ]
    assert len(errors) == 6
    found = model(images, 0.5, paddle.to_tensor(noise), only_loss=only_loss)
    assert (found if only_loss else found[0]).item() == pytest.approx(np.mean(errors), rel=1e-5)


def test_coefficients_become_pixels_again(model, images):
    """Those of the image itself give its patches, less what lies beside the components."""
    patches = flat_patches(images.numpy())
    mean, components = model.pca_mean.numpy(), model.pca_components.numpy()
    coefficients = ((patches - mean) @ components).astype("float32")
    mask = np.tile([1.0, 0, 1, 1, 0, 1], [2, 1]).astype("float32")
    drawn = reconstruction.pictures(model, images, coefficients, mask)
    residual = flat_patches(images.numpy() - drawn["reconstruction"])
    np.testing.assert_allclose(residual @ components, 0, atol=1e-4)
    rebuilt = flat_patches(drawn["reconstruction"]) - mean
    np.testing.assert_allclose(rebuilt, rebuilt @ components @ components.T, atol=1e-4)
    np.testing.assert_array_equal(flat_patches(drawn["pasted"])[:, 1], patches[:, 1])


def test_only_the_positions_and_the_components_are_fixed(model):
    assert {name for name, p in model.named_parameters() if p.stop_gradient} == {
        "pos_embed",
        "decoder_pos_embed",
        "pca_mean",
        "pca_components",
    }
