"""Flags that several scripts share. Flags of the training scripts are grouped as util.run.flag_facts says."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from util.data import bad_images, masking
from util.images import resize
from util.options import presets, settings
from util.options.command_line import Parser
from util.run import flag_facts

OPTIMIZERS = ("adamw", "sgd", "lars")  # of util.optim.optimizers
CHANNELS = (
    "channels of an image: 3 RGB, 1 grey, 4 RGBA, 2 grey with alpha; any number in .npy and TIFF "
    "files, whose values are used unscaled unless they have 8 bits"
)

Group = Any  # argparse.ArgumentParser or a group of one


@dataclass(frozen=True)
class Defaults:
    """Defaults of --help that differ between the training scripts."""

    batch_size: int
    epochs: int
    warmup_epochs: int
    weight_decay: float
    blr: float
    min_lr: float
    opt: str = "adamw"
    betas: Sequence[float] = settings.BETAS  # of adamw, if --opt_betas is not given
    val_every: int = 1


def add(parser: Group, *names: str, **definition: Any) -> None:
    """Define a flag in its --help group: that of `flag_facts` for a Parser, else the given group.

    Args:
        parser: Parser or a group of one.
        names: the flag; the last one names the option.
        definition: arguments of `add_argument`.

    Raises LookupError for a flag of a Parser that has no row in flag_facts.
    """
    if isinstance(parser, Parser):
        dest = definition.get("dest", names[0].removeprefix("--"))
        if dest not in flag_facts.FLAGS:
            raise LookupError(f"{names[0]}: no row '{dest}' in FLAGS; add one in util/run/flag_facts.py")
        parser = parser.group(flag_facts.FLAGS[dest].group)
    parser.add_argument(*names, **definition)


# ---- flags of all kinds of scripts


def add_mask_mode(parser: Group, *, default: str | None) -> None:
    """Add --mask_mode; --mask_ratio differs between scripts, so each adds its own."""
    add(
        parser,
        "--mask_mode",
        default=default,
        choices=list(masking.MODES),
        help="hidden patches: random; block: large rectangles; grid: all but a regular pattern, at ratio "
        "0.75 one visible patch in each 2 x 2" + ("" if default else " (default: random)"),
    )


def add_show_channels(parser: Group) -> None:
    """Add --show_channels."""
    add(
        parser,
        "--show_channels",
        type=int,
        nargs="+",
        default=None,
        metavar="N",
        help="channels to draw as red, green and blue, counted from 1, such as 4 3 2 for Sentinel-2; or a "
        "single one, drawn in grey (default: the first three)",
    )


def add_model_description(parser: Parser) -> None:
    """Add the flags that override, or supply, the model description stored in a checkpoint."""
    group = parser.group("model description (default: the checkpoint's)")
    group.add_argument(
        "--model", default=None, metavar="NAME", help="such as vit_base_patch16 or mae_vit_base_patch16"
    )
    group.add_argument(
        "--input_size",
        type=int,
        nargs="+",
        default=None,
        metavar="PIXELS",
        help="side of the image, or height and width; position embeddings are interpolated",
    )
    group.add_argument("--patch_size", type=int, default=None, metavar="PIXELS", help="side of a patch")
    group.add_argument("--in_chans", type=int, default=None, metavar="N", help=CHANNELS)
    group.add_argument("--mean", type=float, nargs="+", default=None, help="one value per channel")
    group.add_argument("--std", type=float, nargs="+", default=None, help="one value per channel")
    group.add_argument("--nb_classes", type=int, default=None, metavar="N", help="outputs of a classifier")
    add_pooling(group, default=None)


def add_input_override(parser: Parser) -> None:
    """Add --input_size, --mean and --std, which override those of a checkpoint."""
    parser.add_argument(
        "--input_size",
        type=int,
        nargs="+",
        default=None,
        metavar="PIXELS",
        help="side of the image, or height and width (default: the checkpoint's)",
    )
    values = "one value per channel (default: the checkpoint's)"
    parser.add_argument("--mean", type=float, nargs="+", default=None, help=values)
    parser.add_argument("--std", type=float, nargs="+", default=None, help=values)


def add_device(parser: Group) -> None:
    """Add --device and --amp."""
    add(
        parser,
        "--device",
        default="auto",
        choices=["auto", "gpu", "cpu", "cuda"],
        help="auto: a GPU if Paddle finds one; cuda means gpu",
    )
    add(
        parser,
        "--amp",
        default="auto",
        choices=["auto", "off", "fp16", "bf16"],
        help="mixed precision; auto: fp16 on a GPU, off on a CPU, where bf16 is possible",
    )


def add_trust(parser: Group) -> None:
    """Add --trust_checkpoint."""
    add(
        parser,
        "--trust_checkpoint",
        action="store_true",
        help="read checkpoints (.pd, .pdparams, .pth) that contain more than arrays and plain values; such a "
        "file can run any code",
    )


def add_pooling(parser: Group, *, default: bool | None) -> None:
    """Add --global_pool and --cls_token, the two values of one option."""
    add(parser, "--global_pool", action="store_true", default=default, help="classify the mean patch token")
    add(
        parser,
        "--cls_token",
        action="store_false",
        dest="global_pool",
        default=default,
        help="classify the class token",
    )


def add_data(parser: Group, *, data_path: str = settings.OFFICIAL_DATA_PATH) -> None:
    """Add the flags that choose the images and how they are read."""
    add(
        parser,
        "--data_path",
        default=data_path,
        help="folder with train and val (class folders, tar files or lists), or a CIFAR archive, which is "
        "downloaded if missing",
    )
    add(
        parser,
        "--dataset",
        default="folder",
        choices=["folder", "cifar10", "cifar100"],
        help="kind of --data_path",
    )
    add(
        parser,
        "--image_root",
        default="",
        metavar="FOLDER",
        help="folder that names in lists are relative to (default: the list's folder)",
    )
    add(
        parser,
        "--bad_images",
        default="error",
        choices=list(bad_images.ACTIONS),
        help="unreadable images: error stops; skip replaces them in training and leaves them out of "
        "evaluations, up to 1 %% of the images",
    )
    add(
        parser,
        "--image_backend",
        default="pillow",
        choices=list(resize.BACKENDS),
        help="decoder and resizing: pillow as in the published results, or fast, nearly equal (needs "
        "cykooz-resizer)",
    )
    add(
        parser, "--num_workers", type=int, default=10, help="processes that read images, per training process"
    )


# ---- flags of the training scripts


def add_training(parser: Parser, models: Mapping[str, Any], default: str, defaults: Defaults) -> None:
    """Add the flags of every training script.

    Args:
        parser: of the script.
        models: {name: partial of the model's class}.
        default: name of the default model.
        defaults: of this script.
    """
    for group in flag_facts.GROUPS:
        parser.group(group)
    add_model(parser, models, default)
    add_data(parser)
    add_schedule(parser, defaults)
    add_optimizer(parser, defaults)
    add_device(parser)
    add_run(parser)
    add_checkpoints(parser, defaults)
    add_speed(parser)
    add_without_effect(parser)
    parser.complete = partial(settings.complete, models=models, betas=defaults.betas)


def add_model(parser: Parser, models: Collection[str], default: str) -> None:
    """Add --model and the flags that override its sizes and the normalization of its input."""
    add(
        parser,
        "--model",
        default=default,
        choices=list(models),
        metavar="NAME",
        help=f"one of {', '.join(models)}",
    )
    add(
        parser,
        "--input_size",
        type=int,
        nargs="+",
        default=224,
        metavar="PIXELS",
        help="side of the image, or height and width",
    )
    add(
        parser,
        "--patch_size",
        type=int,
        default=None,
        metavar="PIXELS",
        help="side of a patch (default: the model's)",
    )
    add(parser, "--in_chans", type=int, default=3, metavar="N", help=CHANNELS)
    add_stack(parser, "encoder", "--embed_dim", "--depth", "--num_heads")
    usual = "one value per channel (default: ImageNet's, for 1, 3 and 4 channels)"
    add(parser, "--mean", type=float, nargs="+", default=None, help=usual)
    add(parser, "--std", type=float, nargs="+", default=None, help=usual)


def add_stack(parser: Parser, stack: str, width: str, depth: str, heads: str) -> None:
    """Add the three flags of the sizes of the encoder or decoder."""
    for flag, size in ((width, "width"), (depth, "number of blocks"), (heads, "attention heads")):
        add(
            parser,
            flag,
            type=int,
            default=None,
            metavar="N",
            help=f"{size} of the {stack} (default: the model's)",
        )


def add_schedule(parser: Parser, defaults: Defaults) -> None:
    """Add epochs, batch size and learning rate."""
    add(
        parser,
        "--batch_size",
        type=int,
        default=defaults.batch_size,
        help="images per process and micro-batch",
    )
    add(parser, "--accum_iter", type=int, default=1, help="micro-batches per update")
    add(parser, "--epochs", type=int, default=defaults.epochs, help="epochs of the whole run")
    add(parser, "--warmup_epochs", type=int, default=defaults.warmup_epochs, help="linear warm-up from 0")
    add(
        parser,
        "--blr",
        type=float,
        default=defaults.blr,
        help="learning rate per 256 images of the effective batch",
    )
    add(parser, "--lr", type=float, default=None, help="absolute learning rate; overrides --blr")
    add(
        parser,
        "--min_lr",
        type=float,
        default=defaults.min_lr,
        help="lower bound of the learning rate after warm-up",
    )
    add(
        parser,
        "--sched",
        default="cosine",
        choices=["cosine", "step", "plateau"],
        help="learning rate: cosine decay to --min_lr; step: falls every --decay_epochs; plateau: falls "
        "after --patience_epochs without a better evaluation",
    )
    add(
        parser,
        "--decay_epochs",
        type=int,
        default=None,
        metavar="N",
        help=f"epochs between steps of --sched step (default: {settings.DECAY_EPOCHS})",
    )
    rates = ", ".join(f"{rate} for {name}" for name, rate in settings.DECAY_RATE.items())
    add(
        parser,
        "--decay_rate",
        type=float,
        default=None,
        help=f"factor of each fall of --sched step and plateau (default: {rates})",
    )
    add(
        parser,
        "--patience_epochs",
        type=int,
        default=None,
        metavar="N",
        help=f"of --sched plateau (default: {settings.PATIENCE_EPOCHS})",
    )


def add_optimizer(parser: Parser, defaults: Defaults) -> None:
    """Add the optimizer and what is done to gradients and weights."""
    add(
        parser,
        "--weight_decay",
        type=float,
        default=defaults.weight_decay,
        help="decoupled in adamw; added to the gradient in sgd and lars",
    )
    add(parser, "--opt", default=defaults.opt, choices=OPTIMIZERS, help="optimizer")
    add(
        parser,
        "--opt_betas",
        type=float,
        nargs=2,
        default=None,
        metavar="BETA",
        help=f"betas of adamw (default: {' '.join(map(str, defaults.betas))})",
    )
    add(
        parser, "--momentum", type=float, default=None, help=f"of sgd and lars (default: {settings.MOMENTUM})"
    )
    add(
        parser,
        "--clip_grad",
        type=float,
        default=None,
        help="largest global norm of the gradient; off if not given",
    )
    add(
        parser,
        "--loss_scale",
        default="dynamic",
        metavar="SCALE",
        help="of --amp fp16: dynamic, or a constant",
    )
    add(
        parser,
        "--ema",
        action="store_true",
        help="keep an exponential moving average of the weights, evaluate it too, and select "
        "checkpoint-best.pd by it",
    )
    add(
        parser,
        "--ema_decay",
        type=float,
        default=None,
        help=f"decay of --ema (default: {settings.EMA_DECAY})",
    )


def add_run(parser: Parser) -> None:
    """Add seed, starting weights, resuming and output."""
    add(
        parser, "--finetune", default="", metavar="FILE", help="pretrained weights that a new run starts from"
    )
    add(
        parser,
        "--resume",
        default="",
        metavar="FILE",
        help="checkpoint to continue or to evaluate; auto: the newest undamaged one in --output_dir, or a "
        "new run if there is none",
    )
    add(
        parser,
        "--output_dir",
        default="./output_dir",
        help="folder of checkpoints and log.txt; empty: save nothing",
    )
    add(parser, "--seed", type=int, default=0, help="of all random numbers")
    add(
        parser,
        "--dry_run",
        action="store_true",
        help="check data, schedule, memory, disk and time with a few updates; write nothing",
    )


def add_checkpoints(parser: Parser, defaults: Defaults) -> None:
    """Add evaluation, logging, saving and details of resuming."""
    add(
        parser,
        "--val_every",
        type=int,
        default=defaults.val_every,
        metavar="N",
        help="evaluate every N-th epoch and the last; the best gives checkpoint-best.pd; 0: never. An "
        "autoencoder is evaluated by its loss with fixed masks",
    )
    add(parser, "--log_dir", default=None, help="VisualDL log (default: --output_dir); empty: none")
    add(parser, "--print_freq", type=int, default=20, help="steps between log lines")
    add(
        parser,
        "--save_every",
        type=int,
        default=None,
        metavar="N",
        help="keep the checkpoint of every N-th epoch and the last (default: 20 in pretraining, else 1)",
    )
    add(
        parser,
        "--keep",
        type=int,
        default=None,
        metavar="N",
        help="keep the newest N checkpoints, those of every 20th epoch (or of --save_every), the last and "
        "the best (default: as --save_every says)",
    )
    add(parser, "--save_steps", type=int, default=0, metavar="N", help="save also every N updates; 0: off")
    add(
        parser,
        "--save_every_minutes",
        type=float,
        default=0.0,
        metavar="M",
        help="save also every M minutes; 0: off",
    )
    add(
        parser,
        "--save_async",
        action="store_true",
        help="write checkpoints while training continues; needs memory for a copy of the state",
    )
    add(
        parser,
        "--on_nan",
        default="stop",
        choices=["stop", "skip"],
        help="NaN or Inf loss: stop ends the run; skip leaves out the update, at most two in a row, and "
        "waits for each loss on a GPU",
    )
    add(
        parser,
        "--allow_changes",
        nargs="+",
        default=None,
        metavar="NAME",
        help="flags that may differ from the resumed checkpoint",
    )
    add_trust(parser)
    add(parser, "--start_epoch", type=int, default=0, help="first epoch; --resume sets it")


def add_speed(parser: Parser) -> None:
    """Add flags of speed and memory for all training scripts; they change the result by rounding at most."""
    add(
        parser,
        "--attention",
        default="auto",
        choices=["auto", "math", "sdpa"],
        help="sdpa: Paddle's fused attention, flash attention on a GPU, float32 only on a CPU; math: "
        "separate operations; auto: sdpa on a GPU of compute capability 8 or more with --amp, else math",
    )
    add(
        parser,
        "--shuffle_buffer",
        type=int,
        default=0,
        metavar="N",
        help="read tar files sequentially in random order and shuffle in a buffer of N images; 0: random "
        "access, slow on hard disks",
    )
    add(
        parser,
        "--pin_mem",
        action="store_true",
        default=True,
        help="copy batches to a GPU from page-locked memory",
    )
    add(
        parser,
        "--no_pin_mem",
        action="store_false",
        dest="pin_mem",
        default=True,
        help="copy them from ordinary memory",
    )


def add_whole_model(parser: Parser) -> None:
    """Add flags of speed and memory for training a whole model; the linear probe trains only the head."""
    add(
        parser,
        "--amp_level",
        default="O1",
        choices=["O1", "O2"],
        help="O2: half-precision weights of linear layers with float32 master weights",
    )
    add(
        parser,
        "--recompute",
        action="store_true",
        help="recompute blocks in the backward pass: less memory, about a third more time",
    )
    add(parser, "--fused_adamw", action="store_true", help="update each parameter group in one operation")
    add(parser, "--compile", action="store_true", help="trace the model into a static graph; slower on a CPU")


def add_without_effect(parser: Parser) -> None:
    """Add official flags without effect, so that official commands run; the log names those given."""
    add(parser, "--world_size", type=int, default=1, help="Paddle's launcher sets it")
    add(parser, "--local_rank", type=int, default=-1, help="Paddle's launcher sets it")
    add(parser, "--dist_on_itp", action="store_true", help="PyTorch's launcher only")
    add(parser, "--dist_url", default="env://", help="PyTorch's launcher only")


# ---- augmentation and classifiers


def add_augmentation(parser: Parser, choices: presets.Presets, *, aa: str = "") -> None:
    """Add the augmentation of pixels, beside crop and flip.

    Args:
        parser: of the script.
        choices: of --augment.
        aa: default of --aa.
    """
    parser.add_preset(
        "--augment",
        choices,
        group=flag_facts.FLAGS["augment"].group,
        help=f"sets these flags unless they are given. {presets.describe(choices)}",
    )
    add(
        parser,
        "--color_jitter",
        type=float,
        default=None,
        help="strength of brightness, contrast and saturation changes, without --aa; off if not given",
    )
    add(
        parser,
        "--aa",
        default=aa,
        metavar="POLICY",
        help="RandAugment in timm's notation (rand-m9-mstd0.5-inc1) or AutoAugment (original, originalr, v0, "
        "v0r, cifar10, svhn; each also with -mstd0.5); empty: none",
    )


def add_classifier_augmentation(
    parser: Parser, choices: presets.Presets, *, aa: str, reprob: float, smoothing: float
) -> None:
    """Add augmentation, random erasing and soft targets.

    Args:
        parser: of the script.
        choices: of --augment.
        aa, reprob, smoothing: defaults of the flags.
    """
    add_augmentation(parser, choices, aa=aa)
    add(parser, "--reprob", type=float, default=reprob, help="probability of random erasing")
    add(
        parser,
        "--remode",
        default="pixel",
        choices=["pixel", "rand", "const"],
        help="content of erased areas: noise per pixel, one random colour, or zero",
    )
    add(parser, "--recount", type=int, default=1, help="largest number of erased areas")
    add(parser, "--smoothing", type=float, default=smoothing, help="label smoothing")
    add(parser, "--mixup", type=float, default=0.0, help="alpha of Mixup; 0: off")
    add(parser, "--cutmix", type=float, default=0.0, help="alpha of CutMix; 0: off")
    add(
        parser,
        "--cutmix_minmax",
        type=float,
        nargs="+",
        default=None,
        help="smallest and largest side of the CutMix box as a fraction of the image's; overrides its alpha",
    )
    add(parser, "--mixup_prob", type=float, default=1.0, help="probability that a batch is mixed")
    add(parser, "--mixup_switch_prob", type=float, default=0.5, help="probability of CutMix if both are on")
    add(
        parser,
        "--mixup_mode",
        default="batch",
        choices=["batch", "pair", "elem"],
        help="one lambda for each batch, pair of images, or image",
    )


def add_classifier(parser: Parser, *, global_pool: bool) -> None:
    """Add the flags that finetuning and the linear probe share."""
    add(parser, "--nb_classes", type=int, default=1000, help="number of classes")
    add_pooling(parser, default=global_pool)
    add(parser, "--eval", action="store_true", help="evaluate --resume on the val images and stop")
    add(parser, "--dist_eval", action="store_true", help="divide the evaluation among the processes")


def without_effect(args: argparse.Namespace, parser: Parser, device: str) -> str:
    """Return a sentence that names the flags given without effect on "gpu" or "cpu"; "" for none."""
    names = [*flag_facts.WITHOUT_EFFECT]
    names += ["pin_mem"] if device == "cpu" else []
    names += [] if args.resume or args.finetune else ["trust_checkpoint"]
    given = [name for name in names if getattr(args, name, None) != parser.get_default(name)]
    return f"no effect here: --{', --'.join(given)}" if given else ""
