"""Other image sizes, patches and channels than 224 x 224 RGB: training, --finetune and answers."""

import numpy as np
import paddle
import pytest
from paddle.nn.functional import cross_entropy, softmax
from PIL import Image
from scripts import read_state, write_pictures

import main_finetune
import main_infer
import main_linprobe
import main_pretrain
from models_mae import MaskedAutoencoderViT
from models_vit import VisionTransformer
from util.weights import loading
from util.weights.adapt import interpolate

WIDTHS = {"embed_dim": 16, "depth": 2, "num_heads": 2}
DECODER = {"decoder_embed_dim": 8, "decoder_depth": 1, "decoder_num_heads": 2}


def two_steps(model, loss_of):
    """Two updates: the loss falls, trained parameters change, and others do not."""
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    optimizer = paddle.optimizer.AdamW(0.01, parameters=model.parameters())
    losses = []
    for _ in range(2):
        loss = loss_of()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    assert loss_of().item() < losses[0]
    for name, p in model.named_parameters():
        assert (p.numpy() == before[name]).all() == p.stop_gradient, name


# patch size, picture and channels of the pretraining, and those of the classifier that starts from it
@pytest.mark.parametrize(
    "before, now",
    [
        ((4, (64, 32), 3), (2, (32, 32), 13)),
        ((2, (16, 32), 13), (4, (48, 32), 13)),
        ((16, (96, 64), 3), (14, (98, 56), 1)),
        ((16, (64, 32), 3), (32, (512, 512), 3)),
        ((32, (256, 256), 5), (2, (32, 16), 2)),
    ],
    ids=lambda sizes: "{} of {}x{} {}".format(sizes[0], *sizes[1], sizes[2]),
)
def test_pretrain_start_from_another_size_and_answer(before, now):
    rng = np.random.default_rng(0)
    patch, size, channels = before
    mae = MaskedAutoencoderViT(img_size=size, patch_size=patch, in_chans=channels, **WIDTHS, **DECODER)
    images = paddle.to_tensor(rng.standard_normal([2, channels, *size]).astype("float32"))
    noise = paddle.to_tensor(rng.random([2, mae.patch_embed.num_patches], dtype="float32"))
    two_steps(mae, lambda: mae(images, 0.5, noise, only_loss=True))
    state = {
        "model": {name: value.numpy() for name, value in mae.state_dict().items()},
        "architecture": {"name": "mae", "img_size": list(size), "patch_size": patch, "in_chans": channels},
    }

    new_patch, new_size, new_channels = now
    vit = VisionTransformer(
        img_size=new_size,
        patch_size=new_patch,
        in_chans=new_channels,
        num_classes=3,
        global_pool=True,
        **WIDTHS,
    )
    said = loading.load_encoder("mae.pd", vit, state=state)
    resampled = f"mae.pd: its patch embedding is resampled from {patch} to {new_patch} "
    assert (resampled in said) == (patch != new_patch)
    assert (f"mae.pd: its patch embedding is for {channels} channels" in said) == (channels != new_channels)
    assert len(said.splitlines()) == (patch != new_patch) + (channels != new_channels)
    grids = [tuple(side // p for side in sides) for p, sides in ((patch, size), (new_patch, new_size))]
    np.testing.assert_array_equal(vit.pos_embed.numpy(), interpolate(mae.pos_embed.numpy(), *grids))
    pictures = paddle.to_tensor(rng.standard_normal([2, new_channels, *new_size]).astype("float32"))
    labels = paddle.to_tensor([0, 2])
    vit.eval()
    untrained = softmax(vit(pictures)).numpy()
    two_steps(vit, lambda: cross_entropy(vit(pictures), labels))
    trained = softmax(vit(pictures)).numpy()
    assert trained[0, 0] > untrained[0, 0] and trained[1, 2] > untrained[1, 2]
    alone = softmax(vit(pictures[1:])).numpy()[0]
    np.testing.assert_allclose(alone, trained[1], atol=1e-5)


@pytest.mark.parametrize("patch, new_patch, channels, now", [(4, 8, 3, 3), (2, 14, 3, 1), (3, 4, 1, 4)])
def test_a_plain_picture_means_the_same_in_larger_patches(patch, new_patch, channels, now):
    """The embedding of a uniformly grey image, cut into as many patches, does not change."""
    mae = MaskedAutoencoderViT(
        img_size=(3 * patch, 2 * patch), patch_size=patch, in_chans=channels, **WIDTHS, **DECODER
    )
    state = {"model": {name: value.numpy() for name, value in mae.state_dict().items()}}
    vit = VisionTransformer(
        img_size=(3 * new_patch, 2 * new_patch), patch_size=new_patch, in_chans=now, num_classes=2, **WIDTHS
    )
    loading.load_encoder("mae.pd", vit, state=state)
    before, after = (
        model.embed(paddle.full([1, model.patch_embed.in_chans, *model.patch_embed.img_size], 1.7)).numpy()
        for model in (mae, vit)
    )
    np.testing.assert_allclose(after, before, atol=1e-5)
    assert state["model"]["patch_embed.proj.weight"].shape[-1] == patch  # what was read is left alone


@pytest.mark.parametrize("before, now", [(3, 1), (3, 13), (1, 3)])
def test_a_grey_picture_is_embedded_as_before(before, now):
    sizes = {"img_size": (12, 8), "patch_size": 4, **WIDTHS}
    mae = MaskedAutoencoderViT(in_chans=before, **sizes, **DECODER)
    state = {"model": {name: value.numpy() for name, value in mae.state_dict().items()}}
    vit = VisionTransformer(in_chans=now, num_classes=2, **sizes)
    said = loading.load_encoder("mae.pd", vit, state=state)
    assert f"mae.pd: its patch embedding is for {before} channels; each of {now} got" in said
    grey = np.random.default_rng(0).standard_normal([2, 1, 12, 8]).astype("float32")
    tokens = [
        model.patch_embed(paddle.to_tensor(grey.repeat(channels, axis=1))).numpy()
        for model, channels in ((mae, before), (vit, now))
    ]
    np.testing.assert_allclose(tokens[1], tokens[0], atol=1e-5)
    kernel = vit.patch_embed.proj.weight.numpy()
    assert (kernel == kernel[:, :1]).all()  # no new channel is preferred
    assert state["model"]["patch_embed.proj.weight"].shape[1] == before  # what was read is left alone


SHORT = [
    "--input_size",
    16,
    "--batch_size",
    4,
    "--warmup_epochs",
    0,
    "--epochs",
    1,
    "--device",
    "cpu",
    "--log_dir",
    "",
    "--num_workers",
    0,
]


def test_from_colour_to_grey_and_to_other_patches_by_the_scripts(tmp_path, call_script):
    """Only to start a classifier: a run that is resumed keeps its channels and its patches."""
    data = write_pictures(tmp_path / "data", size=(16, 16))
    mae = ["--model", "mae_vit_tiny_patch4", *SHORT, "--data_path", data, "--output_dir", tmp_path / "mae"]
    call_script(main_pretrain, *mae)
    path = tmp_path / "mae" / "checkpoint-latest.pd"
    for main in (main_finetune, main_linprobe):
        said, _ = call_script(
            main,
            "--model",
            "vit_tiny_patch4",
            *SHORT,
            "--data_path",
            data,
            "--in_chans",
            1,
            "--patch_size",
            8,
            "--input_size",
            16,
            24,
            "--nb_classes",
            2,
            "--finetune",
            path,
            "--output_dir",
            tmp_path / main.__name__,
        )
        assert (
            f"{path}: its patch embedding is resampled from 4 to 8 pixels\n"
            f"{path}: its patch embedding is for 3 channels; each of 1 got the sum of their weights / "
            "1\n"
        ) in said
    kernels = [
        read_state(tmp_path / folder / "checkpoint-latest.pd")["model"]["patch_embed.proj.weight"]
        for folder in ("mae", "main_linprobe")
    ]
    np.testing.assert_allclose(kernels[1].sum(axis=(1, 2, 3)), kernels[0].sum(axis=(1, 2, 3)), atol=1e-5)
    Image.new("L", (20, 20), 90).save(tmp_path / "grey.png")
    ask = [
        "--resume",
        tmp_path / "main_finetune" / "checkpoint-latest.pd",
        "--img_path",
        tmp_path / "grey.png",
    ]
    said, _ = call_script(main_infer, *ask)
    assert "cat" in said and "dog" in said
    complaint = call_script(main_infer, *ask, "--patch_size", 4, code=2)[1]
    assert "--patch_size 4: " in complaint and "8 pixels" in complaint
    for flag, value, shape in (("--in_chans", 1, [96, 1, 4, 4]), ("--patch_size", 8, [96, 3, 8, 8])):
        complaint = call_script(main_pretrain, *mae, flag, value, "--resume", path, code=2)[1]
        assert f"patch_embed.proj.weight [96, 3, 4, 4] instead of {shape}" in complaint
