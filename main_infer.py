"""Ask a trained model about pictures: the top-5 classes of a classifier, or what an autoencoder reconstructs.

    python main_infer.py --resume output_dir/checkpoint-best.pd --img_path data/photos/chelsea.jpg
    python main_infer.py --model vit_base_patch16 --resume outputs/finetune_vit-b_v2/checkpoint-best.pd \
        --img_path demo/ILSVRC2012_val_00009508.JPEG
    python main_infer.py --resume output_dir/checkpoint-best.pd --img_path data/photos more/picture.png --engine inference
    python main_infer.py --resume output_dir/checkpoint-latest.pd --img_path data/photos/chelsea.jpg --output_dir .
"""
from util import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

import contextlib
import os
import sys
from pathlib import Path, PurePath

import numpy as np
import paddle
from tqdm import tqdm

import models_mae
import models_vit
from util import (amp, architecture, checkpoint, datasets, distributed, file_index, image_io, operations, options,
                  transforms, visualize)
from util.atomic_file import atomic_write
from util.keyed_random import IMAGE, keyed_generator

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


class Pictures:
    """The picture files that --img_path names, in its order: a sequence of paths. A folder's are sorted."""

    def __init__(self, paths):
        self.paths = paths
        # What stands in the place of each path: itself, or the pictures in it, relative to it.
        self.parts = [self._below(path) if Path(path).is_dir() else None for path in paths]
        self.starts = np.cumsum([0, *(1 if part is None else len(part) for part in self.parts)])

    @staticmethod
    def _below(folder):
        with contextlib.redirect_stdout(sys.stderr):  # what it says about a large folder is no answer
            found = file_index.images_below(folder, datasets.IMAGE_SUFFIXES)
        if not found:
            raise ValueError(f"--img_path {folder}: no pictures in this folder (looked for "
                             f"{' '.join(datasets.IMAGE_SUFFIXES)})")
        return found

    def __len__(self):
        return int(self.starts[-1])

    def __getitem__(self, index):
        folder, inside = self.split(index)
        return str(Path(folder, inside)) if folder else inside

    def split(self, index):
        """(folder of --img_path, path in it) of a picture, or ("", path) if it was named itself."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        part = self.parts[number]
        return ("", self.paths[number]) if part is None else (self.paths[number], part[index - int(self.starts[number])])


def describe(args, state):
    """(name, keyword arguments) of the model that the checkpoint describes, with what the flags override."""
    weights = state["model"]
    what = checkpoint.kind(weights)
    described = dict(state.get("architecture", {}))
    if not described and what != "unknown":  # a file from elsewhere: its shapes tell most of it
        described = architecture.described(architecture.sizes(weights), MODELS) or {}
    name = described.pop("name", None)
    name = args.model or name or ("mae_vit_base_patch16" if what == "mae" else "vit_base_patch16")
    if name not in MODELS:
        raise ValueError(f"{args.resume}: it is of the model {name}, which is none of {', '.join(MODELS)}; name a --model")
    if (name in models_mae.MODELS) != (what == "mae"):
        described = {}  # of the other sort; loading will say what the file is
    sizes = {"img_size": args.input_size, "patch_size": args.patch_size, "in_chans": args.in_chans}
    if name in models_mae.MODELS:
        sizes["norm_pix_loss"] = args.norm_pix_loss or None
    else:
        sizes.update(num_classes=args.nb_classes, global_pool=args.global_pool)
    described.update({key: value for key, value in sizes.items() if value is not None})
    return name, described


def build(name, described, state):
    """The model of `describe` in eval mode; `load` gives it its weights."""
    # Drawing initial weights for nothing takes seconds in ViT-B. An autoencoder looks at its own while it is made.
    with paddle.LazyGuard() if name in models_vit.MODELS else contextlib.nullcontext():
        model = MODELS[name](**described)
        if checkpoint.kind(state["model"]) == "linear_probe" and name in models_vit.MODELS:
            models_vit.make_linear_probe(model)
    model.eval()
    return model


def load(path, state, model):
    checkpoint.load_weights(path, state["model"], model, origin=state, share_memory=True)
    return model


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
            args.resume, {"name": name, **described}, lambda: load(args.resume, state, model),
            image_shape=[model.patch_embed.in_chans, *model.patch_embed.img_size], device=device, dtype=dtype,
            tensorrt_batch=args.batch_size if args.trt else 0, status=status)
    load(args.resume, state, model)
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


class Batches:
    """Iterates over ([place in `pictures`, ...], normalised images [N, C, height, width]), unreadable ones left out.

    They are named on standard error, and counted in `unreadable`.
    """

    def __init__(self, pictures, transform, *, in_chans, batch_size):
        self.pictures, self.transform, self.in_chans, self.batch_size = pictures, transform, in_chans, batch_size
        self.unreadable = 0

    def __iter__(self):
        places, images = [], []
        for place in range(len(self.pictures)):
            try:
                images.append(self.read(place))
                places.append(place)
            except image_io.UnreadableImage as error:
                if len(self.pictures) == 1:
                    raise
                self.unreadable += 1
                print(f"main_infer.py: error: {error}", file=sys.stderr, flush=True)
            if images and (len(images) == self.batch_size or place == len(self.pictures) - 1):
                yield places, np.stack(images)
                places, images = [], []

    def read(self, place):
        return self.transform.normalized(image_io.decode(self.pictures[place], in_chans=self.in_chans))


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
    files = reconstruction_files(pictures, args.output_dir)
    for places, images in batches:
        noise = np.stack([keyed_generator(args.seed, IMAGE, 0, place).random(model.patch_embed.num_patches,
                                                                           dtype="float32") for place in places])
        with autocast():
            drawn = visualize.reconstruct(model, paddle.to_tensor(images), paddle.to_tensor(noise), args.mask_ratio)
        for number, place in enumerate(places):
            panel = visualize.panel(images[number], {name: values[number] for name, values in drawn.items()},
                                    **normalization, norm_pix_loss=model.norm_pix_loss)
            files[place].parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(files[place]) as f:
                panel.save(f, format="PNG")
            print(f"wrote {files[place]}", flush=True)


def reconstruction_files(pictures, output_dir):
    """The file of each picture's reconstruction; ValueError if two would share one."""
    files, owners = [], {}
    for place in range(len(pictures)):
        folder, inside = pictures.split(place)
        below = PurePath(inside).parent if folder else ""
        file = Path(output_dir, below, f"{PurePath(inside).stem}_reconstruction.png")
        if file in owners:
            raise ValueError(f"--img_path: {pictures[owners[file]]} and {pictures[place]} would both be written to "
                             f"{file}; ask for them one by one, with another --output_dir")
        files.append(file)
        owners[file] = place
    return files


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
    name, described = describe(args, state)
    model = build(name, described, state)
    channels = model.patch_embed.in_chans
    mean, std = transforms.normalization(channels)
    normalization = {"mean": mean, "std": std, **state.get("normalization", {}),
                     **{key: values for key, values in (("mean", args.mean), ("std", args.std)) if values}}
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
        write_reconstructions(args, pictures, bar, load(args.resume, state, model), autocast, normalization)
    if batches.unreadable:
        print(f"main_infer.py: {batches.unreadable} of {len(pictures)} pictures could not be read", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    options.run(main, get_args_parser())
