"""Input of other sizes, shapes and channels than 224 x 224 RGB: training, starting from other weights, answering."""
import numpy as np
import paddle
import pytest
from PIL import Image
from scripts import read_state, write_pictures

import main_finetune
import main_infer
import main_linprobe
import main_pretrain
from models_mae import MaskedAutoencoderViT
from models_vit import VisionTransformer
from util import checkpoint

WIDTHS = {"embed_dim": 16, "depth": 2, "num_heads": 2}
DECODER = {"decoder_embed_dim": 8, "decoder_depth": 1, "decoder_num_heads": 2}


def two_steps(model, loss_of):
    """The loss before, between and after two updates."""
    optimizer = paddle.optimizer.AdamW(0.01, parameters=model.parameters())
    losses = []
    for _ in range(3):
        loss = loss_of()
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
    return losses


@pytest.mark.parametrize("patch, size, before, channels", [
    (2, (32, 32), (16, 32), 13), (4, (48, 32), (32, 32), 1), (7, (35, 70), (70, 70), 2), (8, (64, 160), (96, 96), 4),
    (14, (98, 56), (56, 56), 3), (16, (512, 256), (224, 224), 6), (32, (512, 512), (128, 64), 3),
    (32, (32, 64), (320, 320), 5)])
def test_pretrain_start_from_another_size_and_answer(patch, size, before, channels):
    rng = np.random.default_rng(0)
    sizes = {"patch_size": patch, "in_chans": channels, **WIDTHS}
    images = paddle.to_tensor(rng.standard_normal([2, channels, *before]).astype("float32"))
    mae = MaskedAutoencoderViT(img_size=before, **sizes, **DECODER)
    noise = paddle.to_tensor(rng.random([2, mae.patch_embed.num_patches], dtype="float32"))
    losses = two_steps(mae, lambda: mae(images, 0.5, noise, only_loss=True))
    assert losses[2] < losses[0]
    state = {"model": {name: value.numpy() for name, value in mae.state_dict().items()},
             "architecture": {"name": "mae", "img_size": list(before), "patch_size": patch, "in_chans": channels}}

    vit = VisionTransformer(img_size=size, num_classes=3, global_pool=True, **sizes)
    assert checkpoint.load_encoder("mae.pd", vit, state=state) == ""
    grid = [side // patch for side in size]
    assert vit.pos_embed.shape == [1, 1 + grid[0] * grid[1], 16]
    pictures = paddle.to_tensor(rng.standard_normal([2, channels, *size]).astype("float32"))
    labels = paddle.to_tensor([0, 2])
    losses = two_steps(vit, lambda: paddle.nn.functional.cross_entropy(vit(pictures), labels))
    assert losses[2] < losses[0]
    vit.eval()
    assert np.isfinite(vit(pictures).numpy()).all() and vit(pictures).shape == [2, 3]


@pytest.mark.parametrize("before, now", [(3, 1), (3, 4), (3, 13), (1, 3), (4, 3)])
def test_a_grey_picture_is_embedded_as_before(before, now):
    sizes = {"img_size": (12, 8), "patch_size": 4, **WIDTHS}
    mae = MaskedAutoencoderViT(in_chans=before, **sizes, **DECODER)
    state = {"model": {name: value.numpy() for name, value in mae.state_dict().items()}}
    vit = VisionTransformer(in_chans=now, num_classes=2, **sizes)
    said = checkpoint.load_encoder("mae.pd", vit, state=state)
    assert f"mae.pd: its patch embedding is for {before} channels; each of {now} got" in said
    grey = np.random.default_rng(0).standard_normal([2, 1, 12, 8]).astype("float32")
    tokens = [model.patch_embed(paddle.to_tensor(grey.repeat(channels, axis=1))).numpy()
              for model, channels in ((mae, before), (vit, now))]
    np.testing.assert_allclose(tokens[1], tokens[0], atol=1e-5)
    kernel = vit.patch_embed.proj.weight.numpy()
    assert (kernel == kernel[:, :1]).all()  # no new channel is preferred
    assert state["model"]["patch_embed.proj.weight"].shape[1] == before  # what was read is left alone


SHORT = ["--input_size", 16, "--batch_size", 4, "--warmup_epochs", 0, "--epochs", 1, "--device", "cpu", "--log_dir", "",
         "--num_workers", 0]


def test_from_colour_to_grey_by_the_scripts(tmp_path, call_script):
    """Only to start a classifier: a run that is resumed keeps its channels."""
    data = write_pictures(tmp_path / "data", size=(16, 16))
    mae = ["--model", "mae_vit_tiny_patch4", *SHORT, "--data_path", data, "--output_dir", tmp_path / "mae"]
    call_script(main_pretrain, *mae)
    path = tmp_path / "mae" / "checkpoint-latest.pd"
    for main in (main_finetune, main_linprobe):
        said, _ = call_script(main, "--model", "vit_tiny_patch4", *SHORT, "--data_path", data, "--in_chans", 1,
                              "--nb_classes", 2, "--finetune", path, "--output_dir", tmp_path / main.__name__)
        assert f"{path}: its patch embedding is for 3 channels; each of 1 got the sum of their weights / 1" in said
    kernels = [read_state(tmp_path / folder / "checkpoint-latest.pd")["model"]["patch_embed.proj.weight"]
               for folder in ("mae", "main_linprobe")]
    np.testing.assert_allclose(kernels[1][:, 0], kernels[0].sum(axis=1), rtol=1e-5, atol=1e-6)
    Image.new("L", (20, 20), 90).save(tmp_path / "grey.png")
    said, _ = call_script(main_infer, "--resume", tmp_path / "main_finetune" / "checkpoint-latest.pd", "--img_path",
                          tmp_path / "grey.png")
    assert "cat" in said and "dog" in said
    complaint = call_script(main_pretrain, *mae, "--in_chans", 1, "--resume", path, code=2)[1]
    assert "patch_embed.proj.weight [96, 3, 4, 4] instead of [96, 1, 4, 4]" in complaint
