"""One epoch of training a classifier, and its evaluation; finetuning and the linear probe share both."""
import numpy as np
import paddle
import paddle.nn.functional as F

from util.optim.accumulation import window
from util.optim.clip_grad import clip_grad_norm, grad_norm
from util.run import nonfinite
from util.run.metrics import topk_correct
from util.system.console import progress
from util.system.distributed import all_sum, gradient_sync, rank, without_parallel
from util.system.keyed_random import MIXUP, MODEL, keyed_generator

MOST_CLASSES = 2000  # with a confusion matrix: it has their square entries, which processes sum as float64


def train_one_epoch(model, loader, optimizer, scaler, *, lr_at, accum_iter, autocast, log, seed,
                    mixup=None, smoothing=0.0, clip_grad=None, on_nan=nonfinite.stop, after_update=None):
    """Train on every batch of `loader` once; return the epoch's means.

    Args:
        loader: yields images [N, C, height, width] and labels [N].
        lr_at: the learning rate as a function of the fractional epoch.
        accum_iter: micro-batches whose gradients make one update.
        autocast: gives the context that sets the precision of a forward pass.
        log: util.run.epoch_log.EpochLog of this epoch.
        seed: of the run; drop path and Mixup draw from it by step and process.
        mixup: util.data.mixup.Mixup, which also smooths the labels, or None.
        clip_grad: largest global norm of the gradient, or None.
        on_nan, after_update: as in pretraining.
    """
    model.train()
    parameters = model.parameters()
    for step, (images, labels) in log.batches(loader):
        update = window(step, len(loader), accum_iter)
        if update.first:
            optimizer.set_lr(lr_at(log.epoch + step / len(loader)))
            skipped = False
        place = (log.epoch * len(loader) + step, rank())
        paddle.seed(int(keyed_generator(seed, MODEL, *place).integers(2 ** 31)))
        if mixup:
            images, labels = mixup(images, labels, keyed_generator(seed, MIXUP, *place))
        with gradient_sync(model, update.last):
            with autocast():
                logits = model(images)
            # The mean is taken here: Paddle 2.6 would wait for the device, to see whether a label is to be ignored.
            loss = F.cross_entropy(logits.astype("float32"), labels, soft_label=mixup is not None,
                                   label_smoothing=0.0 if mixup else smoothing, reduction="none").mean()
            bad = log.update(step, loss.detach(), optimizer.get_lr())
            if bad is not None:
                with autocast():
                    on_nan(log, bad, without_parallel(model), (images,) if bad == step else None)
                skipped = True
            else:
                scaler.scale(loss / update.size).backward()
        if update.last:
            if not skipped:
                scaler.unscale_(optimizer)
                norm = grad_norm(parameters) if clip_grad is None else clip_grad_norm(parameters, clip_grad)
                log.update_made(step, norm)
                scaler.step(optimizer)
                scaler.update()
            optimizer.clear_grad(set_to_zero=False)  # freed: the forward pass needs the memory
            if after_update:
                after_update(step + 1, skipped=skipped)
    return log.means()


@paddle.no_grad()
def evaluate(model, loader, *, autocast, shared, after_batch=None):
    """{"loss", "acc1", "acc5", "images"} over every image of `loader`, exactly once each; accuracies in per cent.

    The loss is the mean over images. (The official code takes the mean over batches, of which the last is smaller.)
    "left_out" is the number of images that are not among them because they cannot be read. "confusion", int64 [C, C]:
    how many images of class `row` were taken for class `column`; None for more than MOST_CLASSES classes.

    Args:
        shared: whether the processes have different images each, so that their counts must be added.
        after_batch: called without arguments after each batch, or None.
    """
    model.eval()
    totals, pairs, outputs = [], [], 0
    for images, labels in progress(loader, "evaluating"):
        with autocast():
            logits = model(images)
        logits = logits.astype("float32")
        loss = F.cross_entropy(logits, labels, reduction="sum")
        totals.append(paddle.stack([loss, *topk_correct(logits, labels), paddle.full([], float(len(labels)))]))
        outputs = logits.shape[1]
        pairs.append(labels.astype("int64").flatten() * outputs + logits.argmax(axis=1))  # stays on the device
        if after_batch:
            after_batch()
    bad_images = getattr(loader, "bad_images", None)
    if bad_images is not None:
        bad_images.agree()
    sums = paddle.stack(totals).astype("float64").sum(axis=0).tolist() if totals else [0.0] * 4
    sums += [float(outputs), float(bool(pairs))]
    loss, top1, top5, images, outputs, having_any = all_sum(sums) if shared else sums
    return {"loss": loss / images, "acc1": 100 * top1 / images, "acc5": 100 * top5 / images, "images": int(images),
            "left_out": 0 if bad_images is None else bad_images.total - int(images),
            "confusion": _confusion(pairs, int(outputs / having_any), shared)}


def _confusion(pairs, classes, shared):
    """int64 [classes, classes] from tensors of label * classes + predicted label; None for too many classes."""
    if classes > MOST_CLASSES:
        return None
    pairs = paddle.concat(pairs).numpy() if pairs else np.zeros(0, "int64")
    counts = np.bincount(pairs, minlength=classes ** 2)
    return np.array(all_sum(counts) if shared else counts, "int64").reshape(classes, classes)
