"""Two processes on CPUs compute what one process computes on the same images."""

import contextlib
import re
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from scripts import flat, launch, read_log, read_state, run, write_pictures

from util.data import loaders
from util.data.masking import Mask
from util.data.sources import open_source
from util.images.transforms import PretrainTransform
from util.system import distributed

SHORT = ["--input_size", 8, "--device", "cpu", "--num_workers", 0]
VAL = 7  # not a multiple of the processes, and less than two whole batches of each


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data"), train=16, val=VAL, size=(12, 12))


def assert_close(a, b, *, rtol=1e-4):
    """Equal up to float32 rounding by another order of summation, relative to the largest value."""
    assert a.keys() == b.keys() and len(a) > 2
    for name, value in a.items():
        np.testing.assert_allclose(
            value, b[name], rtol=0, atol=rtol * max(np.abs(value).max(), 1e-5), err_msg=name
        )


def moments(folder, which):
    return {
        name: value
        for name, value in flat(read_state(folder / "checkpoint-latest.pd")["optimizer"]).items()
        if name.endswith(which)
    }


def one_voice(printed):
    """Return the output of process 0. The other process must not have printed log lines."""
    assert re.search(r"^\[\d\d:\d\d:\d\d\.\d{6}\] ", printed[0], re.MULTILINE)
    assert not re.search(r"^\[\d\d:\d\d:\d\d\.\d{6}\] |Epoch:|Acc@1", printed[1], re.MULTILINE), printed[1]
    return printed[0]


@pytest.mark.slow
def test_pretraining_makes_the_updates_of_one_process_with_the_same_global_batches(tmp_path, data):
    """16 images are 2 updates of 2 micro-batches of 2 x 2 images. A mask depends on its image, not on the process."""
    flags = [
        "--model",
        "mae_vit_tiny_patch4",
        "--data_path",
        data,
        *SHORT,
        "--epochs",
        1,
        "--warmup_epochs",
        0,
        "--accum_iter",
        2,
        "--norm_pix_loss",
        "--lr",
        1e-4,
    ]
    said = one_voice(
        launch(
            "main_pretrain.py",
            *flags,
            "--batch_size",
            2,
            "--output_dir",
            tmp_path / "two",
            logs=tmp_path / "logs",
        )
    )
    assert "batch 2 x accum 2 x 2 processes = 8, lr 1.0e-04" in said and "4 steps an epoch" in said
    run("main_pretrain.py", *flags, "--batch_size", 4, "--output_dir", tmp_path / "one")
    # The first moment is linear in the gradients, the second quadratic; what they make of the weights divides
    # by them.
    for which in ("moment1_0", "moment2_0"):
        assert_close(moments(tmp_path / "one", which), moments(tmp_path / "two", which))
    weights = {
        name: state["model"]["decoder_pred.weight"]
        for name, state in (
            (name, read_state(tmp_path / name / "checkpoint-latest.pd")) for name in ("one", "two")
        )
    }
    np.testing.assert_allclose(weights["one"], weights["two"], atol=2e-6)
    powers = moments(tmp_path / "two", "beta1_pow_acc_0")
    # two updates, not four
    assert {round(value.item(), 6) for value in powers.values()} == {round(0.9**3, 6)}
    (line,) = read_log(tmp_path / "two")  # one log, with the mean loss over both
    assert line["train_loss"] == pytest.approx(read_log(tmp_path / "one")[0]["train_loss"], rel=1e-5)
    assert sorted(path.name for path in (tmp_path / "two").glob("checkpoint-*")) == [
        "checkpoint-0.pd",
        "checkpoint-latest.pd",
    ]
    assert len(list((tmp_path / "two").glob("vdlrecords.*"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, flags",
    [
        ("main_finetune.py", ["--mixup", 0.8, "--drop_path", 0.2, "--blr", 0.01]),
        pytest.param("main_linprobe.py", ["--blr", 1.0], marks=pytest.mark.long),
    ],
)
def test_a_shared_evaluation_counts_every_image_once(tmp_path, data, script, flags):
    """Two processes train and share 7 images; one process then evaluates what they saved on all of them."""
    flags = [
        "--model",
        "vit_tiny_patch4",
        "--data_path",
        data,
        *SHORT,
        "--batch_size",
        2,
        "--nb_classes",
        2,
        *flags,
    ]
    said = one_voice(
        launch(
            script,
            *flags,
            "--epochs",
            1,
            "--warmup_epochs",
            0,
            "--dist_eval",
            "--log_dir",
            "",
            "--output_dir",
            tmp_path / "two",
            logs=tmp_path / "logs",
        )
    )
    (line,) = read_log(tmp_path / "two")
    assert round(line["test_acc1"] * VAL / 100, 6).is_integer()
    alone = run(script, *flags, "--eval", "--resume", tmp_path / "two" / "checkpoint-best.pd")
    result = f"* Acc@1 {line['test_acc1']:.3f} Acc@5 100.000 loss {line['test_loss']:.3f}"
    assert result in said and result in alone


@pytest.mark.slow
@pytest.mark.parametrize(
    "accum_iter, updates",
    [
        pytest.param(
            1,
            [(1, False), (2, True), (3, False), (4, False), (5, True), (6, False), (7, False)],
            marks=pytest.mark.long,
        ),
        (2, [(2, True), (4, False), (6, True), (7, False)]),
    ],
)
def test_both_processes_leave_out_what_one_cannot_use(tmp_path, accum_iter, updates):
    """Of seven batches, one process has a NaN in the second and the other in the fifth. Their weights stay equal."""
    for said in launch("tests/helpers/skipping_processes.py", accum_iter, logs=tmp_path):
        assert f"met [1, 4] updates {updates} same True True" in said


# The same without the launcher.


def test_the_processes_see_different_images_with_different_masks(data, monkeypatch):
    images = open_source(str(data), "train", labelled=False)
    transform = PretrainTransform(
        (8, 8), draw_noise=Mask("random", (2, 2), 0.5).draw, mean=[0.5] * 3, std=[0.5] * 3
    )
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    seen = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        seen += [
            noise
            for _, noises in loaders.train_loader(images, transform, 4, 0, seed=0)
            for noise in noises.numpy().tolist()
        ]
    assert len(seen) == 16 and len({tuple(noise) for noise in seen}) == 16


@pytest.mark.parametrize("shared, counts", [(True, [4, 3]), (False, [7, 7])])
def test_evaluation_batches(data, monkeypatch, shared, counts):
    images = open_source(str(data), "val")
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    found = []
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        loader = loaders.eval_loader(images, lambda image, rng: (np.zeros(1),), 2, 0, shared=shared)
        found.append(sum(len(labels) for _, labels in loader))
    assert found == counts


def test_gradients_are_exchanged_by_the_last_micro_batch_only(monkeypatch):
    class Parallel(paddle.nn.Layer):
        waiting = False

        @contextlib.contextmanager
        def no_sync(self):
            self.waiting = True
            yield
            self.waiting = False

    monkeypatch.setattr(paddle, "DataParallel", Parallel)
    model, exchanged = Parallel(), []
    for last in (False, False, True):
        with distributed.gradient_sync(model, last):
            exchanged.append(not model.waiting)
    assert exchanged == [False, False, True]
    with distributed.gradient_sync(paddle.nn.Linear(1, 1), False):
        pass  # a single process has nothing to exchange


def test_one_process_is_the_main_one_and_sums_by_itself():
    model = paddle.nn.Linear(1, 1)
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.all_sum([1.5, 2.5]) == [1.5, 2.5] and distributed.data_parallel(model) is model
    distributed.barrier()


@pytest.mark.parametrize(
    "device, gpus, chosen",
    [
        ("auto", 0, "cpu"),
        ("cpu", 0, "cpu"),
        ("auto", 1, "gpu"),
        ("gpu", 1, "gpu"),
        ("cuda", 1, "gpu"),
        ("cpu", 1, "cpu"),
    ],
)
def test_devices(monkeypatch, device, gpus, chosen):
    places = []
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: gpus > 0)
    monkeypatch.setattr(paddle.device.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(paddle, "set_device", places.append)
    monkeypatch.setattr(paddle.distributed, "ParallelEnv", lambda: SimpleNamespace(device_id=3))
    assert distributed.init(device) == chosen
    assert places == ["gpu:3" if chosen == "gpu" else "cpu"]
