"""One epoch of masked-autoencoder pretraining, and the reconstruction loss on val images."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import paddle

from util.data.loaders import Loader
from util.optim.accumulation import window
from util.optim.clip_grad import clip_grad_norm, grad_norm
from util.optim.update_rule import UpdateRule
from util.run import nonfinite
from util.run.epoch_log import EpochLog
from util.system.console import progress
from util.system.distributed import all_sum, gradient_sync, without_parallel


def train_one_epoch(
    model: paddle.nn.Layer,
    loader: Loader,
    rule: UpdateRule,
    log: EpochLog,
    *,
    mask_ratio: float,
    on_nan: Callable[..., None] = nonfinite.stop,
    after_update: Callable[..., None] | None = None,
) -> dict[str, float]:
    """Train on every batch of `loader` once.

    Args:
        model: masked autoencoder.
        loader: yields images [N, C, height, width] and mask noise [N, L].
        rule: optimizer, learning rate, gradient accumulation and precision.
        log: of this epoch.
        mask_ratio: share of hidden patches.
        on_nan: called for a NaN or infinite loss, as `util.run.nonfinite.stop`; if it returns, the update is
            skipped.
        after_update: called after each update with the steps done and `skipped`.

    Returns the means of the epoch, see `EpochLog.means`.
    """
    optimizer, scaler = rule.optimizer, rule.scaler
    parameters = model.parameters()
    model.train()
    for step, (images, noise) in log.batches(loader):
        update = window(step, len(loader), rule.accum_iter)
        if update.first:
            optimizer.set_lr(rule.lr_at(log.epoch + step / len(loader)))
            skipped = False
        with gradient_sync(model, update.last):
            with rule.autocast():
                loss = model(images, mask_ratio, noise, only_loss=True)
            bad = log.update(step, loss.detach(), optimizer.get_lr())
            if bad is None:
                scaler.scale(loss / update.size).backward()
            else:
                inputs = (images, mask_ratio, noise) if bad == step else None
                with rule.autocast():
                    on_nan(log, bad, without_parallel(model), inputs)
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
    mask_ratio: float,
    autocast: Callable[[], AbstractContextManager],
    after_batch: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Compute the mean reconstruction loss over every image of `loader`.

    Blocks until every process, each with its share of the images, has called it.

    Args:
        model: masked autoencoder.
        loader: shared eval loader; yields images [N, C, height, width] and mask noise [N, L].
        mask_ratio: share of hidden patches.
        autocast: returns the context that sets the precision of a forward pass.
        after_batch: called after each batch.

    Returns "loss", "images" and "left_out", the number of unreadable images.
    """
    model.eval()
    total, count = paddle.zeros([], "float64"), 0
    batches: Any = loader  # a Collection but for `in`
    for images, noise in progress(batches, "evaluating"):
        with autocast():
            loss = model(images, mask_ratio, noise, only_loss=True)
        # every image has as many hidden patches; stays on the device
        total += loss.astype("float64") * len(images)
        count += len(images)
        if after_batch:
            after_batch()
    loader.bad_images.agree()
    loss, images = all_sum([float(total), count])
    return {"loss": loss / images, "images": int(images), "left_out": loader.bad_images.total - int(images)}
