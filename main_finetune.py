"""Finetune a pretrained encoder, train a classifier from scratch (no --finetune), or evaluate one (--eval).

    python main_finetune.py --config configs/demo/finetune.yaml
    python -m paddle.distributed.launch --gpus="0,1,2,3,4,5,6,7" main_finetune.py --accum_iter 1 \
        --batch_size 128 --model vit_base_patch16 --finetune ${PRETRAIN_CHKPT} --epochs 100 \
        --blr 5e-4 --layer_decay 0.65 --weight_decay 0.05 --drop_path 0.1 --reprob 0.25 \
        --mixup 0.8 --cutmix 1.0 --data_path ${IMAGENET_DIR} --dist_eval
"""

from __future__ import annotations

from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

import argparse
from functools import partial
from typing import Any

from paddle import nn

import models_vit
from engine_finetune import Regularization, evaluate, train_one_epoch
from util.data.loaders import Loader
from util.data.mixup import Mixup, mixing
from util.data.sources import ImageSource
from util.images.transforms import FinetuneTransform
from util.optim.param_groups import layer_decay_groups
from util.options import command_line, flags, presets
from util.options.settings import augmentation, mean_std, mixing_arguments, model_sizes, settle
from util.run import resume
from util.run.dry_run.report import dry_run
from util.run.epoch_log import evaluation
from util.run.session import (
    compiled,
    list_bad_images,
    open_classifier_val_loader,
    open_run,
    open_session,
    open_splits,
    open_train_loader,
)
from util.run.settings import Data
from util.system import distributed
from util.system.console import say
from util.weights import loading

DEFAULTS = flags.Defaults(batch_size=64, epochs=50, warmup_epochs=5, weight_decay=0.05, blr=1e-3, min_lr=1e-6)


def get_args_parser() -> command_line.Parser:
    """Return the parser of this script."""
    parser = command_line.Parser("Finetune or evaluate a classifier.")
    flags.add_training(parser, models_vit.MODELS, "vit_large_patch16", DEFAULTS)
    flags.add_classifier(parser, global_pool=True)
    flags.add(
        parser,
        "--layer_decay",
        type=float,
        default=0.75,
        help="learning rate of a block as a fraction of the next block's",
    )
    flags.add(parser, "--drop_path", type=float, default=0.1, help="stochastic depth rate of the last block")
    flags.add_classifier_augmentation(
        parser, presets.FINETUNE, aa=presets.RANDAUGMENT, reprob=0.25, smoothing=0.1
    )
    flags.add_whole_model(parser)
    flags.add(parser, "--resplit", action="store_true", help="has no effect in the official code either")
    return parser


def main(args: argparse.Namespace) -> None:
    """Train, or evaluate with --eval."""
    settings = settle(args)
    session = open_session(settings.precision, seed=args.seed)
    say(flags.without_effect(args, get_args_parser(), session.device))
    architecture = {
        **model_sizes(args, models_vit.MODELS[args.model]),
        "num_classes": args.nb_classes,
        "global_pool": args.global_pool,
    }
    model = models_vit.MODELS[args.model](
        **architecture, drop_path_rate=args.drop_path, sdpa=session.sdpa, recompute=args.recompute
    )
    model = compiled(model, session, settings.precision)

    size, normalization = model.patch_embed.img_size, mean_std(args)
    train_source, val_source = open_splits(settings.data, num_classes=args.nb_classes, only_val=args.eval)
    val_loader = open_classifier_val_loader(
        val_source, settings.data, size, normalization, listed=not args.eval
    )
    test = partial(evaluate, autocast=session.autocast, shared=args.dist_eval)
    if args.eval:
        say(
            loading.load_for_evaluation(
                args.resume,
                model,
                val_source.classes,
                normalization=normalization,
                trusted=args.trust_checkpoint,
            )
        )
        say(evaluation(test(model, val_loader)))
        return list_bad_images(val_loader)

    loader, mixup = open_train(args, settings.data, train_source, size, normalization)
    if args.finetune and not resume.brings_weights(args.resume, args.output_dir):
        say(
            loading.load_encoder(
                args.finetune, model, normalization=normalization, trusted=args.trust_checkpoint
            )
        )
        nn.initializer.Normal(std=2e-5)(model.head.weight)  # the first logits are then nearly equal
    classes = val_source.classes or []
    described = {
        "architecture": {"name": args.model, **architecture},
        "normalization": normalization,
        "classes": classes,
    }
    groups = layer_decay_groups(model, args.weight_decay, args.layer_decay)
    run, rule = open_run(
        session, settings, model, groups, loader, val_loader, described=described, save_freq=1
    )
    say(
        f"{args.model}: {len(train_source)} training and {len(val_source)} val images of {len(classes)} "
        f"classes, {args.nb_classes} outputs, {len(loader)} steps an epoch"
    )
    say(str(rule.lr_at))

    regularization = Regularization(args.seed, mixup, args.smoothing)
    train = partial(train_one_epoch, rule=rule, regularization=regularization)
    if args.dry_run:
        return dry_run(run, train, rule, test)
    run.begin()
    parallel = distributed.data_parallel(model)
    for epoch in range(run.state.start_epoch, args.epochs):
        trained = train(
            parallel,
            loader,
            log=run.begin_epoch(epoch, tag="loss"),
            on_nan=run.nan_guard.handle,
            after_update=run.after_update,
        )
        run.end_epoch(epoch, trained, *run.evaluate(epoch, partial(test, model, val_loader)))
    run.finish()
    list_bad_images(loader, val_loader)


def open_train(
    args: argparse.Namespace,
    data: Data,
    source: ImageSource,
    size: tuple[int, int],
    normalization: dict[str, Any],
) -> tuple[Loader, Mixup | None]:
    """Return training batches, and Mixup for them or None.

    Args:
        args: flags.
        data: settings.
        source: training images.
        size: (height, width).
        normalization: {"mean", "std"}.
    """
    transform = FinetuneTransform(
        size, **normalization, **augmentation(args), image_backend=data.image_backend
    )
    loader = open_train_loader(source, transform, data, accum_iter=args.accum_iter)
    return loader, mixing(**mixing_arguments(args))


if __name__ == "__main__":
    command_line.run(main, get_args_parser(), stoppable=True)
