"""Ask a trained model about pictures: the top-5 classes of a classifier, or what an autoencoder reconstructs.

    python main_infer.py --resume output_dir/checkpoint-best.pd --img_path data/photos/chelsea.jpg
    python main_infer.py --model vit_base_patch16 --resume outputs/finetune_vit-b_v2/checkpoint-best.pd \
        --img_path demo/ILSVRC2012_val_00009508.JPEG
    python main_infer.py --resume output_dir/checkpoint-best.pd --img_path data/photos more/picture.png --engine inference
    python main_infer.py --resume output_dir/checkpoint-latest.pd --img_path data/photos/chelsea.jpg --output_dir .
"""
from util import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

import os
import sys
from pathlib import Path

import numpy as np
import paddle
from tqdm import tqdm

import models_mae
import models_vit
from util import amp, checkpoint, distributed, masks, operations, options, reconstruction, trained_model, transforms
from util.atomic_file import atomic_write
from util.pictures import Batches, Pictures

MANY_BATCHES = 16  # from here on it pays to prepare the weights for them

MODELS = {**models_vit.MODELS, **models_mae.MODELS}


def get_args_parser():
    parser = options.Parser("Top-5 classes of pictures, or their reconstruction by a masked autoencoder.")
    options.add_model(parser, MODELS, None, input_size=None)
    parser.set_defaults(in_chans=None)  # like the model and its sizes: what the checkpoint says
    options.add_device(parser)
    parser.add_argument("--resume", default="", help="checkpoint")
    options.add_trust(parser)
    parser.add_argument("--img_path", nargs="+", default=[], metavar="PATH",
                        help="pictures, and folders whose pictures, at any depth, are taken in sorted order")
    parser.add_argument("--batch_size", type=int, default=8, help="pictures at once; the answers do not depend on it")
    parser.add_argument("--engine", default="paddle", choices=["paddle", "inference"],
                        help="paddle: the model as it was trained; inference: Paddle Inference runs a static program, kept "
                             "beside the checkpoint (classifiers only; on a CPU with oneDNN)")
    parser.add_argument("--trt", action="store_true", help="--engine inference on a GPU: with TensorRT")
    parser.add_argument("--nb_classes", type=int, default=None, help="outputs (default: the checkpoint's)")
    options.add_pooling(parser, default=None)
    group = parser.add_argument_group("reconstruction")
    group.add_argument("--mask_ratio", type=float, default=0.75, help="part of the patches that is hidden")
    group.add_argument("--norm_pix_loss", action="store_true",
                       help="the weights predict normalised patches (a checkpoint of this project says so itself)")
    group.add_argument("--seed", type=int, default=0, help="of the masks")
    group.add_argument("--output_dir", default=".", help="where <picture>_reconstruction.png goes")
    return parser


def class_names(state, num_classes):
    """Names in the order of the labels: the checkpoint's own, ImageNet's for 1000 classes, else numbers."""
    if state.get("classes") and len(state["classes"]) <= num_classes:
        return [*state["classes"], *(f"class {number}" for number in range(len(state["classes"]), num_classes))]
    if num_classes == 1000:
        return (Path(__file__).parent / "util" / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return [f"class {number}" for number in range(num_classes)]


def classifier(args, model, name, described, state, device, status, batches):
    """The function from normalised images [N, C, height, width] to logits [N, classes], float32 numpy arrays both.

    Args:
        status: os.stat of the checkpoint from before it was read.
        batches: how many it will be called with.
    """
    if args.engine == "inference":
        from util import static_model  # loads what a dynamic graph does not need
        dtype = "bfloat16" if device == "cpu" and args.amp == "bf16" else amp.resolve(args.amp, device)
        return static_model.open_predictor(
            args.resume, {"name": name, **described}, lambda: trained_model.load(args.resume, state, model),
            image_shape=[model.patch_embed.in_chans, *model.patch_embed.img_size], device=device, dtype=dtype,
            tensorrt_batch=args.batch_size if args.trt else 0, status=status)
    trained_model.load(args.resume, state, model)
    dtype = amp.resolve(args.amp, device)
    autocast = amp.autocast(dtype)
    if device == "cpu" and batches >= MANY_BATCHES:
        autocast = operations.packed(model, dtype or "float32")

    @paddle.no_grad()
    def logits(images):
        with autocast():
            return model(paddle.to_tensor(images)).astype("float32").numpy()
    return logits


def top_classes(logits, names, k=5):
    """For each row of logits [N, classes], [(class name, probability), ...] of the `k` likeliest, best first."""
    shares = np.exp(logits.astype("float64") - logits.max(axis=1, keepdims=True))
    probabilities = shares / shares.sum(axis=1, keepdims=True)
    return [[(names[label], float(row[label])) for label in np.argsort(-row)[:k]] for row in probabilities]


def print_classes(args, pictures, batches, logits, names):
    alone = len(args.img_path) == 1 and not Path(args.img_path[0]).is_dir()
    for places, images in batches:
        for place, answer in zip(places, top_classes(logits(images), names), strict=True):
            if not alone:
                print(pictures[place])
            for name, probability in answer:
                print(f"{'' if alone else '  '}{name}: {probability:.4f}")
        sys.stdout.flush()


def write_reconstructions(args, pictures, batches, model, autocast, normalization):
    """<picture>_reconstruction.png in --output_dir; those of a folder keep their place in it."""
    files = pictures.outputs(args.output_dir, "_reconstruction.png")
    for places, images in batches:
        noise = np.stack([masks.noise_for(args.seed, pictures[place], model.patch_embed.num_patches)
                          for place in places])
        with autocast():
            drawn = reconstruction.reconstruct(model, paddle.to_tensor(images), paddle.to_tensor(noise), args.mask_ratio)
        for number, place in enumerate(places):
            panel = reconstruction.panel(images[number], {name: values[number] for name, values in drawn.items()},
                                    **normalization, norm_pix_loss=model.norm_pix_loss)
            files[place].parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(files[place]) as f:
                panel.save(f, format="PNG")
            print(f"wrote {files[place]}", flush=True)


def main(args):
    device = distributed.init(args.device)
    for flag, what in (("resume", "FILE"), ("img_path", "PATH")):
        if not getattr(args, flag):
            raise ValueError(f"--{flag} {what} is needed")
    if args.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {args.batch_size}")
    if args.trt and args.engine != "inference":
        raise ValueError("--trt is for --engine inference; add that or leave --trt out")
    pictures = Pictures(args.img_path)
    if len(pictures) == 1 and not Path(pictures[0]).is_file():
        raise ValueError(f"--img_path {pictures[0]}: there is no such file")
    status = os.stat(args.resume) if os.path.exists(args.resume) else None
    state = checkpoint.read(args.resume, trusted=args.trust_checkpoint)
    name, described = trained_model.describe(
        args.resume, state, MODELS, name=args.model, img_size=args.input_size, patch_size=args.patch_size,
        in_chans=args.in_chans, norm_pix_loss=args.norm_pix_loss or None, num_classes=args.nb_classes,
        global_pool=args.global_pool)
    model = trained_model.build(name, described, state, MODELS)
    channels = model.patch_embed.in_chans
    normalization = trained_model.normalization(state, channels, mean=args.mean, std=args.std)
    batches = Batches(pictures, transforms.EvalTransform(model.patch_embed.img_size, **normalization),
                      in_chans=channels, batch_size=args.batch_size)
    # On a terminal the answers themselves show how far it is.
    number = -(-len(pictures) // args.batch_size)
    bar = tqdm(batches, total=number, leave=False,
               disable=not sys.stderr.isatty() or sys.stdout.isatty())
    if isinstance(model, models_vit.VisionTransformer):
        logits = classifier(args, model, name, described, state, device, status, number)
        print_classes(args, pictures, bar, logits, class_names(state, model.num_classes))
    else:
        if args.engine == "inference":
            raise ValueError("--engine inference answers with classes; this model is an autoencoder: "
                             "use --engine paddle")
        autocast = amp.autocast(amp.resolve(args.amp, device))
        write_reconstructions(args, pictures, bar, trained_model.load(args.resume, state, model), autocast, normalization)
    if batches.unreadable:
        print(f"main_infer.py: {batches.unreadable} of {len(pictures)} pictures could not be read", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    options.run(main, get_args_parser())
