"""The classifier: values, initial values, published sizes, shared names, linear probe."""

import math

import numpy as np
import paddle
import pytest
from numpy_transformer import block, embed_patches, layer_norm, linear, weights_of

import models_mae
import models_vit

pytestmark = [pytest.mark.isa, pytest.mark.usefixtures("library")]


def numpy_features(image, w, global_pool):
    """Return the features [D] of the model of `make_vit`."""
    x = np.concatenate([w["cls_token"][0], embed_patches(image, w, 4)]) + w["pos_embed"][0]
    for i in range(2):
        x = block(x, w, f"blocks.{i}", heads=2)
    return layer_norm(x[1:].mean(axis=0), w, "fc_norm") if global_pool else layer_norm(x[0], w, "norm")


@pytest.mark.parametrize("global_pool", [False, True])
def test_logits_are_the_numpy_ones(make_vit, scramble, images, global_pool):
    model = scramble(make_vit(global_pool=global_pool))
    w = weights_of(model)
    expected = [
        linear(numpy_features(image, w, global_pool), w, "head") for image in images.numpy().astype("float64")
    ]
    np.testing.assert_allclose(model(images).numpy(), expected, atol=2e-5)


@pytest.mark.parametrize(
    "global_pool, present, absent", [(False, "norm", "fc_norm"), (True, "fc_norm", "norm")]
)
def test_only_the_norm_of_the_chosen_pooling_exists(make_vit, global_pool, present, absent):
    names = make_vit(global_pool=global_pool).state_dict()
    assert f"{present}.weight" in names and f"{absent}.weight" not in names


def test_drop_path_grows_linearly_from_0(make_vit):
    rates = [b.drop_path.drop_prob for b in make_vit(depth=5, drop_path_rate=0.2).blocks]
    np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.15, 0.2])


def test_drop_path_acts_in_training_only(make_vit, scramble, images):
    model = scramble(make_vit(drop_path_rate=0.5))
    x = images[:1].expand([32, -1, -1, -1])
    assert len(np.unique(model(x).numpy().round(4), axis=0)) > 1
    model.eval()
    assert len(np.unique(model(x).numpy().round(4), axis=0)) == 1


def test_initial_values(make_vit):
    model = make_vit(img_size=64, patch_size=16, embed_dim=256, num_classes=100)
    p = dict(model.named_parameters())
    for name in ("patch_embed.proj.weight", "patch_embed.proj.bias"):  # as PyTorch starts a convolution
        values, bound = p.pop(name).numpy(), 1 / math.sqrt(768)
        assert 0.97 * bound < abs(values).max() <= bound * (1 + 1e-6)
    for name, value in p.items():
        value = value.numpy()
        if name in ("cls_token", "pos_embed") or value.ndim == 2:
            assert abs(value.std() / 0.02 - 1) < 0.12, name
            if value.size > 10000:  # not cut at two standard deviations, as some truncated normals are
                assert abs(value).max() > 0.06, name
        elif name.endswith(".weight"):
            assert "norm" in name and (value == 1).all()
        else:
            assert name.endswith(".bias") and (value == 0).all()


def test_everything_is_trained_positions_included(make_vit, scramble, images):
    model = scramble(make_vit())
    assert not [name for name, p in model.named_parameters() if p.stop_gradient]
    paddle.nn.functional.cross_entropy(model(images), paddle.to_tensor([0, 1])).backward()
    assert not [name for name, p in model.named_parameters() if not p.grad.abs().max().item()]


def test_every_normalisation_has_the_epsilon_of_the_published_models(make_vit):
    for global_pool in (False, True):
        model = make_vit(global_pool=global_pool)
        norms = [layer for layer in model.sublayers() if isinstance(layer, paddle.nn.LayerNorm)]
        assert len(norms) == 5
        for norm in norms:
            x = paddle.to_tensor([[-1e-3, 1e-3] * 4])  # variance 1e-6
            np.testing.assert_allclose(norm(x).abs().numpy(), 0.5**0.5, atol=1e-5)


def shapes(model):
    return {name: p.shape for name, p in model.state_dict().items()}


def test_every_encoder_parameter_is_one_of_the_autoencoder(make_vit, make_mae):
    encoder = {name: size for name, size in shapes(make_vit()).items() if not name.startswith("head.")}
    autoencoder = {
        name: size
        for name, size in shapes(make_mae()).items()
        if not name.startswith("decoder_") and name != "mask_token"
    }
    assert encoder == autoencoder


def test_every_size_exists_for_both_models():
    sizes = ("img_size", "patch_size", "embed_dim", "depth", "num_heads")
    for name, model in models_vit.MODELS.items():
        autoencoder = models_mae.MODELS[f"mae_{name}"]
        assert [model.keywords.get(s) for s in sizes] == [autoencoder.keywords.get(s) for s in sizes]


@pytest.mark.parametrize(
    "name, width, keys, values",
    [
        ("vit_base_patch16", 768, 152, 86_567_656),
        ("vit_large_patch16", 1024, 296, 304_326_632),
        ("vit_huge_patch14", 1280, 392, 632_045_800),
    ],
)
def test_the_published_sizes_have_the_published_parameters(name, width, keys, values):
    full = models_vit.MODELS[name]
    found = shapes(full(depth=1, global_pool=True))  # one block is built; the others are like it
    assert found.keys() - {key for key in found if key.startswith("blocks.0.")} == {
        "cls_token",
        "pos_embed",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "fc_norm.weight",
        "fc_norm.bias",
        "head.weight",
        "head.bias",
    }
    assert found["head.weight"] == [width, 1000]
    times = {key: full.keywords["depth"] if key.startswith("blocks.") else 1 for key in found}
    assert sum(times.values()) == keys
    assert sum(times[key] * math.prod(size) for key, size in found.items()) == values
    assert full.keywords["num_heads"] == {768: 12}.get(width, 16)


def test_the_official_keywords_work():
    model = models_vit.vit_base_patch16(
        img_size=32, num_classes=7, drop_path_rate=0.1, global_pool=True, depth=1
    )
    assert model(paddle.zeros([1, 3, 32, 32])).shape == [1, 7]


# ---- linear probe

# Paddle says so at every step of a BatchNorm1D that trains.
tracking = pytest.mark.filterwarnings("ignore:When training, we now always track global mean and variance")


@pytest.fixture
def probe(make_vit, scramble):
    model = scramble(make_vit())
    model.make_linear_probe()
    return model


@tracking
def test_the_probe_trains_its_linear_layer_only(probe, images):
    linear_layer = {"head.1.weight", "head.1.bias"}
    assert {name for name, p in probe.named_parameters() if not p.stop_gradient} == linear_layer
    paddle.nn.functional.cross_entropy(probe(images), paddle.to_tensor([0, 1])).backward()
    assert {name for name, p in probe.named_parameters() if p.grad is not None} == linear_layer


@tracking
def test_the_probe_normalises_its_features_without_scale_and_shift(probe):
    features = np.random.default_rng(0).standard_normal([6, 8]).astype("float32")
    features[:, 0] *= 1e-3  # variance as small as the epsilon
    normalised = (features - features.mean(axis=0)) / np.sqrt(features.var(axis=0) + 1e-6)
    expected = linear(normalised, weights_of(probe), "head.1")
    np.testing.assert_allclose(probe.head(paddle.to_tensor(features)).numpy(), expected, atol=1e-5)


def test_the_probe_evaluates_with_running_statistics(probe):
    probe.head[0]._mean.set_value(np.full([8], 2.0, "float32"))
    probe.head[0]._variance.set_value(np.full([8], 4.0, "float32"))
    probe.eval()
    features = np.random.default_rng(0).standard_normal([1, 8]).astype("float32")
    expected = linear((features - 2) / 2, weights_of(probe), "head.1")
    np.testing.assert_allclose(probe.head(paddle.to_tensor(features)).numpy(), expected, atol=1e-5)


def test_the_probes_checkpoint_has_the_official_names(probe):
    names = {name for name in probe.state_dict() if name.startswith("head.")}
    assert names == {"head.0._mean", "head.0._variance", "head.1.weight", "head.1.bias"}
