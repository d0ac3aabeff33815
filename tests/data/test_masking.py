"""Masks: how many patches each mode hides, how they lie, and custom masks from files."""

import numpy as np
import paddle
import pytest
from PIL import Image
from scripts import read_state, write_pictures

import main_infer
import main_pretrain
import models_mae
from tools import visualize
from util.data.masking import MODES, CustomMask, Mask, read_custom_mask

GRIDS = [(14, 14), (7, 5), (2, 9), (1, 6), (2, 2), (20, 3)]


def hidden(mode, grid, ratio, seed=0):
    """[rows, columns] bool as the model hides them."""
    noise = Mask(mode, grid, ratio).draw(np.random.default_rng(seed))
    assert (
        noise.dtype == np.float32
        and noise.shape == (grid[0] * grid[1],)
        and 0 <= noise.min()
        and noise.max() < 1
    )
    assert len(set(noise.tolist())) == noise.size  # no ties: the result does not depend on how a device sorts
    mask = models_mae.random_masking(1, noise.size, ratio, paddle.to_tensor(noise[None]))[2]
    return mask.numpy().reshape(grid) > 0.5


def boundaries(mask):
    """Number of neighbouring patches, of which one is hidden and one visible."""
    return int((mask[:, 1:] != mask[:, :-1]).sum() + (mask[1:] != mask[:-1]).sum())


def test_every_mode_hides_exactly_the_ratio():
    for mode in MODES:
        for grid in GRIDS:
            for ratio in (0.2, 0.5, 0.75):
                length = grid[0] * grid[1]
                assert Mask(mode, grid, ratio).visible == int(length * (1 - ratio))
                assert hidden(mode, grid, ratio).sum() == length - int(length * (1 - ratio)), (grid, ratio)
        assert hidden(mode, (14, 14), 0.95).sum() == 187


A_MASK_THAT_HIDES_ALL_OR_NOTHING_IS_REFUSED = [
    ("random", 1.0, "0 of 4"),
    ("random", 0.8, "0 of 4"),
    ("random", 0.0, "4 of 4"),
    ("random", float("nan"), "nan"),
    ("random", 1.5, "1.5"),
    ("blocks", 0.5, "--mask_mode blocks"),
]


def test_a_mask_that_hides_all_or_nothing_is_refused():
    for mode, ratio, said in A_MASK_THAT_HIDES_ALL_OR_NOTHING_IS_REFUSED:
        with pytest.raises(ValueError, match="--mask_(ratio|mode)") as error:
            Mask(mode, (2, 2), ratio)
        assert said in str(error.value)


def test_blocks_hold_together():
    """With K of L random visible patches, neighbours differ with probability 2 K (L - K) / (L (L - 1))."""
    edges, visible, length = 2 * 14 * 13, 49, 196
    expected = edges * 2 * visible * (length - visible) / (length * (length - 1))
    means = {
        mode: np.mean([boundaries(hidden(mode, (14, 14), 0.75, seed)) for seed in range(100)])
        for mode in MODES
    }
    assert means["random"] == pytest.approx(expected, rel=0.03)  # 137
    assert means["block"] < 0.35 * expected
    # each visible one has four hidden neighbours, less at two of the borders
    assert means["grid"] == 49 * 4 - 7 - 7


def test_a_block_of_beit():
    """A block has 16 patches or more of 14 x 14, and one side is at most 3.3 times the other.

    As sides are whole numbers, their product may be less than 16: then a second block has what is missing.
    """
    single, aspects = 0, []
    for seed in range(200):
        mask = hidden("block", (14, 14), 16 / 196, seed)
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        if height * width <= 21:  # a whole rectangle, of which the last row or column may be short
            single += 1
            aspects.append(height / width)
    assert single > 120 and min(aspects) < 0.45 and max(aspects) > 2.2
    assert min(aspects) >= 0.2 and max(aspects) <= 5


def test_blocks_come_anywhere():
    """No side or corner is hidden more often than another. The middle is, because blocks must fit in."""
    counts = sum(hidden("block", (6, 6), 0.75, seed).astype(float) for seed in range(400))
    for turned in (counts[::-1], counts[:, ::-1], counts.T):
        assert abs(counts[:3].sum() / turned[:3].sum() - 1) < 0.1 and abs(counts[0, 0] - turned[0, 0]) < 60
    assert counts[0, 0] < counts[2:4, 2:4].min()
    assert sum(~hidden("block", (2, 2), 0.75, seed) for seed in range(400)).min() > 60


def test_the_grid_keeps_one_of_each_four():
    kept = set()
    for seed in range(30):
        visible = ~hidden("grid", (14, 10), 0.75, seed)
        assert (visible.reshape(7, 2, 5, 2).sum(axis=(1, 3)) == 1).all()
        kept.add(tuple(np.argwhere(visible)[0]))
    assert kept == {(0, 0), (0, 1), (1, 0), (1, 1)}  # in one of four places, the same in the whole picture


def test_the_grid_at_other_ratios():
    for seed in range(10):
        assert boundaries(hidden("grid", (14, 10), 0.5, seed)) == 14 * 9 + 13 * 10  # a chessboard
        visible = ~hidden("grid", (16, 16), 15 / 16, seed)
        assert (visible.reshape(4, 4, 4, 4).sum(axis=(1, 3)) == 1).all()
        # in between, each 4 x 4 has two or three of its 16
        per_cell = (~hidden("grid", (16, 16), 0.85, seed)).reshape(4, 4, 4, 4).sum(axis=(1, 3))
        assert per_cell.min() >= 2 and per_cell.max() <= 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data"), size=(16, 16))


@pytest.fixture
def noises(monkeypatch):
    """Noise that the model gets, [L] each, in order."""
    seen, original = [], models_mae.random_masking

    def masking(n, length, ratio, noise=None, num_visible=None):
        seen.extend(noise.numpy())
        return original(n, length, ratio, noise, num_visible)

    monkeypatch.setattr(models_mae, "random_masking", masking)
    return seen


SHORT = [
    "--model",
    "mae_vit_tiny_patch4",
    "--input_size",
    16,
    "--batch_size",
    4,
    "--warmup_epochs",
    0,
    "--epochs",
    2,
    "--device",
    "cpu",
    "--log_dir",
    "",
]


def test_a_run_draws_by_it_goes_on_the_same_and_shows_it(tmp_path, data, noises, call_script):
    """The number of workers and a resume do not matter; another mode is refused."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    command = [*SHORT, "--data_path", data]
    said, _ = call_script(
        main_pretrain, *command, "--mask_mode", "grid", "--num_workers", 0, "--output_dir", whole, "--keep", 5
    )
    assert "4 of 16 patches visible, --mask_mode grid" in said
    assert len(noises) == 24
    for noise in noises:
        kept = np.sort(np.argsort(noise)[:4])
        assert kept.tolist() in ([0, 2, 8, 10], [1, 3, 9, 11], [4, 6, 12, 14], [5, 7, 13, 15])
    assert len({tuple(noise) for noise in noises}) > 8

    first = ["--resume", whole / "checkpoint-0.pd", "--output_dir", resumed]
    _, complaint = call_script(main_pretrain, *command, "--mask_mode", "block", *first, code=2)
    assert "--mask_mode: grid in the checkpoint, block now" in complaint
    call_script(main_pretrain, *command, "--mask_mode", "grid", "--num_workers", 2, *first)
    a, b = (read_state(folder / "checkpoint-latest.pd")["model"] for folder in (whole, resumed))
    assert all(np.array_equal(a[name], b[name]) for name in a)

    picture = data / "val" / "cat" / "000.png"
    trained = ["--resume", whole / "checkpoint-latest.pd", "--img_path", picture, "--output_dir", tmp_path]
    for mode in ("grid", "block"):
        noises.clear()
        call_script(main_infer, *trained, "--mask_mode", mode)
        call_script(visualize, *trained, "--mask_mode", mode, "--mask_ratio", 0.75, 0.5)
        np.testing.assert_array_equal(noises[0], noises[1])
        with np.load(tmp_path / "000_reconstruction.npz") as arrays:
            assert [int(mask.sum()) for mask in arrays["mask"]] == [12, 8]
            if mode == "grid":  # a chessboard
                assert boundaries(arrays["mask"][1].reshape(4, 4)) == 24
    assert (
        "--mask_mode: "
        in call_script(visualize, *trained, "--mask_mode", "grid", "--mask_file", picture, code=2)[1]
    )


CUSTOM = np.array([[1, 0], [1, 1], [0, 0]])


def test_every_kind_of_file_gives_the_same_custom_mask(tmp_path):
    np.save(tmp_path / "m.npy", CUSTOM)
    np.savez(tmp_path / "m.npz", mask=CUSTOM.astype("uint8"), other=1)
    Image.fromarray((255 * CUSTOM).astype("uint8")).save(tmp_path / "small.png")
    large = np.kron(255 * CUSTOM, np.ones([20, 30])).astype("uint8")
    large[:9, :30] = 0  # less than half of a patch is black
    large[:4, 30:] = 200  # a fifth of another is nearly white
    Image.fromarray(large).convert("RGB").save(tmp_path / "large.png")
    for name in ("m.npy", "m.npz", "small.png", "large.png"):
        found = read_custom_mask(tmp_path / name, (3, 2))
        assert found.hidden.dtype == bool and found.hidden.tolist() == (CUSTOM > 0).tolist(), name


def test_the_model_hides_exactly_the_custom_mask():
    for hidden in (CUSTOM, 1 - CUSTOM, np.eye(5), 1 - np.eye(5), np.eye(14)[:, :13]):
        mask = CustomMask(hidden > 0)
        noise = paddle.to_tensor(mask.draw()[None])
        _, _, found, _ = models_mae.random_masking(1, hidden.size, None, noise, num_visible=mask.visible)
        assert found.numpy().reshape(hidden.shape).tolist() == hidden.tolist()


def test_a_file_that_is_no_custom_mask_is_refused(tmp_path):
    for name, array, words in (
        ("shape", CUSTOM.T, "[3, 2]"),
        ("values", CUSTOM * 2, "0 and 1"),
        ("all", CUSTOM * 0 + 1, "every"),
        ("none", CUSTOM * 0, "hides no"),
    ):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(ValueError, match="--mask_file") as error:
            read_custom_mask(tmp_path / f"{name}.npy", (3, 2))
        assert words in str(error.value)
    np.savez(tmp_path / "other.npz", prediction=CUSTOM)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "text.npy").write_text("no array")
    for name in ("other.npz", "text.png", "text.npy", "gone.npy", "gone.png"):
        with pytest.raises(ValueError, match=f"--mask_file {tmp_path / name}"):
            read_custom_mask(tmp_path / name, (3, 2))
