"""One epoch of masked-autoencoder pretraining, and the loss on other images."""
import paddle

from util.optim.accumulation import window
from util.optim.clip_grad import clip_grad_norm, grad_norm
from util.run import nonfinite
from util.system.console import progress
from util.system.distributed import all_sum, gradient_sync, without_parallel


def train_one_epoch(model, loader, optimizer, scaler, *, lr_at, mask_ratio, accum_iter, autocast, log,
                    clip_grad=None, on_nan=nonfinite.stop, after_update=None):
    """Train on every batch of `loader` once; return the epoch's means.

    Args:
        loader: yields images [N, C, height, width] and mask noise [N, L].
        lr_at: the learning rate as a function of the fractional epoch.
        accum_iter: micro-batches whose gradients make one update.
        autocast: gives the context that sets the precision of a forward pass.
        log: util.run.epoch_log.EpochLog of this epoch.
        clip_grad: largest global norm of the gradient, or None.
        on_nan: called with (log, step, model, its arguments in that step, or None if they are gone) for a loss that is
            not finite; if it returns, the update is left out.
        after_update: called after each update with the steps done, and whether it was left out; or None.
    """
    model.train()
    parameters = model.parameters()
    for step, (images, noise) in log.batches(loader):
        update = window(step, len(loader), accum_iter)
        if update.first:
            optimizer.set_lr(lr_at(log.epoch + step / len(loader)))
            skipped = False
        with gradient_sync(model, update.last):
            with autocast():
                loss = model(images, mask_ratio, noise, only_loss=True)
            bad = log.update(step, loss.detach(), optimizer.get_lr())
            if bad is not None:
                with autocast():
                    on_nan(log, bad, without_parallel(model), (images, mask_ratio, noise) if bad == step else None)
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
def evaluate(model, loader, *, mask_ratio, autocast, after_batch=None):
    """{"loss", "images", "left_out"}: the reconstruction loss, the mean over every image of `loader`, each once.

    "left_out" is the number of images that are not among them because they cannot be read. Blocks until every process,
    each with its share of the images, has called it.

    Args:
        loader: of util.data.loaders.eval_loader, shared; yields images [N, C, height, width] and mask noise [N, L].
        after_batch: called without arguments after each batch, or None.
    """
    model.eval()
    total, count = paddle.zeros([], "float64"), 0
    for images, noise in progress(loader, "evaluating"):
        with autocast():
            loss = model(images, mask_ratio, noise, only_loss=True)
        total += loss.astype("float64") * len(images)  # every image has as many hidden patches; stays on the device
        count += len(images)
        if after_batch:
            after_batch()
    loader.bad_images.agree()
    loss, images = all_sum([total.item(), count])
    return {"loss": loss / images, "images": int(images), "left_out": loader.bad_images.total - int(images)}
