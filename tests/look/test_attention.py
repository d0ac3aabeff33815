"""Attention maps against the plain numpy transformer, rollout and entropy by hand."""

import math

import numpy as np
import pytest
from numpy_transformer import attention_weights, block, embed_patches, layer_norm, weights_of

from util.look.attention import attention_maps, entropy, rollout

pytestmark = pytest.mark.isa


@pytest.mark.parametrize("autoencoder", [False, True])
def test_maps_of_every_block_and_head(make_mae, make_vit, scramble, images, library, autoencoder):
    model = scramble(make_mae() if autoencoder else make_vit())
    w = weights_of(model)
    maps = list(attention_maps(model, images))
    assert [found.shape for found in maps] == [(2, 2, 7, 7)] * 2
    for image in (0, 1):
        tokens = (
            np.concatenate([w["cls_token"][0], embed_patches(images[image].numpy(), w, 4)])
            + w["pos_embed"][0]
        )
        for number, found in enumerate(maps):
            name = f"blocks.{number}"
            expected = attention_weights(layer_norm(tokens, w, f"{name}.norm1"), w, f"{name}.attn", heads=2)
            np.testing.assert_allclose(found[image], expected, atol=1e-5)
            np.testing.assert_allclose(found[image].sum(axis=-1), 1, atol=1e-6)
            tokens = block(tokens, w, name, heads=2)


def test_looking_changes_nothing(make_vit, scramble, images):
    model = scramble(make_vit())
    model.eval()
    before = model(images).numpy()
    list(attention_maps(model, images))
    np.testing.assert_array_equal(model(images).numpy(), before)


def test_rollout_by_hand():
    # One head takes all from token 0, the other each from itself: their mean, half of it and half of the
    # residual.
    first = np.array([[[1.0, 0], [1, 0]], [[1, 0], [0, 1]]])[None]
    second = np.array([[[0.5, 0.5], [0, 1]], [[0.5, 0.5], [0, 1]]])[None]
    np.testing.assert_allclose(rollout([first]), [[[1, 0], [0.25, 0.75]]])
    # second is [[3/4, 1/4], [0, 1]]; from the last block's tokens back to the image's
    np.testing.assert_allclose(rollout([first, second]), [[[13 / 16, 3 / 16], [1 / 4, 3 / 4]]])
    rows = np.random.default_rng(0).dirichlet(np.ones(5), [3, 2, 4, 5])
    np.testing.assert_allclose(rollout(list(rows)).sum(axis=-1), 1)


def test_entropy_by_hand():
    rows = np.array([[1, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0]], "float32")
    np.testing.assert_allclose(entropy(rows), [0, math.log(4), math.log(2)], atol=1e-6)
