"""Static engine: the program computes what the model does, and is kept for exactly that model."""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import paddle
import pytest

from util.compute import cpu_runtime, onednn
from util.infer import static_engine
from util.infer.static_engine import ProgramKey, Runtime

HAS_BFLOAT16 = not onednn.bfloat16_missing()
SHAPE = [3, 12, 8]
INFO = {"input": {"shape": [None, *SHAPE]}, "outputs": {"logits": [None, 3]}}


@pytest.fixture
def checkpoint(tmp_path):
    """File in place of a checkpoint: the program depends on its status, not on its content."""
    path = tmp_path / "a checkpoint.pd"
    path.write_bytes(b"1")
    return path


@pytest.fixture
def opened(checkpoint, make_vit, scramble):
    """Function that opens the predictor; `made` counts the models that it built."""

    def opened(architecture="a", status=None, dtype=None):
        def make():
            opened.made += 1
            paddle.seed(7)
            model = scramble(make_vit(**opened.sizes))
            model.eval()
            return model

        return static_engine.open_cached(
            ProgramKey(checkpoint, architecture, status), INFO, make, Runtime("cpu", dtype)
        )

    opened.made, opened.sizes = 0, {"global_pool": True}
    return opened


def images(count):
    return np.random.default_rng(3).standard_normal([count, *SHAPE]).astype("float32")


def exports(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


@pytest.mark.parametrize("global_pool", [True, False])
def test_it_computes_what_the_model_computes(opened, make_vit, scramble, global_pool):
    """Several batch sizes; a width for which 1 / sqrt(C) is not a power of two."""
    opened.sizes = {"global_pool": global_pool, "embed_dim": 12, "num_heads": 2}
    predictor = opened()
    paddle.seed(7)
    model = scramble(make_vit(**opened.sizes))
    model.eval()
    for count in (2, 1, 5, 2):
        with paddle.no_grad():
            expected = model(paddle.to_tensor(images(count))).numpy()
        assert np.abs(expected).max() > 0.4
        np.testing.assert_allclose(predictor(images(count))["logits"], expected, rtol=0, atol=1e-5)


def test_a_linear_probe(opened, checkpoint, make_vit, scramble):
    """The statistics of its BatchNorm differ between channels."""
    model = scramble(make_vit(embed_dim=12))
    model.make_linear_probe()
    model.head[0]._mean.set_value(np.linspace(-1, 2, 12).astype("float32"))
    model.head[0]._variance.set_value(np.linspace(0.1, 3, 12).astype("float32"))
    model.eval()
    with paddle.no_grad():
        expected = model(paddle.to_tensor(images(2))).numpy()
    predictor = static_engine.open_cached(
        ProgramKey(checkpoint, "probe"), INFO, lambda: model, Runtime("cpu")
    )
    np.testing.assert_allclose(predictor(images(2))["logits"], expected, rtol=0, atol=1e-5)


def test_a_strided_or_wider_input_is_taken_as_it_is(opened):
    predictor = opened()
    expected = predictor(images(4)[::2].copy())["logits"]
    np.testing.assert_array_equal(predictor(images(4)[::2])["logits"], expected)
    np.testing.assert_array_equal(predictor(images(4)[::2].astype("float64"))["logits"], expected)


def test_the_program_is_kept_for_the_same_state_and_architecture(tmp_path, checkpoint, opened):
    first = opened()(images(2))["logits"]
    kept = exports(tmp_path)
    assert len(kept) == 1 and kept[0].startswith(f"a checkpoint.pd.paddle-{paddle.__version__}-")
    np.testing.assert_array_equal(opened()(images(2))["logits"], first)
    assert opened.made == 1
    opened("b")  # other sizes of the same weights: both stay
    assert opened.made == 2 and len(exports(tmp_path)) == 2
    opened()
    assert opened.made == 2
    status = checkpoint.stat()
    checkpoint.write_bytes(b"2")
    os.utime(checkpoint, ns=(status.st_atime_ns, status.st_mtime_ns))  # as a copy that preserves times
    opened()
    assert opened.made == 3 and len(exports(tmp_path)) == 1 and exports(tmp_path)[0] not in kept


def test_exports_of_others_are_left_alone(tmp_path, opened):
    for name in ("a checkpoint.pd.paddle-0.0.1-abc", "other.pd.paddle-3.3.1-abc"):
        (tmp_path / name).mkdir()
    opened()
    assert len(exports(tmp_path)) == 3


def test_a_read_only_folder(tmp_path, opened, monkeypatch):
    make = static_engine.tempfile.mkdtemp

    def refuse(*args, **more):
        if (*args, None, None, None)[2] or more.get("dir"):
            raise PermissionError("read-only")
        return make(*args, **more)

    monkeypatch.setattr(static_engine.tempfile, "mkdtemp", refuse)
    answer = opened()(images(2))["logits"]
    assert exports(tmp_path) == []
    monkeypatch.undo()
    np.testing.assert_array_equal(opened()(images(2))["logits"], answer)
    assert opened.made == 2 and len(exports(tmp_path)) == 1


def test_a_checkpoint_that_was_replaced_while_it_was_read(tmp_path, checkpoint, opened):
    """The program of the weights that were read is not used for the file that replaced them."""
    before = checkpoint.stat()
    checkpoint.write_bytes(b"another")
    opened(status=before)
    opened()
    assert opened.made == 2


def test_remains_of_a_killed_export_are_deleted_after_an_hour(tmp_path, checkpoint, opened):
    opened()
    old, new = (tmp_path / f".{exports(tmp_path)[0]}.{name}.part" for name in ("old", "new"))
    for left in (old, new):
        left.mkdir()
    os.utime(old, (1, 1))
    checkpoint.write_bytes(b"another")
    opened()
    assert not old.exists() and new.exists()


def test_a_program_that_computes_something_else_is_refused(tmp_path, opened, monkeypatch):
    """The limit is 1e-4, relative for logits above 1."""
    run = static_engine.ProgramPredictor.__call__

    def wrong_by(share, shift):
        monkeypatch.setattr(
            static_engine.ProgramPredictor,
            "__call__",
            lambda self, images: {"logits": run(self, images)["logits"] * (1 + share) + shift},
        )

    wrong_by(5e-5, 0)
    opened()
    assert len(exports(tmp_path)) == 1
    for share, shift in ((1e-2, 0), (0, 1.5e-4)):
        wrong_by(share, shift)
        with pytest.raises(ValueError, match="--engine inference: .* use --engine paddle"):
            opened("another")
    assert len(exports(tmp_path)) == 1


def test_another_process_was_faster(tmp_path, opened, monkeypatch):
    opened()
    kept = tmp_path / exports(tmp_path)[0]
    (kept / "model.pdiparams").rename(tmp_path / "aside")  # as if not there yet when this process looked
    opened()
    assert opened.made == 2 and exports(tmp_path) == [kept.name]
    assert not (kept / "model.pdiparams").exists()  # what is there belongs to the other


@pytest.mark.isa
def test_bfloat16(opened, monkeypatch):
    """bfloat16 logits are near the float32 logits, and differ from them."""
    if not HAS_BFLOAT16:
        with pytest.raises(ValueError, match="--amp bf16: .* pass --amp off"):
            opened(dtype="bfloat16")
        return
    exact, rounded = (opened(dtype=dtype)(images(6))["logits"] for dtype in (None, "bfloat16"))
    assert opened(dtype="bfloat16").precision == "bfloat16" and opened().precision == "float32"
    assert opened.made == 1  # the same program
    difference = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 1e-4 < difference < 5e-2
    monkeypatch.setattr(cpu_runtime, "features", lambda: {"avx512f", "avx2"})
    with pytest.raises(ValueError, match="--amp bf16: this CPU has neither avx512_bf16 nor amx_bf16"):
        opened(dtype="bfloat16")


@pytest.mark.isa
def test_paddle_prints_nothing(opened, capfd):
    opened()(images(1))
    opened(dtype="bfloat16" if HAS_BFLOAT16 else None)(images(1))
    assert capfd.readouterr() == ("", "")


def test_a_damaged_program_is_named(tmp_path, opened):
    opened()
    kept = tmp_path / exports(tmp_path)[0]
    (kept / "model.pdiparams").write_bytes((kept / "model.pdiparams").read_bytes()[:200])
    with pytest.raises(ValueError, match="cannot be loaded .* remove the folder") as error:
        opened()
    assert str(kept) in str(error.value)


def test_threads_get_their_own_answers(opened):
    predictor, mine = opened(), [image[None] for image in images(8)]
    alone = [predictor(image)["logits"] for image in mine]
    assert len(np.unique(np.concatenate(alone), axis=0)) == 8

    def ask(number):
        return [predictor(mine[number])["logits"] for _ in range(20)]

    with ThreadPoolExecutor(8) as pool:
        for number, answers in enumerate(pool.map(ask, range(8))):
            for answer in answers:
                np.testing.assert_array_equal(answer, alone[number])
