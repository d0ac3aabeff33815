"""One epoch of masked-autoencoder pretraining."""
from util import finite
from util.accumulation import window
from util.clip_grad import grad_norm
from util.distributed import gradient_sync, without_parallel


def train_one_epoch(model, loader, optimizer, scaler, *, lr_at, mask_ratio, accum_iter, autocast, log,
                    on_nan=finite.stop, after_update=None):
    """Train on every batch of `loader` once; return the epoch's means.

    Args:
        loader: yields images [N, C, height, width] and mask noise [N, L].
        lr_at: the learning rate as a function of the fractional epoch.
        accum_iter: micro-batches whose gradients make one update.
        autocast: gives the context that sets the precision of a forward pass.
        log: util.run_log.EpochLog of this epoch.
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
                log.update_made(step, grad_norm(parameters))
                scaler.step(optimizer)
                scaler.update()
            optimizer.clear_grad(set_to_zero=False)  # freed: the forward pass needs the memory
            if after_update:
                after_update(step + 1, skipped=skipped)
    return log.means()
