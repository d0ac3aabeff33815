"""See what a model sees: reconstructions, attention, and how patches and pictures relate.

    python main_visualize.py --resume outputs/demo/pretrain/checkpoint-latest.pd --img_path data/photos --output_dir seen
    python main_visualize.py --resume checkpoint-latest.pd --img_path x.jpg --mask_ratio 0.5 0.75 0.9
    python main_visualize.py --resume checkpoint-20.pd checkpoint-40.pd --img_path x.jpg --mask_file mask.png
    python main_visualize.py --resume checkpoint-best.pd --img_path x.jpg --show attention affinity pca --patch 3 5
    python main_visualize.py --resume checkpoint-best.pd --img_path x.jpg --show neighbours --gallery my_photos
"""
from util import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

import sys
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import paddle
from tqdm import tqdm

import models_mae
import models_vit
from util import (amp, checkpoint, distributed, encoder_figures, feature_file, features, masks, options,
                  reconstruction, trained_model, weight_files)
from util.atomic_file import atomic_write
from util.figures import sheet, to_pixels
from util.keyed_random import IMAGE, keyed_generator
from util.pictures import Batches, Pictures
from util.transforms import EvalTransform

SHOWS = ("reconstruction", "attention", "affinity", "pca", "neighbours")


def get_args_parser():
    parser = options.Parser("Pictures of what a model sees; beside each an .npz file with the numbers.")
    options.add_device(parser)
    parser.add_argument("--resume", nargs="+", default=[], metavar="FILE",
                        help="checkpoint; for reconstructions also several, which get the same masks")
    options.add_trust(parser)
    parser.add_argument("--img_path", nargs="+", default=[], metavar="PATH",
                        help="pictures, and folders whose pictures, at any depth, are taken in sorted order")
    parser.add_argument("--show", nargs="+", default=None, choices=SHOWS,
                        help="what to draw (default: reconstruction of an autoencoder, attention of others)")
    parser.add_argument("--output_dir", default=".", help="where <picture>_<what>.png and .npz go")
    parser.add_argument("--input_size", type=int, nargs="+", default=None, metavar="PIXELS",
                        help="pixels a side, or height and width (default: the checkpoint's)")
    parser.add_argument("--mean", type=float, nargs="+", default=None, help="one a channel (default: the checkpoint's)")
    parser.add_argument("--std", type=float, nargs="+", default=None, help="one a channel (default: the checkpoint's)")
    group = parser.add_argument_group("reconstruction")
    group.add_argument("--mask_ratio", type=float, nargs="+", default=[0.75],
                       help="part of the patches that is hidden; several: a row each")
    group.add_argument("--mask_file", default="", metavar="FILE",
                       help="which patches are hidden: a picture, white = hidden, or .npy or .npz with 0 and 1 a patch")
    group.add_argument("--seed", type=int, default=0, help="of the masks")
    group.add_argument("--norm_pix_loss", action="store_true",
                       help="the weights predict normalised patches (a checkpoint of this project says so itself)")
    group.add_argument("--statistics", default="both", choices=[*reconstruction.STATISTICS, "both"],
                       help="where weights of --norm_pix_loss take mean and spread of a patch from: true: the true "
                            "patch; visible: the visible patches, interpolated")
    group = parser.add_argument_group("affinity and neighbours")
    group.add_argument("--patch", type=int, nargs=2, default=None, metavar=("ROW", "COLUMN"),
                       help="which patch, counted from 0 at the top left (default: the middle one)")
    group.add_argument("--gallery", default="", metavar="FOLDER",
                       help="pictures among which neighbours are looked for; or the .npz file of their features, by "
                            "tools/extract_features.py")
    group.add_argument("--neighbours", type=int, default=10, metavar="K", help="how many neighbours")
    return parser


class Writer:
    """Puts what was drawn into --output_dir: <picture>_<what>.png, .npz and, where there is a page, .html."""

    def __init__(self, pictures, output_dir):
        self.files = {}
        self.name = lambda ending: self.files.setdefault(ending, pictures.outputs(output_dir, ending))

    def __call__(self, place, what, figure, arrays, page=""):
        file = self.name(f"_{what}.png")[place]
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as f:
            figure.save(f, format="PNG")
        with atomic_write(file.with_suffix(".npz")) as f:
            np.savez_compressed(f, **arrays)
        if page:
            with atomic_write(file.with_suffix(".html"), "w") as f:
                f.write(page)
        print(f"wrote {file} and {'.html, ' if page else ''}.npz", flush=True)


def reader(args, model, state, pictures):
    """(Batches of one picture each, {"mean", "std"}) for a model."""
    normalization = trained_model.normalization(state, model.patch_embed.in_chans, mean=args.mean, std=args.std)
    transform = EvalTransform(model.patch_embed.img_size, **normalization)
    return Batches(pictures, transform, in_chans=model.patch_embed.in_chans, batch_size=1), normalization


def bar(batches):
    # On a terminal the lines about what was written would tear it.
    return tqdm(batches, total=len(batches.pictures), leave=False,
                disable=not sys.stderr.isatty() or sys.stdout.isatty())


def show_reconstructions(args, pictures, write, autocast):
    """Draw a row for each checkpoint, mask ratio and kind of statistics. Returns how many pictures are unreadable."""
    models = []
    for path in args.resume:
        model, state = trained_model.open_autoencoder(path, models_mae.MODELS, trusted=args.trust_checkpoint,
                                                      img_size=args.input_size,
                                                      norm_pix_loss=args.norm_pix_loss or None)
        if "architecture" not in state and not args.norm_pix_loss:
            print(f"main_visualize.py: {path} does not say whether it predicts normalised patches; if the reconstruction "
                  "is grey, add --norm_pix_loss", file=sys.stderr)
        models.append((model, *reader(args, model, state, pictures)))
    grid = models[0][0].patch_embed.grid_size
    for path, (model, *_) in zip(args.resume, models, strict=True):
        if model.patch_embed.grid_size != grid:
            raise ValueError(f"--resume {path}: its pictures have {model.patch_embed.grid_size} patches and those of "
                             f"{args.resume[0]} have {grid}; the same mask needs the same patches, see --input_size")
    num_patches = grid[0] * grid[1]
    for ratio in args.mask_ratio:
        if not 0 < models_mae.num_kept(num_patches, ratio) < num_patches:
            raise ValueError(f"--mask_ratio {ratio}: of {num_patches} patches at least one must be visible and one "
                             "hidden")
    given = masks.as_noise(masks.read(args.mask_file, grid)) if args.mask_file else None
    batches = models[0][1]
    for (place,), _ in bar(batches):
        noise = keyed_generator(args.seed, IMAGE, 0, place).random(num_patches, dtype="float32")
        rows, arrays = [], {}
        for number, (model, own, normalization) in enumerate(models):
            image = own.read(place)
            for noise_of, ratio in [given] if given else [(noise, ratio) for ratio in args.mask_ratio]:
                with autocast():
                    more, found = reconstruction.rows(model, image, noise_of, ratio, args.statistics, **normalization)
                label = short_name(args.resume[number]) + ", " if len(models) > 1 else ""
                rows += [(label + heading, cells) for heading, cells in more]
                ending = f"_{number}_{ratio:g}" if len(models) * len(args.mask_ratio) > 1 else ""
                arrays.update({name + ending: values for name, values in found.items()})
        write(place, "reconstruction", sheet(rows), arrays)
    return batches.unreadable


def short_name(path):
    return "/".join(Path(path).parts[-2:])


def show_encoder(args, pictures, write, autocast):
    """Draw what --show asks for beside reconstructions. Returns how many pictures are unreadable."""
    shows = [what for what in args.show if what != "reconstruction"]
    if len(args.resume) > 1:
        raise ValueError(f"--show {' '.join(shows)}: takes one --resume, got {len(args.resume)}; several are for "
                         "reconstructions")
    model, state = trained_model.open_encoder(args.resume[0], models_vit.MODELS, trusted=args.trust_checkpoint,
                                              img_size=args.input_size)
    batches, normalization = reader(args, model, state, pictures)
    draw = {}
    if "attention" in shows:
        draw["attention"] = partial(encoder_figures.attention, model, note=about_class_token(model, state))
    if "affinity" in shows:
        draw["affinity"] = partial(encoder_figures.affinity, model, patch=chosen_patch(args.patch, model))
    if "pca" in shows:
        draw["pca"] = encoder_figures.PrincipalColours(model, islice(batches, encoder_figures.COLOURED_TOGETHER))
    if "neighbours" in shows:
        draw["neighbours"] = neighbours(args, model, state)
    for (place,), images in bar(batches):
        for what in shows:
            with autocast():
                drawn = draw[what](paddle.to_tensor(images), to_pixels(images[0], **normalization))
            write(place, what, *drawn)
    return batches.unreadable


def neighbours(args, model, state):
    """What draws the neighbours of a picture in --gallery: a folder, or a file of tools/extract_features.py."""
    if not args.gallery:
        raise ValueError("--show neighbours: --gallery FOLDER is needed, the pictures to look among")
    if args.neighbours < 1:
        raise ValueError(f"--neighbours must be at least 1, got {args.neighbours}")
    known = args.gallery.lower().endswith(".npz")
    if known:
        found = feature_file.read(args.gallery, ["mean"])
        normalization = trained_model.normalization(state, model.patch_embed.in_chans, mean=args.mean, std=args.std)
        own = {"weights_sha256": weight_files.checksum(state["model"]), "block": len(model.blocks),
               "norm": features.norm_of(model, None), "img_size": model.patch_embed.img_size,
               "image_mean": normalization["mean"], "image_std": normalization["std"], "image_backend": "pillow",
               "precision": "float32"}
        feature_file.check_same_origin(args.gallery, found, f"--resume {args.resume[0]}", own)
        lost = next((name for name in found["names"] if not Path(name).is_file()), None)
        if lost is not None:
            raise ValueError(f"--gallery {args.gallery}: {lost} is no picture file here (of a tar file, or moved); call "
                             "this where it was made, or give a folder of pictures")
        gallery = Pictures(found["names"].tolist())
    else:
        gallery = Pictures([args.gallery])
    batches, normalization = reader(args, model, state, gallery)
    if known:
        places, means = range(len(gallery)), found["mean"]
    else:
        places, means = zip(*((place, encoder_figures.mean_token(model, paddle.to_tensor(images))[0])
                              for (place,), images in bar(batches)))
    return encoder_figures.Neighbours(model, [gallery[place] for place in places], np.stack(means),
                                      lambda number: to_pixels(batches.read(places[number]), **normalization),
                                      args.neighbours)


def chosen_patch(asked, model):
    """(row, column) of --patch, or the middle one."""
    rows, columns = model.patch_embed.grid_size
    row, column = asked or (rows // 2, columns // 2)
    if not (0 <= row < rows and 0 <= column < columns):
        raise ValueError(f"--patch {row} {column}: expected a row of 0 to {rows - 1} and a column of 0 to "
                         f"{columns - 1}: this model cuts a picture into {rows} x {columns} patches")
    return row, column


def about_class_token(model, state):
    if checkpoint.kind(state["model"]) in ("mae", "encoder"):
        return "no loss asks for it in pretraining"
    return "not what this model classifies: that is the mean patch token" if model.global_pool else ""


def main(args):
    device = distributed.init(args.device)
    for flag, what in (("resume", "FILE"), ("img_path", "PATH")):
        if not getattr(args, flag):
            raise ValueError(f"--{flag} {what} is needed")
    autocast = amp.autocast(amp.resolve(args.amp, device))
    pictures = Pictures(args.img_path)
    if args.show is None:
        state = checkpoint.read(args.resume[0], trusted=args.trust_checkpoint)
        args.show = ["reconstruction" if checkpoint.kind(state["model"]) == "mae" else "attention"]
    write = Writer(pictures, args.output_dir)
    unreadable = 0
    if "reconstruction" in args.show:
        unreadable = show_reconstructions(args, pictures, write, autocast)
    if set(args.show) != {"reconstruction"}:
        unreadable = show_encoder(args, pictures, write, autocast)
    if unreadable:
        print(f"main_visualize.py: {unreadable} of {len(pictures)} pictures could not be read", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    options.run(main, get_args_parser())
