"""One epoch of classifier training, and its evaluation; finetuning and the linear probe share both."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F

from util.data.loaders import Loader
from util.data.mixup import Mixup
from util.optim.accumulation import window
from util.optim.clip_grad import clip_grad_norm, grad_norm
from util.optim.update_rule import UpdateRule
from util.run import nonfinite
from util.run.epoch_log import EpochLog
from util.system.console import progress
from util.system.distributed import all_sum, gradient_sync, rank, without_parallel
from util.system.keyed_random import MIXUP, MODEL, keyed_generator

# Most classes with a confusion matrix: it has their square entries, summed over the processes as float64.
MOST_CLASSES = 2000


@dataclass(frozen=True)
class Regularization:
    """Randomness and soft targets of training.

    Attributes:
        seed: of the run; drop path and Mixup are keyed by it, the step and the process.
        mixup: Mixup or CutMix, which also smooths the labels; None: neither.
        smoothing: label smoothing without `mixup`.
    """

    seed: int
    mixup: Mixup | None = None
    smoothing: float = 0.0


def train_one_epoch(
    model: paddle.nn.Layer,
    loader: Loader,
    rule: UpdateRule,
    log: EpochLog,
    *,
    regularization: Regularization,
    on_nan: Callable[..., None] = nonfinite.stop,
    after_update: Callable[..., None] | None = None,
) -> dict[str, float]:
    """Train on every batch of `loader` once.

    Args:
        model: classifier.
        loader: yields images [N, C, height, width] and labels [N].
        rule: optimizer, learning rate, gradient accumulation and precision.
        log: of this epoch.
        regularization: seed, Mixup and label smoothing.
        on_nan: called for a NaN or infinite loss, as `util.run.nonfinite.stop`; if it returns, the update is
            skipped.
        after_update: called after each update with the steps done and `skipped`.

    Returns the means of the epoch, see `EpochLog.means`.
    """
    optimizer, scaler = rule.optimizer, rule.scaler
    seed, mixup = regularization.seed, regularization.mixup
    smoothing = 0.0 if mixup else regularization.smoothing
    parameters = model.parameters()
    model.train()
    for step, (images, labels) in log.batches(loader):
        update = window(step, len(loader), rule.accum_iter)
        if update.first:
            optimizer.set_lr(rule.lr_at(log.epoch + step / len(loader)))
            skipped = False
        position = (log.epoch * len(loader) + step, rank())
        paddle.seed(int(keyed_generator(seed, MODEL, *position).integers(2**31)))
        if mixup:
            images, labels = mixup(images, labels, keyed_generator(seed, MIXUP, *position))
        with gradient_sync(model, update.last):
            with rule.autocast():
                logits = model(images)
            # The mean is taken here: for its own, Paddle 2.6 waits for the device to look for ignored labels.
            loss = F.cross_entropy(
                logits.astype("float32"),
                labels,
                soft_label=mixup is not None,
                label_smoothing=smoothing,
                reduction="none",
            ).mean()
            bad = log.update(step, loss.detach(), optimizer.get_lr())
            if bad is None:
                scaler.scale(loss / update.size).backward()
            else:
                with rule.autocast():
                    on_nan(log, bad, without_parallel(model), (images,) if bad == step else None)
                skipped = True
        if update.last:
            if not skipped:
                scaler.unscale_(optimizer)
                norm = (
                    grad_norm(parameters)
                    if rule.clip_grad is None
                    else clip_grad_norm(parameters, rule.clip_grad)
                )
                log.update_made(step, norm)
                scaler.step(optimizer)
                scaler.update()
            optimizer.clear_grad(set_to_zero=False)  # freed, because the forward pass needs the memory
            if after_update:
                after_update(step + 1, skipped=skipped)
    return log.means()


@paddle.no_grad()
def evaluate(
    model: paddle.nn.Layer,
    loader: Loader,
    *,
    autocast: Callable[[], AbstractContextManager],
    shared: bool,
    after_batch: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Evaluate a classifier on every image of `loader`, each exactly once.

    The loss is the mean over images. (The official code takes the mean over batches, of which the last is
    smaller.)

    Args:
        model: classifier.
        loader: yields images [N, C, height, width] and labels [N].
        autocast: returns the context that sets the precision of a forward pass.
        shared: whether each process has a share of the images, so that counts are summed over the processes.
        after_batch: called after each batch.

    Returns "loss"; "acc1" and "acc5", top-1 and top-5 accuracy in per cent; "images"; "left_out", the number
    of unreadable images; and "confusion", int64 [C, C] with labels as rows, or None for more than
    MOST_CLASSES classes.
    """
    model.eval()
    totals, pairs, outputs = [], [], 0
    batches: Any = loader  # a Collection but for `in`
    for images, labels in progress(batches, "evaluating"):
        with autocast():
            logits = model(images)
        logits = logits.astype("float32")
        loss = F.cross_entropy(logits, labels, reduction="sum")
        totals.append(
            paddle.stack([loss, *topk_correct(logits, labels), paddle.full([], float(len(labels)))])
        )
        outputs = logits.shape[1]
        # Stays on the device.
        pairs.append(labels.astype("int64").flatten() * outputs + logits.argmax(axis=1))
        if after_batch:
            after_batch()
    bad_images = getattr(loader, "bad_images", None)
    if bad_images is not None:
        bad_images.agree()
    sums = paddle.stack(totals).astype("float64").sum(axis=0).numpy() if totals else np.zeros(4)
    sums = np.array([*sums, outputs, bool(pairs)], "float64")
    loss_sum, top1, top5, count, all_outputs, processes = all_sum(sums.tolist()) if shared else sums.tolist()
    return {
        "loss": loss_sum / count,
        "acc1": 100 * top1 / count,
        "acc5": 100 * top5 / count,
        "images": int(count),
        "left_out": 0 if bad_images is None else bad_images.total - int(count),
        "confusion": _confusion(pairs, int(all_outputs / processes), shared),
    }


def topk_correct(
    logits: paddle.Tensor, labels: paddle.Tensor, ks: Sequence[int] = (1, 5)
) -> list[paddle.Tensor]:
    """Count top-k hits of logits [N, C] and labels [N] for each of `ks`, as 0-D tensors.

    With fewer than k classes every label is a hit.
    """
    _, ranked = paddle.topk(logits, min(max(ks), logits.shape[1]), axis=1)
    hits = (ranked == labels.reshape([-1, 1])).astype("float32")
    return [hits[:, :k].sum() for k in ks]


def _confusion(pairs: list[paddle.Tensor], classes: int, shared: bool) -> np.ndarray | None:
    """Count tensors of label * classes + prediction into int64 [C, C]; None for too many classes."""
    if classes > MOST_CLASSES:
        return None
    found = paddle.concat(pairs).numpy() if pairs else np.zeros(0, "int64")
    counts = np.bincount(found, minlength=classes**2)
    return np.array(all_sum(counts) if shared else counts, "int64").reshape(classes, classes)
