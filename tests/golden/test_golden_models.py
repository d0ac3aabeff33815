"""Models against transformers and timm, by the values that tools/maintain/make_golden.py recorded."""

import json
import os
from pathlib import Path

import numpy as np
import paddle
import parity
import pytest
from paddle import nn

import layer
from layer import sincos_2d
from models_mae import MaskedAutoencoderViT, random_masking
from models_vit import VisionTransformer
from util.compute import operations
from util.weights import checkpoint, loading
from util.weights.adapt import interpolate

pytestmark = [pytest.mark.isa, pytest.mark.usefixtures("library")]

POSITIONS, _ = parity.load("positions")
MAE, MAE_META = parity.load("mae")
VIT, VIT_META = parity.load("vit")


@pytest.mark.parametrize("name", sorted(parity.under(POSITIONS, "sincos")))
def test_sincos(name):
    height, width, dim = map(int, name.split("x"))
    expected = POSITIONS[f"sincos/{name}"]
    parity.check("sincos", sincos_2d(dim, (height, width)), expected, name)
    model = MaskedAutoencoderViT(
        (4 * height, 4 * width),
        4,
        embed_dim=dim,
        depth=0,
        num_heads=1,
        decoder_embed_dim=dim,
        decoder_depth=0,
        decoder_num_heads=1,
    )
    for table in (model.pos_embed, model.decoder_pos_embed):
        parity.check("sincos", table[0].numpy(), np.concatenate([np.zeros([1, dim]), expected]), name)


@pytest.mark.parametrize(
    "name", sorted({name.split("/")[0] for name in parity.under(POSITIONS, "interpolated")})
)
def test_interpolated_positions(name):
    old, new = (tuple(map(int, grid.split("x"))) for grid in name.split("-"))
    before, expected = (POSITIONS[f"interpolated/{name}/{end}"] for end in ("from", "to"))
    parity.check("interpolated", interpolate(before, old, new), expected, name)


@pytest.mark.parametrize("name", ["square", "wide"])
def test_patchify(name):
    images, patches = (MAE[f"patchify/{name}/{end}"] for end in ("images", "patches"))
    model = MaskedAutoencoderViT(
        images.shape[2:],
        4,
        embed_dim=8,
        depth=0,
        num_heads=1,
        decoder_embed_dim=8,
        decoder_depth=0,
        decoder_num_heads=1,
    )
    parity.check("patchify", model.patchify(paddle.to_tensor(images)).numpy(), patches, name)
    parity.check("patchify", model.unpatchify(paddle.to_tensor(patches)).numpy(), images, name)


@pytest.mark.parametrize("name", sorted({name.split("/")[0] for name in parity.under(MAE, "masking")}))
def test_masking(name):
    expected = parity.under(MAE, f"masking/{name}")
    length, ratio = name.split("-")
    tokens = np.arange(2 * int(length), dtype=np.float32).reshape(2, -1, 1)
    noise = paddle.to_tensor(expected["noise"])
    ids_keep, _, mask, ids_restore = random_masking(2, int(length), float(ratio), noise)
    kept = layer.take_tokens(paddle.to_tensor(tokens), ids_keep)
    for part, result in zip(("kept", "mask", "ids_restore"), (kept, mask, ids_restore)):
        parity.check("masking", result.numpy(), expected[part], f"{name} {part}")


def make_mae(target):
    model = MaskedAutoencoderViT(**MAE_META["model"], norm_pix_loss=target == "normalised")
    parity.load_pytorch(model, parity.under(MAE, "weights"))
    return model


def compare_mae(model, target):
    """Forward pass against the reference; returns the loss."""
    images, noise = paddle.to_tensor(MAE["images"]), paddle.to_tensor(MAE["noise"])
    latent, _, _ = model.forward_encoder(images, MAE_META["mask_ratio"], noise)
    loss, pred, mask = model(images, MAE_META["mask_ratio"], noise)
    for part, result in (("mask", mask), ("latent", latent), ("loss", loss)):
        parity.check(f"mae-{part}", result.numpy(), MAE[f"{target}/{part}"], target)
    parity.check("mae-pred", pred.numpy(), MAE[f"{target}/pred"], target)
    return loss


@pytest.mark.parametrize("target", ["pixels", "normalised"])
def test_mae_forward_and_gradients(target):
    model = make_mae(target)
    compare_mae(model, target).backward()
    expected = parity.under(MAE, f"{target}/gradients")
    trained = {name: p for name, p in model.named_parameters() if not p.stop_gradient}
    assert trained.keys() == expected.keys()
    gradients = parity.pytorch_layout(model, {name: p.grad.numpy() for name, p in trained.items()})
    for name, gradient in gradients.items():
        parity.check("mae-gradients", gradient, expected[name], f"{target} {name}")


def make_vit(pool):
    model = VisionTransformer(**VIT_META["model"], global_pool=pool == "mean")
    weights = parity.under(VIT, "weights")
    if pool == "mean":
        weights = {
            name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: value
            for name, value in weights.items()
        }
    parity.load_pytorch(model, weights)
    return model


def compare_vit(model, pool):
    images = paddle.to_tensor(VIT["images"])
    parity.check("vit-features", model.forward_features(images).numpy(), VIT[f"{pool}/features"], pool)
    parity.check("vit-logits", model(images).numpy(), VIT[f"{pool}/logits"], pool)


@pytest.mark.parametrize("pool", ["mean", "token"])
def test_vit_forward(pool):
    compare_vit(make_vit(pool), pool)


# The comparisons are worth what they notice. Each piece of each model is broken by itself.

MODELS = {
    "mae": (make_mae, compare_mae, "pixels"),
    "vit mean": (make_vit, compare_vit, "mean"),
    "vit token": (make_vit, compare_vit, "token"),
}


def broken_models(model, kind):
    """Yield (name, copy of the model, its piece `name`) for each piece of a kind."""
    make, _, option = MODELS[model]
    for name in [name for name, piece in make(option).named_sublayers() if isinstance(piece, kind)]:
        broken = make(option)
        yield name, broken, dict(broken.named_sublayers())[name]


def must_notice(model, broken, name):
    _, compare, option = MODELS[model]
    with parity.must_mismatch(name):
        compare(broken, option)


@pytest.mark.parametrize("wrong", [1e-5, 1e-12])
@pytest.mark.parametrize("model", MODELS)
def test_a_wrong_epsilon_of_one_layer_norm_is_noticed(model, wrong):
    for name, broken, norm in broken_models(model, nn.LayerNorm):
        norm.epsilon = wrong
        must_notice(model, broken, name)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda attention: attention.qkv.weight.shape[0] ** -0.5,
        lambda attention: 1.0,
        lambda attention: attention.scale * 1.01,
    ],
    ids=["width", "none", "1 % off"],
)
@pytest.mark.parametrize("model", MODELS)
def test_a_wrong_scale_of_one_attention_is_noticed(model, wrong):
    for name, broken, attention in broken_models(model, layer.Attention):
        attention.scale = wrong(attention)
        must_notice(model, broken, name)


@pytest.mark.parametrize("model", MODELS)
def test_an_approximate_gelu_in_one_block_is_noticed(model):
    def approximate(mlp):
        return lambda x: mlp.fc2(nn.functional.gelu(mlp.fc1(x), approximate=True))

    for name, broken, mlp in broken_models(model, layer.Mlp):
        mlp.forward = approximate(mlp)
        with operations.by_paddle():
            must_notice(model, broken, name)


@pytest.mark.skipif(
    not os.path.isdir(os.environ.get("MAE_FMNIST_CKPT", "")),
    reason="MAE_FMNIST_CKPT does not name the folder with a trained Fashion-MNIST ViT",
)
def test_a_trained_vit_predicts_what_it_predicts_in_pytorch():
    folder = Path(os.environ["MAE_FMNIST_CKPT"])
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    sizes = ("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads")
    model = VisionTransformer(
        **{name: meta[name] for name in sizes}, mlp_ratio=meta["mlp_hidden"] / meta["embed_dim"]
    )
    converted = checkpoint.read_checkpoint(folder / "weights_timm_keys.npz")["model"]
    loading.load_weights("weights_timm_keys.npz", converted, model)
    for norm in model.sublayers():
        if isinstance(norm, layer.LayerNorm):
            norm.epsilon = 1e-5  # of this checkpoint: it was trained with PyTorch's default
    model.eval()
    with np.load(folder / "fmnist_t10k_first4443.npz") as data:
        images, labels, expected = (data[name] for name in ("images", "labels", "logits"))
    images = ((images.astype(np.float32) / 255 - 0.5) / 0.5).reshape(-1, 1, 28, 28)
    with paddle.no_grad():
        logits = np.concatenate(
            [model(paddle.to_tensor(batch)).numpy() for batch in np.array_split(images, 12)]
        )
    predictions = logits.argmax(axis=1)
    equal = (predictions == expected.argmax(axis=1)).sum()
    print(
        f"{equal} of {len(expected)} predictions equal, accuracy {100 * (predictions == labels).mean():.2f} %, "
        f"logits differ by at most {np.abs(logits - expected).max():.2e}"
    )
    assert equal == len(expected) == meta["n_images"]
    parity.check("trained-vit", logits, expected)
