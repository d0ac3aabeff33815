"""Probe a pretrained encoder: train a linear classifier on its frozen features, or evaluate one (--eval).

    python main_linprobe.py --config configs/demo/linprobe.yaml
    python -m paddle.distributed.launch --gpus="0,1,2,3,4,5,6,7" main_linprobe.py --accum_iter 2 --batch_size 1024 \
        --model vit_base_patch16 --finetune ${PRETRAIN_CHKPT} --epochs 90 --blr 0.1 --weight_decay 0.0 \
        --data_path ${IMAGENET_DIR} --dist_eval
"""
from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

import warnings
from functools import partial

import paddle
from paddle import nn

import models_vit
from engine_finetune import evaluate, train_one_epoch
from util.compute import amp, operations
from util.data.bad_images import BadImages
from util.data.loaders import eval_loader, train_loader
from util.data.mixup import mixing
from util.data.sources import open_train_val
from util.images.transforms import EvalTransform, LinprobeTransform
from util.optim import accumulation, optimizers
from util.optim.ema import EMA
from util.optim.lr_sched import Plateau
from util.optim.param_groups import weight_decay_groups
from util.options import command_line, training_options
from util.run import dry_run
from util.run.epoch_log import evaluation
from util.run.training_run import TrainingRun, run_continues
from util.system import distributed
from util.system.console import say
from util.weights import checkpoint


def get_args_parser():
    parser = command_line.Parser("Train or evaluate a linear classifier on frozen features.")
    training_options.add_model(parser, models_vit.MODELS, "vit_large_patch16")
    training_options.add_classifier(parser, global_pool=False)
    training_options.add_training(parser, batch_size=512, epochs=90, weight_decay=0.0, blr=0.1, min_lr=0.0, warmup_epochs=10,
                         opt="lars")
    training_options.add_classifier_augmentation(parser, training_options.LINPROBE_PRESETS, aa="", reprob=0.0, smoothing=0.0)
    return parser


def main(args):
    training_options.settle(args)
    # What Paddle says of a BatchNorm without scale and shift in training; it is as it should be.
    warnings.filterwarnings("ignore", message="When training, we now always track global mean and variance")
    device = distributed.init(args.device)
    say(training_options.without_meaning(args, get_args_parser(), device))
    if device == "cpu":
        say(f"{cpu_runtime.describe()}; {operations.describe()}")
    precision = amp.resolve(args.amp, device)
    sdpa = operations.sdpa_type(args.attention, device, precision)
    autocast = amp.autocast(precision)
    paddle.seed(args.seed)
    architecture = {**training_options.model_sizes(args, models_vit.MODELS[args.model]), "num_classes": args.nb_classes,
                    "global_pool": args.global_pool}
    model = models_vit.MODELS[args.model](**architecture, sdpa=sdpa)
    size, normalization = model.patch_embed.img_size, training_options.normalization(args)

    train, val = open_splits(args)
    listed_in = "" if args.eval else args.output_dir
    val_loader = eval_loader(val, EvalTransform(size, **normalization, image_backend=args.image_backend),
                             args.batch_size, args.num_workers, shared=args.dist_eval, pin_memory=args.pin_mem,
                             bad_images=BadImages(args.bad_images, "val", len(val), listed_in))
    if args.eval:
        model.make_linear_probe()
        say(checkpoint.load_for_evaluation(args.resume, model, val.classes, normalization=normalization,
                                           trusted=args.trust_checkpoint))
        say(evaluation(evaluate(model, val_loader, autocast=autocast, shared=args.dist_eval)))
        return say(val_loader.bad_images.listing())

    loader, mixup = open_train(args, train, size, normalization)

    if args.finetune and not run_continues(args.resume, args.output_dir):
        say(checkpoint.load_encoder(args.finetune, model, normalization=normalization, trusted=args.trust_checkpoint))
        nn.initializer.Normal(std=0.01)(model.head.weight)
    model.make_linear_probe()
    plateau = Plateau(args.patience_epochs, args.warmup_epochs) if args.sched == "plateau" else None
    lr, lr_at, batch_line = training_options.schedule(args, plateau)
    optimizer = optimizers.make_optimizer(args.opt, lr, weight_decay_groups(model.head, args.weight_decay),
                                betas=args.opt_betas, momentum=args.momentum)
    scaler = amp.grad_scaler(precision, args.loss_scale)
    ema = EMA(model, optimizer, args.ema_decay) if args.ema else None
    run = TrainingRun(model, optimizer, scaler, loader, val_loader, output_dir=args.output_dir, log_dir=args.log_dir,
                      options=vars(args), save_freq=1, architecture={"name": args.model, **architecture},
                      normalization=normalization, classes=val.classes, ema=ema, plateau=plateau)
    if args.resume:
        run.resume(args.resume)
    say(f"{args.model}: {len(train)} training and {len(val)} val images of {len(val.classes)} classes, "
        f"{args.nb_classes} outputs, {len(loader)} steps an epoch")
    say(batch_line)

    train_epoch = partial(train_one_epoch, optimizer=optimizer, scaler=scaler, lr_at=lr_at, accum_iter=args.accum_iter,
                          autocast=autocast, seed=args.seed, mixup=mixup, smoothing=args.smoothing,
                          clip_grad=args.clip_grad)
    test = partial(evaluate, autocast=autocast, shared=args.dist_eval)
    if args.dry_run:
        return dry_run.examine(run, loader, train_epoch, lr_at=lr_at, val_loader=val_loader, evaluate=test)
    run.begin()
    parallel = distributed.data_parallel(model)
    for epoch in range(run.start_epoch, args.epochs):
        trained = train_epoch(parallel, loader, log=run.begin_epoch(epoch, tag="loss"), on_nan=run.not_finite,
                              after_update=run.after_update)
        distributed.share_statistics(model)  # each process has tracked the statistics of its own images
        run.end_epoch(epoch, trained, *run.tested(epoch, partial(test, model, val_loader)))
    run.finish()
    say(loader.bad_images.listing())
    say(val_loader.bad_images.listing())


def open_splits(args):
    """(train, val), sources of util.data.sources; train is None with --eval."""
    return open_train_val(args.data_path, dataset=args.dataset, in_chans=args.in_chans, image_root=args.image_root,
                        num_classes=args.nb_classes, only_val=args.eval)


def open_train(args, images, size, normalization):
    """The batches of training, and util.data.mixup.Mixup for them, or None.

    Args:
        images: a source of util.data.sources; size: (height, width); normalization: {"mean", "std"}.
    """
    transform = LinprobeTransform(size, **normalization, **training_options.augmentation(args), image_backend=args.image_backend)
    loader = train_loader(images, transform, args.batch_size, args.num_workers, seed=args.seed,
                          shuffle_buffer=args.shuffle_buffer, pin_memory=args.pin_mem,
                          bad_images=BadImages(args.bad_images, "train", len(images), args.output_dir))
    accumulation.check_accum_iter(args.accum_iter, len(loader))
    return loader, mixing(**training_options.mixing(args))


if __name__ == "__main__":
    command_line.run(main, get_args_parser(), stoppable=True)
