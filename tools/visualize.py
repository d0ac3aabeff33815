"""Visualise a model: reconstructions, attention, patch similarity, principal components, nearest pictures.

    python tools/visualize.py --resume outputs/demo/pretrain/checkpoint-latest.pd --img_path data/photos
    python tools/visualize.py --resume checkpoint-latest.pd --img_path x.jpg --mask_ratio 0.5 0.75 0.9
    python tools/visualize.py --resume checkpoint-20.pd checkpoint-40.pd --img_path x.jpg --mask_file mask.png
    python tools/visualize.py --resume checkpoint-best.pd --img_path x.jpg --show attention affinity pca
    python tools/visualize.py --resume checkpoint-best.pd --img_path x.jpg --show neighbours --gallery photos

An .npz file beside each figure holds its numbers.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

import models_mae
import models_vit
from util.compute import amp
from util.data.masking import Mask, noise_of_picture, read_custom_mask
from util.data.picture_paths import Batches, Pictures
from util.images import decode
from util.images.preprocess import Preprocess
from util.infer import trained_model
from util.infer.model_spec import ModelSpec, checkpoint_spec
from util.look import encoder_features, encoder_figures, feature_file, reconstruction
from util.look.figures import choose, sheet, to_pixels
from util.options import command_line, flags, settings
from util.system import distributed
from util.system.atomic_file import atomic_write
from util.weights import checkpoint, formats

SHOWS = ("reconstruction", "attention", "affinity", "pca", "neighbours")


def get_args_parser():
    parser = command_line.Parser(
        "Draw what a model sees, and write the numbers of each figure into an .npz file beside it."
    )
    flags.add_device(parser)
    parser.add_argument(
        "--resume",
        nargs="+",
        default=[],
        metavar="FILE",
        help="checkpoint; for reconstructions several are allowed, which get the same masks",
    )
    flags.add_trust(parser)
    parser.add_argument(
        "--img_path",
        nargs="+",
        default=[],
        metavar="PATH",
        help="pictures, and folders whose pictures, at any depth, are taken in sorted order",
    )
    parser.add_argument(
        "--show",
        nargs="+",
        default=None,
        choices=SHOWS,
        help="figures to draw (default: reconstruction of an autoencoder, attention of other models)",
    )
    parser.add_argument("--output_dir", default=".", help="folder of <picture>_<figure>.png and .npz")
    flags.add_input_override(parser)
    flags.add_show_channels(parser)
    group = parser.add_argument_group("reconstruction")
    group.add_argument(
        "--mask_ratio",
        type=float,
        nargs="+",
        default=None,
        help="share of hidden patches; several draw a row each (default: 0.75)",
    )
    flags.add_mask_mode(group, default=None)
    group.add_argument(
        "--mask_file",
        default=None,
        metavar="FILE",
        help="custom mask: a picture, white = hidden, or .npy or .npz with 0 or 1 for each patch",
    )
    group.add_argument("--seed", type=int, default=None, help="seed of the masks (default: 0)")
    group.add_argument(
        "--norm_pix_loss",
        action="store_true",
        help="the weights predict normalised patches (checkpoints of this project store this)",
    )
    group.add_argument(
        "--statistics",
        default=None,
        choices=[*reconstruction.STATISTICS, "both"],
        help="source of the mean and standard deviation of a patch, for --norm_pix_loss: "
        "true: the true patch; visible: the visible patches, interpolated (default: "
        "both, a row each)",
    )
    group = parser.add_argument_group("affinity and neighbours")
    group.add_argument(
        "--patch",
        type=int,
        nargs=2,
        default=None,
        metavar=("ROW", "COLUMN"),
        help="the patch, counted from 0 at the top left (default: the middle one)",
    )
    group.add_argument(
        "--gallery",
        default=None,
        metavar="FOLDER",
        help="pictures to search for neighbours, or the .npz file of their features from "
        "tools/extract_features.py",
    )
    group.add_argument(
        "--neighbours", type=int, default=None, metavar="K", help="number of neighbours (default: 10)"
    )
    return parser


@dataclass(frozen=True)
class Subject:
    """Model that is drawn, with the pictures to draw it for.

    Args:
        batches: of one picture each, preprocessed.
        channels: to show, counted from 0; None for the usual ones.
        autocast: context of forward passes, see util.compute.amp.
    """

    spec: ModelSpec
    model: Any
    batches: Batches
    channels: Sequence[int] | None
    autocast: Callable[[], Any]

    def pixels(self, image):
        """Return a normalised image [C, height, width] as pixels in [0, 1] of the channels to show."""
        return choose(to_pixels(image, **self.spec.normalization, like=image), self.channels)


class FigureWriter:
    """Writer of figures to `output_dir`: <picture>_<figure>.png, .npz and, for interactive ones, .html."""

    def __init__(self, pictures, output_dir, figures):
        self.files = {figure: pictures.outputs(output_dir, f"_{figure}.png") for figure in figures}

    def __call__(self, place, figure, image, arrays, page=""):
        """Write one figure of the picture number `place`: PIL image, arrays behind it, HTML page."""
        file = self.files[figure][place]
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(file) as f:
                image.save(f, format="PNG")
            with atomic_write(file.with_suffix(".npz")) as f:
                np.savez_compressed(f, **arrays)
            if page:
                with atomic_write(file.with_suffix(".html"), "w") as f:
                    f.write(page)
        except OSError as error:
            raise ValueError(f"--output_dir: {file} cannot be written ({error.strerror})") from error
        print(f"wrote {file} and {'.html, ' if page else ''}.npz", flush=True)


def show_progress(batches, answers=False):
    """Pass the batches on behind a progress bar on a terminal; lines of `answers` there would break it up."""
    return tqdm(batches, leave=False, disable=not sys.stderr.isatty() or (answers and sys.stdout.isatty()))


def warn(line):
    """Print a warning on standard error."""
    print(f"tools/visualize.py: {line}", file=sys.stderr, flush=True)


def warn_about_bare_weights(spec, model, norm_pix_loss):
    """Warn if the file does not describe its model, so that heads or the loss may be guessed wrongly."""
    if "architecture" in spec.state:
        return
    if spec.is_autoencoder and not norm_pix_loss:
        warn(
            f"{spec.path} does not say if it predicts normalised patches; if the reconstruction is grey, "
            "add --norm_pix_loss"
        )
    warn(
        f"{spec.path} does not describe its model; assuming {model.blocks[0].attn.num_heads} attention heads"
    )


class ReconstructionDrawer:
    """Callable that maps the index of a picture to its reconstructions, a row per checkpoint and mask."""

    def __init__(self, subjects, pictures, masks, *, seed, statistics):
        self.subjects, self.pictures, self.masks = subjects, pictures, masks
        self.seed, self.statistics = seed, statistics
        paths = [subject.spec.path for subject in subjects]
        self.labels = checkpoint_labels(paths) if len(paths) > 1 else [""]

    def __call__(self, place):
        """Draw a picture: (PIL image, arrays)."""
        noises = [noise_of_picture(mask, self.seed, self.pictures[place]) for mask in self.masks]
        rows, numbers = [], []
        for label, subject in zip(self.labels, self.subjects, strict=True):
            image = subject.batches.read(place)
            for mask, noise in zip(self.masks, noises, strict=True):
                with subject.autocast():
                    more, found = reconstruction.rows(
                        subject.model,
                        image,
                        noise,
                        mask.visible,
                        self.statistics,
                        **subject.spec.normalization,
                        channels=subject.channels,
                    )
                rows += [(label + heading, cells) for heading, cells in more]
                numbers.append({**found, "checkpoint": subject.spec.path, "mask_ratio": found["mask"].mean()})
        return sheet(rows), stack_arrays(numbers)


def common_grid(subjects):
    """Return the grid of patches. Raises ValueError if the models differ, because they get the same masks."""
    first, *others = subjects
    grid = first.model.patch_embed.grid_size
    for other in others:
        if other.model.patch_embed.grid_size != grid:
            raise ValueError(
                f"--resume {other.spec.path}: has {other.model.patch_embed.grid_size} patches "
                f"and {first.spec.path} has {grid}; the same mask needs the same patches"
            )
    return grid


def stack_arrays(numbers):
    """Merge dicts of the same keys: arrays of equal shape are stacked, others get a number in their name."""
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
    """Return the shortest path suffixes that tell the paths apart, as prefixes of headings."""
    for parts in (2, 3, 4):
        labels = ["/".join(Path(path).parts[-parts:]) for path in paths]
        if len(set(labels)) == len(labels):
            break
    else:
        labels = [f"{number}. {path}" for number, path in enumerate(paths, 1)]
    return [f"{label}: " for label in labels]


class EncoderDrawer:
    """Drawings of an encoder.

    Each method returns a function from (images [1, C, height, width], pixels) to a figure.
    """

    def __init__(self, subject):
        self.subject, self.model = subject, subject.model

    def on_pictures(self, make):
        """Return a function from the number of a picture to its figure.

        Args:
            make: returns one of the functions above.
        """
        subject = self.subject
        with subject.autocast():
            draw = make()

        def drawn(place):
            image = subject.batches.read(place)
            with subject.autocast():
                return draw(paddle.to_tensor(image[None]), subject.pixels(image))

        return drawn

    def attention(self):
        """Draw the attention of the class token."""
        note = ""
        if self.subject.spec.role in ("mae", "encoder"):
            note = "of MAE's pretraining, whose loss does not use it"
        elif self.model.global_pool:
            note = "not what this model classifies: that is the mean patch token"
        return partial(encoder_figures.attention, self.model, note=note)

    def affinity(self, patch=None):
        """Draw the similarity of all patches to one, (row, column); by default the middle one."""
        rows, columns = self.model.patch_embed.grid_size
        row, column = patch or (rows // 2, columns // 2)
        if not (0 <= row < rows and 0 <= column < columns):
            raise ValueError(
                f"--patch {row} {column}: expected a row of 0 to {rows - 1} and a column of 0 "
                f"to {columns - 1}; this model has {rows} x {columns} patches"
            )
        return partial(encoder_figures.affinity, self.model, patch=(row, column))

    def pca(self):
        """Colour patches by the principal components of their tokens, which the first pictures share."""
        if self.model.patch_embed.num_patches < 4:
            raise ValueError(
                f"--show pca: needs at least 4 patches, this model has {self.model.patch_embed.num_patches}"
            )
        images = list(islice(self.subject.batches.readable(), encoder_figures.COLOURED_TOGETHER))
        if not images:
            raise ValueError("--show pca: none of the pictures of --img_path can be read")
        return encoder_figures.PrincipalColours(self.model, images)

    def neighbours(self, gallery, k, amp_flag):
        """Draw the `k` nearest pictures of a gallery: a folder, or a file of tools/extract_features.py."""
        if not gallery:
            raise ValueError("--show neighbours: --gallery FOLDER is needed")
        if k < 1:
            raise ValueError(f"--neighbours must be at least 1, got {k}")
        if gallery.lower().endswith(".npz"):
            found = feature_file.read(gallery, ["mean"])
            self._check_origin(gallery, found, amp_flag)
            pictures, means = Pictures(found["names"].tolist(), flag="--gallery"), found["mean"]
            places, batches = range(len(pictures)), self._batches_of(pictures)
        else:
            pictures = Pictures([gallery], flag="--gallery")
            batches = self._batches_of(pictures)
            places, means = self._mean_tokens(gallery, batches)
        return encoder_figures.Neighbours(
            self.model,
            [pictures[place] for place in places],
            means,
            lambda number: self.subject.pixels(batches.read(places[number])),
            k,
        )

    def _batches_of(self, pictures):
        return Batches(pictures, self.subject.batches.preprocess, batch_size=1)

    def _mean_tokens(self, gallery, batches):
        """Compute (numbers of the readable pictures, their mean tokens [N, D])."""
        places, means = [], []
        for ((place, image),) in show_progress(batches):
            if isinstance(image, decode.UnreadableImage):
                warn(f"error: {image}")
                continue
            places.append(place)
            means.append(encoder_figures.mean_token(self.model, paddle.to_tensor(image[None]))[0])
        if not places:
            raise ValueError(f"--gallery {gallery}: none of its {len(batches)} pictures can be read")
        return places, np.stack(means)

    def _check_origin(self, gallery, found, amp_flag):
        """Raise ValueError unless this model computed the features, and their pictures exist."""
        spec, device = self.subject.spec, paddle.get_device().split(":")[0]
        own = {
            "weights_sha256": formats.checksum(spec.state["model"]),
            "block": len(self.model.blocks),
            "norm": encoder_features.norm_of(self.model, None),
            "img_size": self.model.patch_embed.img_size,
            "image_mean": spec.normalization["mean"],
            "image_std": spec.normalization["std"],
            "image_backend": "pillow",
            "precision": amp.resolve(amp_flag, device) or "float32",
        }
        feature_file.check_same_origin(gallery, found, f"--resume {spec.path}", own)
        lost = next((name for name in found["names"] if not Path(name).is_file()), None)
        if lost is not None:
            raise ValueError(
                f"--gallery {gallery}: {lost} is not a picture file here (in a tar file, or "
                "moved); run this where the features were made, or give a folder of pictures"
            )


# Figure that each flag belongs to.
FIGURE_OF = {
    "mask_ratio": "reconstruction",
    "mask_mode": "reconstruction",
    "mask_file": "reconstruction",
    "statistics": "reconstruction",
    "norm_pix_loss": "reconstruction",
    "seed": "reconstruction",
    "patch": "affinity",
    "gallery": "neighbours",
    "neighbours": "neighbours",
}


def check_needed(args):
    """Raise ValueError if a flag without a default is missing."""
    for flag, what in (("resume", "FILE"), ("img_path", "PATH")):
        if not getattr(args, flag) or "" in getattr(args, flag):
            raise ValueError(f"--{flag} {what} is needed")


def check(args, figures):
    """Raise ValueError for invalid values, and for flags that these figures would ignore."""
    for flag, figure in FIGURE_OF.items():
        if figure not in figures and getattr(args, flag) is not None and getattr(args, flag) is not False:
            raise ValueError(
                f"--{flag}: is for --show {figure}, and --show is {' '.join(figures)}; remove it"
            )
    for flag in ("mask_ratio", "mask_mode"):
        if args.mask_file and getattr(args, flag):
            raise ValueError(f"--{flag}: --mask_file defines the hidden patches; remove one of the two flags")
    if args.seed is not None and not 0 <= args.seed < 2**63:
        raise ValueError(f"--seed {args.seed}: expected an integer from 0 to 2 ** 63 - 1")
    if len(args.resume) > 1 and figures != ["reconstruction"]:
        raise ValueError(
            f"--resume: --show {' '.join(figures)} takes one checkpoint, got "
            f"{len(args.resume)}; several are for reconstructions alone"
        )


def draw_all(count, draw, write):
    """Draw and write all figures of each picture. Returns the number of pictures that could not be read.

    Args:
        draw: {figure: function from the number of a picture to (PIL image, arrays, ...)}.
        write: FigureWriter.
    """
    unreadable = 0
    for place in show_progress(range(count), answers=True):
        try:
            drawn = {figure: function(place) for figure, function in draw.items()}
        except decode.UnreadableImage as error:
            if count == 1:
                raise
            unreadable += 1
            warn(f"error: {error}")
            continue
        for figure, found in drawn.items():
            write(place, figure, *found)
    return unreadable


def main(args):
    device = distributed.init(args.device)
    check_needed(args)
    states = [checkpoint.read_checkpoint(path, trusted=args.trust_checkpoint) for path in args.resume]
    figures = list(
        dict.fromkeys(
            args.show or ["reconstruction" if checkpoint.role(states[0]["model"]) == "mae" else "attention"]
        )
    )
    check(args, figures)
    autocast = amp.autocast(amp.resolve(args.amp, device))
    pictures = Pictures(args.img_path)
    write = FigureWriter(pictures, args.output_dir, figures)
    overrides = {"img_size": args.input_size, "mean": args.mean, "std": args.std}

    def open_subject(spec):
        model = trained_model.load_model(spec)
        warn_about_bare_weights(spec, model, args.norm_pix_loss)
        embed = model.patch_embed
        batches = Batches(
            pictures, Preprocess(embed.img_size, embed.in_chans, **spec.normalization), batch_size=1
        )
        return Subject(spec, model, batches, settings.channels_shown(args, embed.in_chans), autocast)

    def draw_reconstructions():
        subjects = []
        for path, state in zip(args.resume, states, strict=True):
            trained_model.check_decoder(path, state)
            subjects.append(
                open_subject(
                    checkpoint_spec(
                        path,
                        state,
                        models_mae.MODELS,
                        {**overrides, "norm_pix_loss": args.norm_pix_loss or None},
                    )
                )
            )
        grid = common_grid(subjects)
        masks = (
            [read_custom_mask(args.mask_file, grid)]
            if args.mask_file
            else [Mask(args.mask_mode or "random", grid, ratio) for ratio in args.mask_ratio or [0.75]]
        )
        return ReconstructionDrawer(
            subjects, pictures, masks, seed=args.seed or 0, statistics=args.statistics or "both"
        )

    # Every flag is checked here, before the first figure is written.
    draw = {}
    if figures != ["reconstruction"]:
        encoder = EncoderDrawer(
            open_subject(
                checkpoint_spec(args.resume[0], states[0], models_vit.MODELS, overrides, features=[])
            )
        )
        make = {
            "attention": encoder.attention,
            "affinity": partial(encoder.affinity, args.patch),
            "pca": encoder.pca,
            "neighbours": partial(
                encoder.neighbours, args.gallery, 10 if args.neighbours is None else args.neighbours, args.amp
            ),
        }
        draw = {figure: encoder.on_pictures(make[figure]) for figure in figures if figure != "reconstruction"}
    if "reconstruction" in figures:
        draw["reconstruction"] = draw_reconstructions()
    draw = {figure: draw[figure] for figure in figures}  # in the order of --show
    unreadable = draw_all(len(pictures), draw, write)
    if unreadable:
        warn(f"{unreadable} of {len(pictures)} pictures could not be read")
        sys.exit(1)


if __name__ == "__main__":
    command_line.run(main, get_args_parser())
