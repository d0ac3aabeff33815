"""Facts about each flag of the training scripts: its group in --help, and its role in resuming and reports.

`util.options` defines the flags and refuses one that has no row here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Groups of --help, in their order.
MAIN = "options"
MODEL = "model"
DATA = "data"
AUGMENTATION = "augmentation"
OPTIMISATION = "optimisation"
CHECKPOINTS = "checkpoints and log"
SPEED = "speed and memory"
NO_EFFECT = "official flags without effect here"
GROUPS = (MAIN, MODEL, DATA, AUGMENTATION, OPTIMISATION, CHECKPOINTS, SPEED, NO_EFFECT)

# Roles of a flag when a run is resumed.
SAME = "same"  # the flag must keep its value, because it changes the result
FREE = "free"  # the flag may change: it says where to compute and write, how to load, or what to report
DERIVED = "derived"  # the effect of the flag is compared: weight shapes, images per update, image names


@dataclass(frozen=True)
class Facts:
    """Facts about one flag.

    Attributes:
        group: of --help.
        resume: SAME, FREE or DERIVED.
        first: whether a report shows it above the folded table of all flags.
        varies: whether runs that differ in it still repeat one experiment; None: only if the flag is FREE.
        before: value that describes runs recorded before the flag existed; None: the feature was off.
        before_in_probe: the same for the linear probe; None: as `before`.
    """

    group: str
    resume: str = SAME
    first: bool = False
    varies: bool | None = None
    before: Any = None
    before_in_probe: Any = None


# In the order of reports.
FLAGS = {
    "model": Facts(MAIN, first=True),
    "data_path": Facts(MAIN, DERIVED, first=True, varies=True),
    "dataset": Facts(MAIN, first=True),
    "input_size": Facts(MAIN, first=True),
    "patch_size": Facts(MODEL, DERIVED, first=True),
    "in_chans": Facts(MODEL, first=True),
    "nb_classes": Facts(MAIN, first=True),
    "finetune": Facts(MAIN, FREE, first=True),
    "epochs": Facts(MAIN, first=True),
    "warmup_epochs": Facts(MAIN, first=True),
    "batch_size": Facts(MAIN, DERIVED, first=True),
    "accum_iter": Facts(MAIN, DERIVED, first=True),
    "blr": Facts(MAIN, first=True),
    "lr": Facts(OPTIMISATION, first=True),
    "min_lr": Facts(OPTIMISATION, first=True),
    "weight_decay": Facts(MAIN, first=True),
    "layer_decay": Facts(MAIN, first=True),
    "embed_dim": Facts(MODEL, DERIVED, first=True),
    "depth": Facts(MODEL, DERIVED, first=True),
    "num_heads": Facts(MODEL),
    "mask_ratio": Facts(MAIN, first=True),
    "mask_mode": Facts(MODEL, first=True, before="random"),
    "encoder_mask_tokens": Facts(MODEL, DERIVED, first=True),
    "decoder_depth": Facts(MODEL, DERIVED, first=True),
    "decoder_embed_dim": Facts(MODEL, DERIVED, first=True),
    "decoder_num_heads": Facts(MODEL),
    "norm_pix_loss": Facts(MAIN, first=True),
    "pca_target": Facts(MODEL, DERIVED, first=True),
    "global_pool": Facts(MODEL, first=True),
    "drop_path": Facts(MAIN, first=True),
    "mean": Facts(DATA),
    "std": Facts(DATA),
    "image_root": Facts(DATA, FREE),
    "bad_images": Facts(DATA, FREE),
    "image_backend": Facts(DATA),
    "shuffle_buffer": Facts(DATA),
    "augment": Facts(MAIN, DERIVED),
    "crop": Facts(AUGMENTATION, before="random"),
    "color_jitter": Facts(AUGMENTATION),
    "mixup": Facts(AUGMENTATION, first=True),
    "cutmix": Facts(AUGMENTATION, first=True),
    "smoothing": Facts(AUGMENTATION, first=True),
    "aa": Facts(AUGMENTATION, first=True),
    "reprob": Facts(AUGMENTATION, first=True),
    "remode": Facts(AUGMENTATION, before="pixel"),
    "recount": Facts(AUGMENTATION, before=1),
    "cutmix_minmax": Facts(AUGMENTATION),
    "mixup_prob": Facts(AUGMENTATION, before=1.0),
    "mixup_switch_prob": Facts(AUGMENTATION, before=0.5),
    "mixup_mode": Facts(AUGMENTATION, before="batch"),
    "opt": Facts(OPTIMISATION, before="adamw", before_in_probe="lars"),
    "opt_betas": Facts(OPTIMISATION),
    "momentum": Facts(OPTIMISATION, before=0.9),
    "clip_grad": Facts(OPTIMISATION, first=True),
    "loss_scale": Facts(OPTIMISATION, before="dynamic"),
    "ema": Facts(OPTIMISATION),
    "ema_decay": Facts(OPTIMISATION),
    "sched": Facts(OPTIMISATION, before="cosine"),
    "decay_epochs": Facts(OPTIMISATION),
    "decay_rate": Facts(OPTIMISATION),
    "patience_epochs": Facts(OPTIMISATION),
    "seed": Facts(MAIN, first=True, varies=True),
    "amp": Facts(SPEED, first=True),
    "device": Facts(MAIN, FREE, first=True),
    "output_dir": Facts(MAIN, FREE, first=True),
    "resume": Facts(MAIN, FREE),
    "eval": Facts(MAIN, FREE),
    "dry_run": Facts(MAIN, FREE),
    "config": Facts(MAIN, FREE),
    "log_dir": Facts(CHECKPOINTS, FREE),
    "print_freq": Facts(CHECKPOINTS, FREE),
    "val_every": Facts(CHECKPOINTS, varies=True),
    "vis_every": Facts(CHECKPOINTS, FREE),
    "show_channels": Facts(CHECKPOINTS, FREE),
    "allow_changes": Facts(CHECKPOINTS, FREE),
    "trust_checkpoint": Facts(CHECKPOINTS, FREE),
    "start_epoch": Facts(CHECKPOINTS, FREE),
    "save_every": Facts(CHECKPOINTS, FREE),
    "keep": Facts(CHECKPOINTS, FREE),
    "save_steps": Facts(CHECKPOINTS, FREE),
    "save_every_minutes": Facts(CHECKPOINTS, FREE),
    "save_async": Facts(CHECKPOINTS, FREE),
    "on_nan": Facts(CHECKPOINTS, FREE),
    "num_workers": Facts(MAIN, FREE),
    "pin_mem": Facts(SPEED, FREE),
    "dist_eval": Facts(SPEED, FREE),
    "attention": Facts(SPEED, FREE),
    "amp_level": Facts(SPEED, before="O1"),
    "recompute": Facts(SPEED, FREE),
    "fused_adamw": Facts(SPEED, FREE),
    "compile": Facts(SPEED, FREE),
    # The first four tell PyTorch how to start processes; Paddle's launcher needs none of them. The official
    # code does not read --resplit either.
    "world_size": Facts(NO_EFFECT, FREE),
    "local_rank": Facts(NO_EFFECT, FREE),
    "dist_on_itp": Facts(NO_EFFECT, FREE),
    "dist_url": Facts(NO_EFFECT, FREE),
    "resplit": Facts(NO_EFFECT, FREE),
}

NOT_COMPARED = frozenset(name for name, facts in FLAGS.items() if facts.resume != SAME)
FIRST = tuple(name for name, facts in FLAGS.items() if facts.first)
VARIES = frozenset(
    name for name, facts in FLAGS.items() if (facts.resume == FREE if facts.varies is None else facts.varies)
)
WITHOUT_EFFECT = tuple(name for name, facts in FLAGS.items() if facts.group == NO_EFFECT)


def before(*, probe: bool) -> dict[str, Any]:
    """Return {name: behaviour before the flag existed}, of the linear probe or of other scripts."""
    values = {
        name: facts.before_in_probe if probe and facts.before_in_probe is not None else facts.before
        for name, facts in FLAGS.items()
    }
    return {name: value for name, value in values.items() if value is not None}
