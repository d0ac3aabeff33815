"""Reconstructions during training: sheets checked by their pixels, entropies by their formula."""

import shutil

import numpy as np
import paddle
import pytest
from PIL import Image
from scripts import flat, read_log, read_state, write_pictures
from visualdl_points import points

import main_pretrain
from util.compute import amp, compilation
from util.data.masking import Mask
from util.images.decode import UnreadableImage
from util.images.transforms import EvalTransform
from util.look import curves
from util.look.figures import GAP
from util.run.monitor import Monitor

NORMALIZATION = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}


class Noise:
    """A source of RGB images of 12 x 8 pixels; those named in `bad` cannot be read."""

    def __init__(self, count, bad=()):
        self.bad, self.opened = bad, []
        rng = np.random.default_rng(3)
        self.images = [
            Image.fromarray(rng.integers(0, 256, [12, 8, 3], dtype=np.uint8)) for _ in range(count)
        ]

    def __len__(self):
        return len(self.images)

    def name(self, index):
        return f"{index}.png"

    def open(self, index):
        if index in self.bad:
            raise UnreadableImage(f"{index}.png", "it is empty")
        self.opened.append(index)
        return self.images[index]


def monitor(model, images, **changes):
    return Monitor(
        model,
        images,
        EvalTransform((12, 8), **NORMALIZATION),
        **{
            "epochs": set(range(9)),
            "mask": Mask("random", (3, 2), 0.5),
            "seed": 0,
            "autocast": amp.autocast(None),
            **changes,
        },
    )


def cells(sheet, side):
    """The images of a sheet of 12 x 8 pixels each, [rows, columns, height, width, 3] in 0 to 255."""
    pixels = np.asarray(sheet)
    width, height = side * 8, side * 12
    columns, found, top = pixels.shape[1] // (width + GAP), [], 0
    while top + height <= len(pixels):
        # A row begins where the left edge of its first picture is not white for the height of a picture.
        column = pixels[top : top + height, GAP]
        if (column == 255).all(axis=-1).any():
            top += 1
            continue
        found.append(
            [pixels[top : top + height, GAP + at * (width + GAP) :][:, :width] for at in range(columns)]
        )
        top += height
    return np.array(found)


@pytest.fixture
def dark():
    """24 images without a white pixel, so that pictures and paper can be told apart."""
    images = Noise(24)
    images.images = [Image.fromarray(np.asarray(image) // 2) for image in images.images]
    return images


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_a_sheet_shows_what_is_hidden_and_what_is_predicted(make_mae, scramble, dark, norm_pix_loss):
    model = scramble(make_mae(norm_pix_loss=norm_pix_loss), std=0.05)
    look = monitor(model, dark)
    found = cells(look.look(4).sheet, side=21)[:, :, 10::21, 10::21].astype(int)  # a pixel of the image each
    assert found.shape == (4, 8, 12, 8, 3)
    mask = model(paddle.to_tensor(look.images), 0.5, paddle.to_tensor(look.noise))[2].numpy()
    for number in range(8):
        original, masked, _, pasted = found[number // 2, 4 * (number % 2) :][:4]
        hidden = mask[number].reshape(3, 2).repeat(4, axis=0).repeat(4, axis=1) > 0.5
        assert hidden.sum() == 48
        (cut,) = EvalTransform((12, 8), **NORMALIZATION)(dark.images[3 * number])
        assert (original == cut.transpose(1, 2, 0)).all()
        assert (masked[hidden] == 128).all() and (masked[~hidden] == original[~hidden]).all()
        assert (pasted[~hidden] == original[~hidden]).all()
        assert (pasted[hidden] != original[hidden]).mean() > 0.9


def test_images_are_spread_and_unreadable_ones_passed_over(make_mae, capsys):
    images = Noise(20, bad=(5, 7, 8))
    assert len(monitor(make_mae(), images).images) == 8 and images.opened == [0, 2, 6, 9, 10, 12, 15, 17]
    assert "--vis_every passes over an image: 7.png cannot be read" in capsys.readouterr().out
    # Nothing of the second and the third pair is left: the first and the fourth give two.
    images = Noise(16, bad=(2, 3, 4, 5))
    assert len(monitor(make_mae(), images).images) == 8 and sorted(set(images.opened) - {2, 3, 4, 5}) == [
        0,
        1,
        6,
        7,
        8,
        10,
        12,
        14,
    ]
    images = Noise(3)
    assert len(monitor(make_mae(), images).images) == 3 and images.opened == [0, 1, 2]
    with pytest.raises(ValueError, match="none of the images to draw can be read, such as 0.png; repair"):
        monitor(make_mae(), Noise(2, bad=(0, 1)))


def test_masks_follow_from_the_seed_and_the_place(make_mae):
    noise = monitor(make_mae(), Noise(30)).noise
    assert (noise == monitor(make_mae(), Noise(9)).noise).all()
    assert len(np.unique(noise, axis=0)) == 8
    assert (noise != monitor(make_mae(), Noise(9), seed=1).noise).any()


def test_when_a_look_is_due(make_mae):
    look = monitor(make_mae(), Noise(1), epochs={2, 5, 7})
    assert [epoch for epoch in range(8) if look.due(epoch)] == [2, 5, 7]


def test_attention_entropy_of_each_block(make_mae, scramble):
    """All queries and keys 0: each of 7 tokens takes the same of each. The second block has none of that."""
    model = scramble(make_mae(), std=0.5)
    model.blocks[0].attn.qkv.weight.set_value(np.zeros([8, 24], "float32"))
    model.blocks[0].attn.qkv.bias.set_value(np.zeros([24], "float32"))
    first, second = monitor(model, Noise(5)).look(0).entropies
    assert first == pytest.approx(np.log(7), rel=1e-6) and 0 < second < 0.999 * np.log(7)


def test_a_look_leaves_no_trace(make_mae, scramble):
    model = scramble(make_mae())
    before = {name: p.numpy() for name, p in model.named_parameters()}
    numbers = np.random.get_state()[1].copy()
    model.train()
    look = monitor(model, Noise(9))
    look.look(0)
    assert model.training and all(layer.training for layer in model.sublayers())
    assert all((p.numpy() == before[name]).all() and p.grad is None for name, p in model.named_parameters())
    paddle.seed(11)
    expected = paddle.rand([3]).numpy()
    paddle.seed(11)
    look.look(0)
    assert (paddle.rand([3]).numpy() == expected).all()
    assert (np.random.get_state()[1] == numbers).all()
    model.eval()
    look.look(1)
    assert not model.training


def test_a_compiled_model_is_looked_at_as_it_is(make_mae, scramble):
    """Without tracing it for that, which may take minutes; its sheet is that of the same model uncompiled."""
    expected = monitor(scramble(make_mae()), Noise(8)).look(2)
    model = compilation.compiled(scramble(make_mae()))
    found = monitor(model, Noise(8)).look(2)
    assert len(model.forward.program_cache) == 0
    assert found.entropies == expected.entropies
    assert (np.asarray(found.sheet) == np.asarray(expected.sheet)).all()


# ---- in a run


def run(data, folder, *flags):
    parser = main_pretrain.get_args_parser()
    main_pretrain.main(
        parser.parse(
            [
                "--model",
                "mae_vit_tiny_patch4",
                "--input_size",
                "8",
                "--batch_size",
                "4",
                "--device",
                "cpu",
                "--epochs",
                "3",
                "--warmup_epochs",
                "1",
                "--blr",
                "0.1",
                "--num_workers",
                "0",
                "--print_freq",
                "1",
                "--data_path",
                str(data),
                "--output_dir",
                str(folder),
                *flags,
            ]
        )
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data"), train=8, val=5, size=(12, 12))


def test_a_run_with_looks(data, tmp_path):
    """It ends bit by bit as one without; and one that was interrupted sees the same."""
    run(data, tmp_path / "without")
    run(data, tmp_path / "with", "--vis_every", "2", "--keep", "3")
    without, looked = (
        flat(read_state(tmp_path / name / "checkpoint-latest.pd")) for name in ("without", "with")
    )
    arrays = [name for name in without if name.startswith(("model/", "optimizer/"))]
    assert len(arrays) > 300 and all(np.array_equal(without[name], looked[name]) for name in arrays)

    sheets = sorted((tmp_path / "with" / "reconstructions").iterdir())
    assert [path.name for path in sheets] == ["epoch_0001.png", "epoch_0002.png"]
    first, second = (np.asarray(Image.open(path)) for path in sheets)
    assert first.shape == second.shape and (first != second).any()
    log = read_log(tmp_path / "with")
    assert (np.asarray(Image.open(tmp_path / "with" / "curves.png")) == np.asarray(curves.sheet(log))).all()
    entropies = [line.get("train_attention_entropy") for line in log]
    assert entropies[0] is None and 0 < entropies[1] < np.log(5) and 0 < entropies[2] < np.log(5)
    shown = points(tmp_path / "with")
    assert shown["reconstructions"] == [(1, "image"), (2, "image")]
    assert shown["watched/attention_entropy"] == [(epoch, round(entropies[epoch], 3)) for epoch in (1, 2)]
    blocks = [shown[f"watched/attention_entropy_block_{block:02d}"] for block in range(6)]
    assert np.mean([entropy for (_, entropy), _ in blocks]) == pytest.approx(entropies[1], abs=1e-3)
    assert [at for at, _ in shown["grad_norm"]] == [0, 500, 1000, 1500, 2000, 2500]
    assert [line["train_grad_norm"] for line in log] == pytest.approx(
        np.array([norm for _, norm in shown["grad_norm"]]).reshape(3, 2).mean(axis=1), abs=1e-3
    )

    shutil.copytree(tmp_path / "with", tmp_path / "resumed")
    run(
        data,
        tmp_path / "resumed",
        "--vis_every",
        "2",
        "--keep",
        "3",
        "--resume",
        str(tmp_path / "resumed" / "checkpoint-0.pd"),
    )
    for path in sheets:
        assert (tmp_path / "resumed" / "reconstructions" / path.name).read_bytes() == path.read_bytes()
        assert (tmp_path / "resumed" / "earlier.1" / "reconstructions" / path.name).exists()
    timeless = {tag: values for tag, values in shown.items() if tag not in ("images_per_s", "data_wait")}
    assert {
        tag: values for tag, values in points(tmp_path / "resumed").items() if tag in timeless
    } == timeless


def test_looks_need_a_place(data, tmp_path):
    with pytest.raises(ValueError, match="--vis_every -2"):
        run(data, tmp_path / "run", "--vis_every", "-2")
    with pytest.raises(ValueError, match="--vis_every 1: there is nowhere to draw to; give an --output_dir"):
        run(data, "", "--vis_every", "1")
