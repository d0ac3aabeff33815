"""Sizes of a model from its weights."""

import numpy as np
import pytest

import models_mae
import models_vit
from util.weights import architecture
from util.weights.name_maps import WeightNamesError


def weights_of(model):
    return {name: np.broadcast_to(np.float32(0), value.shape) for name, value in model.state_dict().items()}


def built(kind, make_mae, make_vit):
    if kind == "mae":
        return make_mae()
    if kind == "mae_of_table_1":
        return make_mae(encoder_mask_tokens=True, pca_target=7)
    if kind == "wide_mae":
        return make_mae(embed_dim=16, mlp_ratio=2.0, depth=3, decoder_depth=2, patch_size=2, in_chans=1)
    model = make_vit(global_pool=kind == "pooled", mlp_ratio=3.0)
    if kind == "linear_probe":
        model.make_linear_probe()
    return model


@pytest.mark.parametrize(
    "kind", ["mae", "mae_of_table_1", "wide_mae", "classifier", "pooled", "linear_probe"]
)
def test_the_list_is_that_of_the_model(kind, make_mae, make_vit):
    weights = weights_of(built(kind, make_mae, make_vit))
    expected = architecture.shapes(architecture.sizes(weights))
    assert expected == {name: value.shape for name, value in weights.items()}


def test_an_encoder_is_a_classifier_without_its_head(make_vit):
    weights = {name: value for name, value in weights_of(make_vit()).items() if not name.startswith("head.")}
    size = architecture.sizes(weights)
    assert size == {"patch_size": 4, "in_chans": 3, "embed_dim": 8, "depth": 2, "mlp_dim": 32, "tokens": 7}
    assert architecture.shapes(size) == {name: value.shape for name, value in weights.items()}


def test_differences_are_exact(make_mae):
    weights = weights_of(make_mae())
    expected = architecture.shapes(architecture.sizes(weights))
    del weights["decoder_blocks.0.norm1.bias"], weights["cls_token"]
    weights["fc_norm.weight"] = weights["norm.weight"]
    weights["blocks.1.attn.proj.bias"] = np.zeros(3)
    assert architecture.differences(weights, expected) == (
        ["cls_token", "decoder_blocks.0.norm1.bias"],
        ["fc_norm.weight"],
        [("blocks.1.attn.proj.bias", (3,), (8,))],
    )


def test_a_gap_among_the_blocks_shows(make_vit):
    weights = {
        name: value for name, value in weights_of(make_vit()).items() if not name.startswith("blocks.0.")
    }
    missing, _, _ = architecture.differences(weights, architecture.shapes(architecture.sizes(weights)))
    assert len(missing) == 12 and all(name.startswith("blocks.0.") for name in missing)


def test_patches_that_are_not_embedded_by_a_convolution():
    with pytest.raises(
        WeightNamesError,
        match=r"patch_embed.proj.weight has the shape \[8, 48\]; "
        r"expected.*conv",
    ):
        architecture.sizes({"patch_embed.proj.weight": np.zeros([8, 48])})


def shapes_of(table, **more):
    size = {"in_chans": 3, "mlp_dim": 4 * table["embed_dim"], **table, **more}
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in architecture.shapes(size).items()}


@pytest.mark.parametrize(
    "name, width, depth, patch, tokens",
    [
        ("tiny_patch4", 96, 6, 4, 65),
        ("small_patch16", 384, 12, 16, 197),
        ("base_patch16", 768, 12, 16, 197),
        ("large_patch16", 1024, 24, 16, 197),
        ("huge_patch14", 1280, 32, 14, 257),
    ],
)
def test_names_of_the_sizes(name, width, depth, patch, tokens):
    table = {"embed_dim": width, "depth": depth, "patch_size": patch, "tokens": tokens}
    side = 32 if name == "tiny_patch4" else 224
    weights = shapes_of(table, num_classes=10, global_pool=True, linear_probe=False)
    assert architecture.described(architecture.sizes(weights), models_vit.MODELS) == {
        "name": f"vit_{name}",
        "img_size": side,
        "in_chans": 3,
        "num_classes": 10,
        "global_pool": True,
    }
    decoder = (64, 2) if name == "tiny_patch4" else (512, 8)
    weights = shapes_of(
        table, decoder_embed_dim=decoder[0], decoder_depth=decoder[1], decoder_mlp_dim=4 * decoder[0]
    )
    assert architecture.described(architecture.sizes(weights), models_mae.MODELS) == {
        "name": f"mae_vit_{name}",
        "img_size": side,
        "in_chans": 3,
    }


BASE = {"embed_dim": 768, "depth": 12, "patch_size": 16, "tokens": 197}


@pytest.mark.parametrize(
    "changes, described",
    [
        ({"tokens": 577, "in_chans": 1}, {"name": "vit_base_patch16", "img_size": 384, "in_chans": 1}),
        ({"patch_size": 8}, {"name": "vit_base_patch16", "img_size": 112, "patch_size": 8, "in_chans": 3}),
        # a rectangle, whose sides do not show
        ({"tokens": 1 + 6 * 7}, {"name": "vit_base_patch16", "in_chans": 3}),
        ({"depth": 11}, None),
        ({"embed_dim": 760, "mlp_dim": 3040}, None),
        ({"mlp_dim": 2048}, None),
    ],
)
def test_sizes_that_differ(changes, described):
    weights = shapes_of({**BASE, **changes})
    assert architecture.described(architecture.sizes(weights), models_vit.MODELS) == described


@pytest.mark.parametrize("width, depth", [(192, 8), (512, 4)])
def test_another_decoder_is_another_size(width, depth):
    weights = shapes_of(BASE, decoder_embed_dim=width, decoder_depth=depth, decoder_mlp_dim=4 * width)
    assert architecture.described(architecture.sizes(weights), models_mae.MODELS) is None


def test_a_number_of_blocks_that_no_file_can_have(make_vit):
    weights = {name: value.numpy() for name, value in make_vit().state_dict().items()}
    weights["blocks.999999999.norm1.bias"] = weights.pop("blocks.0.norm1.bias")
    with pytest.raises(ValueError, match="blocks.999999999 among .* weights: a number is too large"):
        architecture.sizes(weights)
