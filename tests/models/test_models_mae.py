"""The masked autoencoder: what it may see, its numbers, its start and its published sizes."""

import math

import numpy as np
import paddle
import pytest
from numpy_transformer import block, embed_patches, layer_norm, linear, patches_of, sincos, weights_of

import models_mae
from models_mae import num_kept, random_masking

pytestmark = [pytest.mark.isa, pytest.mark.usefixtures("library")]

# Patches 4, 1 and 0 stay visible in the first image at a ratio of 0.5, patches 2, 5 and 3 in the second.
NOISE = np.array([[0.3, 0.2, 0.9, 0.5, 0.1, 0.8], [0.7, 0.6, 0.0, 0.4, 0.5, 0.3]], "float32")
VISIBLE = [[4, 1, 0], [2, 5, 3]]
HIDDEN = [[2, 3, 5], [0, 1, 4]]


@pytest.fixture
def noise():
    return paddle.to_tensor(NOISE)


def changed(images, image, patch, by):
    """`images` with `by` added to one pixel of one 4 x 4 patch; two patches make a row."""
    result = images.clone()
    row, column = divmod(patch, 2)
    result[image, 1, row * 4 + 2, column * 4 + 3] += by
    return result


# ---- the loss alone


@pytest.mark.parametrize(
    "changes", [{}, {"norm_pix_loss": True}, {"decoder_depth": 2}, {"encoder_mask_tokens": True}]
)
@pytest.mark.parametrize("mask_ratio", [0.5, 0.75])
def test_the_loss_alone_is_the_same_loss_with_the_same_gradients(
    make_mae, scramble, images, noise, changes, mask_ratio
):
    model = scramble(make_mae(**changes))
    whole, _, _ = model(images, mask_ratio, noise)
    whole.backward()
    expected = {name: p.grad.numpy() for name, p in model.named_parameters() if not p.stop_gradient}
    model.clear_gradients()
    alone = model(images, mask_ratio, noise, only_loss=True)
    alone.backward()
    assert alone.shape == []
    assert alone.item() == pytest.approx(whole.item(), rel=1e-6)
    for name, p in model.named_parameters():
        if not p.stop_gradient:
            largest = abs(expected[name]).max()
            assert largest > 0, name
            np.testing.assert_allclose(p.grad.numpy(), expected[name], atol=2e-6 * largest, err_msg=name)


# ---- what the encoder sees


@pytest.mark.parametrize("encoder_mask_tokens", [False, True])
def test_hidden_pixels_cannot_change_the_latent(make_mae, scramble, images, noise, encoder_mask_tokens):
    model = scramble(make_mae(encoder_mask_tokens=encoder_mask_tokens))
    latent = model.forward_encoder(images, 0.5, noise)[0].numpy()
    for image in (0, 1):
        for patch in HIDDEN[image]:
            other = model.forward_encoder(changed(images, image, patch, 9.0), 0.5, noise)[0].numpy()
            np.testing.assert_array_equal(other, latent)


def test_each_visible_pixel_changes_the_latent_of_its_image_only(make_mae, scramble, images, noise):
    model = scramble(make_mae())
    latent = model.forward_encoder(images, 0.5, noise)[0].numpy()
    for image in (0, 1):
        for patch in VISIBLE[image]:
            other = model.forward_encoder(changed(images, image, patch, 1.0), 0.5, noise)[0].numpy()
            assert abs(other[image] - latent[image]).max() > 1e-3
            np.testing.assert_array_equal(other[1 - image], latent[1 - image])


def test_the_loss_is_asked_of_hidden_patches_only(make_mae, images, noise):
    model = make_mae()
    latent, mask, ids_restore = model.forward_encoder(images, 0.5, noise)
    pred = model.forward_decoder(latent, ids_restore).detach()
    pred.stop_gradient = False
    model.forward_loss(images, pred, mask).backward()
    asked = pred.grad.abs().numpy() > 0  # [N, L, P]
    for image in (0, 1):
        assert not asked[image, VISIBLE[image]].any()
        assert asked[image, HIDDEN[image]].all()


# ---- the mask


def test_number_of_visible_patches():
    """The official code keeps one patch fewer if the float product falls just short of an integer."""
    expected = {
        (196, 0.75): 49,
        (256, 0.75): 64,
        (64, 0.75): 16,
        (784, 0.75): 196,
        (196, 0.9): 19,
        (196, 0.5): 98,
        (100, 0.9): 9,
        (100, 0.8): 19,
        (100, 0.55): 44,
        (900, 0.9): 89,
        (100, 0.75): 25,
    }
    assert {case: num_kept(*case) for case in expected} == expected


@pytest.mark.parametrize("patches, ratio, kept", [(6, 0.5, 3), (100, 0.9, 9), (7, 0.75, 1)])
def test_the_patches_of_the_smallest_noise_stay(patches, ratio, kept):
    noise = np.random.default_rng(2).random([3, patches]).astype("float32")
    ids_keep, ids_hidden, mask, _ = (
        t.numpy() for t in random_masking(3, patches, ratio, paddle.to_tensor(noise))
    )
    assert ids_keep.shape == (3, kept) and mask.dtype == np.float32
    for image in range(3):
        threshold = np.sort(noise[image])[kept - 1]
        np.testing.assert_array_equal(mask[image], noise[image] > threshold)
        np.testing.assert_array_equal(ids_keep[image], np.argsort(noise[image])[:kept])
        np.testing.assert_array_equal(ids_hidden[image], np.argsort(noise[image])[kept:])


def test_ids_restore_undoes_the_shuffle():
    noise = np.random.default_rng(2).random([3, 6]).astype("float32")
    *_, ids_restore = random_masking(3, 6, 0.5, paddle.to_tensor(noise))
    shuffled = np.sort(noise, axis=1)
    np.testing.assert_array_equal(np.take_along_axis(shuffled, ids_restore.numpy(), axis=1), noise)


def test_drawn_masks_hide_each_patch_equally_often():
    *_, mask, _ = random_masking(4000, 6, 0.5)
    mask = mask.numpy()
    assert (mask.sum(axis=1) == 3).all()
    assert len(np.unique(mask, axis=0)) == 20  # 6 over 3
    assert abs(mask.mean(axis=0) - 0.5).max() < 0.032  # 4 standard errors


# ---- patches


@pytest.mark.parametrize(
    "in_chans, first, last",
    [
        (1, [0, 1, 4, 5], [18, 19, 22, 23]),
        (3, [0, 24, 48, 1, 25, 49, 4, 28, 52, 5, 29, 53], [18, 42, 66, 19, 43, 67, 22, 46, 70, 23, 47, 71]),
        (
            4,
            [0, 24, 48, 72, 1, 25, 49, 73, 4, 28, 52, 76, 5, 29, 53, 77],
            [18, 42, 66, 90, 19, 43, 67, 91, 22, 46, 70, 94, 23, 47, 71, 95],
        ),
    ],
)
def test_a_patch_lists_its_pixels_by_row_column_channel(make_mae, in_chans, first, last):
    # Pixel numbers of the first channel; the next channel begins at 24.
    #    0  1 |  2  3
    #    4  5 |  6  7
    #    ...
    #   16 17 | 18 19
    #   20 21 | 22 23
    model = make_mae(img_size=(6, 4), patch_size=2, in_chans=in_chans)
    numbered = paddle.arange(in_chans * 24, dtype="float32").reshape([1, in_chans, 6, 4])
    patches = model.patchify(numbered)
    assert patches.shape == [1, 6, 4 * in_chans]
    assert patches[0, 0].tolist() == first
    assert patches[0, 5].tolist() == last
    assert patches[0, 1, 0].item() == 2 and patches[0, 2, 0].item() == 8  # patches go row by row
    assert (model.unpatchify(patches) == numbered).all()


# ---- the numbers


def numpy_forward(image, noise, ratio, w, norm_pix_loss):
    """Return latent [1 + K, D], pred [L, P], squared error of the hidden patches, for the model of `make_mae`.

    With a mask token of the encoder the latent is [1 + L, D].
    """
    order = sorted(range(6), key=lambda patch: noise[patch])
    kept = order[: int(6 * (1 - ratio))]
    x = embed_patches(image, w, 4)
    if "encoder_mask_token" in w:
        x[order[len(kept) :]] = w["encoder_mask_token"][0, 0]
    x = x + sincos(8, 3, 2)[1:]
    x = np.concatenate([w["cls_token"][0], x if "encoder_mask_token" in w else x[kept]])
    for i in range(2):
        x = block(x, w, f"blocks.{i}", heads=2)
    latent = layer_norm(x, w, "norm")

    x = embedded = linear(latent, w, "decoder_embed")
    if "encoder_mask_token" not in w:
        x = np.concatenate([embedded[:1], np.repeat(w["mask_token"][0], 6, axis=0)])
        for token, patch in zip(embedded[1:], kept):
            x[1 + patch] = token
    x = block(x + sincos(12, 3, 2), w, "decoder_blocks.0", heads=3)
    pred = linear(layer_norm(x, w, "decoder_norm"), w, "decoder_pred")[1:]

    errors = []
    for patch in order[len(kept) :]:
        target = patches_of(image, 4)[patch].transpose(1, 2, 0).reshape(-1)
        if norm_pix_loss:
            target = (target - target.mean()) / math.sqrt(target.var(ddof=1) + 1e-6)
        errors.append(((pred[patch] - target) ** 2).mean())
    return latent, pred, errors


@pytest.mark.parametrize("norm_pix_loss, encoder_mask_tokens", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_forward_is_the_numpy_one(
    make_mae, scramble, images, noise, norm_pix_loss, encoder_mask_tokens, ratio
):
    model = scramble(make_mae(norm_pix_loss=norm_pix_loss, encoder_mask_tokens=encoder_mask_tokens))
    w = weights_of(model)
    latents, preds, errors = zip(
        *[
            numpy_forward(image, n, ratio, w, norm_pix_loss)
            for image, n in zip(images.numpy().astype("float64"), NOISE)
        ]
    )
    np.testing.assert_allclose(model.forward_encoder(images, ratio, noise)[0].numpy(), latents, atol=1e-5)
    loss, pred, mask = model(images, ratio, noise)
    np.testing.assert_allclose(pred.numpy(), preds, atol=1e-5)
    np.testing.assert_allclose(loss.item(), np.mean(errors), rtol=1e-5)
    assert mask.sum(axis=1).tolist() == [6 - num_kept(6, ratio)] * 2


def test_the_pixel_target_is_normalised_with_unbiased_variance_and_epsilon_under_the_root(make_mae):
    model = make_mae(img_size=2, patch_size=2, in_chans=1, norm_pix_loss=True)
    # Values +-a/2: mean 0 around 5, unbiased variance a^2 / 3. With a = 2e-3 the epsilon is 3/4 of it.
    image = 5 + paddle.to_tensor(np.array([[[[-1e-3, 1e-3], [1e-3, -1e-3]]]], "float32"))
    loss = model.forward_loss(image, paddle.zeros([1, 1, 4]), paddle.ones([1, 1]))
    np.testing.assert_allclose(loss.item(), 1e-6 / (4e-6 / 3 + 1e-6), rtol=2e-3)  # 5 +- 0.001 in float32


def test_the_loss_is_the_mean_over_all_hidden_patches_of_the_batch(make_mae):
    model = make_mae(img_size=2, patch_size=1, in_chans=1)
    pred = paddle.to_tensor(np.array([[1, 2, 3, 4], [5, 6, 7, 8]], "float32"))[..., None]
    mask = paddle.to_tensor(np.array([[0, 1, 1, 1], [1, 0, 0, 0]], "float32"))
    loss = model.forward_loss(paddle.zeros([2, 1, 2, 2]), pred, mask)
    np.testing.assert_allclose(loss.item(), (4 + 9 + 16 + 25) / 4)


# ---- the start


def uniform_within(values, bound):
    values = values.numpy()
    assert 0.99 * bound < abs(values).max() <= bound * (1 + 1e-6)
    assert abs(values.std() / (bound / math.sqrt(3)) - 1) < 0.05


def test_initial_values(make_mae):
    model = make_mae(img_size=32, patch_size=16, embed_dim=512, depth=1, decoder_embed_dim=384)
    p = dict(model.named_parameters())
    # The patch projection as the linear map 768 -> 512; its bias as PyTorch starts that of a convolution.
    uniform_within(p.pop("patch_embed.proj.weight"), math.sqrt(6 / (768 + 512)))
    uniform_within(p.pop("patch_embed.proj.bias"), 1 / math.sqrt(768))
    for name in ("cls_token", "mask_token"):
        token = p.pop(name).numpy()
        assert abs(token.mean()) < 0.004 and abs(token.std() / 0.02 - 1) < 0.1
    for name, size in (("pos_embed", 512), ("decoder_pos_embed", 384)):
        np.testing.assert_allclose(p.pop(name)[0].numpy(), sincos(size, 2, 2), atol=1e-6)
    for name, value in p.items():
        if value.ndim == 2:  # all linear maps; those of queries, keys and values are one [D, 3 D] matrix
            uniform_within(value, math.sqrt(6 / sum(value.shape)))
        elif name.endswith(".weight"):
            assert "norm" in name and (value == 1).all()
        else:
            assert name.endswith(".bias") and (value == 0).all()


def test_only_the_positions_are_fixed(make_mae):
    model = make_mae()
    assert {name for name, p in model.named_parameters() if p.stop_gradient} == {
        "pos_embed",
        "decoder_pos_embed",
    }


@pytest.mark.parametrize("encoder_mask_tokens", [False, True])
def test_every_trained_parameter_gets_a_gradient(make_mae, scramble, images, noise, encoder_mask_tokens):
    model = scramble(make_mae(encoder_mask_tokens=encoder_mask_tokens))
    model(images, 0.5, noise)[0].backward()
    without = {
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max().item()
    }
    assert without == {"pos_embed", "decoder_pos_embed"}


def test_every_normalisation_has_the_epsilon_of_the_published_models(make_mae):
    norms = [layer for layer in make_mae().sublayers() if isinstance(layer, paddle.nn.LayerNorm)]
    assert len(norms) == 2 * 3 + 2
    for norm in norms:
        x = paddle.to_tensor([[-1e-3, 1e-3] * (norm.weight.shape[0] // 2)])  # variance 1e-6
        np.testing.assert_allclose(norm(x).abs().numpy(), 0.5**0.5, atol=1e-5)


def test_mask_tokens_in_the_encoder_change_one_name(make_mae):
    usual, changed = (
        {name: value.shape for name, value in model.state_dict().items()}
        for model in (make_mae(), make_mae(encoder_mask_tokens=True))
    )
    assert usual.pop("mask_token") == [1, 1, 12] and changed.pop("encoder_mask_token") == [1, 1, 8]
    assert changed == usual


# ---- the published sizes

BLOCK = {
    "norm1.weight": "D",
    "norm1.bias": "D",
    "attn.qkv.weight": "D 3D",
    "attn.qkv.bias": "3D",
    "attn.proj.weight": "D D",
    "attn.proj.bias": "D",
    "norm2.weight": "D",
    "norm2.bias": "D",
    "mlp.fc1.weight": "D 4D",
    "mlp.fc1.bias": "4D",
    "mlp.fc2.weight": "4D D",
    "mlp.fc2.bias": "D",
}
FRAME = {
    "cls_token": "1 1 D",
    "pos_embed": "1 1+L D",
    "patch_embed.proj.weight": "D 3 p p",
    "patch_embed.proj.bias": "D",
    "norm.weight": "D",
    "norm.bias": "D",
    "mask_token": "1 1 E",
    "decoder_pos_embed": "1 1+L E",
    "decoder_embed.weight": "D E",
    "decoder_embed.bias": "E",
    "decoder_norm.weight": "E",
    "decoder_norm.bias": "E",
    "decoder_pred.weight": "E P",
    "decoder_pred.bias": "P",
}


def shape(letters, d, p, patches):
    values = {"D": d, "3D": 3 * d, "4D": 4 * d, "p": p, "1+L": 1 + patches, "E": 512, "P": 3 * p * p}
    return [values.get(letter) or int(letter) for letter in letters.split()]


@pytest.mark.parametrize(
    "name, width, p, patches, keys, values, trained",
    [
        ("mae_vit_base_patch16", 768, 16, 196, 254, 111_907_840, 111_655_680),
        ("mae_vit_large_patch16", 1024, 16, 196, 398, 329_541_888, None),
        ("mae_vit_huge_patch14", 1280, 14, 256, 494, 657_074_508, None),
    ],
)
def test_the_published_sizes_have_the_published_parameters(name, width, p, patches, keys, values, trained):
    full = models_mae.MODELS[name]
    # One block of each stack is built; the others are like it.
    model = full(depth=1, decoder_depth=1)
    found = {key: value.shape for key, value in model.state_dict().items()}
    expected = {key: shape(letters, width, p, patches) for key, letters in FRAME.items()}
    expected.update({f"blocks.0.{key}": shape(letters, width, p, patches) for key, letters in BLOCK.items()})
    expected.update(
        {f"decoder_blocks.0.{key}": shape(letters, 512, p, patches) for key, letters in BLOCK.items()}
    )
    assert found == expected

    def times(key):
        stack = key.split(".")[0]
        return {"blocks": full.keywords["depth"], "decoder_blocks": full.keywords["decoder_depth"]}.get(
            stack, 1
        )

    assert sum(times(key) for key in found) == keys
    assert sum(times(key) * math.prod(size) for key, size in found.items()) == values
    if trained is not None:
        assert values - sum(p.size for p in model.parameters() if p.stop_gradient) == trained


def test_heads_of_the_published_sizes():
    heads = {
        name: (model.keywords["num_heads"], model.keywords["decoder_num_heads"])
        for name, model in models_mae.MODELS.items()
    }
    assert heads["mae_vit_base_patch16"] == (12, 16)
    assert heads["mae_vit_large_patch16"] == heads["mae_vit_huge_patch14"] == (16, 16)


def test_the_official_names_and_keywords_work():
    for short, long in (
        ("mae_vit_base_patch16", "mae_vit_base_patch16_dec512d8b"),
        ("mae_vit_large_patch16", "mae_vit_large_patch16_dec512d8b"),
        ("mae_vit_huge_patch14", "mae_vit_huge_patch14_dec512d8b"),
    ):
        assert models_mae.MODELS[short] is models_mae.MODELS[long] is getattr(models_mae, long)
    model = models_mae.mae_vit_base_patch16_dec512d8b(
        img_size=32, in_chans=1, depth=1, decoder_depth=1, norm_pix_loss=True, mlp_ratio=1.0
    )
    assert model.norm_pix_loss and model.patch_embed.grid_size == (2, 2)
    assert all(name.startswith("mae_vit_") for name in models_mae.MODELS)


def test_the_tiny_model_is_for_32_pixels():
    loss, pred, mask = models_mae.mae_vit_tiny_patch4()(paddle.zeros([1, 3, 32, 32]))
    assert pred.shape == [1, 64, 48] and mask.sum().item() == 48


def test_positions_need_a_multiple_of_4_channels(make_mae):
    with pytest.raises(ValueError, match="multiple of 4 channels, got 10"):
        make_mae(embed_dim=10, num_heads=1)
