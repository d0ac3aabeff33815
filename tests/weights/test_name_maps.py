"""Names and layouts of other programs, against lists written from their sources and files that they wrote."""

from pathlib import Path

import numpy as np
import pytest

from util.weights import architecture, formats
from util.weights.name_maps import TARGETS, WeightNamesError, from_ours, to_ours

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

# The official names, and the same in the others' files; of blocks the second, whose parts are listed once.
BLOCK = {  # official: (transformers, transformers 5 in memory, mmpretrain, PaddleViT)
    "norm1.weight": ("layernorm_before.weight", "layernorm_before.weight", "ln1.weight", "attn_norm.weight"),
    "attn.qkv.weight": (None, None, "attn.qkv.weight", "attn.qkv.weight"),
    "attn.qkv.bias": (None, None, "attn.qkv.bias", "attn.qkv.bias"),
    "attn.proj.weight": (
        "attention.output.dense.weight",
        "attention.o_proj.weight",
        "attn.proj.weight",
        "attn.out.weight",
    ),
    "attn.proj.bias": (
        "attention.output.dense.bias",
        "attention.o_proj.bias",
        "attn.proj.bias",
        "attn.out.bias",
    ),
    "norm2.bias": ("layernorm_after.bias", "layernorm_after.bias", "ln2.bias", "mlp_norm.bias"),
    "mlp.fc1.weight": (
        "intermediate.dense.weight",
        "mlp.fc1.weight",
        "ffn.layers.0.0.weight",
        "mlp.fc1.weight",
    ),
    "mlp.fc1.bias": ("intermediate.dense.bias", "mlp.fc1.bias", "ffn.layers.0.0.bias", "mlp.fc1.bias"),
    "mlp.fc2.weight": ("output.dense.weight", "mlp.fc2.weight", "ffn.layers.1.weight", "mlp.fc2.weight"),
    "mlp.fc2.bias": ("output.dense.bias", "mlp.fc2.bias", "ffn.layers.1.bias", "mlp.fc2.bias"),
}
REST = {
    "cls_token": ("vit.embeddings.cls_token", "vit.embeddings.cls_token", "backbone.cls_token", "cls_token"),
    "pos_embed": (
        "vit.embeddings.position_embeddings",
        "vit.embeddings.position_embeddings",
        "backbone.pos_embed",
        "encoder_position_embedding",
    ),
    "patch_embed.proj.weight": (
        "vit.embeddings.patch_embeddings.projection.weight",
        "vit.embeddings.patch_embeddings.projection.weight",
        "backbone.patch_embed.projection.weight",
        "patch_embedding.patch_embedding.weight",
    ),
    "norm.weight": (
        "vit.layernorm.weight",
        "vit.layernorm.weight",
        "backbone.ln1.weight",
        "encoder.norm.weight",
    ),
    "mask_token": ("decoder.mask_token", "decoder.mask_token", "neck.mask_token", "mask_token"),
    "decoder_pos_embed": (
        "decoder.decoder_pos_embed",
        "decoder.decoder_pos_embed",
        "neck.decoder_pos_embed",
        "decoder_position_embedding",
    ),
    "decoder_embed.weight": (
        "decoder.decoder_embed.weight",
        "decoder.decoder_embed.weight",
        "neck.decoder_embed.weight",
        "linear_projection.weight",
    ),
    "decoder_norm.bias": (
        "decoder.decoder_norm.bias",
        "decoder.decoder_norm.bias",
        "neck.ln1.bias",
        "decoder.norm.bias",
    ),
    "decoder_pred.weight": (
        "decoder.decoder_pred.weight",
        "decoder.decoder_pred.weight",
        "neck.decoder_pred.weight",
        "decoder_pred.weight",
    ),
    "head.weight": ("classifier.weight", "classifier.weight", "head.fc.weight", "classifier.weight"),
}
POOLED = {"fc_norm.weight": (None, None, "backbone.ln2.weight", "encoder_norm.weight")}
LAYERS = {
    "blocks": ("vit.encoder.layer", "vit.layers", "backbone.layers", "encoder.layers"),
    "decoder_blocks": (
        "decoder.decoder_layers",
        "decoder.decoder_layers",
        "neck.decoder_blocks",
        "decoder.layers",
    ),
}
PROGRAMS = ("Hugging Face", "Hugging Face", "mmpretrain", "PaddleViT")


def names_of(column):
    """{a program's name: the official name} of everything in the tables above."""
    names = {theirs[column]: ours for ours, theirs in {**REST, **POOLED}.items()}
    for blocks, layers in LAYERS.items():
        names.update(
            {
                f"{layers[column]}.11.{theirs[column]}": f"{blocks}.11.{ours}"
                for ours, theirs in BLOCK.items()
                if theirs[column]
            }
        )
    return {theirs: ours for theirs, ours in names.items() if theirs}


@pytest.mark.parametrize("column, family", list(enumerate(PROGRAMS)))
def test_names_of_other_programs(column, family):
    table = names_of(column)
    assert len(table) >= 26
    # One number each, in no layout: which name went where.
    found = to_ours({theirs: np.float32([number]) for number, theirs in enumerate(table)})
    assert found.family == family and found.unknown == {}
    assert {ours: value.tolist() for ours, value in found.weights.items()} == {
        ours: [number] for number, ours in enumerate(table.values())
    }


@pytest.mark.parametrize(
    "layer, third",
    [
        ("vit.encoder.layer.3", "attention.attention.{}"),
        ("encoder.layer.3", "attention.attention.{}"),
        ("vit.layers.3", "attention.{}"),
        ("layers.3", "attention.{}"),
        ("decoder.decoder_layers.3", "attention.attention.{}"),
        ("decoder.decoder_layers.3", "attention.{}"),
        ("decoder.decoder_encoder.layer.3", "attention.attention.{}"),
    ],
)
def test_query_key_and_value_become_one(layer, third):
    names = ("query", "key", "value") if third.count("attention") == 2 else ("q_proj", "k_proj", "v_proj")
    weights = {"vit.embeddings.patch_embeddings.projection.weight": np.zeros([2, 3, 4, 4])}
    for number, name in enumerate(reversed(names)):  # whatever their order
        weights[f"{layer}.{third.format(name)}.weight"] = np.float32([[1, 2], [3, 4]]) + 10 * (2 - number)
        weights[f"{layer}.{third.format(name)}.bias"] = np.float32([5, 6]) + 10 * (2 - number)
    found = to_ours(weights).weights
    blocks = "decoder_blocks.3" if "decoder" in layer else "blocks.3"
    # Rows of outputs q, k, v in PyTorch are columns in Paddle.
    assert found[f"{blocks}.attn.qkv.weight"].tolist() == [[1, 3, 11, 13, 21, 23], [2, 4, 12, 14, 22, 24]]
    assert found[f"{blocks}.attn.qkv.bias"].tolist() == [5, 6, 15, 16, 25, 26]


OTHERS = {
    "patch_embed.proj.weight": np.arange(2 * 4.0).reshape(2, 1, 2, 2),
    "blocks.0.attn.qkv.bias": np.arange(6.0),
}


@pytest.mark.parametrize("layout, shape", [("PyTorch", (6, 2)), ("Paddle", (2, 6))])
def test_linear_weights_are_transposed_and_nothing_else(layout, shape):
    square = np.float32([[1, 2], [3, 4]])
    weights = {
        **OTHERS,
        "blocks.0.attn.qkv.weight": np.arange(12.0).reshape(shape),
        **dict.fromkeys(
            [
                "blocks.0.attn.proj.weight",
                "decoder_blocks.1.attn.proj.weight",
                "head.weight",
                "head.1.weight",
                "decoder_embed.weight",
                "decoder_pred.weight",
                "blocks.0.mlp.fc1.weight",
                "blocks.0.mlp.fc2.weight",
            ],
            square,
        ),
    }
    kept = dict.fromkeys(["cls_token", "mask_token", "pos_embed", "norm.weight", "fc_norm.bias"], square)
    found = to_ours({**weights, **kept})
    assert found.layout == layout
    for name, value in weights.items():
        turned = layout == "PyTorch" and name not in OTHERS
        assert np.array_equal(found.weights[name], value.T if turned else value), name
    for name, value in kept.items():
        assert np.array_equal(found.weights[name], value), name


def test_a_mixed_layout_is_refused():
    weights = {
        **OTHERS,
        "blocks.0.attn.qkv.weight": np.zeros([6, 2]),
        "head.weight": np.zeros([2, 5]),
        "head.bias": np.zeros(5),
    }
    with pytest.raises(
        WeightNamesError,
        match=r"PyTorch and some .* Paddle: blocks.0.attn.qkv.weight and "
        r"head.weight",
    ):
        to_ours(weights)


def test_without_evidence_the_layout_is_the_usual_one_of_the_program():
    square = np.float32([[1, 2], [3, 4]])
    assert (
        to_ours(
            {
                "patch_embedding.patch_embedding.weight": OTHERS["patch_embed.proj.weight"],
                "classifier.weight": square,
            }
        ).layout
        == "Paddle"
    )
    assert (
        to_ours(
            {
                "backbone.patch_embed.projection.weight": OTHERS["patch_embed.proj.weight"],
                "head.fc.weight": square,
            }
        ).layout
        == "PyTorch"
    )


def test_batch_norm_statistics():
    statistics = {
        "head.0.running_mean": np.ones(2),
        "head.0.running_var": np.full(2, 3.0),
        "head.0.num_batches_tracked": np.array(9),
        "head.1.bias": np.zeros(5),
    }
    found = to_ours({**OTHERS, **statistics})
    assert found.counters == ["head.0.num_batches_tracked"]
    assert found.weights["head.0._mean"].tolist() == [1, 1] and found.weights[
        "head.0._variance"
    ].tolist() == [3, 3]
    assert not {"head.0.running_mean", "head.0.num_batches_tracked"} & found.weights.keys()
    back, _ = from_ours(found.weights, "official")
    assert back["head.0.running_mean"].tolist() == [1, 1] and back["head.0.running_var"].tolist() == [3, 3]
    counter = back["head.0.num_batches_tracked"]
    assert counter.dtype == "int64" and counter.shape == ()
    assert not {"head.0._mean", "head.0._variance"} & back.keys()


def test_mmpretrain_keeps_the_batch_norm_of_a_probe_in_its_neck():
    found = to_ours(
        {
            "backbone.patch_embed.projection.weight": OTHERS["patch_embed.proj.weight"],
            "neck.bn.running_mean": np.ones(2),
            "neck.bn.running_var": np.ones(2),
            "head.fc.weight": np.zeros([5, 2]),
            "head.fc.bias": np.zeros(5),
        }
    ).weights
    assert {name: value.shape for name, value in found.items() if name.startswith("head")} == {
        "head.0._mean": (2,),
        "head.0._variance": (2,),
        "head.1.weight": (2, 5),
        "head.1.bias": (5,),
    }


def test_prefixes_of_wrappers_go():
    found = to_ours({f"module._orig_mod.{name}": value for name, value in OTHERS.items()})
    assert found.prefix == "module._orig_mod." and found.weights.keys() == OTHERS.keys()
    partly = to_ours({**OTHERS, "module.norm.weight": np.zeros(2)})
    assert partly.prefix == "" and list(partly.unknown) == ["module.norm.weight"]


def test_unknown_names_and_dropping_them():
    more = {
        "blocks.0.ls1.gamma",
        "blocks.00.norm1.weight",
        "blocks.-1.norm1.bias",
        "blocks.0.attn.qkv.scale",
        "dist_token",
        "blocks.0.norm1",
        "cls_token.weight",
    }
    weights = {
        **OTHERS,
        "blocks.0.ls1.gamma": np.zeros(2),
        "dist_token": np.zeros(2),
        **{name: np.zeros(2) for name in sorted(more)},
    }
    assert to_ours(weights).unknown.keys() == more
    found = to_ours(weights, drop=["blocks.*.ls?.gamma", "dist_token"])
    assert found.dropped == ["blocks.0.ls1.gamma", "dist_token"]
    assert found.unknown.keys() == more - {"blocks.0.ls1.gamma", "dist_token"}
    with pytest.raises(WeightNamesError, match=r"--drop pooler"):
        to_ours(weights, drop=["dist_token", "pooler.*"])


@pytest.mark.parametrize(
    "weights", [{}, {"fc.weight": np.zeros([2, 2])}, {"conv1.weight": np.zeros([2, 3, 7, 7])}]
)
def test_other_networks_are_refused(weights):
    with pytest.raises(
        WeightNamesError, match="not the weights of a ViT or a masked autoencoder.*official / timm, "
    ):
        to_ours(weights)


def test_two_names_for_one_weight_are_refused():
    with pytest.raises(WeightNamesError, match="two of its weights mean head.0._mean.*head.0._mean"):
        to_ours({**OTHERS, "head.0.running_mean": np.zeros(2), "head.0._mean": np.zeros(2)})


def test_an_incomplete_attention_is_refused():
    weights = {
        "vit.embeddings.patch_embeddings.projection.weight": np.zeros([2, 3, 4, 4]),
        "vit.encoder.layer.0.attention.attention.key.bias": np.zeros(2),
    }
    with pytest.raises(WeightNamesError, match="blocks.0.attn.qkv.bias lacks its query, value part"):
        to_ours(weights)
    other = {
        name.replace("key", third): np.zeros(3) for name in list(weights)[1:] for third in ("query", "value")
    }
    with pytest.raises(
        WeightNamesError, match="query, key and value of blocks.0.attn.qkv.bias differ in shape"
    ):
        to_ours({**weights, **other})


# Whole models

SMALL = {"patch_size": 2, "in_chans": 3, "embed_dim": 4, "depth": 2, "mlp_dim": 12, "tokens": 5}
DECODER = {"decoder_embed_dim": 6, "decoder_depth": 1, "decoder_mlp_dim": 10}
MODELS = {
    "mae": {**SMALL, **DECODER},
    "encoder": SMALL,
    "mae_encoder_mask_tokens": {**SMALL, **DECODER, "encoder_mask_tokens": True},
    "mae_pca_target": {**SMALL, **DECODER, "pca_target": 5},
    "classifier": {**SMALL, "num_classes": 7, "global_pool": False, "linear_probe": False},
    "pooled": {**SMALL, "num_classes": 7, "global_pool": True, "linear_probe": False},
    "linear_probe": {**SMALL, "num_classes": 7, "global_pool": False, "linear_probe": True},
}


def random_weights(size):
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape, dtype="float32") for name, shape in architecture.shapes(size).items()
    }


NO_PLACE = {
    ("timm", "linear_probe"),
    ("hf", "linear_probe"),
    ("hf", "pooled"),
    ("hf", "mae_encoder_mask_tokens"),
    ("hf", "mae_pca_target"),
}


@pytest.mark.parametrize("target", TARGETS)
def test_there_and_back(target):
    for model, size in MODELS.items():
        weights = random_weights(size)
        if (target, model) in NO_PLACE:
            with pytest.raises(WeightNamesError, match=f"--to {target}: .*--to official"):
                from_ours(weights, target)
            continue
        theirs, homeless = from_ours(weights, target)
        back = to_ours(theirs)
        of_decoder = {
            name for name in weights if name.startswith(("decoder_", "pca_")) or name.endswith("mask_token")
        }
        assert set(homeless) == (of_decoder if target == "timm" and model.startswith("mae") else set())
        assert back.unknown == {} and back.layout == ("Paddle" if target == "paddle" else "PyTorch")
        assert back.weights.keys() == weights.keys() - set(homeless)
        for name, value in back.weights.items():
            assert np.array_equal(value, weights[name]), (model, name)


@pytest.mark.parametrize("name, prefix", [("mae", "vit."), ("encoder", ""), ("classifier", "vit.")])
def test_hugging_face_names_by_model(name, prefix):
    theirs, _ = from_ours(random_weights(MODELS[name]), "hf")
    assert f"{prefix}encoder.layer.1.attention.attention.key.weight" in theirs
    assert theirs["vit.layernorm.bias" if prefix else "layernorm.bias"].shape == (4,)
    assert ("classifier.weight" in theirs) == (name == "classifier")
    assert all(key.startswith((prefix, "decoder.", "classifier.")) for key in theirs)


def test_the_published_names_are_those_that_transformers_saved():
    # But for a decoder's layers, which save_pretrained of 5.23 calls decoder_encoder.layer and published
    # files decoder_layers.
    saved = formats.read_weights(GOLDEN / "hf_vitmae.safetensors").weights
    ours, _ = from_ours(to_ours(saved).weights, "hf")
    renamed = {
        name.replace("decoder_encoder.layer.", "decoder_layers."): value for name, value in saved.items()
    }
    assert ours.keys() == renamed.keys() and ours.keys() != saved.keys()
    for name, value in renamed.items():
        assert np.array_equal(ours[name], value), name


# The table of the official state dict; numbers of keys and values were counted on the official models.
def official_shapes(d, depth, patch, patches, kind):
    def linear(name, inputs, outputs):
        return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}

    def norm(name, width):
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    def block(name, width):
        return {
            **norm(f"{name}.norm1", width),
            **linear(f"{name}.attn.qkv", width, 3 * width),
            **linear(f"{name}.attn.proj", width, width),
            **norm(f"{name}.norm2", width),
            **linear(f"{name}.mlp.fc1", width, 4 * width),
            **linear(f"{name}.mlp.fc2", 4 * width, width),
        }

    shapes = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, patches + 1, d),
        "patch_embed.proj.weight": (d, 3, patch, patch),
        "patch_embed.proj.bias": (d,),
    }
    for i in range(depth):
        shapes.update(block(f"blocks.{i}", d))
    if kind == "mae":
        shapes.update(
            {
                "mask_token": (1, 1, 512),
                "decoder_pos_embed": (1, patches + 1, 512),
                **norm("norm", d),
                **linear("decoder_embed", d, 512),
                **norm("decoder_norm", 512),
                **linear("decoder_pred", 512, patch * patch * 3),
            }
        )
        for i in range(8):
            shapes.update(block(f"decoder_blocks.{i}", 512))
    else:
        shapes.update({**norm("fc_norm", d), **linear("head", d, 1000)})
    return shapes


@pytest.mark.parametrize(
    "kind, size, keys, values",
    [
        ("mae", (768, 12, 16, 196), 254, 111_907_840),
        ("mae", (1024, 24, 16, 196), 398, 329_541_888),
        ("mae", (1280, 32, 14, 256), 494, 657_074_508),
        ("vit", (768, 12, 16, 196), 152, 86_567_656),
        ("vit", (1024, 24, 16, 196), 296, 304_326_632),
        ("vit", (1280, 32, 14, 256), 392, 632_045_800),
    ],
)
def test_published_sizes_by_name_and_shape(kind, size, keys, values):
    wanted = official_shapes(*size, kind)
    assert len(wanted) == keys and sum(int(np.prod(shape)) for shape in wanted.values()) == values
    official = {name: np.broadcast_to(np.int8(0), shape) for name, shape in wanted.items()}  # without memory
    ours = to_ours(official)
    assert ours.unknown == {} and ours.layout == "PyTorch"
    assert {name for name, value in ours.weights.items() if value.shape != wanted[name]} == {
        name for name, shape in wanted.items() if len(shape) == 2 and shape[0] != shape[1]
    }
    assert architecture.differences(ours.weights, architecture.shapes(architecture.sizes(ours.weights))) == (
        [],
        [],
        [],
    )
    back, _ = from_ours(ours.weights, "official")
    assert {name: value.shape for name, value in back.items()} == wanted
    if kind == "mae":
        hugging_face, _ = from_ours(ours.weights, "hf")
        layers = size[1] + 8
        assert len(hugging_face) == keys + 4 * layers  # three weights and biases for one
        again = to_ours(hugging_face)
        assert {name: value.shape for name, value in again.weights.items()} == {
            name: value.shape for name, value in ours.weights.items()
        }
