"""One epoch of each engine: updates, learning rates, randomness and the values reported."""

from functools import partial

import numpy as np
import paddle
import pytest

import engine_finetune
import engine_pretrain
from engine_finetune import Regularization
from util.compute.amp import autocast, grad_scaler
from util.data.bad_images import BadImages
from util.optim.update_rule import UpdateRule
from util.run.epoch_log import EpochLog
from util.system.keyed_random import MIXUP, keyed_generator


def epoch_log(loader, epoch=0):
    return EpochLog(epoch, len(loader))


def rule_of(optimizer, lr_at=lambda _: 0.1, *, accum_iter=1, clip_grad=None):
    return UpdateRule(optimizer, grad_scaler(None), lr_at, accum_iter, autocast(None), clip_grad)


def pretrain(
    model,
    loader,
    optimizer,
    *,
    epoch=0,
    lr_at=lambda _: 0.1,
    accum_iter=1,
    clip_grad=None,
    mask_ratio=0.5,
    **hooks,
):
    rule = rule_of(optimizer, lr_at, accum_iter=accum_iter, clip_grad=clip_grad)
    return engine_pretrain.train_one_epoch(
        model, loader, rule, epoch_log(loader, epoch), mask_ratio=mask_ratio, **hooks
    )


def finetune(
    model,
    loader,
    *,
    optimizer=None,
    epoch=0,
    lr=0.1,
    accum_iter=1,
    clip_grad=None,
    seed=0,
    mixup=None,
    smoothing=0.0,
    **hooks,
):
    rule = rule_of(optimizer or sgd(model), lambda _: lr, accum_iter=accum_iter, clip_grad=clip_grad)
    return engine_finetune.train_one_epoch(
        model,
        loader,
        rule,
        epoch_log(loader, epoch),
        **hooks,
        regularization=Regularization(seed, mixup, smoothing),
    )


def sgd(model):
    return paddle.optimizer.SGD(1.0, model.parameters())


def values(model):
    return {name: p.numpy() for name, p in model.named_parameters()}


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name in found:
        np.testing.assert_allclose(found[name], expected[name], err_msg=name, **tolerance)


def pretraining_batches(count, size=2):
    rng = np.random.default_rng(5)
    return [
        (
            paddle.to_tensor(rng.standard_normal([size, 3, 12, 8]).astype("float32")),
            paddle.to_tensor(rng.random([size, 6]).astype("float32")),
        )
        for _ in range(count)
    ]


def labelled_batches(count, size=2):
    rng = np.random.default_rng(5)
    return [
        (
            paddle.to_tensor(rng.standard_normal([size, 3, 12, 8]).astype("float32")),
            paddle.to_tensor(rng.integers(0, 5, size)),
        )
        for _ in range(count)
    ]


def joined(batches):
    return tuple(paddle.concat(parts) for parts in zip(*batches))


# ---- accumulation and rates


def descend(model, loss, lr):
    """One plain gradient step."""
    loss.backward()
    for p in model.parameters():
        if p.grad is not None:
            p.set_value(p.numpy() - lr * p.grad.numpy())
            p.clear_gradient()


def test_pretraining_accumulates_the_gradient_of_one_larger_batch(make_mae, scramble):
    batches = pretraining_batches(5)  # windows of 2, 2 and 1
    model, expected = scramble(make_mae()), scramble(make_mae())
    pretrain(model, batches, sgd(model), accum_iter=2)
    for window in (batches[:2], batches[2:4], batches[4:]):
        images, noise = joined(window)
        descend(expected, expected(images, 0.5, noise)[0], 0.1)
    assert_same(values(model), values(expected), rtol=1e-4, atol=1e-6)


def test_finetuning_accumulates_the_gradient_of_one_larger_batch(make_vit, scramble):
    batches = labelled_batches(5)
    model, expected = scramble(make_vit()), scramble(make_vit())
    finetune(model, batches, accum_iter=2)
    for window in (batches[:2], batches[2:4], batches[4:]):
        images, labels = joined(window)
        descend(expected, paddle.nn.functional.cross_entropy(expected(images), labels), 0.1)
    assert_same(values(model), values(expected), rtol=1e-4, atol=1e-6)


def test_the_rate_is_set_where_an_update_begins(make_mae):
    model, batches, asked = make_mae(), pretraining_batches(5), []

    def lr_at(epoch):
        asked.append(epoch)
        return epoch / 100

    optimizer = sgd(model)
    means = pretrain(model, batches, optimizer, epoch=3, lr_at=lr_at, accum_iter=2)
    np.testing.assert_allclose(asked, [3.0, 3.4, 3.8])
    assert optimizer.get_lr() == pytest.approx(0.038)
    assert means["lr"] == pytest.approx((0.030 * 2 + 0.034 * 2 + 0.038) / 5)


def test_finetuning_sets_the_rate_where_an_update_begins(make_vit):
    model, batches, asked = make_vit(), labelled_batches(5), []
    optimizer = sgd(model)
    rule = rule_of(optimizer, lambda epoch: asked.append(epoch) or epoch / 100, accum_iter=2)
    engine_finetune.train_one_epoch(
        model, batches, rule, epoch_log(batches, 3), regularization=Regularization(seed=0)
    )
    np.testing.assert_allclose(asked, [3.0, 3.4, 3.8])


def test_the_reported_loss_is_the_mean_over_steps_not_divided_by_the_window(make_mae, scramble):
    model, batches = scramble(make_mae()), pretraining_batches(3)
    expected = [model(images, 0.5, noise)[0].item() for images, noise in batches]
    means = pretrain(model, batches, sgd(model), lr_at=lambda _: 0.0, accum_iter=3)
    assert means["loss"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_training_is_on_and_evaluation_switches_it_off(make_vit):
    model = make_vit()
    model.eval()
    finetune(model, labelled_batches(1))
    assert model.training
    engine_finetune.evaluate(model, labelled_batches(1), autocast=autocast(None), shared=False)
    assert not model.training


# ---- skipped updates, and the hooks


def with_nan(batches, *steps):
    return [
        (images * float("nan") if step in steps else images, other)
        for step, (images, other) in enumerate(batches)
    ]


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_an_update_with_a_loss_that_is_not_finite_is_left_out(make_mae, make_vit, scramble, kind):
    """Of three updates of two batches; one in whose second batch there is a NaN changes nothing."""
    make, train, batches = (
        (make_mae, pretrain, pretraining_batches(6))
        if kind == "pretrain"
        else (make_vit, finetune, labelled_batches(6))
    )
    model, expected = scramble(make()), scramble(make())
    told, updates = [], []
    train(
        model,
        with_nan(batches, 3),
        optimizer=sgd(model),
        accum_iter=2,
        on_nan=lambda log, step, network, inputs: told.append((step, network is model, len(inputs))),
        after_update=lambda steps, skipped: updates.append((steps, skipped)),
    )
    train(expected, [*batches[:2], *batches[4:]], optimizer=sgd(expected), accum_iter=2)
    assert_same(values(model), values(expected), rtol=1e-6)
    assert told == [(3, True, 3 if kind == "pretrain" else 1)] and updates == [
        (2, False),
        (4, True),
        (6, False),
    ]
    assert all(p.grad is None for p in model.parameters())


# ---- clipping


@pytest.mark.parametrize("share", [0.1, 1.5])
def test_the_gradient_is_clipped_by_one_norm_over_all_groups(make_vit, scramble, share):
    batches = labelled_batches(2)
    model, other = scramble(make_vit()), scramble(make_vit())
    images, labels = joined(batches)
    paddle.nn.functional.cross_entropy(other(images), labels).backward()
    gradients = {name: p.grad.numpy() for name, p in other.named_parameters()}
    norm = np.sqrt(sum((g.astype("float64") ** 2).sum() for g in gradients.values()))
    before = values(model)
    halves = model.parameters()[:7], model.parameters()[7:]
    optimizer = paddle.optimizer.AdamW(1.0, parameters=[{"params": half} for half in halves])
    seen = {}

    class Recorder:
        """An optimizer that notes the gradients it is handed."""

        set_lr, get_lr, clear_grad = optimizer.set_lr, optimizer.get_lr, optimizer.clear_grad
        _parameter_list = optimizer._parameter_list

        def step(self):
            seen.update({name: p.grad.numpy() for name, p in model.named_parameters()})

    finetune(model, batches, optimizer=Recorder(), accum_iter=2, clip_grad=norm * share)
    assert_same(seen, {name: g * min(1, share) for name, g in gradients.items()}, rtol=1e-3, atol=1e-6)
    assert_same(values(model), before)


def test_pretraining_is_clipped_too(make_mae, scramble):
    ((images, noise),) = batches = pretraining_batches(1)
    model, other = scramble(make_mae()), scramble(make_mae())
    other(images, 0.5, noise)[0].backward()
    gradients = {name: p.grad.numpy() for name, p in other.named_parameters() if p.grad is not None}
    norm = np.sqrt(sum((g.astype("float64") ** 2).sum() for g in gradients.values()))
    before = values(model)
    means = pretrain(model, batches, sgd(model), lr_at=lambda _: 1.0, clip_grad=norm / 10)
    assert means["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert_same(
        values(model),
        {name: value - gradients.get(name, 0) / 10 for name, value in before.items()},
        rtol=1e-3,
        atol=1e-5,
    )


# ---- the norm that is reported


class Scaler:
    """Loss scaling as float16 needs it, by 1024, for parameters whose gradients are float32."""

    def scale(self, loss):
        return loss * 1024

    @paddle.no_grad()
    def unscale_(self, optimizer):
        for p in optimizer._parameter_list:
            if p.grad is not None:
                p.grad.multiply_(paddle.to_tensor(1 / 1024))

    def step(self, optimizer):
        optimizer.step()

    def update(self):
        pass


@pytest.mark.parametrize("clip_grad", [None, 0.01])
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_the_norm_of_an_update_is_that_of_its_unscaled_unclipped_mean_gradient(
    make_mae, make_vit, scramble, monkeypatch, kind, clip_grad
):
    make, batches = (
        (make_mae, pretraining_batches(4)) if kind == "pretrain" else (make_vit, labelled_batches(4))
    )
    model, expected = scramble(make()), scramble(make())
    monkeypatch.setattr("test_engines.grad_scaler", lambda dtype: Scaler())
    if kind == "pretrain":
        found = pretrain(model, batches, sgd(model), lr_at=lambda _: 0.0, accum_iter=2)["grad_norm"]
    else:
        found = finetune(model, batches, lr=0.0, accum_iter=2, clip_grad=clip_grad)["grad_norm"]
    norms = []
    for first in (0, 2):
        images, other = joined(batches[first : first + 2])
        loss = (
            expected(images, 0.5, other)[0]
            if kind == "pretrain"
            else paddle.nn.functional.cross_entropy(expected(images), other)
        )
        loss.backward()
        norms.append(
            np.sqrt(
                sum(
                    (p.grad.numpy().astype("float64") ** 2).sum()
                    for p in expected.parameters()
                    if p.grad is not None
                )
            )
        )
        expected.clear_gradients()
    assert norms[0] != pytest.approx(norms[1], rel=0.01)
    assert found == pytest.approx(np.mean(norms), rel=1e-4)


# ---- targets


def log_softmax(logits):
    logits = logits.astype("float64")
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_labels_are_smoothed(make_vit, scramble, smoothing):
    model, ((images, labels),) = scramble(make_vit()), labelled_batches(1, size=4)
    logs = log_softmax(model(images).numpy())
    right = logs[np.arange(4), labels.numpy()]
    expected = -((1 - smoothing) * right + smoothing * logs.mean(axis=1)).mean()
    found = finetune(model, [(images, labels)], lr=0.0, smoothing=smoothing)["loss"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_mixed_targets_are_taken_as_they_are(make_vit, scramble):
    model, ((images, labels),) = scramble(make_vit()), labelled_batches(1, size=4)
    targets = np.random.default_rng(0).dirichlet(np.ones(5), 4).astype("float32")
    expected = -(targets * log_softmax(model(images * 2).numpy())).sum(axis=1).mean()

    def mixup(mixed_images, mixed_labels, rng):
        assert (mixed_images == images).all() and (mixed_labels == labels).all()
        return mixed_images * 2, paddle.to_tensor(targets)

    found = finetune(model, [(images, labels)], lr=0.0, smoothing=0.3, mixup=mixup)["loss"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_mixup_draws_by_step_and_seed(make_vit):
    drawn = []

    def mixup(images, labels, rng):
        drawn.append(rng.random())
        return images, paddle.nn.functional.one_hot(labels, 5)

    finetune(make_vit(), labelled_batches(3), epoch=2, seed=7, mixup=mixup)
    assert drawn == [keyed_generator(7, MIXUP, step, 0).random() for step in (6, 7, 8)]


# ---- drop path


def losses_of_step(make_vit, scramble, *, epoch=0, seed=0, state=0):
    """The loss of one step with the same weights and images, with Paddle's own generator at `state`."""
    model = scramble(make_vit(drop_path_rate=0.5, depth=4), std=0.5)
    paddle.seed(state)
    return finetune(model, labelled_batches(1, size=16), epoch=epoch, seed=seed)["loss"]


def test_drop_path_is_a_function_of_seed_and_step(make_vit, scramble):
    loss = partial(losses_of_step, make_vit, scramble)
    assert loss() == loss(state=99)
    assert len({loss(), loss(epoch=1), loss(seed=1)}) == 3


def test_steps_of_an_epoch_drop_different_images(make_vit, scramble):
    model = scramble(make_vit(drop_path_rate=0.5, depth=4), std=0.5)
    ((images, labels),) = labelled_batches(1, size=16)
    seen = []
    model.register_forward_post_hook(lambda layer, inputs, output: seen.append(output.numpy()))
    finetune(model, [(images, labels)] * 2, lr=0.0)
    assert abs(seen[0] - seen[1]).max() > 1e-3


# ---- evaluation


class Scores(paddle.nn.Layer):
    """A model whose images are the logits."""

    def forward(self, x):
        return x


def evaluated(logits, labels, batch_size):
    loader = [
        (paddle.to_tensor(logits[i : i + batch_size]), paddle.to_tensor(labels[i : i + batch_size]))
        for i in range(0, len(labels), batch_size)
    ]
    return engine_finetune.evaluate(Scores(), loader, autocast=autocast(None), shared=False)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_evaluation_does_not_depend_on_the_batches(batch_size):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal([7, 9]).astype("float32") * 3, rng.integers(0, 9, 7)
    ranks = [sum(row > row[label]) for row, label in zip(logits, labels)]
    expected = {
        "loss": -log_softmax(logits)[np.arange(7), labels].mean(),
        "acc1": 100 * np.mean(np.array(ranks) < 1),
        "acc5": 100 * np.mean(np.array(ranks) < 5),
    }
    assert 0 < expected["acc1"] < expected["acc5"] < 100
    found = evaluated(logits, labels, batch_size)
    assert found.pop("images") == 7 and found.pop("left_out") == 0
    confusion = found.pop("confusion")
    assert confusion.dtype == "int64" and confusion.tolist() == [
        [sum((labels == true) & (logits.argmax(axis=1) == taken)) for taken in range(9)] for true in range(9)
    ]
    assert found == pytest.approx(expected, rel=1e-6)


def test_there_is_a_limit_to_the_classes_of_a_confusion_matrix(monkeypatch):
    monkeypatch.setattr(engine_finetune, "MOST_CLASSES", 3)
    assert evaluated(np.eye(3, dtype="float32"), np.array([0, 2, 2]), 2)["confusion"].tolist() == [
        [1, 0, 0],
        [0, 0, 0],
        [0, 1, 1],
    ]
    assert evaluated(np.eye(4, dtype="float32"), np.array([0, 2, 2, 3]), 2)["confusion"] is None


@pytest.mark.parametrize("classes", [1, 3])
def test_with_fewer_than_five_classes_the_top_five_are_all(classes):
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal([8, classes]).astype("float32"), rng.integers(0, classes, 8)
    found = evaluated(logits, labels, 3)
    assert found["acc5"] == 100
    assert found["acc1"] == 100 * (logits.argmax(axis=1) == labels).mean()


class Val:
    """An iterable of batches, with what the engine asks of a loader."""

    def __init__(self, batches, total):
        self.batches, self.bad_images = batches, BadImages("skip", "val", total)

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("sizes", [[7], [1, 5, 1]])
def test_the_val_loss_of_pretraining_is_the_mean_over_images(make_mae, scramble, sizes):
    """Of 9 pictures 2 cannot be read; against each image on its own."""
    model, (batch,) = scramble(make_mae()), pretraining_batches(1, size=7)
    images, noise = (part.numpy() for part in batch)
    alone = [
        model(paddle.to_tensor(images[i : i + 1]), 0.5, paddle.to_tensor(noise[i : i + 1]))[0].item()
        for i in range(7)
    ]
    cuts = np.cumsum(sizes)[:-1]
    batches = [
        tuple(map(paddle.to_tensor, pair)) for pair in zip(np.split(images, cuts), np.split(noise, cuts))
    ]
    seen = []
    found = engine_pretrain.evaluate(
        model,
        Val(batches, 9),
        mask_ratio=0.5,
        autocast=autocast(None),
        after_batch=lambda: seen.append(model.training),
    )
    assert found == {"loss": pytest.approx(np.mean(alone), rel=1e-5), "images": 7, "left_out": 2}
    assert seen == [False] * len(sizes) and max(alone) > 1.01 * min(alone)


# ---- NaN and infinite losses


def overflow(model):
    """Make the last linear map of the first block overflow with finite parameters."""
    model.blocks[0].mlp.fc2.weight.set_value(np.full(model.blocks[0].mlp.fc2.weight.shape, 3e38, "float32"))


@pytest.mark.parametrize("accum_iter", [1, 3])
def test_pretraining_stops_at_a_loss_that_is_not_finite_before_the_weights_change(
    make_mae, scramble, accum_iter
):
    model = scramble(make_mae())
    before = values(model)
    good, bad = pretraining_batches(2)
    bad[0][1] = float("nan")
    with pytest.raises(
        FloatingPointError, match=r"epoch 3 step 0 is not finite \(lr 5.000e-02\).*patch_embed"
    ):
        pretrain(model, [bad, good, good], sgd(model), epoch=3, lr_at=lambda _: 0.05, accum_iter=accum_iter)
    assert_same(values(model), before)


def test_pretraining_names_the_step_and_the_layer(make_mae, scramble):
    model = scramble(make_mae())
    good, bad = pretraining_batches(2)
    bad[0][0] = float("inf")
    with pytest.raises(FloatingPointError, match=r"epoch 0 step 1 .*output is not finite is patch_embed"):
        pretrain(model, [good, bad], sgd(model), lr_at=lambda _: 0.0)


def test_finetuning_stops_at_a_loss_that_is_not_finite_before_the_weights_change(make_vit, scramble):
    model = scramble(make_vit())
    overflow(model)
    before = values(model)
    with pytest.raises(FloatingPointError, match=r"epoch 2 step 0 .*\(lr 5.000e-02\).*blocks\.0\.mlp\.fc2"):
        finetune(model, labelled_batches(2), epoch=2, lr=0.05)
    assert_same(values(model), before)


def test_a_parameter_that_is_not_finite_is_named(make_vit):
    model = make_vit()
    model.blocks[1].norm2.bias.set_value(np.full([8], np.nan, "float32"))
    with pytest.raises(FloatingPointError, match=r"parameter blocks\.1\.norm2\.bias is not finite"):
        finetune(model, labelled_batches(1))
