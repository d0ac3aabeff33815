"""See what a model sees: reconstructions, attention, and how patches and pictures relate.

    python tools/visualize.py --resume outputs/demo/pretrain/checkpoint-latest.pd --img_path data/photos --output_dir seen
    python tools/visualize.py --resume checkpoint-latest.pd --img_path x.jpg --mask_ratio 0.5 0.75 0.9
    python tools/visualize.py --resume checkpoint-20.pd checkpoint-40.pd --img_path x.jpg --mask_file mask.png
    python tools/visualize.py --resume checkpoint-best.pd --img_path x.jpg --show attention affinity pca --patch 3 5
    python tools/visualize.py --resume checkpoint-best.pd --img_path x.jpg --show neighbours --gallery my_photos
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

from functools import partial
from itertools import islice

import numpy as np
import paddle
from tqdm import tqdm

import models_mae
import models_vit
from util.compute import amp
from util.data import masking
from util.data.picture_paths import Batches, Pictures
from util.images import decode
from util.images.preprocess import Preprocess
from util.infer import trained_model
from util.look import encoder_features, encoder_figures, feature_file, reconstruction
from util.look.figures import choose, sheet, to_pixels
from util.options import command_line, training_options
from util.system import distributed
from util.system.atomic_file import atomic_write
from util.weights import checkpoint, formats

SHOWS = ("reconstruction", "attention", "affinity", "pca", "neighbours")


def get_args_parser():
    parser = command_line.Parser("Pictures of what a model sees; beside each an .npz file with the numbers.")
    training_options.add_device(parser)
    parser.add_argument("--resume", nargs="+", default=[], metavar="FILE",
                        help="checkpoint; for reconstructions also several, which get the same masks")
    training_options.add_trust(parser)
    parser.add_argument("--img_path", nargs="+", default=[], metavar="PATH",
                        help="pictures, and folders whose pictures, at any depth, are taken in sorted order")
    parser.add_argument("--show", nargs="+", default=None, choices=SHOWS,
                        help="what to draw (default: reconstruction of an autoencoder, attention of others)")
    parser.add_argument("--output_dir", default=".", help="where <picture>_<what>.png and .npz go")
    parser.add_argument("--input_size", type=int, nargs="+", default=None, metavar="PIXELS",
                        help="pixels a side, or height and width (default: the checkpoint's)")
    parser.add_argument("--mean", type=float, nargs="+", default=None, help="one a channel (default: the checkpoint's)")
    parser.add_argument("--std", type=float, nargs="+", default=None, help="one a channel (default: the checkpoint's)")
    training_options.add_show_channels(parser)
    group = parser.add_argument_group("reconstruction")
    group.add_argument("--mask_ratio", type=float, nargs="+", default=None,
                       help="part of the patches that is hidden; several: a row each (default: 0.75)")
    training_options.add_mask_mode(group, default=None)
    group.add_argument("--mask_file", default=None, metavar="FILE",
                       help="which patches are hidden: a picture, white = hidden, or .npy or .npz with 0 and 1 a patch")
    group.add_argument("--seed", type=int, default=None, help="of the masks (default: 0)")
    group.add_argument("--norm_pix_loss", action="store_true",
                       help="the weights predict normalised patches (a checkpoint of this project says so itself)")
    group.add_argument("--statistics", default=None, choices=[*reconstruction.STATISTICS, "both"],
                       help="where weights of --norm_pix_loss take mean and spread of a patch from: true: the true "
                            "patch; visible: the visible patches, interpolated (default: both, a row each)")
    group = parser.add_argument_group("affinity and neighbours")
    group.add_argument("--patch", type=int, nargs=2, default=None, metavar=("ROW", "COLUMN"),
                       help="which patch, counted from 0 at the top left (default: the middle one)")
    group.add_argument("--gallery", default=None, metavar="FOLDER",
                       help="pictures among which neighbours are looked for; or the .npz file of their features, by "
                            "tools/extract_features.py")
    group.add_argument("--neighbours", type=int, default=None, metavar="K", help="how many neighbours (default: 10)")
    return parser


class Writer:
    """Puts what was drawn into --output_dir: <picture>_<what>.png, .npz and, where there is a page, .html."""

    def __init__(self, pictures, output_dir, shows):
        self.files = {what: pictures.outputs(output_dir, f"_{what}.png") for what in shows}

    def __call__(self, place, what, figure, arrays, page=""):
        file = self.files[what][place]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as f:
                figure.save(f, format="PNG")
            with atomic_write(file.with_suffix(".npz")) as f:
                np.savez_compressed(f, **arrays)
            if page:
                with atomic_write(file.with_suffix(".html"), "w") as f:
                    f.write(page)
        except OSError as error:
            raise ValueError(f"--output_dir: {file} cannot be written ({error.strerror})") from error
        print(f"wrote {file} and {'.html, ' if page else ''}.npz", flush=True)


def reader(args, path, model, state, pictures):
    """(Batches of one picture each, {"mean", "std"}) for a model; says so if the file does not tell which model it is."""
    if "architecture" not in state:
        print(f"tools/visualize.py: {path} does not say what model it is; taken for one with "
              f"{model.blocks[0].attn.num_heads} attention heads", file=sys.stderr)
    normalization = trained_model.normalization(state, model.patch_embed.in_chans, mean=args.mean, std=args.std)
    preprocess = Preprocess(model.patch_embed.img_size, model.patch_embed.in_chans, **normalization)
    return Batches(pictures, preprocess, batch_size=1), normalization


def bar(batches, answers=False):
    """The batches behind a bar on a terminal; lines of `answers` there would tear it."""
    return tqdm(batches, leave=False, disable=not sys.stderr.isatty() or (answers and sys.stdout.isatty()))


class Reconstructions:
    """Draws a row for each checkpoint, mask ratio and kind of statistics."""

    def __init__(self, args, pictures, autocast):
        self.args, self.pictures, self.autocast = args, pictures, autocast
        self.models = []
        for path in args.resume:
            model, state = trained_model.open_autoencoder(path, models_mae.MODELS, trusted=args.trust_checkpoint,
                                                          img_size=args.input_size,
                                                          norm_pix_loss=args.norm_pix_loss or None)
            if "architecture" not in state and not args.norm_pix_loss:
                print(f"tools/visualize.py: {path} does not say whether it predicts normalised patches; if the "
                      "reconstruction is grey, add --norm_pix_loss", file=sys.stderr)
            self.models.append((model, *reader(args, path, model, state, pictures)))
        grid = self.models[0][0].patch_embed.grid_size
        for path, (model, *_) in zip(args.resume, self.models, strict=True):
            if model.patch_embed.grid_size != grid:
                raise ValueError(f"--resume {path}: its pictures have {model.patch_embed.grid_size} patches and those of "
                                 f"{args.resume[0]} have {grid}; the same mask needs the same patches")
        self.masks = ([masking.read_custom_mask(args.mask_file, grid)] if args.mask_file else
                      [masking.Mask(args.mask_mode or "random", grid, ratio) for ratio in args.mask_ratio or [0.75]])
        self.labels = checkpoint_labels(args.resume) if len(args.resume) > 1 else [""]

    def __call__(self, place):
        drawn = [(masking.noise_of_picture(mask, self.args.seed or 0, self.pictures[place]), mask.visible)
                 for mask in self.masks]
        rows, numbers = [], []
        for label, path, (model, batches, normalization) in zip(self.labels, self.args.resume, self.models, strict=True):
            image = batches.read(place)
            for noise, num_visible in drawn:
                with self.autocast():
                    more, found = reconstruction.rows(
                        model, image, noise, num_visible, self.args.statistics or "both", **normalization,
                        channels=training_options.channels_shown(self.args, model.patch_embed.in_chans))
                rows += [(label + heading, cells) for heading, cells in more]
                numbers.append({**found, "checkpoint": path, "mask_ratio": found["mask"].mean()})
        return sheet(rows), gathered(numbers)


def gathered(numbers):
    """Dicts of the same names as one, with a first axis for the dict if there are several; unequal shapes one by one."""
    if len(numbers) == 1:
        return numbers[0]
    found = {}
    for name in numbers[0]:
        arrays = [np.asarray(one[name]) for one in numbers]
        if len({array.shape for array in arrays}) == 1:
            found[name] = np.stack(arrays)
        else:  # checkpoints with patches of different sizes
            found.update({f"{name}_{number}": array for number, array in enumerate(arrays)})
    return found


def checkpoint_labels(paths):
    """The last parts of each path, as many as tell them apart, as beginnings of a line."""
    for parts in (2, 3, 4):
        labels = ["/".join(Path(path).parts[-parts:]) for path in paths]
        if len(set(labels)) == len(labels):
            break
    else:
        labels = [f"{number}. {path}" for number, path in enumerate(paths, 1)]
    return [f"{label}: " for label in labels]


class EncoderFigures:
    """Draws what --show asks for beside reconstructions, each as a function of the place of a picture."""

    def __init__(self, args, pictures, autocast):
        if len(args.resume) > 1:
            raise ValueError(f"--show {' '.join(args.show)}: takes one --resume, got {len(args.resume)}; several are for "
                             "reconstructions alone")
        self.args, self.autocast = args, autocast
        self.model, self.state = trained_model.open_encoder(args.resume[0], models_vit.MODELS,
                                                            trusted=args.trust_checkpoint, img_size=args.input_size)
        self.batches, self.normalization = reader(args, args.resume[0], self.model, self.state, pictures)
        self.channels = training_options.channels_shown(args, self.model.patch_embed.in_chans)

    def drawer(self, what):
        make = {"attention": lambda: partial(encoder_figures.attention, self.model, note=self._about_class_token()),
                "affinity": lambda: partial(encoder_figures.affinity, self.model, patch=self._patch()),
                "pca": self._colours, "neighbours": self._neighbours}[what]
        with self.autocast():
            draw = make()

        def drawn(place):
            image = self.batches.read(place)
            with self.autocast():
                return draw(paddle.to_tensor(image[None]), self._pixels(image))
        return drawn

    def _pixels(self, image):
        return choose(to_pixels(image, **self.normalization, like=image), self.channels)

    def _about_class_token(self):
        if checkpoint.role(self.state["model"]) in ("mae", "encoder"):
            return "of MAE's pretraining: no loss asks for it there"
        return "not what this model classifies: that is the mean patch token" if self.model.global_pool else ""

    def _patch(self):
        rows, columns = self.model.patch_embed.grid_size
        row, column = self.args.patch or (rows // 2, columns // 2)
        if not (0 <= row < rows and 0 <= column < columns):
            raise ValueError(f"--patch {row} {column}: expected a row of 0 to {rows - 1} and a column of 0 to "
                             f"{columns - 1}: this model cuts a picture into {rows} x {columns} patches")
        return row, column

    def _colours(self):
        if self.model.patch_embed.num_patches < 4:
            raise ValueError(f"--show pca: needs at least 4 patches, and this model cuts a picture into "
                             f"{self.model.patch_embed.num_patches}")
        some = list(islice(self.batches.readable(), encoder_figures.COLOURED_TOGETHER))
        if not some:
            raise ValueError("--show pca: none of the pictures of --img_path can be read")
        return encoder_figures.PrincipalColours(self.model, some)

    def _neighbours(self):
        """In --gallery: a folder, or a file of tools/extract_features.py."""
        gallery, k = self.args.gallery, 10 if self.args.neighbours is None else self.args.neighbours
        if not gallery:
            raise ValueError("--show neighbours: --gallery FOLDER is needed, the pictures to look among")
        if k < 1:
            raise ValueError(f"--neighbours must be at least 1, got {k}")
        if gallery.lower().endswith(".npz"):
            found = feature_file.read(gallery, ["mean"])
            self._check_origin(gallery, found)
            pictures, means = Pictures(found["names"].tolist(), flag="--gallery"), found["mean"]
            places = range(len(pictures))
            batches = self._gallery(pictures)
        else:
            pictures = Pictures([gallery], flag="--gallery")
            batches = self._gallery(pictures)
            found = [(place, encoder_figures.mean_token(self.model, paddle.to_tensor(image[None]))[0])
                     for place, image in self._told(batches)]
            if not found:
                raise ValueError(f"--gallery {gallery}: none of its {len(pictures)} pictures can be read")
            places, means = zip(*found)
            means = np.stack(means)
        return encoder_figures.Neighbours(
            self.model, [pictures[place] for place in places], means,
            lambda number: self._pixels(batches.read(places[number])), k)

    def _gallery(self, pictures):
        return Batches(pictures, self.batches.preprocess, batch_size=1)

    def _told(self, batches):
        """(place, image) of each picture; those that cannot be read are named on standard error instead."""
        for (place, image), in bar(batches):
            if isinstance(image, decode.UnreadableImage):
                print(f"tools/visualize.py: error: {image}", file=sys.stderr, flush=True)
            else:
                yield place, image

    def _check_origin(self, gallery, found):
        """ValueError unless the features are of this model, computed as here, and their pictures are at hand."""
        device = paddle.get_device().split(":")[0]
        own = {"weights_sha256": formats.checksum(self.state["model"]), "block": len(self.model.blocks),
               "norm": encoder_features.norm_of(self.model, None), "img_size": self.model.patch_embed.img_size,
               "image_mean": self.normalization["mean"], "image_std": self.normalization["std"],
               "image_backend": "pillow", "precision": amp.resolve(self.args.amp, device) or "float32"}
        feature_file.check_same_origin(gallery, found, f"--resume {self.args.resume[0]}", own)
        lost = next((name for name in found["names"] if not Path(name).is_file()), None)
        if lost is not None:
            raise ValueError(f"--gallery {gallery}: {lost} is no picture file here (of a tar file, or moved); call "
                             "this where it was made, or give a folder of pictures")


# Which of --show each flag is for.
BELONGS_TO = {"mask_ratio": "reconstruction", "mask_mode": "reconstruction", "mask_file": "reconstruction",
              "statistics": "reconstruction", "norm_pix_loss": "reconstruction", "seed": "reconstruction",
              "patch": "affinity", "gallery": "neighbours", "neighbours": "neighbours"}


def check(args):
    """ValueError for what is missing, and for what would be ignored."""
    for flag, what in (("resume", "FILE"), ("img_path", "PATH")):
        if not getattr(args, flag) or "" in getattr(args, flag):
            raise ValueError(f"--{flag} {what} is needed")
    for flag, what in BELONGS_TO.items():
        if what not in args.show and getattr(args, flag) is not None and getattr(args, flag) is not False:
            raise ValueError(f"--{flag} is for --show {what}; here --show is {' '.join(args.show)}")
    for flag in ("mask_ratio", "mask_mode"):
        if args.mask_file and getattr(args, flag):
            raise ValueError(f"--mask_file says which patches are hidden; leave out --{flag}")
    if args.seed is not None and not 0 <= args.seed < 2 ** 63:
        raise ValueError(f"--seed {args.seed}: expected a whole number of 0 to 2 ** 63 - 1")


def main(args):
    device = distributed.init(args.device)
    if args.show is None and args.resume:
        state = checkpoint.read_checkpoint(args.resume[0], trusted=args.trust_checkpoint)
        args.show = ["reconstruction" if checkpoint.role(state["model"]) == "mae" else "attention"]
    shows = list(dict.fromkeys(args.show or ["reconstruction"]))
    args.show = shows
    check(args)
    autocast = amp.autocast(amp.resolve(args.amp, device))
    pictures = Pictures(args.img_path)
    write = Writer(pictures, args.output_dir, shows)
    encoder = EncoderFigures(args, pictures, autocast) if shows != ["reconstruction"] else None
    # Everything that can be wrong with the flags is found out before the first figure is written.
    draw = {what: Reconstructions(args, pictures, autocast) if what == "reconstruction" else encoder.drawer(what)
            for what in shows}
    unreadable = 0
    for place in bar(range(len(pictures)), answers=True):
        try:
            drawn = {what: draw[what](place) for what in shows}
        except decode.UnreadableImage as error:
            if len(pictures) == 1:
                raise
            unreadable += 1
            print(f"tools/visualize.py: error: {error}", file=sys.stderr, flush=True)
            continue
        for what in shows:
            write(place, what, *drawn[what])
    if unreadable:
        print(f"tools/visualize.py: {unreadable} of {len(pictures)} pictures could not be read", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    command_line.run(main, get_args_parser())
