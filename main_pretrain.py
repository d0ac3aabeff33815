"""Pretrain a masked autoencoder.

    python main_pretrain.py --config configs/demo/pretrain.yaml
    python -m paddle.distributed.launch --gpus="0,1,2,3,4,5,6,7" main_pretrain.py --accum_iter 2 --batch_size
    256 \
        --model mae_vit_base_patch16 --norm_pix_loss --mask_ratio 0.75 --epochs 1600 --warmup_epochs 40 \
        --blr 1.5e-4 --weight_decay 0.05 --data_path ${IMAGENET_DIR}
"""
from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

from functools import partial

import models_mae
from engine_pretrain import evaluate, train_one_epoch
from util.data import pca_target
from util.data.masking import Mask
from util.data.sources import has_split, open_source
from util.images.transforms import PRETRAIN_CROPS, EvalTransform, MaskedEvalTransform, PretrainTransform
from util.optim.param_groups import weight_decay_groups
from util.options import command_line, training_options
from util.run import resume
from util.run.dry_run.report import dry_run
from util.run.evaluations import evaluated_epochs
from util.run.monitor import Monitor
from util.run.session import (
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


def get_args_parser():
    parser = command_line.Parser("Pretrain a masked autoencoder.")
    training_options.add_model(parser, models_mae.MODELS, "mae_vit_large_patch16")
    training_options.add_decoder(parser)
    parser.add_argument("--mask_ratio", type=float, default=0.75, help="part of the patches that is hidden")
    training_options.add_mask_mode(parser, default="random")
    parser.add_argument("--encoder_mask_tokens", action="store_true",
                        help="the encoder takes mask tokens for the hidden patches, too (paper, Table 1 c): "
                        "several "
                             "times the computation")
    parser.add_argument("--norm_pix_loss", action="store_true", help="predict patches normalised by their "
                        "statistics")
    parser.add_argument("--pca_target", type=int, default=0, metavar="N",
                        help="predict the N largest principal components of patches instead of pixels "
                        "(paper, Table 1 "
                             "d: 96); 0: pixels")
    parser.add_argument("--crop", default="random", choices=PRETRAIN_CROPS,
                        help="random: 0.2 to 1 of the area; fixed: of one size, anywhere; center: the "
                        "middle, not flipped "
                             "either")
    training_options.add_augmentation(parser, training_options.PRETRAIN_PRESETS)
    training_options.add_training(parser, batch_size=64, epochs=400, weight_decay=0.05, blr=1e-3, min_lr=0.0,
                                  warmup_epochs=40,
                         val_every=0, betas=training_options.PRETRAIN_BETAS)
    training_options.add_whole_training(parser)
    parser.add_argument("--vis_every", type=int, default=0, metavar="N",
                        help="after every N-th epoch and the last, draw reconstructions of 8 images, always "
                        "the same "
                             "with the same masks, into OUTPUT_DIR/reconstructions and VisualDL; 0: never")
    training_options.add_show_channels(parser)
    return parser


def main(args):
    training_options.settle(args)
    settings = TrainingSettings.of(vars(args), opt_betas=args.opt_betas or training_options.PRETRAIN_BETAS)
    session = open_session(settings.precision, seed=args.seed)
    say(training_options.without_meaning(args, get_args_parser(), session.device))
    model, architecture = make_model(args, session, settings)
    mask = Mask(args.mask_mode, model.patch_embed.grid_size, args.mask_ratio)

    source, normalization = open_split(args, "train"), training_options.normalization(args)
    loader = open_train(args, source, model.patch_embed, normalization, mask)
    val_loader = open_val(args, model.patch_embed, normalization, mask) if args.val_every else None
    monitor = open_monitor(args, model, source, normalization, mask, session.autocast)
    if not resume.brings_weights(args.resume, args.output_dir):
        initialize(args, model, loader, normalization)
    described = {"architecture": {"name": args.model, **architecture}, "normalization": normalization}
    run, rule = open_run(session, settings, model, weight_decay_groups(model, args.weight_decay), loader,
                         val_loader, described=described, save_freq=20)
    say(f"{args.model}: {len(source)} images, {len(loader)} steps an epoch, {mask.visible} of "
        f"{mask.num_patches} "
        "patches visible" + ("" if args.mask_mode == "random" else f", --mask_mode {args.mask_mode}")
        + (", the others mask tokens in the encoder" if args.encoder_mask_tokens else ""))
    say(str(rule.lr_at))

    train = partial(train_one_epoch, rule=rule, mask_ratio=args.mask_ratio)
    test = partial(evaluate, mask_ratio=args.mask_ratio, autocast=session.autocast)
    if args.dry_run:
        return dry_run(run, train, rule, test if args.val_every else None)
    run.begin()
    parallel = distributed.data_parallel(model)
    for epoch in range(run.state.start_epoch, args.epochs):
        trained = train(parallel, loader, log=run.begin_epoch(epoch, tag="train_loss"),
                        on_nan=run.nan_guard.handle, after_update=run.after_update)
        if monitor is not None:
            trained |= run.look(monitor, epoch)
        run.end_epoch(epoch, trained, *run.evaluate(epoch, partial(test, model, val_loader)))
    run.finish()
    list_bad_images(loader, val_loader)


def make_model(args, session, settings):
    """Return the autoencoder, and the keyword arguments that a checkpoint keeps of it."""
    sizes = models_mae.MODELS[args.model]
    architecture = {**training_options.model_sizes(args, sizes),
                    **training_options.decoder_sizes(args, sizes), "norm_pix_loss": args.norm_pix_loss,
                    **{name: getattr(args, name) for name in ("encoder_mask_tokens", "pca_target")
                       if getattr(args, name)}}
    model = sizes(**architecture, sdpa=session.sdpa, recompute=args.recompute)
    return compiled(model, session, settings.precision), architecture


def open_split(args, split):
    """Open the images of "train" or "val" without labels."""
    return open_source(args.data_path, split, dataset=args.dataset, labelled=False, in_chans=args.in_chans,
                       image_root=args.image_root)


def open_train(args, source, patch_embed, normalization, mask):
    """Return training batches: images, and the noise that their masks follow from.

    Args:
        args: options.
        source: training images.
        patch_embed: of the model.
        normalization: {"mean", "std"}.
        mask: distribution of masks.
    """
    transform = PretrainTransform(patch_embed.img_size, draw_noise=mask.draw, **normalization,
                                  **training_options.augmentation(args), image_backend=args.image_backend,
                                  crop=args.crop)
    return open_train_loader(source, transform, Data.of(vars(args)), accum_iter=args.accum_iter)


def open_val(args, patch_embed, normalization, mask):
    """Return val batches, shared among the processes; the masks are the same in each evaluation."""
    if not has_split(args.data_path, "val", dataset=args.dataset):
        raise ValueError(f"--val_every {args.val_every}: --data_path {args.data_path} holds no 'val'; put "
                         "some images aside as val, or leave it out")
    transform = MaskedEvalTransform(patch_embed.img_size, draw_noise=mask.draw, **normalization,
                                    image_backend=args.image_backend)
    return open_val_loader(open_split(args, "val"), transform, Data.of(vars(args)), shared=True)


def open_monitor(args, model, source, normalization, mask, autocast):
    """Return a Monitor of val images, or of `source` if there are none; None without --vis_every."""
    channels = training_options.channels_shown(args, args.in_chans)
    if not args.vis_every:
        if channels:
            raise ValueError("--show_channels: nothing is drawn without --vis_every; give both or neither")
        return None
    if args.vis_every < 0:
        raise ValueError(f"--vis_every {args.vis_every}: expected a number of epochs, or 0 for never")
    if not (args.output_dir or args.log_dir):
        raise ValueError(f"--vis_every {args.vis_every}: there is nowhere to draw to; give an --output_dir "
                         "or a --log_dir")
    watched = open_split(args, "val") if has_split(args.data_path, "val", dataset=args.dataset) else source
    transform = EvalTransform(model.patch_embed.img_size, **normalization, image_backend=args.image_backend)
    return Monitor(model, watched, transform, epochs=evaluated_epochs(args.vis_every, args.epochs), mask=mask,
                   seed=args.seed, autocast=autocast, channels=channels)


def initialize(args, model, loader, normalization):
    """Start a new run: fit the target of --pca_target, and load the weights of --finetune."""
    if args.pca_target:
        mean, components, share = pca_target.fit(loader.samples, model.patchify, args.pca_target)
        model.pca_mean.set_value(mean)
        model.pca_components.set_value(components)
        say(f"--pca_target: {args.pca_target} components have {share:.1%} of the variance of a patch's "
            f"{len(mean)} values")
    if args.finetune:
        say(loading.load_pretrained(args.finetune, model, normalization=normalization,
                                       trusted=args.trust_checkpoint))


if __name__ == "__main__":
    command_line.run(main, get_args_parser(), stoppable=True)
