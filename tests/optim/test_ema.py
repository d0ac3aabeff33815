"""The average of weights against the formula in numpy, and in runs of the three scripts."""

import numpy as np
import paddle
import pytest
from scripts import flat, read_log, read_state, write_pictures

import main_finetune
import main_infer
import main_linprobe
import main_pretrain
from tools import convert_checkpoint
from util.optim.ema import EMA
from util.weights import checkpoint

SHORT = ["--input_size", 8, "--batch_size", 4, "--device", "cpu", "--log_dir", "", "--num_workers", 0]
AVERAGED = ["--ema", "--ema_decay", 0.7, "--clip_grad", 0.5, "--lr", 0.05]
COMMANDS = {
    "pretrain": (
        main_pretrain,
        [
            "--model",
            "mae_vit_tiny_patch4",
            "--accum_iter",
            2,
            "--val_every",
            1,
            "--opt",
            "lars",
            "--sched",
            "step",
            "--decay_epochs",
            1,
        ],
    ),
    "finetune": (
        main_finetune,
        [
            "--model",
            "vit_tiny_patch4",
            "--nb_classes",
            2,
            "--opt",
            "sgd",
            "--momentum",
            0.8,
            "--sched",
            "plateau",
            "--patience_epochs",
            0,
        ],
    ),
    "linprobe": (main_linprobe, ["--model", "vit_tiny_patch4", "--nb_classes", 2, "--opt", "adamw"]),
}


def linear(*, frozen_bias=True):
    layer = paddle.nn.Linear(2, 3)
    layer.bias.stop_gradient = frozen_bias
    return layer, paddle.optimizer.SGD(0.1, layer.parameters())


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9999])
def test_the_formula(decay):
    layer, optimizer = linear()
    ema = EMA(layer, optimizer, decay)
    expected = layer.weight.numpy().astype("float64")
    rng = np.random.default_rng(0)
    for _ in range(5):
        layer.weight.set_value(rng.standard_normal([2, 3]).astype("float32"))
        ema.update()
        expected = decay * expected + (1 - decay) * layer.weight.numpy()
    assert ema.arrays().keys() == {"weight"}
    np.testing.assert_allclose(ema.arrays()["weight"], expected, rtol=1e-5, atol=1e-7)


def test_weights_that_stay_are_their_own_average():
    """Exact, because two rounded factors would shrink the average by 1.7e-8 of itself in each update."""
    layer, optimizer = linear()
    ema = EMA(layer, optimizer, 0.9999)
    for _ in range(200):
        ema.update()
    assert (ema.arrays()["weight"] == layer.weight.numpy()).all()


def test_the_averages_are_in_place_for_a_while():
    layer, optimizer = linear()
    before = {name: p.numpy() for name, p in layer.named_parameters()}
    ema = EMA(layer, optimizer, 0.5)
    layer.weight.set_value(layer.weight * 3)
    ema.update()
    with pytest.raises(KeyError), ema.in_place():
        np.testing.assert_allclose(layer.weight.numpy(), before["weight"] * 2, rtol=1e-6)
        assert (layer.bias.numpy() == before["bias"]).all()
        raise KeyError
    assert (layer.weight.numpy() == before["weight"] * 3).all()
    with ema.in_place():
        ema.put_back()
        assert (layer.weight.numpy() == before["weight"] * 3).all()


def test_of_weights_in_half_precision_the_masters_are_averaged():
    layer, _ = linear()
    optimizer = paddle.optimizer.AdamW(0.1, parameters=[layer.weight], multi_precision=True)
    master = layer.weight.detach().clone()
    start = master.numpy()
    optimizer.set_state_dict({"master_weights": {layer.weight.name: master}})
    ema = EMA(layer, optimizer, 0.5)
    layer.to(dtype="bfloat16")
    optimizer.state_dict()["master_weights"][layer.weight.name].set_value(start * np.float32(1.001))
    ema.update()
    np.testing.assert_allclose(ema.arrays()["weight"], start * 1.0005, rtol=1e-6)
    with ema.in_place():
        assert layer.weight.dtype == paddle.bfloat16


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decays_out_of_range(decay):
    with pytest.raises(ValueError, match=f"--ema_decay {decay}: expected at least 0 and less than 1"):
        EMA(*linear(), decay)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("data"), train=16, val=7, size=(12, 12))


@pytest.mark.filterwarnings("ignore:When training, we now always track global mean and variance")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_with_its_average(tmp_path, data, call_script, capsys, name):
    """A resumed run repeats it, and other tools read the average."""
    script, flags = COMMANDS[name]
    flags = [*flags, *SHORT, *AVERAGED, "--warmup_epochs", 0, "--data_path", data]
    said, _ = call_script(
        script, *flags, "--epochs", 3, "--save_every", 1, "--output_dir", tmp_path / "whole"
    )
    assert said.count("* EMA ") == 3 and said.count("   M") == 3  # "Max accuracy" or "Min loss"
    last = read_state(tmp_path / "whole" / "checkpoint-2.pd")
    trained = set(last["optimizer"])
    assert last["model_ema"].keys() == last["model"].keys()
    for weight, value in last["model_ema"].items():
        assert (value != last["model"][weight]).any() == (weight in trained), weight
    call_script(
        script,
        *flags,
        "--epochs",
        3,
        "--save_every",
        1,
        "--output_dir",
        tmp_path / "resumed",
        "--resume",
        tmp_path / "whole" / "checkpoint-0.pd",
    )
    whole, resumed = (
        flat({**read_state(tmp_path / folder / "checkpoint-2.pd"), "args": {}})
        for folder in ("whole", "resumed")
    )
    assert whole.keys() == resumed.keys()
    for entry, value in whole.items():
        if isinstance(value, np.ndarray):
            assert value.tobytes() == resumed[entry].tobytes(), entry
    assert whole.get("plateau/since") == resumed.get("plateau/since")
    lines = read_log(tmp_path / "whole")
    rates = [round(line["train_lr"], 9) for line in lines]
    if name == "pretrain":
        assert rates == [0.05, 0.005, 0.0005]
        losses = [line["test_ema_loss"] for line in lines]
        assert last["min_loss"] == min(losses) and "max_accuracy" not in last
        best = losses.index(min(losses))
    else:
        accuracies = [line["test_ema_acc1"] for line in lines]
        assert last["max_accuracy"] == max(accuracies)
        best = accuracies.index(max(accuracies))
    assert read_state(tmp_path / "whole" / "checkpoint-best.pd")["epoch"] == best

    if name == "finetune":  # --patience_epochs 0: half the rate after each epoch that is not better
        assert rates == [0.05, 0.05, 0.05 if accuracies[1] > accuracies[0] else 0.025]

    path = tmp_path / "whole" / "checkpoint-2.pd"
    taken = checkpoint.read_checkpoint(path)["model"]
    assert "its averaged weights are taken (--ema)" in capsys.readouterr().err
    assert all((value == last["model_ema"][weight]).all() for weight, value in taken.items())
    raw = tmp_path / "raw.pd"
    assert convert_checkpoint.main([str(path), str(raw), "--entry", "model"]) == 0
    read = checkpoint.read_checkpoint(raw)["model"]
    assert all((value == last["model"][weight]).all() for weight, value in read.items())
    if name == "pretrain":
        assert convert_checkpoint.main([str(path), str(tmp_path / "average.pd")]) == 0
        average = read_state(tmp_path / "average.pd")["model"]
        assert (average["mask_token"] == last["model_ema"]["mask_token"]).all()
    else:  # an evaluation repeats what training said of the average
        said, complaint = call_script(
            script,
            "--model",
            "vit_tiny_patch4",
            "--nb_classes",
            2,
            *SHORT,
            "--data_path",
            data,
            "--eval",
            "--resume",
            path,
        )
        assert f"* Acc@1 {accuracies[-1]:.3f} " in said and f"loss {lines[-1]['test_ema_loss']:.3f}" in said
        assert "averaged weights" in complaint
        call_script(main_infer, "--resume", path, "--img_path", data / "val" / "cat" / "000.png")


def test_a_run_without_an_average_begins_one_with_its_weights(tmp_path, data, call_script):
    script, flags = COMMANDS["pretrain"]
    flags = [*flags, *SHORT, "--warmup_epochs", 0, "--data_path", data, "--lr", 0, "--output_dir", tmp_path]
    call_script(script, *flags, "--epochs", 1)
    said, _ = call_script(
        script,
        *flags,
        "--epochs",
        2,
        "--ema",
        "--resume",
        "auto",
        "--allow_changes",
        "epochs",
        "ema",
        "ema_decay",
    )
    assert "no averaged weights" in said and "is meant for longer runs" in said
    state = read_state(tmp_path / "checkpoint-latest.pd")
    assert all((value == state["model"][name]).all() for name, value in state["model_ema"].items())


def test_averages_of_another_shape_are_an_error():
    layer, optimizer = linear()
    with pytest.raises(ValueError, match=r"x\.pd: model_ema .*: weight"):
        EMA(layer, optimizer, 0.5).restore("x.pd", {"weight": np.zeros([3, 2], "float32")})
