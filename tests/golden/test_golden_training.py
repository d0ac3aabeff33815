"""Ten updates of each training, run by the engines, against PyTorch with timm's groups and schedule.

The references were recorded by tools/maintain/make_golden.py, in float64.
"""

from functools import partial

import numpy as np
import paddle
import parity
import pytest

import engine_finetune
import engine_pretrain
from engine_finetune import Regularization
from models_mae import MaskedAutoencoderViT
from models_vit import VisionTransformer
from util.compute import amp
from util.data.mixup import Mixup
from util.optim import param_groups
from util.optim.lars import LARS
from util.optim.lr_sched import warmup_cosine
from util.optim.param_groups import layer_decay_groups, weight_decay_groups
from util.optim.update_rule import UpdateRule
from util.run.epoch_log import EpochLog

MAE, MAE_META = parity.load("mae")
VIT, VIT_META = parity.load("vit")
PRETRAIN, PRETRAIN_META = parity.load("pretrain")
FINETUNE, FINETUNE_META = parity.load("finetune")
LINPROBE, LINPROBE_META = parity.load("linprobe")

# What BatchNorm of Paddle says at every training step.
pytestmark = [
    pytest.mark.usefixtures("library"),
    pytest.mark.filterwarnings("ignore:When training, we now always track global mean and variance"),
]


def schedule(meta):
    return partial(
        warmup_cosine, **{name: meta[name] for name in ("lr", "min_lr", "warmup_epochs", "epochs")}
    )


def batches(steps, *arrays):
    """Return the batches of the slice `steps` of the arrays, each [steps, N, ...]."""
    return [tuple(map(paddle.to_tensor, batch)) for batch in zip(*(array[steps] for array in arrays))]


def run(train, optimizer, meta, lr_at, epochs):
    """Call train(loader=, rule=, log=, **epoch) for each of `epochs`; return losses and learning rates."""
    logs = []
    for epoch, (loader, clip_grad, settings) in enumerate(epochs):
        logs.append(EpochLog(epoch, len(loader)))
        rule = UpdateRule(
            optimizer, amp.grad_scaler(None), lr_at, meta.get("accum_iter", 1), amp.autocast(None), clip_grad
        )
        train(loader=loader, rule=rule, log=logs[-1], **settings)
    return [loss for log in logs for loss in log.losses], [lr for log in logs for lr in log.lrs]


def compare_final(row, model, before, expected, *, rename=None):
    """Compare every trained parameter of `model` with `expected` in PyTorch's layout."""
    trained = {name: p.numpy() for name, p in model.named_parameters() if not p.stop_gradient}
    after = parity.pytorch_layout(model, trained)
    rename = rename or (lambda name: name)
    assert {rename(name) for name in after} == expected.keys()
    for name, value in after.items():
        reference, start = expected[rename(name)], before[rename(name)]
        if name.endswith("attn.qkv.bias"):
            # Softmax does not see the keys' bias. Its gradient is nothing but rounding, which Adam blows up.
            value, reference, start = (
                np.delete(array, np.split(np.arange(len(array)), 3)[1]) for array in (value, reference, start)
            )
        parity.check(row, value, reference, name, start=start)


def pretrain(lr_at=schedule(PRETRAIN_META)):
    meta = PRETRAIN_META
    model = MaskedAutoencoderViT(**MAE_META["model"], norm_pix_loss=True)
    before = parity.under(MAE, "weights")
    parity.load_pytorch(model, before)
    optimizer = paddle.optimizer.AdamW(
        meta["lr"], beta1=0.9, beta2=0.95, parameters=weight_decay_groups(model, meta["weight_decay"])
    )
    images = PRETRAIN["images"][PRETRAIN["order"]]
    train = partial(engine_pretrain.train_one_epoch, model, mask_ratio=0.75)
    losses, lrs = run(
        train,
        optimizer,
        meta,
        lr_at,
        [(batches(steps, images, PRETRAIN["noise"]), None, {}) for steps in (slice(0, 10), slice(10, 20))],
    )
    parity.check("pretrain-lrs", lrs, PRETRAIN["lrs"])
    parity.check("pretrain-losses", losses, PRETRAIN["losses"])
    compare_final("pretrain-final", model, before, parity.under(PRETRAIN, "final"))
    state, parameters = optimizer.state_dict(), dict(model.named_parameters())
    expected = parity.under(PRETRAIN, "moment")
    moments = {name: state[f"{parameters[name].name}_moment1_0"].numpy() for name in expected}
    for name, moment in parity.pytorch_layout(model, moments).items():
        parity.check("pretrain-moments", moment, expected[name], name)


class GivenMixup(Mixup):
    """Mixup with the shares and boxes that the reference drew."""

    def draw(self, num_images, height, width, rng):
        share, box = self.given.pop(0)
        return share, box


def finetune(label_smoothing=FINETUNE_META["smoothing"], clip_grad=FINETUNE_META["clip_grad"]):
    meta = FINETUNE_META
    model = VisionTransformer(**VIT_META["model"], global_pool=True)
    renamed = {
        name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: name
        for name in parity.under(VIT, "weights")
    }
    before = parity.under(VIT, "weights")
    parity.load_pytorch(model, {ours: before[name] for ours, name in renamed.items()})
    optimizer = paddle.optimizer.AdamW(
        meta["lr"], parameters=layer_decay_groups(model, meta["weight_decay"], meta["layer_decay"])
    )
    mixup = GivenMixup(0.8, 1.0, label_smoothing=label_smoothing, num_classes=10)
    mixup.given = list(zip(FINETUNE["shares"], FINETUNE["boxes"]))
    images, labels = (FINETUNE[name][FINETUNE["order"]] for name in ("images", "labels"))
    train = partial(engine_finetune.train_one_epoch, model)
    losses, lrs = run(
        train,
        optimizer,
        meta,
        schedule(meta),
        [
            (
                batches(steps, images, labels),
                clip,
                {"regularization": Regularization(0, mixed, label_smoothing)},
            )
            for steps, clip, mixed in ((slice(0, 5), None, None), (slice(5, 10), clip_grad, mixup))
        ],
    )
    parity.check("finetune-lrs", lrs, FINETUNE["lrs"])
    parity.check("finetune-losses", losses, FINETUNE["losses"])
    compare_final("finetune-final", model, before, parity.under(FINETUNE, "final"), rename=renamed.get)


def linprobe(weight_decay, **changes):
    meta, expected = LINPROBE_META, parity.under(LINPROBE, f"decay-{weight_decay}")
    model = VisionTransformer(**VIT_META["model"], global_pool=False)
    before = parity.under(VIT, "weights")
    parity.load_pytorch(model, before)
    model.make_linear_probe()
    assert {name for name, p in model.named_parameters() if not p.stop_gradient} == {
        "head.1.weight",
        "head.1.bias",
    }
    frozen = {name: p.numpy() for name, p in model.named_parameters() if not name.startswith("head.")}
    optimizer = LARS(meta["lr"], model.head.parameters(), weight_decay=weight_decay, **changes)
    images, labels = (LINPROBE[name][LINPROBE["order"]] for name in ("images", "labels"))
    train = partial(engine_finetune.train_one_epoch, model, regularization=Regularization(seed=0))
    losses, lrs = run(
        train,
        optimizer,
        meta,
        schedule(meta),
        [(batches(steps, images, labels), None, {}) for steps in (slice(0, 10), slice(10, 20))],
    )
    parity.check("linprobe-lrs", lrs, expected["lrs"])
    parity.check("linprobe-losses", losses, expected["losses"])
    norm, linear = model.head[0], model.head[1]
    parity.check(
        "linprobe-final", linear.weight.numpy().T, expected["weight"], "weight", start=before["head.weight"]
    )
    parity.check("linprobe-final", linear.bias.numpy(), expected["bias"], "bias", start=before["head.bias"])
    assert all(
        np.array_equal(p.numpy(), frozen[name]) for name, p in model.named_parameters() if name in frozen
    )
    parity.check("linprobe-statistics", norm._mean.numpy(), expected["running_mean"], "mean")
    # Paddle's running variance averages biased ones, PyTorch's unbiased ones, of 4 images: what began as 1 has
    # decayed to 0.9 ** 20 in both, and the rest differs by 3 / 4.
    biased = 0.9**20 + (expected["running_var"] - 0.9**20) * 3 / 4
    parity.check("linprobe-statistics", norm._variance.numpy(), biased, "variance")


def test_pretraining():
    pretrain()


def test_finetuning():
    finetune()


@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_linear_probe(weight_decay):
    linprobe(weight_decay)


# Wrong training is noticed.


def test_a_schedule_by_epoch_is_noticed():
    with parity.must_mismatch():
        pretrain(lr_at=lambda epoch: schedule(PRETRAIN_META)(int(epoch)))


@pytest.mark.parametrize(
    "engine, train", [(engine_pretrain, pretrain), (engine_finetune, partial(linprobe, 0.0))]
)
def test_summed_instead_of_averaged_micro_batches_are_noticed(monkeypatch, engine, train):
    real = engine.window
    monkeypatch.setattr(engine, "window", lambda *place: real(*place)._replace(size=1))
    with parity.must_mismatch():
        train()


@pytest.mark.parametrize(
    "train, name, wrong", [(pretrain, "beta2", 0.999), (pretrain, "epsilon", 1e-6), (finetune, "beta2", 0.95)]
)
def test_other_constants_of_adam_are_noticed(monkeypatch, train, name, wrong):
    real = paddle.optimizer.AdamW
    monkeypatch.setattr(
        paddle.optimizer, "AdamW", lambda *args, **settings: real(*args, **{**settings, name: wrong})
    )
    with parity.must_mismatch():
        train()


def test_undecayed_tokens_are_noticed(monkeypatch):
    real = weight_decay_groups

    def without_tokens(model, weight_decay):
        free, decayed = real(model, weight_decay)
        tokens = {id(model.cls_token), id(model.mask_token)}
        return [
            {**free, "params": free["params"] + [p for p in decayed["params"] if id(p) in tokens]},
            {**decayed, "params": [p for p in decayed["params"] if id(p) not in tokens]},
        ]

    monkeypatch.setitem(globals(), "weight_decay_groups", without_tokens)
    with parity.must_mismatch():
        pretrain()


def test_a_shifted_layer_is_noticed(monkeypatch):
    real = param_groups.layer_of
    monkeypatch.setattr(
        param_groups, "layer_of", lambda name, last: min(real(name, last) + ("blocks" in name), last)
    )
    with parity.must_mismatch():
        finetune()


@pytest.mark.parametrize("changes", [{"label_smoothing": 0.0}, {"clip_grad": None}])
def test_a_missing_part_of_finetuning_is_noticed(changes):
    with parity.must_mismatch():
        finetune(**changes)


@pytest.mark.parametrize("changes", [{"momentum": 0.85}, {"trust_coefficient": 0.00101}])
def test_other_constants_of_lars_are_noticed(changes):
    with parity.must_mismatch():
        linprobe(0.0, **changes)


def test_another_epsilon_of_the_batch_norm_is_noticed(monkeypatch):
    real = paddle.nn.BatchNorm1D
    monkeypatch.setattr(
        paddle.nn, "BatchNorm1D", lambda size, epsilon, **others: real(size, epsilon=1e-5, **others)
    )
    with parity.must_mismatch():
        linprobe(0.0)
