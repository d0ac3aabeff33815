"""--opt sgd and lars with groups against a loop in numpy, and the options of each optimizer."""

import numpy as np
import paddle
import pytest
from scripts import read_log, write_pictures

import main_finetune
from util.compute import amp
from util.optim import optimizers
from util.optim.param_groups import layer_decay_groups, weight_decay_groups
from util.run.evaluations import evaluated_epochs
from util.weights import checkpoint, loading

RATES = [0.5, 2.0, 0.1]


def trained(model, name, groups, gradients, **more):
    """The parameters of `model` after a step with each of the gradients."""
    optimizer = optimizers.make_optimizer(name, 0.0, groups, **more)
    for step, rate in enumerate(RATES):
        optimizer.set_lr(rate)
        sum(
            (p * paddle.to_tensor(gradients[path][step])).sum()
            for path, p in model.named_parameters()
            if path in gradients
        ).backward()
        optimizer.step()
        optimizer.clear_grad()
    return {path: p.numpy() for path, p in model.named_parameters() if path in gradients}


def expected_of(name, start, gradients, *, decay, share, momentum):
    p, v = start.astype("float64"), 0.0
    for rate, gradient in zip(RATES, gradients):
        g = gradient.astype("float64")
        if name == "sgd" or p.ndim > 1:
            g = g + decay * p
        if name == "lars" and p.ndim > 1 and (p**2).sum() > 0:
            g = g * 0.001 * np.sqrt((p**2).sum()) / np.sqrt((g**2).sum())
        v = momentum * v + g
        p = p - rate * share * v
    return p


@pytest.mark.parametrize("name", ["sgd", "lars"])
def test_groups_decay_and_learn_at_their_own_rate(make_vit, scramble, name):
    model = scramble(make_vit())  # of two blocks
    rng = np.random.default_rng(0)
    starts = {path: p.numpy() for path, p in model.named_parameters() if not p.stop_gradient}
    gradients = {
        path: rng.standard_normal([len(RATES), *start.shape]).astype("float32")
        for path, start in starts.items()
    }
    found = trained(model, name, layer_decay_groups(model, 0.3, 0.5), gradients, momentum=0.7)
    assert len(found) > 30
    for path, start in starts.items():
        layer = 0 if path.startswith(("cls", "pos", "patch")) else 3
        if path.startswith("blocks."):
            layer = int(path.split(".")[1]) + 1
        decay = 0.0 if start.ndim == 1 or path in ("cls_token", "pos_embed") else 0.3
        expected = expected_of(
            name, start, gradients[path], decay=decay, share=0.5 ** (3 - layer), momentum=0.7
        )
        np.testing.assert_allclose(found[path], expected, rtol=1e-4, atol=1e-5, err_msg=path)


def test_the_momenta_of_adamw_are_as_asked(make_mae):
    groups = weight_decay_groups(make_mae(), 0.05)
    for betas in ((0.9, 0.95), (0.8, 0.7), None):
        optimizer = optimizers.make_optimizer("adamw", 0.1, groups, betas=betas)
        assert type(optimizer) is paddle.optimizer.AdamW
        assert (optimizer._beta1, optimizer._beta2) == (betas or (0.9, 0.999))


def test_a_loss_scale_that_stays(monkeypatch):
    made = []
    monkeypatch.setattr(paddle.amp, "GradScaler", lambda **settings: made.append(settings))
    amp.grad_scaler("float16", 128.0)
    amp.grad_scaler("float16")
    assert made == [
        {"init_loss_scaling": 128.0, "use_dynamic_loss_scaling": False},
        {"enable": True, "init_loss_scaling": 65536.0, "incr_every_n_steps": 2000},
    ]
    with pytest.raises(
        ValueError, match="--loss_scale 128: only float16 is scaled, and this run computes in float32"
    ):
        amp.grad_scaler(None, 128.0)
    with pytest.raises(ValueError, match="--loss_scale 0.5: expected dynamic, or a number of at least 1"):
        amp.grad_scaler("float16", 0.5)


class Scaler:
    """A scaler as on a GPU."""

    def __init__(self, dynamic):
        self.dynamic, self.loaded = dynamic, None

    def is_enable(self):
        return True

    def is_use_dynamic_loss_scaling(self):
        return self.dynamic

    def load_state_dict(self, state):
        self.loaded = state


@pytest.mark.parametrize(
    "then, now, loaded",
    [(True, True, True), (True, False, False), (False, True, False), (False, False, False)],
)
def test_only_a_scale_that_moves_is_resumed(make_vit, then, now, loaded):
    model = make_vit()
    optimizer = paddle.optimizer.AdamW(0.1, parameters=model.parameters())
    state = checkpoint.pack(model, optimizer, amp.grad_scaler(None), 0, {})
    state["scaler"] = {"scale": 64.0, "use_dynamic_loss_scaling": then}
    scaler = Scaler(now)
    loading.resume("x.pd", model, optimizer, scaler, state=state)
    assert (scaler.loaded is not None) == loaded


@pytest.mark.parametrize("then, now", [("adamw", "sgd"), ("lars", "adamw")])
def test_the_state_of_another_optimizer_is_refused(make_vit, then, now):
    def made(name):
        model = make_vit()
        return model, optimizers.make_optimizer(name, 0.1, weight_decay_groups(model, 0.1), momentum=0.9)

    model, optimizer = made(then)
    model(paddle.ones([1, 3, 12, 8])).sum().backward()
    optimizer.step()
    state = checkpoint.pack(model, optimizer, amp.grad_scaler(None), 0, {})
    with pytest.raises(
        checkpoint.CheckpointError, match="optimizer state was written by another optimizer .*pass the --opt"
    ):
        loading.resume("x.pd", *made(now), amp.grad_scaler(None), state=state)
    loading.resume("x.pd", *made(then), amp.grad_scaler(None), state=state)


# How often there is an evaluation


@pytest.mark.parametrize(
    "every, epochs, expected", [(1, 3, {0, 1, 2}), (2, 5, {1, 3, 4}), (9, 4, {3}), (0, 4, set())]
)
def test_the_last_epoch_is_evaluated_and_every_nth(every, epochs, expected):
    assert evaluated_epochs(every, epochs) == expected


@pytest.mark.parametrize("every, tested", [(2, [1, 2]), (0, [])])
def test_a_classifier_that_is_evaluated_now_and_then(tmp_path, call_script, every, tested):
    data = write_pictures(tmp_path / "data", size=(16, 16))
    call_script(
        main_finetune,
        "--model",
        "vit_tiny_patch4",
        "--input_size",
        16,
        "--nb_classes",
        2,
        "--data_path",
        data,
        "--batch_size",
        4,
        "--num_workers",
        0,
        "--device",
        "cpu",
        "--epochs",
        3,
        "--warmup_epochs",
        0,
        "--aa",
        "",
        "--val_every",
        every,
        "--output_dir",
        tmp_path / "run",
    )
    assert [line["epoch"] for line in read_log(tmp_path / "run") if "test_acc1" in line] == tested
    assert (tmp_path / "run" / "checkpoint-best.pd").exists() == bool(tested)
