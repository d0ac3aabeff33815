"""2, 5 and 13 channels from files to answers, through the scripts and tools."""

import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from band_writer import npy, tiff
from PIL import Image
from scripts import read_state, write_pictures

import main_finetune
import main_infer
import main_linprobe
import main_pretrain
from tools import channel_statistics, export, extract_features, pack_dataset, serve, visualize

KINDS = {  # channels: what writes a file, its suffix
    2: (lambda values: npy((values / 100 - 20).astype(np.float32).transpose(2, 0, 1)), ".npy"),  # decibels
    5: (lambda values: npy((values / 40).astype(np.uint8)), ".npy"),
    # reflectances
    13: (lambda values: tiff(values.astype(np.uint16)), ".tif"),
}
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


def write_bands(root, channels, train=8, val=4):
    """Write ROOT/{train,val}/{field,lake}/<number><suffix>; return root and training values [N, H, W, C].

    A class has its own brightness, and so has a channel.
    """
    make, suffix = KINDS[channels]
    rng, written = np.random.default_rng(0), []
    for split, count in (("train", train), ("val", val)):
        for number in range(count):
            folder = Path(root, split, ("field", "lake")[number % 2])
            folder.mkdir(parents=True, exist_ok=True)
            values = (
                rng.integers(0, 3000, [20, 22, channels]) + 4000 * (number % 2) + 200 * np.arange(channels)
            )
            (folder / f"{number}{suffix}").write_bytes(make(values))
            if split == "train":
                written.append(values)
    values = np.stack(written)
    return Path(root), {2: values / 100 - 20, 5: (values / 40).astype(np.uint8) / 255, 13: values}[channels]


@pytest.fixture
def normalization(call_script):
    """A function (data, channels) -> the flags that tools/channel_statistics.py prints."""

    def normalization(data, channels):
        said, _ = call_script(
            channel_statistics, "--data_path", data, "--in_chans", channels, "--num_workers", 2
        )
        return said.split()

    return normalization


@pytest.mark.parametrize(
    "channels", [pytest.param(2, marks=pytest.mark.slow), pytest.param(5, marks=pytest.mark.slow), 13]
)
def test_pretrain_finetune_probe_and_answer(channels, tmp_path, call_script, normalization):
    data, values = write_bands(tmp_path / "data", channels)
    flags = normalization(data, channels)
    numbers = {
        "mean": [float(word) for word in flags[1 : channels + 1]],
        "std": [float(word) for word in flags[channels + 2 :]],
    }
    np.testing.assert_allclose(numbers["mean"], values.mean(axis=(0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(numbers["std"], values.std(axis=(0, 1, 2)), rtol=1e-5)
    flags = [*SHORT, "--in_chans", channels, *flags, "--data_path", data]

    mae = [
        "--model",
        "mae_vit_tiny_patch4",
        *flags,
        "--output_dir",
        tmp_path / "mae",
        "--vis_every",
        1,
        "--val_every",
        1,
        "--show_channels",
        channels,
        1,
        2,
    ]
    said, _ = call_script(main_pretrain, *mae, "--dry_run")
    assert "checked 8 of 8 train pictures" in said and "all can be read" in said
    call_script(main_pretrain, *mae)
    state = read_state(tmp_path / "mae" / "checkpoint-latest.pd")
    assert (
        state["model"]["patch_embed.proj.weight"].shape[1] == channels and state["normalization"] == numbers
    )
    assert [*(tmp_path / "mae" / "reconstructions").iterdir()]
    said, _ = call_script(main_pretrain, *mae, "--resume", "auto", "--epochs", 2, "--allow_changes", "epochs")
    assert "Epoch: [1]" in said

    for main in (main_finetune, main_linprobe):
        words = ["--model", "vit_tiny_patch4", *flags, "--nb_classes", 2]
        words += ["--aa", ""] if main is main_finetune else []
        resume = tmp_path / main.__name__ / "checkpoint-best.pd"
        call_script(
            main,
            *words,
            "--finetune",
            tmp_path / "mae" / "checkpoint-latest.pd",
            "--output_dir",
            resume.parent,
        )
        said, _ = call_script(main, *words, "--resume", resume, "--eval")
        assert "* Acc@1 " in said
    pictures = sorted((data / "val").rglob("*.*"))
    said, _ = call_script(main_infer, "--resume", resume, "--img_path", *pictures, "--output", "jsonl")
    assert [json.loads(line)["file"] for line in said.splitlines()] == [str(path) for path in pictures]
    call_script(
        main_infer,
        "--resume",
        tmp_path / "mae" / "checkpoint-latest.pd",
        "--img_path",
        pictures[0],
        "--output_dir",
        tmp_path,
        "--show_channels",
        channels,
    )
    assert (tmp_path / f"{pictures[0].stem}_reconstruction.png").is_file()


def test_a_reconstruction_shows_the_channels_that_were_asked_for(tmp_path, call_script, normalization):
    """Three flat channels of 13: the first has the mean, the third lies two standard deviations above it."""
    data, _ = write_bands(tmp_path / "data", 13)
    flags = [*SHORT, "--in_chans", 13, "--mean", *[1000] * 13, "--std", *[500] * 13, "--data_path", data]
    call_script(main_pretrain, "--model", "mae_vit_tiny_patch4", *flags, "--output_dir", tmp_path / "mae")
    values = np.full([20, 20, 13], 7000, np.uint16)
    values[..., [0, 2, 5]] = 1000, 2000, 500
    np.save(tmp_path / "x.npy", values)
    for chosen, colour in (([1, 3, 6], (128, 255, 64)), ([6], (64, 64, 64)), ([], (128, 255, 255))):
        for main, more in ((main_infer, ()), (visualize, ("--show", "reconstruction"))):
            call_script(
                main,
                "--resume",
                tmp_path / "mae" / "checkpoint-latest.pd",
                "--img_path",
                tmp_path / "x.npy",
                "--output_dir",
                tmp_path,
                *more,
                *(["--show_channels", *chosen] if chosen else []),
            )
            sheet = np.asarray(Image.open(tmp_path / "x_reconstruction.png"))
            assert (sheet == colour).all(axis=2).sum() > 200 * 200, (main, chosen)
    for chosen in ("0 1 2", "14", "1 2"):
        complaint = call_script(
            main_infer,
            "--resume",
            tmp_path / "mae" / "checkpoint-latest.pd",
            "--img_path",
            tmp_path / "x.npy",
            "--show_channels",
            *chosen.split(),
            code=2,
        )[1]
        assert f"--show_channels {chosen}: expected one or three numbers from 1 to 13" in complaint
    complaint = call_script(
        main_pretrain, "--model", "mae_vit_tiny_patch4", *flags, "--show_channels", 1, code=2
    )[1]
    assert "--show_channels: nothing is drawn without --vis_every" in complaint


@pytest.mark.slow
def test_from_colour_photographs_to_thirteen_channels_and_on(tmp_path, call_script, normalization):
    photographs = write_pictures(tmp_path / "photographs")
    call_script(
        main_pretrain,
        "--model",
        "mae_vit_tiny_patch4",
        *SHORT,
        "--data_path",
        photographs,
        "--output_dir",
        tmp_path / "mae",
    )
    data, _ = write_bands(tmp_path / "data", 13)
    path = tmp_path / "mae" / "checkpoint-latest.pd"
    flags = [
        "--model",
        "vit_tiny_patch4",
        *SHORT,
        "--in_chans",
        13,
        *normalization(data, 13),
        "--data_path",
        data,
        "--nb_classes",
        2,
        "--aa",
        "",
        "--output_dir",
        tmp_path / "vit",
    ]
    said, _ = call_script(main_finetune, *flags, "--finetune", path)
    assert (
        f"{path}: its patch embedding is for 3 channels; each of 13 got the sum of their weights / 13" in said
    )
    resume = tmp_path / "vit" / "checkpoint-best.pd"
    asked = ["--img_path", data / "val" / "lake" / "1.tif"]
    said, _ = call_script(main_infer, "--resume", resume, *asked)
    assert "field: 0." in said and "lake: 0." in said

    for what, name in (("attention", "1_attention.npz"), ("pca", "1_pca.npz")):
        call_script(
            visualize,
            "--resume",
            resume,
            *asked,
            "--show",
            what,
            "--show_channels",
            4,
            3,
            2,
            "--output_dir",
            tmp_path,
        )
        assert (tmp_path / name).is_file()
    call_script(
        extract_features, "--resume", resume, *asked, "--output", tmp_path / "f.npz", "--num_workers", 0
    )
    call_script(main_infer, "--resume", resume, *asked, "--features", "--save_to", tmp_path / "g.npz")
    with np.load(tmp_path / "f.npz") as features, np.load(tmp_path / "g.npz") as same:
        np.testing.assert_allclose(features["mean"], same["mean"], atol=1e-5)
    exported = tmp_path / "program"
    call_script(export, "--resume", resume, "--output", exported, "--dynamic_batch")
    info = json.loads((exported / "model_info.json").read_text(encoding="utf-8"))
    assert info["input"]["shape"] == [None, 13, 16, 16] and info["input"]["channels"] == ""
    again, _ = call_script(main_infer, "--resume", exported, *asked)
    assert again.split()[:2] == said.split()[:2]
    complaint = call_script(serve, "--resume", resume, "--port", 0, code=2)[1]
    assert "13 channels" in complaint
    complaint = call_script(
        main_infer, "--resume", resume, "--img_path", photographs / "val" / "cat" / "000.png", code=2
    )[1]
    assert "it has the channels R G B, and --in_chans asks for 13" in complaint
    complaint = call_script(main_finetune, *flags[:-4], "--output_dir", tmp_path / "no", code=2)[1]
    assert "--aa rand-m9-mstd0.5-inc1: needs 8-bit images" in complaint


def test_a_foreign_checkpoint_needs_to_be_told_the_mean(tmp_path, call_script):
    data, _ = write_bands(tmp_path / "data", 5)
    path = tmp_path / "bare.pd"
    model = main_finetune.models_vit.MODELS["vit_tiny_patch4"](img_size=16, in_chans=5, num_classes=2)
    path.write_bytes(
        pickle.dumps({"model": {name: value.numpy() for name, value in model.state_dict().items()}})
    )
    asked = [
        "--resume",
        path,
        "--model",
        "vit_tiny_patch4",
        "--input_size",
        16,
        "--in_chans",
        5,
        "--nb_classes",
        2,
        "--img_path",
        data / "val" / "lake" / "1.npy",
    ]
    assert "pass --mean and --std, 5 numbers each" in call_script(main_infer, *asked, code=2)[1]
    said, _ = call_script(main_infer, *asked, "--mean", *[0.4] * 5, "--std", *[0.2] * 5)
    assert "class 0: 0." in said


def test_broken_array_files_are_counted_as_bad_images(tmp_path, call_script, normalization):
    data, _ = write_bands(tmp_path / "data", 5)
    flags = normalization(data, 5)
    broken = data / "train" / "lake" / "1.npy"
    broken.write_bytes(broken.read_bytes()[:-9])
    words = [
        "--model",
        "mae_vit_tiny_patch4",
        *SHORT,
        "--in_chans",
        5,
        *flags,
        "--data_path",
        data,
        "--output_dir",
        tmp_path / "out",
    ]
    assert (
        f"{broken} cannot be read as a picture: its header" in call_script(main_pretrain, *words, code=2)[1]
    )
    call_script(main_pretrain, *words, "--bad_images", "skip")
    assert (
        (tmp_path / "out" / "bad_images_train.txt")
        .read_text(encoding="utf-8")
        .startswith(f"{broken}\tits header")
    )
    said, told = call_script(channel_statistics, "--data_path", data, "--in_chans", 5, "--bad_images", "skip")
    assert "1 of 8 train pictures cannot be read" in told and said.startswith("--mean ")
    assert str(broken) in call_script(channel_statistics, "--data_path", data, "--in_chans", 5, code=2)[1]


def test_statistics_need_one_type_and_spread(tmp_path, call_script):
    for number, dtype in enumerate((np.uint8, np.float32)):
        np.save(tmp_path / f"{number}.npy", np.arange(50).reshape(5, 5, 2).astype(dtype))
    words = ["--data_path", tmp_path, "--in_chans", 2]
    assert "8-bit pixels" in call_script(channel_statistics, *words, code=2)[1]
    (tmp_path / "0.npy").unlink()
    said, _ = call_script(channel_statistics, *words)
    assert said == "--mean 24 25 --std 14.4222 14.4222\n"  # sqrt((25 ** 2 - 1) / 12) * 2
    np.save(tmp_path / "1.npy", np.arange(50).reshape(5, 5, 2) * [0.5, 0])
    assert "channel 2 has the same value in every pixel" in call_script(channel_statistics, *words, code=2)[1]
    assert (
        "nothing is resized here"
        in call_script(channel_statistics, *words, "--image_backend", "fast", code=2)[1]
    )


def test_statistics_of_far_off_values_keep_their_digits(tmp_path, call_script):
    """Sums of float32 squares would lose them."""
    rng = np.random.default_rng(0)
    arrays = [(rng.normal(30000 + number, 0.5, [40, 40, 2])).astype(np.float32) for number in range(3)]
    for number, array in enumerate(arrays):
        np.save(tmp_path / f"{number}.npy", array)
    said, _ = call_script(channel_statistics, "--data_path", tmp_path, "--in_chans", 2)
    std = np.stack(arrays).astype(np.float64).std(axis=(0, 1, 2))
    np.testing.assert_allclose([float(word) for word in said.split()[4:]], std, rtol=1e-5)


def pack(*words):
    pack_dataset.main(
        pack_dataset.get_args_parser().parse_args([str(word) for word in [*words, "--workers", 1]])
    )


def test_packed_files_are_as_they_were(tmp_path, call_script, normalization, capsys):
    data, _ = write_bands(tmp_path / "data", 13)
    pack(data, tmp_path / "packed", "--short_side", 0, "--in_chans", 13)
    with tarfile.open(tmp_path / "packed" / "train" / "000000.tar") as tar:
        assert tar.extractfile("lake/3.tif").read() == (data / "train" / "lake" / "3.tif").read_bytes()
    capsys.readouterr()
    assert normalization(tmp_path / "packed", 13) == normalization(data, 13)
    with pytest.raises(ValueError, match="--in_chans 13: .*--short_side 0"):
        pack(data, tmp_path / "small", "--short_side", 32, "--in_chans", 13)
    with pytest.raises(ValueError, match=r"1\.tif cannot be read|0\.tif cannot be read"):
        pack(data, tmp_path / "colour", "--short_side", 0, "--in_chans", 4)
    (tmp_path / "wide").mkdir()
    np.save(tmp_path / "wide" / "x.npy", np.ones([9, 9, 3], np.float32))
    with pytest.raises(ValueError, match="a JPEG cannot hold its values; --short_side 0"):
        pack(tmp_path / "wide", tmp_path / "jpegs", "--short_side", 8)
