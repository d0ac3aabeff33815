"""Options of the paper's ablations of pretraining: decoder, mask tokens, targets and crops."""

import numpy as np
import pytest
from PIL import Image
from scripts import flat, read_log, read_state, write_pictures

import main_finetune
import main_infer
import main_pretrain
from models_mae import MODELS
from tools import convert_checkpoint, extract_features, visualize
from util.data.masking import Mask
from util.images import transforms
from util.infer import trained_model
from util.system.keyed_random import IMAGE, keyed_generator
from util.weights import checkpoint

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
MAE = ["--model", "mae_vit_tiny_patch4", *SHORT]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data"), size=(16, 16))


def test_the_decoder_by_flag_from_pretraining_to_what_is_drawn(tmp_path, data, call_script):
    """The tiny model's decoder has width 64, 2 blocks and 4 heads; the encoder stays as it is."""
    mae = tmp_path / "mae" / "checkpoint-latest.pd"
    decoder = ["--decoder_embed_dim", 24, "--decoder_depth", 1, "--decoder_num_heads", 3]
    command = [*MAE, "--data_path", data, "--output_dir", tmp_path / "mae"]
    call_script(main_pretrain, *command, *decoder)
    state = read_state(mae)
    assert {name: value for name, value in state["architecture"].items() if "decoder" in name} == {
        "decoder_embed_dim": 24,
        "decoder_depth": 1,
        "decoder_num_heads": 3,
    }
    shapes = {name: list(value.shape) for name, value in state["model"].items()}
    assert shapes["mask_token"] == [1, 1, 24] and shapes["decoder_pred.weight"] == [24, 48]
    assert shapes["decoder_pos_embed"] == [1, 17, 24] and shapes["decoder_blocks.0.mlp.fc1.weight"] == [
        24,
        96,
    ]
    assert "decoder_blocks.1.norm1.weight" not in shapes and shapes["blocks.5.mlp.fc1.weight"] == [96, 384]

    picture = data / "val" / "cat" / "000.png"
    call_script(main_infer, "--resume", mae, "--img_path", picture, "--output_dir", tmp_path)
    call_script(
        visualize,
        "--resume",
        mae,
        "--img_path",
        picture,
        "--output_dir",
        tmp_path,
        "--show",
        "reconstruction",
        "attention",
    )
    call_script(
        main_finetune,
        "--model",
        "vit_tiny_patch4",
        *SHORT,
        "--data_path",
        data,
        "--finetune",
        mae,
        "--nb_classes",
        2,
        "--output_dir",
        tmp_path / "vit",
    )

    said, _ = call_script(
        main_pretrain, *command, *decoder, "--epochs", 2, "--resume", "auto", "--allow_changes", "epochs"
    )
    assert "continuing with epoch 1" in said
    for changed, complaint in (
        (["--decoder_num_heads", 2], "--decoder_num_heads: 3 in the checkpoint, 2 now"),
        (["--decoder_depth", 2], "decoder_blocks.1.norm1.weight"),
        (["--decoder_embed_dim", 48], "mask_token [1, 1, 24] instead of [1, 1, 48]"),
    ):
        assert (
            complaint in call_script(main_pretrain, *command, *decoder, *changed, "--resume", mae, code=2)[1]
        )


def test_the_encoder_by_flag_from_pretraining_to_what_a_classifier_says(tmp_path, data, call_script):
    """The tiny model has width 96, 6 blocks and 3 heads; the number of heads changes no shape."""
    encoder = ["--embed_dim", 16, "--depth", 2, "--num_heads", 2]
    mae, vit = tmp_path / "mae" / "checkpoint-latest.pd", tmp_path / "vit" / "checkpoint-latest.pd"
    call_script(main_pretrain, *MAE, "--data_path", data, "--output_dir", tmp_path / "mae", *encoder)
    finetune = [
        "--model",
        "vit_tiny_patch4",
        *SHORT,
        "--data_path",
        data,
        "--finetune",
        mae,
        "--nb_classes",
        2,
        "--output_dir",
        tmp_path / "vit",
        *encoder,
    ]
    said, _ = call_script(main_finetune, *finetune)
    state = read_state(vit)
    assert {name: state["architecture"][name] for name in ("embed_dim", "depth", "num_heads")} == {
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
    }
    assert (
        state["model"]["blocks.1.mlp.fc1.weight"].shape == (16, 64)
        and "blocks.2.norm1.bias" not in state["model"]
    )
    evaluated, _ = call_script(main_finetune, *finetune, "--eval", "--resume", vit)
    assert "Acc@1" in evaluated
    call_script(main_infer, "--resume", vit, "--img_path", data / "val" / "cat" / "000.png")
    call_script(
        main_infer, "--resume", mae, "--img_path", data / "val" / "cat" / "000.png", "--output_dir", tmp_path
    )

    more = ["--epochs", 2, "--resume", "auto", "--allow_changes", "epochs"]
    assert (
        "--num_heads: 2 in the checkpoint, 4 now"
        in call_script(main_finetune, *finetune, *more, "--num_heads", 4, code=2)[1]
    )
    assert "continuing with epoch 1" in call_script(main_finetune, *finetune, *more)[0]
    assert "blocks.2." in call_script(main_finetune, *finetune, "--depth", 3, code=2)[1]


def pretrained(tmp_path, data, call_script, *words):
    """Train two epochs, whole and resumed after the first, and compare; return (folder, command)."""
    command = [*MAE, "--data_path", data, "--epochs", 2, "--save_every", 1, *words]
    call_script(main_pretrain, *command, "--output_dir", tmp_path / "whole")
    said, _ = call_script(
        main_pretrain,
        *command,
        "--output_dir",
        tmp_path / "resumed",
        "--recompute",
        "--resume",
        tmp_path / "whole" / "checkpoint-0.pd",
    )
    assert "continuing with epoch 1" in said
    whole, resumed = (
        flat({name: state[name] for name in ("model", "model_ema", "optimizer") if name in state})
        for state in (
            read_state(tmp_path / folder / "checkpoint-latest.pd") for folder in ("whole", "resumed")
        )
    )
    assert whole.keys() == resumed.keys() and all((whole[name] == resumed[name]).all() for name in whole)
    assert read_log(tmp_path / "resumed")[-1]["train_loss"] == read_log(tmp_path / "whole")[-1]["train_loss"]
    return tmp_path / "whole", command


def answers(tmp_path, data, call_script, path):
    """Return reconstruction and features of a picture by the autoencoder at `path`."""
    picture = data / "val" / "cat" / "000.png"
    call_script(main_infer, "--resume", path, "--img_path", picture, "--output_dir", tmp_path)
    call_script(
        visualize,
        "--resume",
        path,
        "--img_path",
        picture,
        "--output_dir",
        tmp_path,
        "--show",
        "reconstruction",
        "attention",
    )
    call_script(
        extract_features,
        "--resume",
        path,
        "--img_path",
        picture,
        "--output",
        tmp_path / "features.npz",
        "--num_workers",
        0,
    )
    with np.load(tmp_path / "000_reconstruction.npz") as seen, np.load(tmp_path / "features.npz") as features:
        return (tmp_path / "000_reconstruction.png").read_bytes(), seen["prediction"], features["mean"]


@pytest.mark.slow
def test_mask_tokens_in_the_encoder_from_pretraining_to_what_is_asked(tmp_path, data, call_script):
    folder, command = pretrained(
        tmp_path, data, call_script, "--encoder_mask_tokens", "--ema", "--vis_every", 2
    )
    mae = folder / "checkpoint-latest.pd"
    first, last = (read_state(folder / name) for name in ("checkpoint-0.pd", "checkpoint-latest.pd"))
    assert last["architecture"]["encoder_mask_tokens"] is True and "mask_token" not in last["model"]
    token = "encoder_mask_token"
    assert last["model"][token].shape == (1, 1, 96) and (last["model"][token] != first["model"][token]).any()
    found = answers(tmp_path, data, call_script, mae)
    model = trained_model.load_model(trained_model.read_autoencoder_spec(mae, MODELS))
    np.testing.assert_array_equal(model.encoder_mask_token.numpy(), last["model_ema"][token])

    official, back = str(tmp_path / "official.pth"), str(tmp_path / "back.pd")
    assert convert_checkpoint.main([str(mae), official, "--entry", "model_ema"]) == 0
    assert convert_checkpoint.main([official, back]) == 0  # of which nothing but its weights says it
    assert checkpoint.read_checkpoint(back)["architecture"]["encoder_mask_tokens"] is True
    for one, other in zip(found, answers(tmp_path, data, call_script, back)):
        np.testing.assert_array_equal(one, other)
    call_script(
        main_finetune,
        "--model",
        "vit_tiny_patch4",
        *SHORT,
        "--data_path",
        data,
        "--finetune",
        mae,
        "--nb_classes",
        2,
        "--output_dir",
        tmp_path / "vit",
    )
    assert token not in read_state(tmp_path / "vit" / "checkpoint-latest.pd")["model"]
    without = [word for word in command if word != "--encoder_mask_tokens"]
    complaint = call_script(
        main_pretrain, *without, "--output_dir", tmp_path / "other", "--resume", mae, code=2
    )[1]
    assert f"missing (1): mask_token\n  unexpected (1): {token}" in complaint


@pytest.mark.slow
def test_principal_components_from_pretraining_to_what_is_asked(tmp_path, data, call_script):
    folder, command = pretrained(
        tmp_path, data, call_script, "--pca_target", 5, "--vis_every", 2, "--val_every", 2
    )
    mae = folder / "checkpoint-latest.pd"
    first, last = (read_state(folder / name) for name in ("checkpoint-0.pd", "checkpoint-latest.pd"))
    assert last["architecture"]["pca_target"] == 5 and last["model"]["decoder_pred.bias"].shape == (5,)
    components = last["model"]["pca_components"]
    assert (components == first["model"]["pca_components"]).all()
    assert "pca_components" not in last["optimizer"]
    np.testing.assert_allclose(components.T @ components, np.eye(5), atol=1e-5)
    _, prediction, _ = answers(tmp_path, data, call_script, mae)
    assert prediction.shape == (16, 5)

    official, back = str(tmp_path / "official.pth"), str(tmp_path / "back.pd")
    assert convert_checkpoint.main([str(mae), official]) == convert_checkpoint.main([official, back]) == 0
    assert checkpoint.read_checkpoint(back)["architecture"]["pca_target"] == 5
    np.testing.assert_array_equal(answers(tmp_path, data, call_script, back)[1], prediction)
    call_script(
        main_finetune,
        "--model",
        "vit_tiny_patch4",
        *SHORT,
        "--data_path",
        data,
        "--finetune",
        mae,
        "--nb_classes",
        2,
        "--output_dir",
        tmp_path / "vit",
    )
    assert "pca_mean" not in read_state(tmp_path / "vit" / "checkpoint-latest.pd")["model"]
    complaint = call_script(
        main_pretrain,
        *command,
        "--pca_target",
        4,
        "--output_dir",
        tmp_path / "other",
        "--resume",
        mae,
        code=2,
    )[1]
    assert "made with" in complaint and "--pca_target 5" in complaint
    assert "decoder_pred.bias [5] instead of [4]" in complaint
    for words, said in (
        (["--norm_pix_loss"], "--norm_pix_loss"),
        (["--pca_target", 49], "--pca_target 49: expected 1 to 48"),
    ):
        assert said in call_script(main_pretrain, *command, *words, code=2)[1]


@pytest.mark.parametrize(
    "name, has, says",
    [
        ("encoder_mask_tokens", True, False),
        ("encoder_mask_tokens", False, True),
        ("encoder_mask_tokens", True, "yes"),
        ("pca_target", 5, 6),
        ("pca_target", 0, 5),
        ("pca_target", 5, 0),
        ("pca_target", 5, "5"),
    ],
)
def test_a_file_that_is_wrong_about_them(make_mae, name, has, says):
    weights = {key: value.numpy() for key, value in make_mae(**{name: has}).state_dict().items()}
    described = {"name": "mae", "img_size": [12, 8], "decoder_num_heads": 3, name: says}
    with pytest.raises(checkpoint.CheckpointError, match=f"{name} is '?{says}'?, but the weights have {has}"):
        checkpoint.check_architecture("x.pd", {"model": weights, "architecture": described})
    described[name] = has
    checkpoint.check_architecture("x.pd", {"model": weights, "architecture": described})


def test_pretraining_goes_on_from_other_weights(tmp_path, data, call_script):
    """At learning rate 0 they stay as they are. A resumed run does not read them again."""
    mae = tmp_path / "mae" / "checkpoint-latest.pd"
    command = [*MAE, "--data_path", data]
    call_script(main_pretrain, *command, "--output_dir", tmp_path / "mae")
    more = ["--finetune", tmp_path / "start.pd", "--lr", 0, "--output_dir", tmp_path / "more"]
    mae.rename(tmp_path / "start.pd")
    said, _ = call_script(main_pretrain, *command, *more)
    start, end = (
        read_state(path)["model"] for path in (tmp_path / "start.pd", tmp_path / "more/checkpoint-latest.pd")
    )
    assert start.keys() == end.keys() and all((start[name] == end[name]).all() for name in start)
    said, _ = call_script(
        main_pretrain, *command, *more, "--decoder_depth", 1, "--output_dir", tmp_path / "other"
    )
    assert "its decoder is another (decoder_blocks.1." in said
    (tmp_path / "start.pd").unlink()
    said, _ = call_script(
        main_pretrain, *command, *more, "--epochs", 2, "--resume", "auto", "--allow_changes", "epochs"
    )
    assert "continuing with epoch 1" in said


@pytest.mark.parametrize("heads", [5, 0, "3", True, 1e9])
def test_a_file_with_heads_that_its_decoder_cannot_have(make_mae, heads):
    weights = {name: value.numpy() for name, value in make_mae().state_dict().items()}
    described = {"name": "mae", "img_size": [12, 8], "decoder_embed_dim": 12, "decoder_num_heads": 4}
    checkpoint.check_architecture("x.pd", {"model": weights, "architecture": dict(described)})
    with pytest.raises(checkpoint.CheckpointError, match="decoder_num_heads is"):
        checkpoint.check_architecture(
            "x.pd", {"model": weights, "architecture": {**described, "decoder_num_heads": heads}}
        )
    with pytest.raises(checkpoint.CheckpointError, match="decoder_depth is 9, but the weights have 1"):
        checkpoint.check_architecture(
            "x.pd", {"model": weights, "architecture": {**described, "decoder_depth": 9}}
        )


# ---- crops


def coordinates(width, height):
    """Make a picture whose first two channels are the column and the row of a pixel."""
    row, column = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return Image.fromarray(np.stack([column, row, 0 * row], axis=2).astype("uint8"))


def cut(crop, index, **more):
    transform = transforms.PretrainTransform(
        (224, 224),
        draw_noise=Mask("random", (2, 2), 0.5).draw,
        mean=[0.5] * 3,
        std=[0.5] * 3,
        crop=crop,
        **more,
    )
    return transform(coordinates(256, 256), keyed_generator(0, IMAGE, 0, index))[0]


def test_crops_of_a_fixed_size_lie_anywhere():
    """224 of 256 pixels of the resized picture: 33 positions in each direction; half are mirrored."""
    corners, mirrored = set(), 0
    for index in range(60):
        pixels = cut("fixed", index).astype(int)
        flipped = pixels[0, 0, 0] > pixels[0, 0, -1]
        mirrored += flipped
        rows = pixels[0] if not flipped else pixels[0][:, ::-1]
        assert (np.diff(rows, axis=1) == 1).all() and (np.diff(pixels[1], axis=0) == 1).all()  # not resized
        corners.add((rows[0, 0], pixels[1, 0, 0]))
    left, top = zip(*corners)
    assert 15 < mirrored < 45 and len(corners) > 50
    assert min(left) < 4 and max(left) > 28 and min(top) < 4 and max(top) > 28 and max(left + top) <= 32


def test_the_middle_is_always_the_same():
    for index in range(8):
        pixels = cut("center", index)
        assert (pixels[0] == np.arange(16, 240)).all() and (pixels[1].T == np.arange(16, 240)).all()
    first, second = (cut("center", index, color_jitter=0.8) for index in range(2))
    assert (first != second).any()  # which has draws of its own
    with pytest.raises(ValueError, match="--color_jitter -1"):
        cut("center", 0, color_jitter=-1.0)


def test_the_flags_reach_the_pictures(tmp_path, data, call_script, monkeypatch):
    seen = []

    class Spied(transforms.PretrainTransform):
        def __init__(self, *args, **options):
            seen.append((options["crop"], options["color_jitter"]))
            super().__init__(*args, **options)

    monkeypatch.setattr(main_pretrain, "PretrainTransform", Spied)
    call_script(
        main_pretrain, *MAE, "--data_path", data, "--output_dir", "", "--crop", "fixed", "--color_jitter", 0.4
    )
    assert seen == [("fixed", 0.4)]
