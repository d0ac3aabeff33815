"""The options of the scripts, the official ones among them: their flags, and what follows from their values."""
import argparse
import math
from functools import partial

from util.data import bad_images, masking
from util.images import normalize, resize
from util.images.random_erasing import RandomErasing
from util.optim import lr_sched
from util.system import distributed

# Flags of the official scripts that say how PyTorch starts processes. Paddle's launcher does that by itself, and
# --resplit is read nowhere in the official code either.
WITHOUT_MEANING = ("world_size", "local_rank", "dist_on_itp", "dist_url", "resplit")

OFFICIAL_DATA_PATH = "/datasets01/imagenet_full_size/061417/"

OPTIMIZERS = ("adamw", "sgd", "lars")   # of util.optim.optimizers

# Where the flags do not say otherwise: of sgd and lars, of --ema, and of the schedules other than cosine.
MOMENTUM = 0.9
BETAS, PRETRAIN_BETAS = (0.9, 0.999), (0.9, 0.95)   # of adamw
EMA_DECAY = 0.9999
DECAY_EPOCHS, PATIENCE_EPOCHS = 30, 10
DECAY_RATE = {"step": 0.1, "plateau": 0.5}

CHANNELS = ("channels of an image: 3 RGB, 1 grey, 4 RGBA, 2 grey with alpha; any number in .npy files and in TIFFs, "
            "whose numbers, if not of 8 bits, are taken as they are")

# What --augment sets, of the options that are given neither on the command line nor in a file. light is the official
# augmentation of pretraining and of the linear probe, medium is that of finetuning by default, and strong what its
# published results were made with.
RANDAUGMENT = "rand-m9-mstd0.5-inc1"
NO_SOFT_TARGETS = {"smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0}
PRETRAIN_PRESETS = {"light": {"color_jitter": None, "aa": ""},
                    "medium": {"color_jitter": 0.4, "aa": ""},
                    "strong": {"color_jitter": None, "aa": RANDAUGMENT}}
FINETUNE_PRESETS = {
    "light": {"color_jitter": None, "aa": "", "reprob": 0.0, **NO_SOFT_TARGETS},
    "medium": {"color_jitter": None, "aa": RANDAUGMENT, "reprob": 0.25, **NO_SOFT_TARGETS, "smoothing": 0.1},
    "strong": {"color_jitter": None, "aa": RANDAUGMENT, "reprob": 0.25, "smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0}}
LINPROBE_PRESETS = {
    "light": {"color_jitter": None, "aa": "", "reprob": 0.0, **NO_SOFT_TARGETS},
    "medium": {"color_jitter": 0.4, "aa": "", "reprob": 0.0, **NO_SOFT_TARGETS},
    "strong": {"color_jitter": None, "aa": RANDAUGMENT, "reprob": 0.25, **NO_SOFT_TARGETS, "smoothing": 0.1}}


def add_model(parser, models, default, *, input_size=224):
    """--model and what overrides its sizes."""
    parser.add_argument("--model", default=default, choices=list(models), metavar="NAME",
                        help=f"one of {', '.join(models)}")
    parser.models = models  # whose sizes --print_config shows
    parser.add_argument("--embed_dim", type=int, default=None, help="channels of the encoder (default: the model's)")
    parser.add_argument("--depth", type=int, default=None, help="blocks of the encoder (default: the model's)")
    parser.add_argument("--num_heads", type=int, default=None,
                        help="attention heads of the encoder (default: the model's)")
    parser.add_argument("--input_size", type=int, nargs="+", default=input_size, metavar="PIXELS",
                        help="pixels a side, or height and width")
    parser.add_argument("--patch_size", type=int, default=None, help="pixels a side of a patch (default: the model's)")
    parser.add_argument("--in_chans", type=int, default=3, help=CHANNELS)
    usual = "one a channel (default: ImageNet's, for 1, 3 and 4 channels)"
    parser.add_argument("--mean", type=float, nargs="+", default=None, help=usual)
    parser.add_argument("--std", type=float, nargs="+", default=None, help=usual)


def add_decoder(parser):
    """Another decoder than that of --model; the paper's Table 1 (a) and (b)."""
    parser.add_argument("--decoder_embed_dim", type=int, default=None, help="channels of the decoder (default: the model's)")
    parser.add_argument("--decoder_depth", type=int, default=None, help="blocks of the decoder (default: the model's)")
    parser.add_argument("--decoder_num_heads", type=int, default=None,
                        help="attention heads of the decoder (default: the model's)")


def add_mask_mode(parser, *, default):
    """How patches are chosen, beside --mask_ratio, by which each script says how many."""
    parser.add_argument("--mask_mode", default=default, choices=list(masking.MODES),
                        help="which patches are hidden: random; block: large rectangles; grid: all but an even pattern, at "
                             "0.75 one of each 2 x 2" + ("" if default else " (default: random)"))


def add_show_channels(parser):
    """Which channels a picture is drawn of."""
    parser.add_argument("--show_channels", type=int, nargs="+", default=None, metavar="N",
                        help="channels that are drawn as red, green and blue, counted from 1, such as 4 3 2 of "
                             "Sentinel-2; or one, in grey (default: the first three)")


def channels_shown(args, in_chans):
    """The channels of --show_channels counted from 0, or None."""
    chosen = args.show_channels
    if chosen is None:
        return None
    if len(chosen) not in (1, 3) or not all(1 <= channel <= in_chans for channel in chosen):
        raise ValueError(f"--show_channels {' '.join(map(str, chosen))}: expected three numbers, or one, from 1 to "
                         f"{in_chans}, the channels of this model")
    return [channel - 1 for channel in chosen]


def add_described(parser):
    """What a checkpoint says of its model, for where it does not, or where it shall be another."""
    group = parser.add_argument_group("what a checkpoint says of its model, unless it is said here")
    group.add_argument("--model", default=None, metavar="NAME", help="such as vit_base_patch16 or mae_vit_base_patch16")
    group.add_argument("--input_size", type=int, nargs="+", default=None, metavar="PIXELS",
                       help="pixels a side, or height and width; positions are interpolated")
    group.add_argument("--patch_size", type=int, default=None, help="pixels a side of a patch")
    group.add_argument("--in_chans", type=int, default=None, help=CHANNELS)
    group.add_argument("--mean", type=float, nargs="+", default=None, help="one a channel")
    group.add_argument("--std", type=float, nargs="+", default=None, help="one a channel")
    group.add_argument("--nb_classes", type=int, default=None, help="outputs of a classifier")
    add_pooling(group, default=None)


def described_sizes(args):
    """What of a checkpoint's description of its model the flags of `add_described` override; None where they do not."""
    return {"name": args.model, "img_size": args.input_size, "patch_size": args.patch_size, "in_chans": args.in_chans,
            "num_classes": args.nb_classes, "global_pool": args.global_pool}


def add_device(parser):
    """Where and how exactly to compute."""
    parser.add_argument("--device", default="auto", choices=["auto", "gpu", "cpu", "cuda"],
                        help="auto: a GPU if Paddle has one; cuda is gpu")
    parser.add_argument("--amp", default="auto", choices=["auto", "off", "fp16", "bf16"],
                        help="mixed precision; auto: fp16 on a GPU, off on a CPU, which may have bf16")


def add_trust(parser):
    """Beside whatever flag names a checkpoint."""
    parser.add_argument("--trust_checkpoint", action="store_true",
                        help="read the checkpoint even if it asks for more than arrays and plain values: a .pd, "
                             ".pdparams or .pth file then runs whatever code it brings")


def add_data(parser):
    """Which images."""
    parser.add_argument("--data_path", default=OFFICIAL_DATA_PATH,
                        help="folder with train and val (folders of classes, tar files or lists), or a CIFAR archive, "
                             "which is downloaded if it is not there")
    parser.add_argument("--image_root", default="", metavar="FOLDER",
                        help="where the names in lists start (default: in the list's folder)")
    parser.add_argument("--dataset", default="folder", choices=["folder", "cifar10", "cifar100"],
                        help="what --data_path holds")
    parser.add_argument("--bad_images", default="error", choices=list(bad_images.ACTIONS),
                        help="a picture that cannot be read stops the run (error), or is replaced in training and left "
                             "out in evaluation, up to 1 %% of them (skip)")
    parser.add_argument("--image_backend", default="pillow", choices=list(resize.BACKENDS),
                        help="what decodes and resizes: pillow as published, fast nearly so (needs cykooz-resizer)")
    parser.add_argument("--num_workers", type=int, default=10, help="processes that read images, per training process")


def add_training(parser, *, batch_size, epochs, weight_decay, blr, min_lr, warmup_epochs, opt="adamw",
                 val_every=1, betas=BETAS):
    """What every training script has; the defaults that differ are arguments."""
    add_data(parser)
    parser.add_argument("--shuffle_buffer", type=int, default=0, metavar="N",
                        help="read tar files one after the other, in random order, and mix them in a buffer of N "
                             "pictures; 0: take pictures in any order, which slow drives do not like")
    add_device(parser)
    parser.add_argument("--batch_size", type=int, default=batch_size, help="images per process and micro-batch")
    parser.add_argument("--epochs", type=int, default=epochs)
    parser.add_argument("--accum_iter", type=int, default=1, help="micro-batches whose gradients make one update")
    add_optimization(parser, opt=opt, weight_decay=weight_decay)
    parser.add_argument("--lr", type=float, default=None, help="learning rate; overrides --blr")
    parser.add_argument("--blr", type=float, default=blr, help="learning rate per 256 images of the effective batch")
    parser.add_argument("--min_lr", type=float, default=min_lr, help="where the cosine ends; no schedule goes below")
    parser.add_argument("--warmup_epochs", type=int, default=warmup_epochs, help="linear from 0, in each schedule")
    add_schedule(parser)
    parser.add_argument("--val_every", type=int, default=val_every, metavar="N",
                        help="after every N-th epoch and the last, evaluate on the val images (an autoencoder: its loss, "
                             "always with the same masks); the best makes checkpoint-best.pd; 0: never")
    parser.add_argument("--output_dir", default="./output_dir", help="checkpoints and log.txt; empty: save nothing")
    parser.add_argument("--log_dir", default=None, help="VisualDL log; not given: --output_dir; empty: none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--finetune", default="", metavar="FILE",
                        help="pretrained checkpoint whose weights a new run starts from")
    parser.add_argument("--resume", default="", metavar="FILE",
                        help="checkpoint to continue from, or to evaluate; auto: the newest whole one in --output_dir, "
                             "or a new run where there is none")
    parser.add_argument("--allow_changes", nargs="+", default=None, metavar="NAME",
                        help="options that may differ from those of the checkpoint that is resumed")
    add_trust(parser)
    parser.add_argument("--start_epoch", type=int, default=0, help="number of the first epoch; --resume sets it")
    parser.add_argument("--dry_run", action="store_true",
                        help="look at data, schedule, memory, disk and time, make a few updates, write nothing, stop")
    parser.add_argument("--print_freq", type=int, default=20, help="steps between lines of the log")
    parser.add_argument("--pin_mem", action="store_true", default=True,
                        help="copy batches to a GPU from page-locked memory, beside the computation")
    parser.add_argument("--no_pin_mem", action="store_false", dest="pin_mem", default=True,
                        help="copy them from ordinary memory")
    parser.add_argument("--attention", default="auto", choices=["auto", "math", "sdpa"],
                        help="sdpa: Paddle's fused attention, on a GPU flash attention, on a CPU in float32; auto: "
                             "that on a GPU of compute capability 8 or more with --amp, else written out as math")
    add_saving(parser)
    add_without_meaning(parser)
    parser.complete = partial(_complete, parser.models, betas)


def add_optimization(parser, *, opt, weight_decay):
    """What makes an update of the weights."""
    parser.add_argument("--opt", default=opt, choices=OPTIMIZERS, help="optimizer")
    parser.add_argument("--opt_betas", type=float, nargs=2, default=None, metavar="BETA",
                        help="of adamw; not given: 0.9 0.95 in pretraining, 0.9 0.999 elsewhere")
    parser.add_argument("--momentum", type=float, default=None,
                        help=f"of sgd and lars; not given: {MOMENTUM}")
    parser.add_argument("--weight_decay", type=float, default=weight_decay,
                        help="adamw: apart from the gradient; sgd and lars: a part of it")
    parser.add_argument("--clip_grad", type=float, default=None, help="largest global norm of the gradient")
    parser.add_argument("--loss_scale", default="dynamic", metavar="SCALE",
                        help="with --amp fp16: dynamic, or a number that stays")
    parser.add_argument("--ema", action="store_true",
                        help="keep an exponential moving average of the weights beside them, evaluate it too, and choose "
                             "checkpoint-best.pd by it")
    parser.add_argument("--ema_decay", type=float, default=None, help=f"with --ema; not given: {EMA_DECAY}")


def add_schedule(parser):
    """How the learning rate falls after the warm-up."""
    parser.add_argument("--sched", default="cosine", choices=["cosine", "step", "plateau"],
                        help="schedule of the learning rate: cosine to --min_lr; step: falls every --decay_epochs; "
                             "plateau: falls when the evaluation has not been better for --patience_epochs")
    parser.add_argument("--decay_epochs", type=int, default=None, metavar="N",
                        help=f"of step; not given: {DECAY_EPOCHS}")
    parser.add_argument("--decay_rate", type=float, default=None,
                        help="what it is multiplied by each time; not given: "
                             + ", ".join(f"{rate} ({name})" for name, rate in DECAY_RATE.items()))
    parser.add_argument("--patience_epochs", type=int, default=None, metavar="N",
                        help=f"of plateau; not given: {PATIENCE_EPOCHS}")


def add_saving(parser):
    """When to save, what to keep, and what to do about numbers that are not finite."""
    parser.add_argument("--save_steps", type=int, default=0, metavar="N",
                        help="save also within an epoch, after every N updates of the run; 0: no")
    parser.add_argument("--save_every_minutes", type=float, default=0.0, metavar="M",
                        help="save also within an epoch, once M minutes have gone by since the last time; 0: no")
    parser.add_argument("--save_async", action="store_true",
                        help="write checkpoints beside the training; takes memory for one more copy of the state")
    parser.add_argument("--save_every", type=int, default=None, metavar="N",
                        help="keep the checkpoint of every N-th epoch, and of the last; not given: every 20th in "
                             "pretraining, all of them elsewhere")
    parser.add_argument("--keep", type=int, default=None, metavar="N",
                        help="keep the checkpoints of the newest N epochs, of every 20th (or as --save_every says), "
                             "the last and the best; not given: what --save_every says")
    parser.add_argument("--on_nan", default="stop", choices=["stop", "skip"],
                        help="a loss that is not finite ends the run (stop), or its update is left out, two in a row "
                             "at most (skip; reads each loss at once, for which a GPU waits)")


def add_whole_training(parser):
    """How to train a whole model in less time or memory, to the same values; the linear probe trains its head only."""
    parser.add_argument("--amp_level", default="O1", choices=["O1", "O2"],
                        help="O2: keep also the weights of linear maps in half precision, with float32 master weights")
    parser.add_argument("--recompute", action="store_true",
                        help="compute each block a second time in backward: less memory, about a third more time")
    parser.add_argument("--fused_adamw", action="store_true", help="update a whole parameter group by one operation")
    parser.add_argument("--compile", action="store_true",
                        help="trace the model into a static graph (to_static); on a CPU slower than without")


def add_augmentation(parser, presets, *, aa=""):
    """What is done to the pixels of a picture after the crop and the flip.

    Args:
        presets: what each value of --augment sets.
    """
    parser.add_preset("--augment", presets, help="sets the following options, where they are not given beside it. "
                       + "; ".join(f"{name}: {_in_words(values)}" for name, values in presets.items()))
    parser.add_argument("--color_jitter", type=float, default=None,
                        help="strength for brightness, contrast and saturation; only without --aa; not given: none")
    parser.add_argument("--aa", default=aa, metavar="POLICY",
                        help="RandAugment (rand-m9-mstd0.5-inc1, timm's notation) or AutoAugment (original, originalr, "
                             "v0, v0r, cifar10, svhn, each also with -mstd0.5); empty: none")


def _in_words(preset):
    """The options that a preset switches on, or that it is the crop and the flip alone."""
    return " ".join(f"--{name} {value}" for name, value in preset.items() if value) or "crop and flip alone"


def add_classifier_augmentation(parser, presets, *, aa, reprob, smoothing):
    """The same, and what goes with labels: erased places and soft targets.

    (An autoencoder has neither: it has to predict what it is fed.)
    """
    add_augmentation(parser, presets, aa=aa)
    parser.add_argument("--reprob", type=float, default=reprob, help="probability of random erasing")
    parser.add_argument("--remode", default="pixel", choices=["pixel", "rand", "const"], help="what is put there")
    parser.add_argument("--recount", type=int, default=1, help="largest number of erased places")
    parser.add_argument("--smoothing", type=float, default=smoothing, help="label smoothing")
    parser.add_argument("--mixup", type=float, default=0.0, help="alpha of Mixup; 0: none")
    parser.add_argument("--cutmix", type=float, default=0.0, help="alpha of CutMix; 0: none")
    parser.add_argument("--cutmix_minmax", type=float, nargs="+", default=None, help="least and largest side of a box")
    parser.add_argument("--mixup_prob", type=float, default=1.0, help="probability that a batch is mixed at all")
    parser.add_argument("--mixup_switch_prob", type=float, default=0.5, help="probability of CutMix where both are on")
    parser.add_argument("--mixup_mode", default="batch", choices=["batch", "pair", "elem"], help="what shares a lambda")


def add_classifier(parser, *, global_pool):
    """What finetuning and the linear probe share."""
    add_pooling(parser, default=global_pool)
    parser.add_argument("--nb_classes", type=int, default=1000)
    parser.add_argument("--eval", action="store_true", help="evaluate --resume on the val images and stop")
    parser.add_argument("--dist_eval", action="store_true", help="share the evaluation among the processes")


def add_pooling(parser, *, default):
    """Two names for the two values of one option."""
    parser.add_argument("--global_pool", action="store_true", default=default, help="classify the mean patch token")
    parser.add_argument("--cls_token", action="store_false", dest="global_pool", default=default,
                        help="classify the class token")


def add_without_meaning(parser):
    """Accepted, so that official commands run as they are, and answered by a line."""
    group = parser.add_argument_group("accepted for the sake of official commands, without effect")
    group.add_argument("--world_size", type=int, default=1, help=argparse.SUPPRESS)
    group.add_argument("--local_rank", type=int, default=-1, help=argparse.SUPPRESS)
    group.add_argument("--dist_on_itp", action="store_true", help=argparse.SUPPRESS)
    group.add_argument("--dist_url", default="env://", help=argparse.SUPPRESS)


def without_meaning(args, parser, device):
    """A sentence about the flags that were set although they do nothing here, on "gpu" or "cpu", or ""."""
    reads = args.resume or args.finetune
    names = [name for name in (*WITHOUT_MEANING, *(["pin_mem"] if device == "cpu" else []),
                               *([] if reads else ["trust_checkpoint"]))
             if hasattr(args, name) and getattr(args, name) != parser.get_default(name)]
    return f"no effect here: --{', --'.join(names)}" if names else ""


def model_sizes(args, model):
    """The keyword arguments of a model that the size flags ask for; of its encoder, as far as they are not its own.

    Args:
        model: partial of the model's class, with its sizes as keywords.
    """
    sizes = {"img_size": args.input_size, "in_chans": args.in_chans, **_stack_sizes(args, model, "")}
    return sizes if args.patch_size is None else {**sizes, "patch_size": args.patch_size}


def decoder_sizes(args, model):
    """The keyword arguments of an autoencoder that the decoder flags ask for, as far as they are not the model's own.

    Args:
        model: as for `model_sizes`.
    """
    return _stack_sizes(args, model, "decoder_")


def _stack_sizes(args, model, prefix):
    """Width, depth and heads of the encoder or, with the prefix "decoder_", the decoder: what is not the model's own."""
    names = [prefix + name for name in ("embed_dim", "depth", "num_heads")]
    own = {name: model.keywords[name] for name in names}
    sizes = {name: size if getattr(args, name) is None else getattr(args, name) for name, size in own.items()}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"--{name} {size}: expected 1 or more")
    width, _, heads = sizes.values()
    if width % 4 or width % heads:
        raise ValueError(f"--{names[0]} {width}: expected a multiple of 4, for the position embedding, and of "
                         f"--{names[2]}, which is {heads}")
    return {name: size for name, size in sizes.items() if size != own[name]}


def normalization(args):
    """{"mean", "std"}: one number a channel, from the flags or the usual ones for this number of channels."""
    mean, std = (None, None) if args.mean and args.std else normalize.default_mean_std(args.in_chans)
    values = {"mean": args.mean or mean, "std": args.std or std}
    normalize.check_mean_std(**values)
    for name, numbers in values.items():
        if len(numbers) != args.in_chans:
            raise ValueError(f"--{name}: expected {args.in_chans} numbers, one for each of --in_chans, "
                             f"got {len(numbers)}")
    return values


def augmentation(args):
    """The keyword arguments of a training transform that the flags of `add_augmentation` ask for, and the other."""
    erasing = {"erasing": RandomErasing(args.reprob, args.remode, args.recount)} if hasattr(args, "reprob") else {}
    return {"color_jitter": args.color_jitter, "aa": args.aa, **erasing}


def mixing(args):
    """The arguments of util.data.mixup.mixing that the flags of `add_classifier_augmentation` ask for."""
    return {"mixup_alpha": args.mixup, "cutmix_alpha": args.cutmix, "cutmix_minmax": args.cutmix_minmax,
            "prob": args.mixup_prob, "switch_prob": args.mixup_switch_prob, "mode": args.mixup_mode,
            "label_smoothing": args.smoothing, "num_classes": args.nb_classes}


def _complete(models, betas, args):
    """What a run will take where nothing was said: as `settle`, and the momenta of adamw and the sizes of --model."""
    settle(args)
    if args.opt == "adamw" and args.opt_betas is None:
        args.opt_betas = list(betas)
    for name, size in models[args.model].keywords.items():
        if getattr(args, name, size) is None:
            setattr(args, name, size)


def settle(args):
    """Give the options of data, optimizer, schedule and EMA that are not given their values, where they have a meaning.

    ValueError for those that have none beside the others.
    """
    if args.dataset != "folder" and args.data_path == OFFICIAL_DATA_PATH:
        args.data_path = ""  # Paddle's cache
    _check_numbers(args)
    if args.opt == "adamw":
        if args.momentum is not None:
            raise ValueError(f"--momentum {args.momentum}: adamw has none; leave it out, or choose --opt sgd or lars")
        if args.opt_betas is not None and not all(0 <= beta < 1 for beta in args.opt_betas):
            raise ValueError(f"--opt_betas {' '.join(map(str, args.opt_betas))}: expected each at least 0 and less than 1")
    else:
        if args.opt_betas is not None:
            raise ValueError(f"--opt_betas {' '.join(map(str, args.opt_betas))}: they are of adamw, and --opt is {args.opt}; "
                             "leave them out")
        if getattr(args, "fused_adamw", False):
            raise ValueError(f"--fused_adamw: --opt is {args.opt}; leave one of the two out")
        if getattr(args, "amp_level", "O1") == "O2":
            raise ValueError(f"--amp_level O2: it goes with --opt adamw, not with {args.opt}; pass --amp_level O1")
        args.momentum = MOMENTUM if args.momentum is None else args.momentum
        if not 0 <= args.momentum < 1:
            raise ValueError(f"--momentum {args.momentum}: expected at least 0 and less than 1")
    for name, default, schedules in (("decay_epochs", DECAY_EPOCHS, ["step"]), ("decay_rate", None, list(DECAY_RATE)),
                                     ("patience_epochs", PATIENCE_EPOCHS, ["plateau"])):
        given = getattr(args, name)
        if args.sched not in schedules and given is not None:
            raise ValueError(f"--{name} {given}: it is of --sched {' and '.join(schedules)}, and --sched is {args.sched}")
        if args.sched in schedules and given is None:
            setattr(args, name, DECAY_RATE[args.sched] if default is None else default)
    if args.val_every < 0:
        raise ValueError(f"--val_every {args.val_every}: expected a number of epochs, or 0 for never")
    if args.sched == "plateau" and not args.val_every:
        raise ValueError("--sched plateau: it follows an evaluation, and there is none; pass --val_every 1")
    if args.sched == "step" and args.decay_epochs < 1:
        raise ValueError(f"--decay_epochs {args.decay_epochs}: expected at least 1")
    if args.decay_rate is not None and not 0 < args.decay_rate <= 1:
        raise ValueError(f"--decay_rate {args.decay_rate}: expected more than 0 and at most 1")
    if args.ema_decay is not None and not args.ema:
        raise ValueError(f"--ema_decay {args.ema_decay}: there is no average without --ema; give both or neither")
    if args.ema and args.ema_decay is None:
        args.ema_decay = EMA_DECAY
    if args.loss_scale != "dynamic":
        try:
            args.loss_scale = float(args.loss_scale)
        except ValueError:
            raise ValueError(f"--loss_scale {args.loss_scale}: expected dynamic, or a number") from None
    if args.clip_grad is not None and not args.clip_grad > 0:
        raise ValueError(f"--clip_grad {args.clip_grad}: expected a norm above 0; leave it out not to clip")


def _check_numbers(args):
    for name, least in (("seed", 0), ("in_chans", 1)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} {getattr(args, name)}: expected {least} or more")
    for name in ("lr", "blr", "min_lr", "weight_decay", "warmup_epochs"):
        value = getattr(args, name)
        if value is not None and not 0 <= value < math.inf:
            raise ValueError(f"--{name} {value}: expected a number that is 0 or more")
    if not 0 <= getattr(args, "smoothing", 0) < 1:
        raise ValueError(f"--smoothing {args.smoothing}: expected at least 0 and less than 1")
    if args.save_every == 1 and args.keep:
        raise ValueError(f"--keep {args.keep}: --save_every 1 keeps the checkpoint of every epoch; leave one of the two out")


def schedule(args, plateau=None):
    """The peak learning rate, the rate as a function of the fractional epoch, and a line that says how it came about.

    The peak is --lr if given, else --blr scaled to the images of an update.

    Args:
        plateau: util.optim.plateau.Plateau, whose reductions --sched plateau follows.
    """
    if args.epochs < 1:
        raise ValueError(f"--epochs must be at least 1, got {args.epochs}")
    processes = distributed.world_size()
    batch = args.batch_size * args.accum_iter * processes
    lr = lr_sched.scaled_lr(args.blr, batch) if args.lr is None else args.lr
    known = {"lr": lr, "min_lr": args.min_lr, "warmup_epochs": args.warmup_epochs}
    if args.sched == "cosine":
        lr_at = partial(lr_sched.warmup_cosine, **known, epochs=args.epochs)
    elif args.sched == "step":
        lr_at = partial(lr_sched.warmup_step, **known, decay_epochs=args.decay_epochs, decay_rate=args.decay_rate)
    else:
        def lr_at(epoch):
            return lr_sched.warmup_reduced(epoch, **known, reductions=plateau.reductions, decay_rate=args.decay_rate)
    line = f"batch {args.batch_size} x accum {args.accum_iter} x {processes} processes = {batch}, lr {lr:.1e}"
    if args.warmup_epochs >= args.epochs:
        line += f", never reached: --warmup_epochs {args.warmup_epochs} is not less than --epochs {args.epochs}"
    return lr, lr_at, line
