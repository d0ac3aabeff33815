"""Masks at random, in blocks and on a grid: how many patches each hides, and how they lie."""
from functools import partial

import numpy as np
import paddle
import pytest
from scripts import read_state, write_pictures

import main_infer
import main_pretrain
import models_mae
from tools import visualize
from util.data import mask_modes

GRIDS = [(14, 14), (7, 5), (2, 9), (1, 6), (2, 2), (20, 3)]


def hidden(mode, grid, ratio, seed=0):
    """[rows, columns] bool as the model hides them."""
    num_patches = grid[0] * grid[1]
    noise = mask_modes.draw(mode, grid, models_mae.num_kept(num_patches, ratio), np.random.default_rng(seed))
    assert noise.dtype == np.float32 and noise.shape == (num_patches,) and 0 <= noise.min() and noise.max() < 1
    mask = models_mae.random_masking(1, num_patches, ratio, paddle.to_tensor(noise[None]))[2]
    return mask.numpy().reshape(grid) > 0.5


def boundaries(mask):
    """How many patches beside or above each other differ."""
    return int((mask[:, 1:] != mask[:, :-1]).sum() + (mask[1:] != mask[:-1]).sum())


@pytest.mark.parametrize("mode", mask_modes.MODES)
def test_every_mode_hides_just_as_many(mode):
    for grid in GRIDS:
        for ratio in (0.2, 0.5, 0.75, 0.8):
            length = grid[0] * grid[1]
            noise = mask_modes.draw(mode, grid, int(length * (1 - ratio)), np.random.default_rng(1))
            assert len(set(noise.tolist())) == length  # no ties: what is kept does not hang on how a device sorts
            assert hidden(mode, grid, ratio).sum() == length - int(length * (1 - ratio)), (grid, ratio)
    assert hidden(mode, (14, 14), 0.95).sum() == 187


def test_blocks_hold_together():
    """Two neighbours of which K of L are visible at random differ with probability 2 K (L - K) / (L (L - 1))."""
    edges, visible, length = 2 * 14 * 13, 49, 196
    expected = edges * 2 * visible * (length - visible) / (length * (length - 1))
    means = {mode: np.mean([boundaries(hidden(mode, (14, 14), 0.75, seed)) for seed in range(100)])
             for mode in mask_modes.MODES}
    assert means["random"] == pytest.approx(expected, rel=0.03)  # 137
    assert means["block"] < 0.35 * expected
    assert means["grid"] == 49 * 4 - 7 - 7  # each visible one has four hidden neighbours, less at two of the borders


def test_a_block_of_beit():
    """At least 16 of 14 x 14 patches, one side at most 3.3 times the other; where 16 are hidden that is one block.

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
    """No side or corner of the picture is hidden more often than another; its middle is, as a block has to fit in."""
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
    """What the model is given, [L] each, in order."""
    seen, original = [], models_mae.random_masking

    def masking(n, length, ratio, noise=None):
        seen.extend(noise.numpy())
        return original(n, length, ratio, noise)
    monkeypatch.setattr(models_mae, "random_masking", masking)
    return seen


SHORT = ["--model", "mae_vit_tiny_patch4", "--input_size", 16, "--batch_size", 4, "--warmup_epochs", 0, "--epochs", 2,
         "--device", "cpu", "--log_dir", ""]


def test_a_run_draws_by_it_goes_on_the_same_and_shows_it(tmp_path, data, noises, call_script):
    """Whatever the number of workers, and resumed in the middle; another mode would be another run."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    command = [*SHORT, "--data_path", data]
    said, _ = call_script(main_pretrain, *command, "--mask_mode", "grid", "--num_workers", 0, "--output_dir", whole,
                          "--keep", 5)
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
    assert "leave out --mask_mode" in call_script(visualize, *trained, "--mask_mode", "grid", "--mask_file", picture,
                                                  code=2)[1]


def test_no_mode_leaves_a_trace_in_the_draws_of_another_picture():
    """Noise is a function of its generator alone."""
    for mode in mask_modes.MODES:
        draw = partial(mask_modes.draw, mode, (14, 14), 49)
        before = np.random.get_state()[1].tolist()
        first, second = draw(np.random.default_rng(5)), draw(np.random.default_rng(5))
        np.testing.assert_array_equal(first, second)
        assert (first != draw(np.random.default_rng(6))).any() and np.random.get_state()[1].tolist() == before
