"""From flags to settings: dependent defaults, checks, and arguments of models and transforms.

Nothing here changes the namespace that argparse returns.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from util.images import normalize
from util.images.random_erasing import RandomErasing
from util.run.settings import TrainingSettings
from util.weights.flag_names import FLAG_OF

OFFICIAL_DATA_PATH = "/datasets01/imagenet_full_size/061417/"

# Defaults of flags that have a meaning only beside others.
MOMENTUM = 0.9  # of sgd and lars
BETAS, PRETRAIN_BETAS = (0.9, 0.999), (0.9, 0.95)  # of adamw
EMA_DECAY = 0.9999  # of --ema
DECAY_EPOCHS, PATIENCE_EPOCHS = 30, 10  # of --sched step and plateau
DECAY_RATE = {"step": 0.1, "plateau": 0.5}  # of --sched

Model = partial  # of a model's class, with its sizes as keywords


# ---- training


def settle(args: argparse.Namespace, *, betas: Sequence[float] = BETAS) -> TrainingSettings:
    """Fill in defaults that depend on other flags, and reject combinations that do not work together.

    Args:
        args: flags of a training script; not changed.
        betas: of adamw, if --opt_betas is not given.

    Raises ValueError for a value out of its range, and for a flag without effect beside the others.
    """
    given = vars(args)
    _check_ranges(given)
    _check_optimizer(given)
    _check_schedule(given)
    options = {**given, **_dependent(given)}
    resolved = {"opt_betas": betas} if args.opt == "adamw" and args.opt_betas is None else {}
    return TrainingSettings.of(options, **resolved)


def complete(
    args: argparse.Namespace, *, models: Mapping[str, Model], betas: Sequence[float]
) -> dict[str, Any]:
    """Return {flag name: value} as a run would use them, for --print_config.

    Args:
        args: flags of a training script.
        models: {name: partial of the model's class}, for sizes that are not given.
        betas: as for `settle`.
    """
    settings = settle(args, betas=betas)
    options = {
        **settings.options,
        **{
            name: size
            for name, size in models[args.model].keywords.items()
            if settings.options.get(name, size) is None
        },
    }
    return {**options, "opt_betas": settings.optimisation.opt_betas and list(settings.optimisation.opt_betas)}


def _dependent(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of flags whose defaults depend on other flags."""
    found: dict[str, Any] = {}
    if given["dataset"] != "folder" and given["data_path"] == OFFICIAL_DATA_PATH:
        found["data_path"] = ""  # Paddle's cache
    if given["opt"] != "adamw" and given["momentum"] is None:
        found["momentum"] = MOMENTUM
    if given["ema"] and given["ema_decay"] is None:
        found["ema_decay"] = EMA_DECAY
    for name, values in (
        ("decay_epochs", {"step": DECAY_EPOCHS}),
        ("decay_rate", DECAY_RATE),
        ("patience_epochs", {"plateau": PATIENCE_EPOCHS}),
    ):
        if given[name] is None and given["sched"] in values:
            found[name] = values[given["sched"]]
    if given["loss_scale"] != "dynamic":
        try:
            found["loss_scale"] = float(given["loss_scale"])
        except ValueError:
            raise ValueError(f"--loss_scale {given['loss_scale']}: expected dynamic, or a number") from None
    return found


def _check_ranges(given: Mapping[str, Any]) -> None:
    for name, least in (("seed", 0), ("in_chans", 1)):
        if given[name] < least:
            raise ValueError(f"--{name} {given[name]}: expected {least} or more")
    for name in ("lr", "blr", "min_lr", "weight_decay", "warmup_epochs"):
        if given[name] is not None and not 0 <= given[name] < math.inf:
            raise ValueError(f"--{name} {given[name]}: expected a number that is 0 or more")
    if not 0 <= given.get("smoothing", 0) < 1:
        raise ValueError(f"--smoothing {given['smoothing']}: expected at least 0 and less than 1")
    if given["clip_grad"] is not None and not given["clip_grad"] > 0:
        raise ValueError(
            f"--clip_grad {given['clip_grad']}: expected a norm above 0; remove it to clip nothing"
        )
    if given["val_every"] < 0:
        raise ValueError(f"--val_every {given['val_every']}: expected a number of epochs, or 0 for never")
    if given["save_every"] == 1 and given["keep"]:
        raise ValueError(
            f"--keep {given['keep']}: --save_every 1 keeps the checkpoint of every epoch; remove one of them"
        )
    if given["ema_decay"] is not None and not given["ema"]:
        raise ValueError(f"--ema_decay {given['ema_decay']}: needs --ema; add it, or remove --ema_decay")


def _check_optimizer(given: Mapping[str, Any]) -> None:
    opt, betas, momentum = given["opt"], given["opt_betas"], given["momentum"]
    shown = " ".join(map(str, betas or ()))
    if opt == "adamw":
        if momentum is not None:
            raise ValueError(f"--momentum {momentum}: adamw has none; remove it, or choose --opt sgd or lars")
        if betas is not None and not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"--opt_betas {shown}: expected each at least 0 and less than 1")
        return
    if betas is not None:
        raise ValueError(f"--opt_betas {shown}: only adamw has them, and --opt is {opt}; remove them")
    if given.get("fused_adamw"):
        raise ValueError(f"--fused_adamw: --opt is {opt}; remove one of them")
    if given.get("amp_level") == "O2":
        raise ValueError(f"--amp_level O2: works with --opt adamw, not with {opt}; pass --amp_level O1")
    if momentum is not None and not 0 <= momentum < 1:
        raise ValueError(f"--momentum {momentum}: expected at least 0 and less than 1")


def _check_schedule(given: Mapping[str, Any]) -> None:
    sched = given["sched"]
    for name, schedules in (
        ("decay_epochs", ["step"]),
        ("decay_rate", list(DECAY_RATE)),
        ("patience_epochs", ["plateau"]),
    ):
        if given[name] is not None and sched not in schedules:
            raise ValueError(
                f"--{name} {given[name]}: has no effect with --sched {sched}, only with "
                f"{' and '.join(schedules)}; remove it"
            )
    if sched == "plateau" and not given["val_every"]:
        raise ValueError("--sched plateau: needs evaluations; pass --val_every 1")
    if given["decay_epochs"] is not None and given["decay_epochs"] < 1:
        raise ValueError(f"--decay_epochs {given['decay_epochs']}: expected at least 1")
    if given["decay_rate"] is not None and not 0 < given["decay_rate"] <= 1:
        raise ValueError(f"--decay_rate {given['decay_rate']}: expected more than 0 and at most 1")


# ---- models


def model_sizes(args: argparse.Namespace, model: Model) -> dict[str, Any]:
    """Return keyword arguments of a model: image size, channels, and encoder sizes that differ from its own.

    Args:
        args: flags.
        model: partial of the model's class, with its sizes as keywords.

    Raises ValueError for sizes that no encoder can have.
    """
    sizes = {"img_size": args.input_size, "in_chans": args.in_chans, **_stack_sizes(args, model, "")}
    return sizes if args.patch_size is None else {**sizes, "patch_size": args.patch_size}


def decoder_sizes(args: argparse.Namespace, model: Model) -> dict[str, int]:
    """Return the decoder sizes of an autoencoder that differ from its own; arguments as for `model_sizes`."""
    return _stack_sizes(args, model, "decoder_")


def _stack_sizes(args: argparse.Namespace, model: Model, prefix: str) -> dict[str, int]:
    """Return width, depth and heads that differ from the model's; the prefix is "" or "decoder_"."""
    names = [prefix + name for name in ("embed_dim", "depth", "num_heads")]
    own = {name: model.keywords[name] for name in names}
    sizes = {name: size if getattr(args, name) is None else getattr(args, name) for name, size in own.items()}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"--{name} {size}: expected 1 or more")
    width, _, heads = sizes.values()
    if width % 4 or width % heads:
        raise ValueError(
            f"--{names[0]} {width}: expected a multiple of 4, because of the position "
            f"embedding, and of --{names[2]}, which is {heads}"
        )
    return {name: size for name, size in sizes.items() if size != own[name]}


def model_description(args: argparse.Namespace) -> dict[str, Any]:
    """Return the model description of `flags.add_model_description`; None for what is not given."""
    names = ("name", "img_size", "patch_size", "in_chans", "num_classes", "global_pool")
    return {name: getattr(args, FLAG_OF.get(name, name)) for name in names}


# ---- images


def mean_std(args: argparse.Namespace) -> dict[str, Sequence[float]]:
    """Return {"mean", "std"} from the flags, or the defaults for this number of channels.

    Raises ValueError for a wrong number of values, and if there are no defaults.
    """
    mean, std = args.mean, args.std
    if not (mean and std):
        usual_mean, usual_std = normalize.default_mean_std(args.in_chans)
        mean, std = mean or usual_mean, std or usual_std
    values: dict[str, Sequence[float]] = {"mean": mean, "std": std}
    normalize.check_mean_std(**values)
    for name, numbers in values.items():
        if len(numbers) != args.in_chans:
            raise ValueError(
                f"--{name}: expected {args.in_chans} numbers, one for each of --in_chans, got {len(numbers)}"
            )
    return values


def augmentation(args: argparse.Namespace) -> dict[str, Any]:
    """Return keyword arguments of a training transform; scripts without --reprob have no random erasing."""
    found = {"color_jitter": args.color_jitter, "aa": args.aa}
    if hasattr(args, "reprob"):
        found["erasing"] = RandomErasing(args.reprob, args.remode, args.recount)
    return found


def mixing_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Return keyword arguments of util.data.mixup.mixing."""
    return {
        "mixup_alpha": args.mixup,
        "cutmix_alpha": args.cutmix,
        "cutmix_minmax": args.cutmix_minmax,
        "prob": args.mixup_prob,
        "switch_prob": args.mixup_switch_prob,
        "mode": args.mixup_mode,
        "label_smoothing": args.smoothing,
        "num_classes": args.nb_classes,
    }


def channels_shown(args: argparse.Namespace, in_chans: int) -> list[int] | None:
    """Return the channels of --show_channels counted from 0; None if it is not given.

    Raises ValueError unless they are one or three of `in_chans` channels.
    """
    chosen = args.show_channels
    if chosen is None:
        return None
    if len(chosen) not in (1, 3) or not all(1 <= channel <= in_chans for channel in chosen):
        raise ValueError(
            f"--show_channels {' '.join(map(str, chosen))}: expected one or three numbers from "
            f"1 to {in_chans}, the channels of this model"
        )
    return [channel - 1 for channel in chosen]
