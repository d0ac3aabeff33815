"""Pretrain a masked autoencoder.

    python main_pretrain.py --config configs/demo/pretrain.yaml
    python -m paddle.distributed.launch --gpus="0,1,2,3,4,5,6,7" main_pretrain.py --accum_iter 2 \
        --batch_size 256 --model mae_vit_base_patch16 --norm_pix_loss --mask_ratio 0.75 --epochs 1600 \
        --warmup_epochs 40 --blr 1.5e-4 --weight_decay 0.05 --data_path ${IMAGENET_DIR}
"""

from __future__ import annotations

from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import models_mae
from engine_pretrain import evaluate, train_one_epoch
from util.data import pca_target
from util.data.loaders import Loader
from util.data.masking import Mask
from util.data.sources import ImageSource, has_split, open_source
from util.images.transforms import PRETRAIN_CROPS, EvalTransform, MaskedEvalTransform, PretrainTransform
from util.optim.param_groups import weight_decay_groups
from util.options import command_line, flags, presets
from util.options.settings import (
    PRETRAIN_BETAS,
    augmentation,
    channels_shown,
    decoder_sizes,
    mean_std,
    model_sizes,
    settle,
)
from util.run import resume
from util.run.dry_run.report import dry_run
from util.run.evaluations import evaluated_epochs
from util.run.monitor import Monitor
from util.run.session import (
    Session,
    compiled,
    list_bad_images,
    open_run,
    open_session,
    open_train_loader,
    open_val_loader,
)
from util.run.settings import Data, TrainingSettings
from util.system import distributed
from util.system.console import say
from util.weights import loading

DEFAULTS = flags.Defaults(
    batch_size=64,
    epochs=400,
    warmup_epochs=40,
    weight_decay=0.05,
    blr=1e-3,
    min_lr=0.0,
    betas=PRETRAIN_BETAS,
    val_every=0,
)


def get_args_parser() -> command_line.Parser:
    """Return the parser of this script."""
    parser = command_line.Parser("Pretrain a masked autoencoder.")
    flags.add_training(parser, models_mae.MODELS, "mae_vit_large_patch16", DEFAULTS)
    flags.add_stack(parser, "decoder", "--decoder_embed_dim", "--decoder_depth", "--decoder_num_heads")
    flags.add(parser, "--mask_ratio", type=float, default=0.75, help="fraction of hidden patches")
    flags.add_mask_mode(parser, default="random")
    flags.add(
        parser,
        "--encoder_mask_tokens",
        action="store_true",
        help="the encoder also processes mask tokens for the hidden patches (paper, Table 1 c); "
        "several times slower",
    )
    flags.add(
        parser,
        "--norm_pix_loss",
        action="store_true",
        help="predict patches normalized by their own mean and variance",
    )
    flags.add(
        parser,
        "--pca_target",
        type=int,
        default=0,
        metavar="N",
        help="predict the first N principal components of a patch instead of its pixels (paper, "
        "Table 1 d: 96); 0: pixels",
    )
    flags.add(
        parser,
        "--crop",
        default="random",
        choices=PRETRAIN_CROPS,
        help="random: 0.2 to 1 of the area; fixed: fixed size, random position; center: central, not flipped",
    )
    flags.add_augmentation(parser, presets.PRETRAIN)
    flags.add_whole_model(parser)
    flags.add(
        parser,
        "--vis_every",
        type=int,
        default=0,
        metavar="N",
        help="draw reconstructions of 8 fixed images every N-th epoch and the last, into "
        "OUTPUT_DIR/reconstructions and VisualDL; 0: never",
    )
    flags.add_show_channels(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    """Train, and evaluate if --val_every asks for it."""
    settings = settle(args, betas=PRETRAIN_BETAS)
    session = open_session(settings.precision, seed=args.seed)
    say(flags.without_effect(args, get_args_parser(), session.device))
    model, architecture = make_model(args, session, settings)
    mask = Mask(args.mask_mode, model.patch_embed.grid_size, args.mask_ratio)

    source, normalization = open_split(settings.data, "train"), mean_std(args)
    loader = open_train(args, settings.data, source, model.patch_embed, normalization, mask)
    val_loader = None
    if args.val_every:
        val_loader = open_val(args, settings.data, model.patch_embed, normalization, mask)
    monitor = open_monitor(args, settings.data, model, source, normalization, mask, session.autocast)
    if not resume.brings_weights(args.resume, args.output_dir):
        initialize(args, model, loader, normalization)
    described = {"architecture": {"name": args.model, **architecture}, "normalization": normalization}
    run, rule = open_run(
        session,
        settings,
        model,
        weight_decay_groups(model, args.weight_decay),
        loader,
        val_loader,
        described=described,
        save_freq=20,
    )
    masked = "" if args.mask_mode == "random" else f", --mask_mode {args.mask_mode}"
    masked += ", the others mask tokens in the encoder" if args.encoder_mask_tokens else ""
    say(
        f"{args.model}: {len(source)} images, {len(loader)} steps an epoch, {mask.visible} of "
        f"{mask.num_patches} patches visible{masked}"
    )
    say(str(rule.lr_at))

    train = partial(train_one_epoch, rule=rule, mask_ratio=args.mask_ratio)
    test = partial(evaluate, mask_ratio=args.mask_ratio, autocast=session.autocast)
    if args.dry_run:
        return dry_run(run, train, rule, test if args.val_every else None)
    run.begin()
    parallel = distributed.data_parallel(model)
    for epoch in range(run.state.start_epoch, args.epochs):
        trained = train(
            parallel,
            loader,
            log=run.begin_epoch(epoch, tag="train_loss"),
            on_nan=run.nan_guard.handle,
            after_update=run.after_update,
        )
        if monitor is not None:
            trained |= run.look(monitor, epoch)
        run.end_epoch(epoch, trained, *run.evaluate(epoch, partial(test, model, val_loader)))
    run.finish()
    list_bad_images(loader, val_loader)


def make_model(
    args: argparse.Namespace, session: Session, settings: TrainingSettings
) -> tuple[Any, dict[str, Any]]:
    """Return the autoencoder, and the keyword arguments that a checkpoint keeps of it."""
    sizes = models_mae.MODELS[args.model]
    architecture = {
        **model_sizes(args, sizes),
        **decoder_sizes(args, sizes),
        "norm_pix_loss": args.norm_pix_loss,
        **{
            name: getattr(args, name) for name in ("encoder_mask_tokens", "pca_target") if getattr(args, name)
        },
    }
    model = sizes(**architecture, sdpa=session.sdpa, recompute=args.recompute)
    return compiled(model, session, settings.precision), architecture


def open_split(data: Data, split: str) -> ImageSource:
    """Open the images of "train" or "val" without labels."""
    return open_source(
        data.data_path,
        split,
        dataset=data.dataset,
        labelled=False,
        in_chans=data.in_chans,
        image_root=data.image_root,
    )


def open_train(
    args: argparse.Namespace,
    data: Data,
    source: ImageSource,
    patch_embed: Any,
    normalization: dict[str, Any],
    mask: Mask,
) -> Loader:
    """Return training batches: images, and the noise that their masks follow from.

    Args:
        args: flags.
        data: settings.
        source: training images.
        patch_embed: of the model.
        normalization: {"mean", "std"}.
        mask: distribution of masks.
    """
    transform = PretrainTransform(
        patch_embed.img_size,
        draw_noise=mask.draw,
        **normalization,
        **augmentation(args),
        image_backend=data.image_backend,
        crop=args.crop,
    )
    return open_train_loader(source, transform, data, accum_iter=args.accum_iter)


def open_val(
    args: argparse.Namespace,
    data: Data,
    patch_embed: Any,
    normalization: dict[str, Any],
    mask: Mask,
) -> Loader:
    """Return val batches, shared among the processes; the masks are the same in each evaluation."""
    if not has_split(data.data_path, "val", dataset=data.dataset):
        raise ValueError(
            f"--val_every {args.val_every}: --data_path {data.data_path} holds no 'val'; put "
            "some images aside as val, or remove the flag"
        )
    transform = MaskedEvalTransform(
        patch_embed.img_size, draw_noise=mask.draw, **normalization, image_backend=data.image_backend
    )
    return open_val_loader(open_split(data, "val"), transform, data, shared=True)


def open_monitor(
    args: argparse.Namespace,
    data: Data,
    model: Any,
    source: ImageSource,
    normalization: dict[str, Any],
    mask: Mask,
    autocast: Callable[[], Any],
) -> Monitor | None:
    """Return a Monitor of val images, or of `source` if there are none; None without --vis_every."""
    channels = channels_shown(args, args.in_chans)
    if not args.vis_every:
        if channels:
            raise ValueError("--show_channels: nothing is drawn without --vis_every; give both or neither")
        return None
    if args.vis_every < 0:
        raise ValueError(f"--vis_every {args.vis_every}: expected a number of epochs, or 0 for never")
    if not (args.output_dir or args.log_dir):
        raise ValueError(
            f"--vis_every {args.vis_every}: there is nowhere to draw to; give an --output_dir or a --log_dir"
        )
    watched = open_split(data, "val") if has_split(data.data_path, "val", dataset=data.dataset) else source
    transform = EvalTransform(model.patch_embed.img_size, **normalization, image_backend=data.image_backend)
    return Monitor(
        model,
        watched,
        transform,
        epochs=evaluated_epochs(args.vis_every, args.epochs),
        mask=mask,
        seed=args.seed,
        autocast=autocast,
        channels=channels,
    )


def initialize(args: argparse.Namespace, model: Any, loader: Loader, normalization: dict[str, Any]) -> None:
    """Start a new run: fit the target of --pca_target, and load the weights of --finetune."""
    if args.pca_target:
        mean, components, share = pca_target.fit(loader.samples, model.patchify, args.pca_target)
        model.pca_mean.set_value(mean)
        model.pca_components.set_value(components)
        say(
            f"--pca_target: {args.pca_target} components have {share:.1%} of the variance of a patch's "
            f"{len(mean)} values"
        )
    if args.finetune:
        say(
            loading.load_pretrained(
                args.finetune, model, normalization=normalization, trusted=args.trust_checkpoint
            )
        )


if __name__ == "__main__":
    command_line.run(main, get_args_parser(), stoppable=True)
