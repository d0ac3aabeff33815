"""Wiring that the three training scripts share: device, loaders, optimizer, and the run itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import paddle

from util.compute import amp, compilation, cpu_runtime, operations
from util.data import loaders, sources
from util.data.bad_images import BadImages
from util.data.loaders import Loader, Transform
from util.data.sources import ImageSource
from util.images.transforms import EvalTransform
from util.optim import accumulation, optimizers
from util.optim.ema import EMA
from util.optim.lr_sched import Plateau
from util.optim.update_rule import UpdateRule
from util.run import resume, resume_rules
from util.run.learning_rate import LearningRate
from util.run.run_state import RunState
from util.run.settings import Data, Precision, TrainingSettings
from util.run.training_run import TrainingRun
from util.system import distributed
from util.system.console import say


@dataclass(frozen=True)
class Session:
    """Device and precision of this process.

    Attributes:
        device: "gpu" or "cpu".
        precision: "float16", "bfloat16", or None for float32.
        sdpa: argument of the models for Paddle's fused attention, see util.compute.operations.sdpa_type.
        autocast: returns the context that sets the precision of a forward pass.
    """

    device: str
    precision: str | None
    sdpa: Any
    autocast: Callable[[], AbstractContextManager]


def open_session(settings: Precision, *, seed: int) -> Session:
    """Choose the device, join the other processes, and seed Paddle's generator.

    Raises ValueError for a precision that the device does not have.
    """
    device = distributed.init(settings.device)
    if device == "cpu":
        say(f"{cpu_runtime.describe()}; {operations.describe()}")
    precision = amp.resolve(settings.amp, device, settings.amp_level)
    sdpa = operations.sdpa_type(settings.attention, device, precision)
    paddle.seed(seed)
    return Session(device, precision, sdpa, amp.autocast(precision))


def compiled(model: paddle.nn.Layer, session: Session, settings: Precision) -> paddle.nn.Layer:
    """Return the model, traced into a static graph if --compile asks for it."""
    if not settings.compile:
        return model
    say(compilation.check(session.device, session.precision, settings.recompute))
    return compilation.compiled(model)


# ---- data


def open_splits(data: Data, *, num_classes: int, only_val: bool) -> tuple[Any, ImageSource]:
    """Open the labelled training and val images; the training images are None with `only_val`."""
    return sources.open_train_val(
        data.data_path,
        dataset=data.dataset,
        in_chans=data.in_chans,
        image_root=data.image_root,
        num_classes=num_classes,
        only_val=only_val,
    )


def open_classifier_val_loader(
    source: ImageSource, data: Data, size: tuple[int, int], normalization: Mapping[str, Any], *, listed: bool
) -> Loader:
    """Return evaluation batches for a classifier.

    Args:
        source: val images.
        data: settings; with --dist_eval the processes divide the images among them.
        size: (height, width).
        normalization: {"mean", "std"}.
        listed: whether unreadable images are listed in the output folder.
    """
    transform = EvalTransform(size, **normalization, image_backend=data.image_backend)
    return open_val_loader(source, transform, data, shared=data.dist_eval, listed=listed)


def open_train_loader(source: ImageSource, transform: Transform, data: Data, *, accum_iter: int) -> Loader:
    """Return training batches. Raises ValueError if an epoch has fewer than `accum_iter` of them."""
    loader = loaders.train_loader(
        source,
        transform,
        data.batch_size,
        data.num_workers,
        seed=data.seed,
        shuffle_buffer=data.shuffle_buffer,
        pin_memory=data.pin_mem,
        bad_images=BadImages(data.bad_images, "train", len(source), data.output_dir),
    )
    accumulation.check_accum_iter(accum_iter, len(loader))
    return loader


def open_val_loader(
    source: ImageSource, transform: Transform, data: Data, *, shared: bool, listed: bool = True
) -> Loader:
    """Return evaluation batches.

    Args:
        source: val images.
        transform: of each image.
        data: settings.
        shared: whether the processes divide the images among them.
        listed: whether unreadable images are listed in the output folder.
    """
    bad_images = BadImages(data.bad_images, "val", len(source), data.output_dir if listed else "")
    return loaders.eval_loader(
        source,
        transform,
        data.batch_size,
        data.num_workers,
        shared=shared,
        pin_memory=data.pin_mem,
        bad_images=bad_images,
    )


# ---- the run


def open_run(
    session: Session,
    settings: TrainingSettings,
    model: paddle.nn.Layer,
    groups: list[dict[str, Any]],
    loader: Loader,
    val_loader: Loader | None,
    *,
    described: dict[str, Any],
    save_freq: int,
) -> tuple[TrainingRun, UpdateRule]:
    """Make optimizer, schedule and average of the weights, and continue the run of --resume.

    Args:
        session: device and precision.
        settings: of the run.
        model: what is trained.
        groups: parameter groups, of util.optim.param_groups.
        loader: training batches.
        val_loader: evaluation batches; None for a run without evaluation.
        described: "architecture", "normalization" and, of classifiers, "classes", see
            util.run.resume_rules.facts.
        save_freq: epochs between numbered checkpoints if --save_every and --keep are not given.
    """
    schedule, optimisation = settings.schedule, settings.optimisation
    half_weights = settings.precision.amp_level == "O2"
    plateau = None
    if schedule.sched == "plateau" and schedule.patience_epochs is not None:
        plateau = Plateau(schedule.patience_epochs, schedule.warmup_epochs)
    lr = LearningRate(schedule, plateau)
    optimizer = optimizers.make_optimizer(
        optimisation.opt,
        lr.peak,
        groups,
        betas=optimisation.opt_betas,
        momentum=optimisation.momentum,
        fused=optimisation.fused_adamw,
        masters=half_weights,
    )
    scaler = amp.grad_scaler(session.precision, settings.precision.loss_scale)
    ema = None
    if optimisation.ema and optimisation.ema_decay is not None:
        ema = EMA(model, optimizer, optimisation.ema_decay)
        say(_ema_hint(ema.decay, updates=schedule.epochs * -(-len(loader) // schedule.accum_iter)))
    state = RunState(
        model,
        optimizer,
        scaler,
        options=settings.options,
        facts=resume_rules.facts(loader, lr.batch, **described),
        ema=ema,
        plateau=plateau,
    )
    run = TrainingRun(
        state, loader, val_loader, saving=settings.saving, schedule=schedule, save_freq=save_freq
    )
    if half_weights:
        amp.keep_masters(model, optimizer)
    if settings.saving.resume:
        resume.continue_run(run, settings.saving.resume)
    if half_weights:
        assert session.precision is not None  # --amp_level O2 is refused without half precision
        amp.halve(model, optimizer, session.precision)
    return run, UpdateRule(
        optimizer, scaler, lr, schedule.accum_iter, session.autocast, optimisation.clip_grad
    )


def _ema_hint(decay: float, *, updates: int) -> str:
    """Return a hint if the run is so short that its first weights dominate the average, or ""."""
    if updates * (1 - decay) >= 3:
        return ""
    return (
        f"--ema_decay {decay} is meant for longer runs: after the {updates} updates of this one, "
        f"the initial weights still make up {decay**updates:.0%} of the average"
    )


def list_bad_images(*opened: Loader | None) -> None:
    """Print the unreadable images of each loader."""
    for loader in opened:
        say("" if loader is None else loader.bad_images.listing())
