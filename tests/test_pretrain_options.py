"""What the paper's ablations of pretraining vary: the decoder, and what is done to the pictures."""
import numpy as np
import pytest
from PIL import Image
from scripts import read_state, write_pictures

import main_finetune
import main_infer
import main_pretrain
import main_visualize
from models_mae import MODELS
from util import checkpoint, options, transforms
from util.keyed_random import IMAGE, keyed_generator

SHORT = ["--input_size", 16, "--batch_size", 4, "--warmup_epochs", 0, "--epochs", 1, "--device", "cpu", "--log_dir", "",
         "--num_workers", 0]
MAE = ["--model", "mae_vit_tiny_patch4", *SHORT]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data"), size=(16, 16))


def test_the_decoder_by_flag_from_pretraining_to_what_is_drawn(tmp_path, data, call_script):
    """The tiny model's own is 64 wide, 2 deep, with 4 heads; the encoder stays as it is."""
    mae = tmp_path / "mae" / "checkpoint-latest.pd"
    decoder = ["--decoder_embed_dim", 24, "--decoder_depth", 1, "--decoder_num_heads", 3]
    command = [*MAE, "--data_path", data, "--output_dir", tmp_path / "mae"]
    call_script(main_pretrain, *command, *decoder)
    state = read_state(mae)
    assert {name: value for name, value in state["architecture"].items() if "decoder" in name} == {
        "decoder_embed_dim": 24, "decoder_depth": 1, "decoder_num_heads": 3}
    shapes = {name: list(value.shape) for name, value in state["model"].items()}
    assert shapes["mask_token"] == [1, 1, 24] and shapes["decoder_pred.weight"] == [24, 48]
    assert shapes["decoder_pos_embed"] == [1, 17, 24] and shapes["decoder_blocks.0.mlp.fc1.weight"] == [24, 96]
    assert "decoder_blocks.1.norm1.weight" not in shapes and shapes["blocks.5.mlp.fc1.weight"] == [96, 384]

    picture = data / "val" / "cat" / "000.png"
    call_script(main_infer, "--resume", mae, "--img_path", picture, "--output_dir", tmp_path)
    call_script(main_visualize, "--resume", mae, "--img_path", picture, "--output_dir", tmp_path,
                "--show", "reconstruction", "attention")
    call_script(main_finetune, "--model", "vit_tiny_patch4", *SHORT, "--data_path", data, "--finetune", mae,
                "--nb_classes", 2, "--output_dir", tmp_path / "vit")

    said, _ = call_script(main_pretrain, *command, *decoder, "--epochs", 2, "--resume", "auto",
                          "--allow_changes", "epochs")
    assert "continuing with epoch 1" in said
    for changed, complaint in ((["--decoder_num_heads", 2], "--decoder_num_heads: 3 in the checkpoint, 2 now"),
                               (["--decoder_depth", 2], "decoder_blocks.1.norm1.weight"),
                               (["--decoder_embed_dim", 48], "mask_token [1, 1, 24] instead of [1, 1, 48]")):
        assert complaint in call_script(main_pretrain, *command, *decoder, *changed, "--resume", mae, code=2)[1]


def test_the_encoder_by_flag_from_pretraining_to_what_a_classifier_says(tmp_path, data, call_script):
    """The tiny model's own is 96 wide, 6 deep, with 3 heads. With 2 heads the same weights attend otherwise."""
    encoder = ["--embed_dim", 16, "--depth", 2, "--num_heads", 2]
    mae, vit = tmp_path / "mae" / "checkpoint-latest.pd", tmp_path / "vit" / "checkpoint-latest.pd"
    call_script(main_pretrain, *MAE, "--data_path", data, "--output_dir", tmp_path / "mae", *encoder)
    finetune = ["--model", "vit_tiny_patch4", *SHORT, "--data_path", data, "--finetune", mae, "--nb_classes", 2,
                "--output_dir", tmp_path / "vit", *encoder]
    said, _ = call_script(main_finetune, *finetune)
    state = read_state(vit)
    assert {name: state["architecture"][name] for name in ("embed_dim", "depth", "num_heads")} == {
        "embed_dim": 16, "depth": 2, "num_heads": 2}
    assert state["model"]["blocks.1.mlp.fc1.weight"].shape == (16, 64) and "blocks.2.norm1.bias" not in state["model"]
    evaluated, _ = call_script(main_finetune, *finetune, "--eval", "--resume", vit)
    assert "Acc@1" in evaluated
    call_script(main_infer, "--resume", vit, "--img_path", data / "val" / "cat" / "000.png")
    call_script(main_infer, "--resume", mae, "--img_path", data / "val" / "cat" / "000.png", "--output_dir", tmp_path)

    more = ["--epochs", 2, "--resume", "auto", "--allow_changes", "epochs"]
    assert "--num_heads: 2 in the checkpoint, 4 now" in call_script(main_finetune, *finetune, *more, "--num_heads", 4,
                                                                    code=2)[1]
    assert "continuing with epoch 1" in call_script(main_finetune, *finetune, *more)[0]
    assert "blocks.2." in call_script(main_finetune, *finetune, "--depth", 3, code=2)[1]


def sizes(*words, model="mae_vit_base_patch16"):
    args = main_pretrain.get_args_parser().parse([str(word) for word in words])
    return options.decoder_sizes(args, MODELS[model])


def test_what_is_the_models_own_is_not_said_again():
    assert sizes() == {} and sizes("--decoder_depth", 8, "--decoder_embed_dim", 512) == {}
    assert sizes("--decoder_depth", 1, "--decoder_embed_dim", 512) == {"decoder_depth": 1}
    for width in (128, 256, 768, 1024):  # of the paper's Table 1 (b), with 16 heads
        assert sizes("--decoder_embed_dim", width) == {"decoder_embed_dim": width}


@pytest.mark.parametrize("words, complaint", [
    (["--decoder_depth", 0], "--decoder_depth 0: expected 1 or more"),
    (["--decoder_num_heads", 0], "--decoder_num_heads 0: expected 1 or more"),
    (["--decoder_embed_dim", 72], "--decoder_embed_dim 72: expected a multiple of 4.*--decoder_num_heads, which is 16"),
    (["--decoder_embed_dim", 6, "--decoder_num_heads", 3], "--decoder_embed_dim 6: expected a multiple of 4")])
def test_decoders_that_cannot_be(words, complaint):
    with pytest.raises(ValueError, match=complaint):
        sizes(*words)


@pytest.mark.parametrize("heads", [5, 0, "3", True, 1e9])
def test_a_file_with_heads_that_its_decoder_cannot_have(make_mae, heads):
    weights = {name: value.numpy() for name, value in make_mae().state_dict().items()}  # its decoder is 12 wide
    described = {"name": "mae", "img_size": [12, 8], "decoder_embed_dim": 12, "decoder_num_heads": 4}
    checkpoint._check_model("x.pd", {"model": weights, "architecture": dict(described)})
    with pytest.raises(checkpoint.CheckpointError, match="decoder_num_heads is"):
        checkpoint._check_model("x.pd", {"model": weights, "architecture": {**described, "decoder_num_heads": heads}})
    with pytest.raises(checkpoint.CheckpointError, match="decoder_depth is 9, weights 1"):
        checkpoint._check_model("x.pd", {"model": weights, "architecture": {**described, "decoder_depth": 9}})


# Pictures

def coordinates(width, height):
    """A picture whose first two channels are the column and the row of a pixel."""
    row, column = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return Image.fromarray(np.stack([column, row, 0 * row], axis=2).astype("uint8"))


def cut(crop, index, **more):
    transform = transforms.PretrainTransform((224, 224), num_patches=1, mean=[0.5] * 3, std=[0.5] * 3, crop=crop, **more)
    return transform(coordinates(256, 256), keyed_generator(0, IMAGE, 0, index))[0]


def test_crops_of_a_fixed_size_lie_anywhere():
    """224 of 256 pixels of the resized picture: 33 places in each direction; half of them mirrored."""
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
    with pytest.raises(ValueError, match="--color_jitter must not be negative, got -1"):
        cut("center", 0, color_jitter=-1.0)


def test_the_flags_reach_the_pictures(tmp_path, data, call_script, monkeypatch):
    seen = []

    class Spied(transforms.PretrainTransform):
        def __init__(self, *args, **options):
            seen.append((options["crop"], options["color_jitter"]))
            super().__init__(*args, **options)
    monkeypatch.setattr(main_pretrain, "PretrainTransform", Spied)
    call_script(main_pretrain, *MAE, "--data_path", data, "--output_dir", "", "--crop", "fixed", "--color_jitter", 0.4)
    assert seen == [("fixed", 0.4)]
