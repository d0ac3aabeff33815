"""Pretrain a masked autoencoder.

    python main_pretrain.py --config configs/demo/pretrain.yaml
    python -m paddle.distributed.launch --gpus="0,1,2,3,4,5,6,7" main_pretrain.py --accum_iter 2 --batch_size 256 \
        --model mae_vit_base_patch16 --norm_pix_loss --mask_ratio 0.75 --epochs 1600 --warmup_epochs 40 \
        --blr 1.5e-4 --weight_decay 0.05 --data_path ${IMAGENET_DIR}
"""
from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

from functools import partial

import paddle

import models_mae
from engine_pretrain import evaluate, train_one_epoch
from util.compute import amp, compilation, operations
from util.data import pca_target
from util.data.bad_images import BadImages
from util.data.loaders import eval_loader, train_loader
from util.data.masking import Mask
from util.data.sources import has_split, open_source
from util.images.transforms import PRETRAIN_CROPS, EvalTransform, MaskedEvalTransform, PretrainTransform
from util.optim import accumulation, optimizers
from util.optim.ema import EMA
from util.optim.lr_sched import Plateau
from util.optim.param_groups import weight_decay_groups
from util.options import command_line, training_options
from util.run import dry_run
from util.run.monitor import Monitor
from util.run.training_run import TrainingRun, run_continues
from util.system import distributed
from util.system.console import say
from util.weights import checkpoint


def get_args_parser():
    parser = command_line.Parser("Pretrain a masked autoencoder.")
    training_options.add_model(parser, models_mae.MODELS, "mae_vit_large_patch16")
    training_options.add_decoder(parser)
    parser.add_argument("--mask_ratio", type=float, default=0.75, help="part of the patches that is hidden")
    training_options.add_mask_mode(parser, default="random")
    parser.add_argument("--encoder_mask_tokens", action="store_true",
                        help="the encoder takes mask tokens for the hidden patches, too (paper, Table 1 c): several "
                             "times the computation")
    parser.add_argument("--norm_pix_loss", action="store_true", help="predict patches normalised by their statistics")
    parser.add_argument("--pca_target", type=int, default=0, metavar="N",
                        help="predict the N largest principal components of patches instead of pixels (paper, Table 1 "
                             "d: 96); 0: pixels")
    parser.add_argument("--crop", default="random", choices=PRETRAIN_CROPS,
                        help="random: 0.2 to 1 of the area; fixed: of one size, anywhere; center: the middle, not flipped "
                             "either")
    training_options.add_augmentation(parser, training_options.PRETRAIN_PRESETS)
    training_options.add_training(parser, batch_size=64, epochs=400, weight_decay=0.05, blr=1e-3, min_lr=0.0, warmup_epochs=40,
                         val_every=0, betas=training_options.PRETRAIN_BETAS)
    training_options.add_whole_training(parser)
    parser.add_argument("--vis_every", type=int, default=0, metavar="N",
                        help="after every N-th epoch and the last, draw reconstructions of 8 images, always the same "
                             "with the same masks, into OUTPUT_DIR/reconstructions and VisualDL; 0: never")
    training_options.add_show_channels(parser)
    return parser


def main(args):
    training_options.settle(args)
    device = distributed.init(args.device)
    say(training_options.without_meaning(args, get_args_parser(), device))
    if device == "cpu":
        say(f"{cpu_runtime.describe()}; {operations.describe()}")
    precision = amp.resolve(args.amp, device, args.amp_level)
    sdpa = operations.sdpa_type(args.attention, device, precision)
    paddle.seed(args.seed)
    sizes = models_mae.MODELS[args.model]
    architecture = {**training_options.model_sizes(args, sizes), **training_options.decoder_sizes(args, sizes),
                    "norm_pix_loss": args.norm_pix_loss,
                    **{name: getattr(args, name) for name in ("encoder_mask_tokens", "pca_target")
                       if getattr(args, name)}}
    model = sizes(**architecture, sdpa=sdpa, recompute=args.recompute)
    if args.compile:
        say(compilation.check(device, precision, args.recompute))
        model = compilation.compiled(model)
    mask = Mask(args.mask_mode, model.patch_embed.grid_size, args.mask_ratio)

    images = open_split(args, "train")
    normalization = training_options.normalization(args)
    loader = open_train(args, images, model.patch_embed, normalization, mask)
    if not run_continues(args.resume, args.output_dir):
        if args.pca_target:
            mean, components, share = pca_target.fit(loader.dataset.samples, model.patchify, args.pca_target)
            model.pca_mean.set_value(mean)
            model.pca_components.set_value(components)
            say(f"--pca_target: {args.pca_target} components have {share:.1%} of the variance of a patch's {len(mean)} "
                "values")
        if args.finetune:
            say(checkpoint.load_pretrained(args.finetune, model, normalization=normalization,
                                           trusted=args.trust_checkpoint))
    monitor = open_monitor(args, model, images, normalization, mask, amp.autocast(precision))
    val_loader = open_val_loader(args, model, normalization, mask) if args.val_every else None
    plateau = Plateau(args.patience_epochs, args.warmup_epochs) if args.sched == "plateau" else None
    lr, lr_at, batch_line = training_options.schedule(args, plateau)
    optimizer = optimizers.make_optimizer(args.opt, lr, weight_decay_groups(model, args.weight_decay),
                                betas=args.opt_betas or training_options.PRETRAIN_BETAS, momentum=args.momentum,
                                fused=args.fused_adamw, masters=args.amp_level == "O2")
    scaler = amp.grad_scaler(precision, args.loss_scale)
    ema = EMA(model, optimizer, args.ema_decay) if args.ema else None
    run = TrainingRun(model, optimizer, scaler, loader, val_loader, output_dir=args.output_dir, log_dir=args.log_dir,
                      options=vars(args), save_freq=20, architecture={"name": args.model, **architecture},
                      normalization=normalization, ema=ema, plateau=plateau)
    if args.amp_level == "O2":
        amp.keep_masters(model, optimizer)
    if args.resume:
        run.resume(args.resume)
    if args.amp_level == "O2":
        amp.halve(model, optimizer, precision)
    masked = "" if args.mask_mode == "random" else f", --mask_mode {args.mask_mode}"
    masked += ", the others mask tokens in the encoder" if args.encoder_mask_tokens else ""
    say(f"{args.model}: {len(images)} images, {len(loader)} steps an epoch, {mask.visible} of {mask.num_patches} "
        f"patches visible{masked}")
    say(batch_line)

    train_epoch = partial(train_one_epoch, optimizer=optimizer, scaler=scaler, lr_at=lr_at, mask_ratio=args.mask_ratio,
                          accum_iter=args.accum_iter, autocast=amp.autocast(precision), clip_grad=args.clip_grad)
    test = partial(evaluate, mask_ratio=args.mask_ratio, autocast=amp.autocast(precision))
    if args.dry_run:
        return dry_run.examine(run, loader, train_epoch, lr_at=lr_at, val_loader=val_loader,
                              evaluate=test if args.val_every else None)
    run.begin()
    parallel = distributed.data_parallel(model)
    for epoch in range(run.start_epoch, args.epochs):
        trained = train_epoch(parallel, loader, log=run.begin_epoch(epoch, tag="train_loss"),
                              on_nan=run.not_finite, after_update=run.after_update)
        if monitor is not None:
            trained |= run.look(monitor, epoch)
        run.end_epoch(epoch, trained, *run.tested(epoch, partial(test, model, val_loader)))
    run.finish()
    say(loader.bad_images.listing())
    say("" if val_loader is None else val_loader.bad_images.listing())


def open_split(args, split):
    """The images of "train" or "val", a source of util.data.sources without labels."""
    return open_source(args.data_path, split, dataset=args.dataset, labelled=False, in_chans=args.in_chans,
                       image_root=args.image_root)


def open_train(args, images, patch_embed, normalization, mask):
    """The batches of training, each image with the noise that its mask follows from.

    Args:
        images: a source of util.data.sources; patch_embed: of the model; normalization: {"mean", "std"}.
    """
    transform = PretrainTransform(patch_embed.img_size, draw_noise=mask.draw, **normalization,
                                  **training_options.augmentation(args), image_backend=args.image_backend,
                                  crop=args.crop)
    loader = train_loader(images, transform, args.batch_size, args.num_workers, seed=args.seed,
                          shuffle_buffer=args.shuffle_buffer, pin_memory=args.pin_mem,
                          bad_images=BadImages(args.bad_images, "train", len(images), args.output_dir))
    accumulation.check_accum_iter(args.accum_iter, len(loader))
    return loader


def open_monitor(args, model, images, normalization, mask, autocast):
    """What draws reconstructions of val images, or, if there are none, of `images`; None without --vis_every."""
    channels = training_options.channels_shown(args, args.in_chans)
    if not args.vis_every:
        if channels:
            raise ValueError("--show_channels: nothing is drawn without --vis_every; give both or neither")
        return None
    if not (args.output_dir or args.log_dir):
        raise ValueError(f"--vis_every {args.vis_every}: there is nowhere to draw to; give an --output_dir or a --log_dir")
    watched = open_split(args, "val") if has_split(args.data_path, "val", dataset=args.dataset) else images
    transform = EvalTransform(model.patch_embed.img_size, **normalization, image_backend=args.image_backend)
    return Monitor(model, watched, transform, every=args.vis_every, epochs=args.epochs, mask=mask,
                   seed=args.seed, autocast=autocast, channels=channels)


def open_val_loader(args, model, normalization, mask):
    """The val images with masks that are always the same, each process having its share."""
    if not has_split(args.data_path, "val", dataset=args.dataset):
        raise ValueError(f"--val_every {args.val_every}: --data_path {args.data_path} holds no 'val'; put some images "
                         "aside as val, or leave it out")
    images = open_split(args, "val")
    transform = MaskedEvalTransform(model.patch_embed.img_size, draw_noise=mask.draw, **normalization,
                                    image_backend=args.image_backend)
    return eval_loader(images, transform, args.batch_size, args.num_workers, shared=True, pin_memory=args.pin_mem,
                       bad_images=BadImages(args.bad_images, "val", len(images), args.output_dir))


if __name__ == "__main__":
    command_line.run(main, get_args_parser(), stoppable=True)
