"""Golden vectors of training runs in float64: pretrain.npz, finetune.npz and linprobe.npz."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import timm.data.mixup
import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import Lars, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import nn

from tools.maintain.golden.common import SEED, VIT, float32, generator, write
from tools.maintain.golden.models import (
    Weights,
    huggingface_mae,
    huggingface_values,
    mae_shapes,
    random_images,
    random_weights,
    timm_values,
    timm_vit,
)
from tools.maintain.golden.recorded_draws import recorded_mixup


def cosine(
    optimizer: torch.optim.Optimizer, steps: int, *, warmup_epochs: float, epochs: int, min_lr: float
) -> CosineLRScheduler:
    """Make timm's schedule, counted in micro-batches. As officially, "lr_scale" also scales the minimum."""
    warmup = round(warmup_epochs * steps)
    return CosineLRScheduler(
        optimizer,
        t_initial=round(epochs * steps) - warmup,
        lr_min=min_lr,
        warmup_t=warmup,
        warmup_lr_init=0,
        warmup_prefix=True,
        t_in_epochs=False,
    )


def step_lr(scheduler: CosineLRScheduler, step: int) -> float:
    scheduler.step_update(step)
    return max(group["lr"] for group in scheduler.optimizer.param_groups)


def pretrain() -> None:
    """Write 10 updates of 2 micro-batches, over 2 epochs."""
    rng = generator("pretrain")
    weights = random_weights(mae_shapes(), generator("mae"))  # the weights of mae.npz
    settings: dict[str, Any] = dict(
        lr=2e-3, min_lr=1e-4, warmup_epochs=0.4, epochs=2, weight_decay=0.05, accum_iter=2
    )
    images = random_images(rng, 8)
    order = np.concatenate([rng.permutation(8) for _ in range(10)]).reshape(20, 4)
    noise = rng.random([20, 4, 36], dtype=np.float32)
    model = huggingface_mae(weights, norm_pix_loss=True)
    # As with timm 0.3.2, the class and mask tokens decay.
    optimizer = torch.optim.AdamW(
        param_groups_weight_decay(model, settings["weight_decay"]), lr=settings["lr"], betas=(0.9, 0.95)
    )
    scheduler = cosine(optimizer, 10, **{key: settings[key] for key in ("warmup_epochs", "epochs", "min_lr")})
    losses, lrs = [], []
    for step in range(20):
        if step % 2 == 0:
            lr = step_lr(scheduler, step)
        loss = model(torch.from_numpy(images[order[step]]).double(), noise=torch.from_numpy(noise[step])).loss
        (loss / 2).backward()
        losses.append(loss.item())
        lrs.append(lr)
        if step % 2 == 1:
            optimizer.step()
            optimizer.zero_grad()
    trained = [name for name in weights if not name.endswith("pos_embed")]
    final = huggingface_values(model, trained, lambda p: p)
    # Adam's steps do not depend on the scale of the gradient; its moments show that the loss was divided.
    moments = huggingface_values(
        model, ["cls_token", "mask_token", "decoder_pred.weight"], lambda p: optimizer.state[p]["exp_avg"]
    )
    write(
        "pretrain",
        {
            "images": images,
            "order": order,
            "noise": noise,
            "losses": losses,
            "lrs": lrs,
            **{f"final/{name}": value for name, value in final.items()},
            **{f"moment/{name}": value for name, value in moments.items()},
        },
        **settings,
    )


def finetune(weights: Weights) -> None:
    """Write 5 updates with label smoothing, then 5 with Mixup, CutMix and a clipped gradient."""
    rng = generator("finetune")
    settings: dict[str, Any] = dict(
        lr=2e-3,
        min_lr=1e-4,
        warmup_epochs=0.4,
        epochs=2,
        weight_decay=0.05,
        layer_decay=0.65,
        smoothing=0.1,
        clip_grad=0.5,
    )
    images, labels = random_images(rng, 8), rng.integers(0, 10, 8)
    order = np.concatenate([rng.permutation(8) for _ in range(5)]).reshape(10, 4)
    model = timm_vit(weights, global_pool=True)
    # Newer timm assigns `norm` to the last block, and the official code to the head. With mean pooling there
    # is only fc_norm, which both assign to the head.
    groups = param_groups_layer_decay(
        model,
        settings["weight_decay"],
        no_weight_decay_list=model.no_weight_decay(),
        layer_decay=settings["layer_decay"],
    )
    optimizer = torch.optim.AdamW(groups, lr=settings["lr"])
    scheduler = cosine(optimizer, 5, **{key: settings[key] for key in ("warmup_epochs", "epochs", "min_lr")})
    mixup = timm.data.mixup.Mixup(0.8, 1.0, label_smoothing=settings["smoothing"], num_classes=10)
    losses, lrs, shares, boxes, norms = [], [], [], [], []
    np.random.seed(SEED % 2**32)
    for step in range(10):
        lrs.append(step_lr(scheduler, step))
        pixels, targets = (
            torch.from_numpy(images[order[step]]).double(),
            torch.from_numpy(labels[order[step]]),
        )
        criterion = LabelSmoothingCrossEntropy(settings["smoothing"])
        if step >= 5:
            with recorded_mixup(mixup) as record:
                pixels, targets = mixup(pixels, targets)
            criterion = SoftTargetCrossEntropy()
            shares.append(record["shares"])
            boxes.append(record["boxes"])
        loss = criterion(model(pixels), targets)
        loss.backward()
        losses.append(loss.item())
        if step >= 5:
            norms.append(nn.utils.clip_grad_norm_(model.parameters(), settings["clip_grad"]).item())
        optimizer.step()
        optimizer.zero_grad()
    cut = np.ptp(np.concatenate(boxes), axis=1) > 0
    assert cut.any() and not cut.all() and min(norms) > settings["clip_grad"], (cut, norms)
    write(
        "finetune",
        {
            "images": images,
            "labels": labels,
            "order": order,
            "shares": shares,
            "boxes": boxes,
            "losses": losses,
            "lrs": lrs,
            **{f"final/{name}": value for name, value in timm_values(model).items()},
        },
        **settings,
    )


class OfficialLARS(torch.optim.Optimizer):
    """LARS of the official code. timm's puts the weight decay elsewhere in the trust ratio."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, dict(lr=lr, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without a closure
        for group in self.param_groups:
            for p in group["params"]:
                update = p.grad
                if p.ndim > 1:
                    update = update + group["weight_decay"] * p
                    update = update * (0.001 * p.norm() / update.norm())
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.mul_(0.9).add_(update)
                p.sub_(group["lr"] * momentum)


def timm_lars(params: Iterable[nn.Parameter], lr: float) -> Lars:
    """Make timm's LARS without weight decay. It equals the official one, as biases are not rescaled."""
    params = list(params)
    groups = [
        {"params": [p for p in params if p.ndim > 1], "always_adapt": True},
        {"params": [p for p in params if p.ndim <= 1], "always_adapt": False},
    ]
    return Lars(groups, lr=lr, momentum=0.9, eps=0)


def linprobe(weights: Weights) -> None:
    """Write 10 updates of 2 micro-batches of the head behind BatchNorm, without and with weight decay."""
    rng = generator("linprobe")
    settings: dict[str, Any] = dict(lr=4.0, min_lr=0.0, warmup_epochs=0.5, epochs=2, accum_iter=2)
    images, labels = random_images(rng, 8), rng.integers(0, 10, 8)
    order = np.concatenate([rng.permutation(8) for _ in range(10)]).reshape(20, 4)
    arrays: dict[str, Any] = {"images": images, "labels": labels, "order": order}
    for weight_decay in (0.0, 0.5):
        model = timm_vit(weights, global_pool=False)
        model.requires_grad_(False)
        model.head.requires_grad_(True)
        model.head = nn.Sequential(
            nn.BatchNorm1d(VIT["embed_dim"], affine=False, eps=1e-6).double(), model.head
        )
        optimizer = (
            OfficialLARS(model.head.parameters(), settings["lr"], weight_decay)
            if weight_decay
            else timm_lars(model.head.parameters(), settings["lr"])
        )
        scheduler = cosine(
            optimizer, 10, **{key: settings[key] for key in ("warmup_epochs", "epochs", "min_lr")}
        )
        losses, lrs = [], []
        for step in range(20):
            if step % 2 == 0:
                lr = step_lr(scheduler, step)
            pixels, targets = (
                torch.from_numpy(images[order[step]]).double(),
                torch.from_numpy(labels[order[step]]),
            )
            loss = F.cross_entropy(model(pixels), targets)
            (loss / 2).backward()
            losses.append(loss.item())
            lrs.append(lr)
            if step % 2 == 1:
                optimizer.step()
                optimizer.zero_grad()
        norm, linear = model.head
        arrays.update(
            {
                f"decay-{weight_decay}/{name}": value
                for name, value in dict(
                    losses=losses,
                    lrs=lrs,
                    weight=float32(linear.weight),
                    bias=float32(linear.bias),
                    running_mean=float32(norm.running_mean),
                    running_var=float32(norm.running_var),
                ).items()
            }
        )
    write("linprobe", arrays, **settings)
