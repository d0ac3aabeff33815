"""Weight decay and learning rate of each parameter, by name, for models of two blocks."""

import numpy as np
import paddle
import pytest

from util.optim.param_groups import layer_decay_groups, layer_of, weight_decay_groups

BLOCK_WEIGHTS = ["attn.qkv.weight", "attn.proj.weight", "mlp.fc1.weight", "mlp.fc2.weight"]
BLOCK_VECTORS = [
    "norm1.weight",
    "norm1.bias",
    "attn.qkv.bias",
    "attn.proj.bias",
    "norm2.weight",
    "norm2.bias",
    "mlp.fc1.bias",
    "mlp.fc2.bias",
]


def names(model, group):
    found = {id(p): name for name, p in model.named_parameters()}
    return {found[id(p)] for p in group["params"]}


def prefixed(prefix, keys):
    return {f"{prefix}.{key}" for key in keys}


def test_pretraining_decays_weights_and_tokens(make_mae):
    model = make_mae()
    free, decayed = weight_decay_groups(model, 0.05)
    assert (free["weight_decay"], decayed["weight_decay"]) == (0.0, 0.05)
    blocks = ("blocks.0", "blocks.1", "decoder_blocks.0")
    assert names(model, decayed) == set.union(
        {"cls_token", "mask_token", "patch_embed.proj.weight", "decoder_embed.weight", "decoder_pred.weight"},
        *[prefixed(block, BLOCK_WEIGHTS) for block in blocks],
    )
    assert names(model, free) == set.union(
        {
            "patch_embed.proj.bias",
            "norm.weight",
            "norm.bias",
            "decoder_embed.bias",
            "decoder_norm.weight",
            "decoder_norm.bias",
            "decoder_pred.bias",
        },
        *[prefixed(block, BLOCK_VECTORS) for block in blocks],
    )


def test_finetuning_decays_weights_and_learns_slower_below(make_vit):
    model = make_vit(global_pool=True)
    found = {
        (group["learning_rate"], group["weight_decay"]): names(model, group)
        for group in layer_decay_groups(model, 0.05, 0.5)
    }
    assert found == {
        (0.125, 0.0): {"cls_token", "pos_embed", "patch_embed.proj.bias"},
        (0.125, 0.05): {"patch_embed.proj.weight"},
        (0.25, 0.0): prefixed("blocks.0", BLOCK_VECTORS),
        (0.25, 0.05): prefixed("blocks.0", BLOCK_WEIGHTS),
        (0.5, 0.0): prefixed("blocks.1", BLOCK_VECTORS),
        (0.5, 0.05): prefixed("blocks.1", BLOCK_WEIGHTS),
        (1.0, 0.0): {"fc_norm.weight", "fc_norm.bias", "head.bias"},
        (1.0, 0.05): {"head.weight"},
    }


def test_frozen_parameters_are_in_no_group(make_vit):
    model = make_vit()
    model.pos_embed.stop_gradient = True
    grouped = set().union(*[names(model, group) for group in layer_decay_groups(model, 0.05, 0.75)])
    assert grouped == {name for name, _ in model.named_parameters()} - {"pos_embed"}


@pytest.mark.parametrize(
    "name, layer",
    [
        ("cls_token", 0),
        ("pos_embed", 0),
        ("patch_embed.proj.bias", 0),
        ("blocks.0.norm1.weight", 1),
        ("blocks.11.mlp.fc2.bias", 12),
        ("norm.weight", 13),
        ("fc_norm.bias", 13),
        ("head.weight", 13),
    ],
)
def test_layers_of_the_base_model(name, layer):
    assert layer_of(name, 13) == layer


def adamw_steps(model, groups, rates, gradient):
    """{name: change} of each parameter, for one update a rate with all gradients equal to `gradient`."""
    optimizer = paddle.optimizer.AdamW(1.0, parameters=groups)
    changes = []
    for rate in rates:
        before = {name: p.numpy() for name, p in model.named_parameters()}
        optimizer.set_lr(rate)
        sum((p * gradient).sum() for p in model.parameters()).backward()
        optimizer.step()
        optimizer.clear_grad()
        changes.append({name: p.numpy() - before[name] for name, p in model.named_parameters()})
    return changes


def test_one_rate_moves_every_layer_by_its_share_the_smallest_rate_too(make_vit):
    model = make_vit()
    for rate, changes in zip(
        [0.01, 1e-5], adamw_steps(model, layer_decay_groups(model, 0.0, 0.5), [0.01, 1e-5], 1.0)
    ):
        # With equal gradients Adam moves every value by the learning rate.
        for name, share in (
            ("pos_embed", 0.125),
            ("blocks.0.norm1.bias", 0.25),
            ("blocks.1.mlp.fc1.bias", 0.5),
            ("head.bias", 1.0),
        ):
            np.testing.assert_allclose(changes[name], -rate * share, rtol=0.02)


def test_decay_follows_the_rate_of_the_layer(make_vit, scramble):
    model = scramble(make_vit(), std=1.0)
    before = {name: p.numpy() for name, p in model.named_parameters()}
    (changes,) = adamw_steps(model, layer_decay_groups(model, 0.5, 0.5), [0.1], 0.0)
    for name, share in (
        ("patch_embed.proj.weight", 0.125),
        ("blocks.0.attn.proj.weight", 0.25),
        ("head.weight", 1.0),
        ("pos_embed", 0.0),
        ("norm.weight", 0.0),
        ("head.bias", 0.0),
    ):
        np.testing.assert_allclose(changes[name], -0.1 * 0.5 * share * before[name], rtol=1e-4, atol=1e-6)
