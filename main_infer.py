"""Ask a trained model about a picture: the top-5 classes of a classifier, or what an autoencoder reconstructs.

    python main_infer.py --resume output_dir/checkpoint-best.pd --img_path data/photos/chelsea.jpg
    python main_infer.py --model vit_base_patch16 --resume outputs/finetune_vit-b_v2/checkpoint-best.pd \
        --img_path demo/ILSVRC2012_val_00009508.JPEG
    python main_infer.py --resume output_dir/checkpoint-latest.pd --img_path data/photos/chelsea.jpg --output_dir .
"""
from util import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F

import models_mae
import models_vit
from util import amp, architecture, checkpoint, distributed, image_io, options, transforms, visualize
from util.atomic_file import atomic_write
from util.keyed_random import IMAGE, keyed_generator

MODELS = {**models_vit.MODELS, **models_mae.MODELS}


def get_args_parser():
    parser = options.Parser("Top-5 classes of a picture, or its reconstruction by a masked autoencoder.")
    options.add_model(parser, MODELS, None, input_size=None)
    parser.set_defaults(in_chans=None)  # like the model and its sizes: what the checkpoint says
    options.add_device(parser)
    parser.add_argument("--resume", default="", help="checkpoint")
    parser.add_argument("--img_path", default="", help="the picture")
    parser.add_argument("--nb_classes", type=int, default=None, help="outputs (default: the checkpoint's)")
    options.add_pooling(parser, default=None)
    group = parser.add_argument_group("reconstruction")
    group.add_argument("--mask_ratio", type=float, default=0.75, help="part of the patches that is hidden")
    group.add_argument("--norm_pix_loss", action="store_true",
                       help="the weights predict normalised patches (a checkpoint of this project says so itself)")
    group.add_argument("--seed", type=int, default=0, help="of the mask")
    group.add_argument("--output_dir", default=".", help="where <picture>_reconstruction.png goes")
    return parser


def build(args, state):
    """The model that the checkpoint describes, with what the flags override, holding its weights."""
    weights = state["model"]
    what = checkpoint.kind(weights)
    described = dict(state.get("architecture", {}))
    if not described and what != "unknown":  # a file from elsewhere: its shapes tell most of it
        described = architecture.described(architecture.sizes(weights), MODELS) or {}
    name = described.pop("name", None)
    name = args.model or name or ("mae_vit_base_patch16" if what == "mae" else "vit_base_patch16")
    if (name in models_mae.MODELS) != (what == "mae"):
        described = {}  # of the other sort; loading will say what the file is
    sizes = {"img_size": args.input_size, "patch_size": args.patch_size, "in_chans": args.in_chans}
    if name in models_mae.MODELS:
        sizes["norm_pix_loss"] = args.norm_pix_loss or None
    else:
        sizes.update(num_classes=args.nb_classes, global_pool=args.global_pool)
    described.update({key: value for key, value in sizes.items() if value is not None})
    model = MODELS[name](**described)
    if what == "linear_probe" and name in models_vit.MODELS:
        models_vit.make_linear_probe(model)
    checkpoint.load_weights(args.resume, weights, model, origin=state)
    model.eval()
    return model


def class_names(state, num_classes):
    """Names in the order of the labels: the checkpoint's own, ImageNet's for 1000 classes, else numbers."""
    if state.get("classes") and len(state["classes"]) <= num_classes:
        return [*state["classes"], *(f"class {number}" for number in range(len(state["classes"]), num_classes))]
    if num_classes == 1000:
        return (Path(__file__).parent / "util" / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return [f"class {number}" for number in range(num_classes)]


@paddle.no_grad()
def top_classes(model, image, names, autocast, k=5):
    """[(class name, probability), ...] of the `k` likeliest classes of an image [C, height, width], best first."""
    with autocast():
        logits = model(paddle.to_tensor(image[None]))
    probabilities = F.softmax(logits.astype("float32"))[0].numpy()
    return [(names[label], float(probabilities[label])) for label in np.argsort(-probabilities)[:k]]


def main(args):
    device = distributed.init(args.device)
    autocast = amp.autocast(amp.resolve(args.amp, device))
    for flag in ("resume", "img_path"):
        if not getattr(args, flag):
            raise ValueError(f"--{flag} FILE is needed")
    if not Path(args.img_path).is_file():
        raise ValueError(f"--img_path {args.img_path}: there is no such file")
    state = checkpoint.read(args.resume)
    model = build(args, state)
    channels = model.patch_embed.in_chans
    mean, std = transforms.normalization(channels)
    normalization = {"mean": mean, "std": std, **state.get("normalization", {}),
                     **{name: values for name, values in (("mean", args.mean), ("std", args.std)) if values}}
    picture = image_io.decode(args.img_path, in_chans=channels)
    image, = transforms.EvalTransform(model.patch_embed.img_size, **normalization)(picture)
    if isinstance(model, models_vit.VisionTransformer):
        for name, probability in top_classes(model, image, class_names(state, model.num_classes), autocast):
            print(f"{name}: {probability:.4f}")
        return
    noise = keyed_generator(args.seed, IMAGE, 0, 0).random([1, model.patch_embed.num_patches], dtype="float32")
    with autocast():
        pictures = visualize.reconstruct(model, paddle.to_tensor(image[None]), paddle.to_tensor(noise), args.mask_ratio)
    panel = visualize.panel(image, {name: values[0] for name, values in pictures.items()}, **normalization,
                            norm_pix_loss=model.norm_pix_loss)
    path = Path(args.output_dir) / f"{Path(args.img_path).stem}_reconstruction.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as f:
        panel.save(f, format="PNG")
    print(f"wrote {path}")


if __name__ == "__main__":
    options.run(main, get_args_parser())
