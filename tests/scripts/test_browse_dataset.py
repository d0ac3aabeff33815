"""The sheet of tools/browse_dataset.py: its cells are what a run really feeds its model."""

import re
import shutil

import numpy as np
import pytest
from PIL import Image
from scripts import write_pictures

import engine_finetune
import main_finetune
import main_linprobe
import main_pretrain
from models_mae import MaskedAutoencoderViT
from models_vit import VisionTransformer
from tools import browse_dataset
from util.data.sampler import EpochSampler
from util.look.figures import cut_off

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
HEIGHT, WIDTH, SCALE = 8, 12, 21  # 168 / 8
RUN = [
    "--input_size",
    HEIGHT,
    WIDTH,
    "--mean",
    *MEAN,
    "--std",
    *STD,
    "--batch_size",
    4,
    "--warmup_epochs",
    0,
    "--epochs",
    3,
    "--device",
    "cpu",
    "--log_dir",
    "",
    "--output_dir",
    "",
    "--num_workers",
    0,
    "--seed",
    5,
]
VIT = ["--model", "vit_tiny_patch4", "--nb_classes", 2, *RUN]
MAE = ["--model", "mae_vit_tiny_patch4", *RUN, "--mask_ratio", 0.5]
ORDER = EpochSampler(14, 4, seed=5)  # 3 batches and 2 images that an epoch leaves out


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data of 14 images 30 x 20, the same ones in train and val."""
    folder = write_pictures(tmp_path_factory.mktemp("data"), train=14, val=0, size=(20, 30))
    shutil.copytree(folder / "train", folder / "val")
    return folder


@pytest.fixture
def sheet_of(tmp_path, call_script):
    """Function that runs the tool: {image: cells, uint8 [HEIGHT, WIDTH, 3] each} and the printed lines."""

    def sheet_of(script, *words):
        said = call_script(browse_dataset, script, *words, "--sheet", tmp_path / "sheet.png")[0]
        pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
        lines = re.findall(
            r"epoch (\d+)  batch (\d+)  image (\d+)  (\S+\.png)(?:  \(\w+\)  label (.*))?", said
        )
        across = (pixels.shape[1] - 8) // (WIDTH * SCALE + 8)
        cells = {}
        for row, index in enumerate(dict.fromkeys(int(line[2]) for line in lines)):
            top = 8 + 26 + row * (26 + 22 + 18 + HEIGHT * SCALE + 8) + 26 + 22 + 18
            cells[index] = []
            for column in range(across):
                left = 8 + column * (WIDTH * SCALE + 8)
                cells[index].append(pixels[top : top + HEIGHT * SCALE, left : left + WIDTH * SCALE])
        return cells, lines

    return sheet_of


def shown(image):
    """Normalised [3, HEIGHT, WIDTH] as the sheet shows it."""
    pixels = np.clip(image * np.reshape(STD, [3, 1, 1]) + np.reshape(MEAN, [3, 1, 1]), 0, 1) * 255
    return np.rint(pixels).transpose(1, 2, 0)


def small(cell):
    """Take one pixel of each square that shows one."""
    squares = cell.reshape(HEIGHT, SCALE, WIDTH, SCALE, 3)
    assert (squares == squares[:, :1, :, :1]).all()
    return squares[:, 0, :, 0].astype(float)


@pytest.mark.parametrize(
    "main, words",
    [
        (main_finetune, ["--augment", "strong", "--reprob", 0.7, "--mixup_mode", "elem"]),
        (main_linprobe, ["--aa", "cifar10", "--reprob", 0.7]),
    ],
    ids=["finetune", "linprobe"],
)
def test_cells_are_what_a_classifier_is_trained_on(main, words, data, call_script, sheet_of, monkeypatch):
    batches, evaluated, labels = [], [], []
    forward, cross_entropy = VisionTransformer.forward, engine_finetune.F.cross_entropy

    def spied_forward(model, images):
        (batches if len(labels) == len(batches) and not evaluating else evaluated).append(images.numpy())
        return forward(model, images)

    def spied_loss(logits, label, **options):
        if options["reduction"] == "none":
            labels.append(label.numpy())
        return cross_entropy(logits, label, **options)

    evaluating = []
    evaluate = main.evaluate
    monkeypatch.setattr(
        main,
        "evaluate",
        lambda *args, **options: (evaluating.append(1), evaluate(*args, **options), evaluating.clear())[1],
    )
    monkeypatch.setattr(VisionTransformer, "forward", spied_forward)
    monkeypatch.setattr(engine_finetune.F, "cross_entropy", spied_loss)
    call_script(main, *VIT, "--data_path", data, *words)
    assert len(batches) == len(labels) == 9

    cells, lines = sheet_of(
        f"{main.__name__}.py", *VIT, "--data_path", data, *words, "--epoch", 1, "--draws", 2, "--pictures", 6
    )
    assert list(cells) == [*ORDER.indices(1, 0), *ORDER.indices(1, 1)[:2]]
    compared = 0
    for epoch, batch, index, name, label in lines:
        epoch, batch, index = int(epoch), int(batch), int(index)
        place = ORDER.indices(epoch, batch).index(index)
        np.testing.assert_array_equal(small(cells[index][epoch]), shown(batches[3 * epoch + batch][place]))
        told = dict(part.split() if main is main_finetune else (part, 1) for part in label.split(", "))
        target = labels[3 * epoch + batch][place]
        target = target if main is main_finetune else np.eye(2)[target]
        for number, class_name in enumerate(("cat", "dog")):  # 0.05 is label smoothing's
            assert float(told.get(class_name, target.min())) == pytest.approx(target[number], abs=0.0051)
        assert set(told) == {("cat", "dog")[number] for number in range(2) if target[number] > 0.0501}
        assert ("cat" if index < 7 else "dog") in name
        compared += 1
    absent = [
        index for index in cells if index not in {int(index) for epoch, _, index, *_ in lines if epoch == "2"}
    ]
    assert compared == 12 - len(absent)
    for index, row in cells.items():
        assert len(row) == 4  # file, two epochs, evaluation
        np.testing.assert_array_equal(small(row[3]), shown(np.concatenate(evaluated)[index]))
        name = f"cat/{2 * index:03}.png" if index < 7 else f"dog/{2 * index - 13:03}.png"
        file = np.asarray(Image.open(data / "train" / name))
        again = np.asarray(Image.fromarray(row[0]).resize((30, 20), Image.Resampling.BOX))
        assert np.corrcoef(file.ravel(), again.ravel())[0, 1] > 0.9
    for index in absent:
        assert (cells[index][2] == 255).all()


def test_cells_are_what_an_autoencoder_is_trained_on(data, call_script, sheet_of, monkeypatch):
    batches = []
    forward = MaskedAutoencoderViT.forward

    def spied(model, images, mask_ratio, noise, **options):
        batches.append((images.numpy(), noise.numpy()))
        return forward(model, images, mask_ratio, noise, **options)

    monkeypatch.setattr(MaskedAutoencoderViT, "forward", spied)
    words = [*MAE, "--data_path", data, "--augment", "strong", "--mask_mode", "block"]
    call_script(main_pretrain, *words)
    cells, lines = sheet_of("main_pretrain.py", *words, "--draws", 3, "--pictures", 3)
    assert list(cells) == ORDER.indices(0, 0)[:3] and {line[4] for line in lines} == {""}
    assert len(lines) >= 3
    for epoch, batch, index, *_ in lines:
        epoch, batch, index = int(epoch), int(batch), int(index)
        images, noise = (
            values[ORDER.indices(epoch, batch).index(index)] for values in batches[3 * epoch + batch]
        )
        whole, masked = (small(cells[index][1 + 2 * epoch + column]) for column in range(2))
        np.testing.assert_array_equal(whole, shown(images))
        visible = np.argsort(noise)[:3]  # of 2 x 3 patches of 4 x 4 pixels
        for patch in range(6):
            top, left = 4 * (patch // 3), 4 * (patch % 3)
            found = masked[top : top + 4, left : left + 4]
            assert (found == (whole[top : top + 4, left : left + 4] if patch in visible else 128)).all()


@pytest.mark.parametrize(
    "words, complaint",
    [
        ([], "the first word must be main_pretrain.py, main_finetune.py or main_linprobe.py"),
        (["main_infer.py"], "argument script: invalid choice: 'main_infer.py'"),
        (["main_finetune.py"], "--sheet : "),
        (["main_finetune.py", "--sheet", "no/x.png"], "--sheet no/x.png: there is no folder no"),
        (["main_finetune.py", "--sheet", "x.png", "--draws", 0], "--draws 0: expected 1 or more"),
        (["main_linprobe.py", "--sheet", "x.png", "--eval"], "--eval: "),
        (["main_pretrain.py", "--sheet", "x.png", "--mixup", 0.8], "unrecognized arguments: --mixup 0.8"),
    ],
)
def test_mistakes(words, complaint, tmp_path, call_script, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert complaint in call_script(browse_dataset, *words, code=2)[1]
    assert not list(tmp_path.iterdir())


def test_any_name_and_an_unreadable_picture(tmp_path, call_script):
    data = write_pictures(tmp_path / "data", train=6, val=1, size=(20, 30))
    (data / "train" / "cat" / "000.png").rename(data / "train" / "cat" / "a\nb\udcff 猫.png")
    (data / "train" / "cat" / "002.png").write_bytes(b"no picture")
    words = [
        "--model",
        "mae_vit_tiny_patch4",
        *RUN,
        "--data_path",
        data,
        "--batch_size",
        6,
        "--sheet",
        tmp_path / "x.png",
    ]
    assert "002.png cannot be read" in call_script(browse_dataset, "main_pretrain.py", *words, code=2)[1]
    said = call_script(browse_dataset, "main_pretrain.py", *words, "--bad_images", "skip", "--draws", 5)[0]
    assert "a?b? 猫.png" in said and "1 of 6 train pictures cannot be read" in said
    # of the 8 that are asked for
    assert "6 pictures, epochs 0 to 4" in said and (tmp_path / "x.png").exists()


def test_places_in_an_epoch():
    for rank in range(2):
        sampler = EpochSampler(23, 4, seed=1, rank=rank, world_size=2)
        expected = {
            index: (batch, place)
            for batch in range(len(sampler))
            for place, index in enumerate(sampler.indices(3, batch))
        }
        assert sampler.places(3, list(range(23))) == expected and len(expected) == 8
        assert sampler.places(3, [5]) == {index: place for index, place in expected.items() if index == 5}


def test_a_note_is_cut_off_where_its_room_ends():
    assert cut_off("cat 0.62", 168) == "cat 0.62"
    long = "n01440764 tench, Tinca tinca 0.62, n01443537 goldfish 0.38"
    room = cut_off(long, 168)
    assert room.endswith("…") and long.startswith(room[:-1]) and 15 < len(room) < 35
    assert len(cut_off(long, 90)) < len(room)


def test_five_channels_of_which_three_are_chosen(tmp_path, call_script):
    """Flat channels 1, 0, -1, 0.5 and -2 deviations from the mean; black is 2 below it, white 2 above."""
    mean, std = np.array([10.0, 20, 30, 40, 50]), np.array([1.0, 2, 3, 4, 5])
    values = mean + std * [1, 0, -1, 0.5, -2]
    for split in ("train", "val"):
        for number in range(4):
            folder = tmp_path / split / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            np.save(folder / f"{number}.npy", np.broadcast_to(values, [20, 30, 5]).astype("float32"))
    words = [
        "--model",
        "vit_tiny_patch4",
        "--nb_classes",
        2,
        "--input_size",
        HEIGHT,
        WIDTH,
        "--in_chans",
        5,
        "--mean",
        *mean,
        "--std",
        *std,
        "--batch_size",
        4,
        "--num_workers",
        0,
        "--aa",
        "",
        "--reprob",
        0,
        "--data_path",
        tmp_path,
    ]
    call_script(
        browse_dataset,
        "main_finetune.py",
        *words,
        "--pictures",
        1,
        "--draws",
        1,
        "--show_channels",
        5,
        1,
        4,
        "--sheet",
        tmp_path / "sheet.png",
    )
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    top = 8 + 26 + 26 + 22 + 18
    for column in range(3):  # the file, what is trained on, what is evaluated
        cell = pixels[top : top + HEIGHT * SCALE, 8 + column * (WIDTH * SCALE + 8) :][:, : WIDTH * SCALE]
        assert (abs(cell.reshape(-1, 3).astype(int) - [0, 191, 159]) <= 1).all()  # 0, 3/4 and 5/8 of 255
    assert (
        "--show_channels 6: expected one or three numbers from 1 to 5"
        in call_script(
            browse_dataset,
            "main_finetune.py",
            *words,
            "--show_channels",
            6,
            "--sheet",
            tmp_path / "x.png",
            code=2,
        )[1]
    )
