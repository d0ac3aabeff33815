"""Features against the numpy transformer, whatever the batch."""

import numpy as np
import paddle
import pytest
from numpy_transformer import block, embed_patches, layer_norm, weights_of
from processor import assert_same_in_any_batch

from util.compute import operations
from util.look.encoder_features import extract_features, norm_of, shapes

pytestmark = [pytest.mark.isa, pytest.mark.usefixtures("library")]


def numpy_tokens(image, w, blocks):
    """[1 + L, D] behind the first `blocks` of the model of `make_vit`."""
    x = np.concatenate([w["cls_token"][0], embed_patches(image, w, 4)]) + w["pos_embed"][0]
    for i in range(blocks):
        x = block(x, w, f"blocks.{i}", heads=2)
    return x


@pytest.mark.parametrize("global_pool, number", [(False, None), (True, None), (False, 2)])
def test_features_are_the_numpy_ones(make_vit, scramble, images, global_pool, number):
    model = scramble(make_vit(global_pool=global_pool, depth=3))
    model.eval()
    w, expected = weights_of(model), {"cls": [], "mean": [], "tokens": []}
    for image in images.numpy().astype("float64"):
        x = numpy_tokens(image, w, number or 3)
        if number is None and not global_pool:
            x = layer_norm(x, w, "norm")
        expected["cls"].append(x[0])
        expected["tokens"].append(x[1:])
        mean = x[1:].mean(axis=0)
        expected["mean"].append(layer_norm(mean, w, "fc_norm") if number is None and global_pool else mean)
    found = extract_features(model, images, ["tokens", "cls", "mean"], block=number)
    for kind, values in found.items():
        np.testing.assert_allclose(values.numpy(), expected[kind], atol=2e-5, err_msg=kind)
        assert tuple(values.shape[1:]) == shapes(model, [kind])[kind]


def test_what_is_classified_are_these_features(make_vit, scramble, images):
    for global_pool, kind in ((False, "cls"), (True, "mean")):
        model = scramble(make_vit(global_pool=global_pool))
        np.testing.assert_allclose(
            extract_features(model, images, [kind])[kind].numpy(),
            model.forward_features(images).numpy(),
            atol=1e-6,
        )


def test_blocks_that_the_model_does_not_have(make_vit, images):
    for number in (0, 3):
        with pytest.raises(ValueError, match=f"--block {number}: the model has blocks 1 to 2"):
            extract_features(make_vit(), images, ["cls"], block=number)


def test_which_norm_they_have_passed(make_vit):
    assert [norm_of(make_vit()), norm_of(make_vit(global_pool=True)), norm_of(make_vit(), 2)] == [
        "norm",
        "fc_norm",
        "none",
    ]


def test_they_do_not_depend_on_the_batch(make_vit, scramble):
    """Paddle 3.3 on oneDNN with AVX-512: not in a single bit. Others may round otherwise for other sizes."""
    model = scramble(make_vit(img_size=16, embed_dim=24, num_heads=3))
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal([13, 3, 16, 16]).astype("float32"))
    with operations.packed(model, "float32")():
        whole = extract_features(model, images, ["mean", "cls", "tokens"])
        for size in (1, 4, 7):
            parts = [
                extract_features(model, images[start : start + size], ["mean", "cls", "tokens"])
                for start in range(0, 13, size)
            ]
            for kind, values in whole.items():
                joined = np.concatenate([part[kind].numpy() for part in parts])
                assert_same_in_any_batch(joined, values.numpy(), f"{kind} in batches of {size}")
