"""Show the images that a model is trained on: as files, in training batches, and in evaluation.

    python tools/browse_dataset.py main_finetune.py --config configs/demo/finetune.yaml --sheet sheet.png
    python tools/browse_dataset.py main_pretrain.py --model mae_vit_base_patch16 --data_path photos \
        --epoch 3 --batch_size 4 --sheet sheet.png

The first word names a training script, and its flags follow. Its own functions make the batches of one
process. Each row of the sheet is an image of the first batches of --epoch: the file, the model input in this
epoch and in the next ones (--draws), and the image as evaluation transforms it. In pretraining, each model
input is also shown with its hidden patches. Model inputs are those after random erasing, Mixup and CutMix;
for display they are denormalised and clipped to black and white.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

import numpy as np
from PIL import Image

import models_mae
import models_vit
from util.data.loaders import make_loader
from util.data.masking import Mask
from util.data.mixup import Mixup
from util.images.bands import MULTIBAND, array_from_image
from util.images.decode import UnreadableImage
from util.images.transforms import EvalTransform
from util.look.figures import choose, cut_off, enlarge, sheet, to_image, to_pixels
from util.look.reconstruction import GREY
from util.options import command_line, flags, settings
from util.run.session import open_splits
from util.system import distributed
from util.system.atomic_file import atomic_write
from util.system.console import progress, say
from util.system.keyed_random import MIXUP, keyed_generator

SCRIPTS = ("main_pretrain.py", "main_finetune.py", "main_linprobe.py")
LEAST_SIDE = 168  # pixels of an image in the sheet; smaller ones are magnified
# Flags that the heading of the sheet names.
SHOWN_FLAGS = (
    "augment",
    "crop",
    "color_jitter",
    "aa",
    "reprob",
    "mixup",
    "cutmix",
    "cutmix_minmax",
    "smoothing",
    "mask_ratio",
    "mask_mode",
)

Cell = tuple[str, str, np.ndarray]  # title, note, image [3, height, width] in 0 to 1


def get_args_parser() -> command_line.Parser:
    """Return the parser of the script that the command line names first, with the flags of this tool."""
    script = sys.argv[1] if len(sys.argv) > 1 else ""
    parser = (
        _module(script).get_args_parser()
        if script in SCRIPTS
        else command_line.Parser("Show the images that a model is trained on.")
    )
    parser.add_argument(
        "script",
        nargs="?",
        choices=SCRIPTS,
        help="training script whose batches are shown; its own flags follow",
    )
    group = parser.add_argument_group("the sheet")
    group.add_argument("--sheet", default="", metavar="FILE.png", help="output file")
    group.add_argument(
        "--pictures", type=int, default=8, help="number of images, taken from the first batches of --epoch"
    )
    group.add_argument(
        "--draws",
        type=int,
        default=4,
        help="number of epochs, from --epoch on, in which each picture is shown",
    )
    group.add_argument("--epoch", type=int, default=0, help="the first of these epochs")
    if script != "main_pretrain.py":  # which has it
        flags.add_show_channels(group)
    return parser


def main(args: argparse.Namespace) -> None:
    """Write the sheet and print its rows."""
    check_options(args)
    distributed.init("cpu")
    batches = TrainingBatches(args)
    cells = Cells(batches, settings.channels_shown(args, args.in_chans), args.image_backend)
    epochs = range(args.epoch, args.epoch + args.draws)
    indices = batches.first_images(args.epoch, args.pictures)
    inputs = batches.load(indices, epochs)
    rows: list[tuple[str, list[Cell]]] = [(heading(args), [])]
    for index in indices:
        drawn = [cell for epoch in epochs for cell in cells.model_input(epoch, inputs.get((epoch, index)))]
        rows.append((batches.name(index), [cells.file(index), *drawn, cells.evaluation(index)]))
    for epoch, index in sorted(inputs, key=lambda place: (indices.index(place[1]), place[0])):
        shown = inputs[epoch, index]
        say(
            f"epoch {epoch}  batch {shown.batch}  image {index}  {batches.name(index)}"
            + (f"  label {shown.label}" if shown.label else "")
        )
    with atomic_write(args.sheet) as file:
        sheet(rows, least_side=1).save(file, format="PNG")
    say(batches.loader.bad_images.listing())
    say(f"wrote {args.sheet}: {len(indices)} pictures, epochs {epochs[0]} to {epochs[-1]}")


def check_options(args: argparse.Namespace) -> None:
    """Raise ValueError for missing options, and for options that would be ignored."""
    if not hasattr(args, "data_path"):
        raise ValueError(
            f"the first word must be {', '.join(SCRIPTS[:-1])} or {SCRIPTS[-1]}; its flags follow"
        )
    if Path(args.sheet).suffix != ".png":
        raise ValueError(f"--sheet {args.sheet}: expected the name of a .png file")
    if not Path(args.sheet).parent.is_dir():
        raise ValueError(f"--sheet {args.sheet}: there is no folder {Path(args.sheet).parent}")
    for name, least in (("pictures", 1), ("draws", 1), ("epoch", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} {getattr(args, name)}: expected {least} or more")
    for name in ("eval", "dry_run"):
        if getattr(args, name, False):
            raise ValueError(f"--{name}: the sheet shows training; remove the flag")


def heading(args: argparse.Namespace) -> str:
    """Return the script and its flags that change images, labels and masks."""
    flags = [f"--{name} {value}" for name in SHOWN_FLAGS if (value := getattr(args, name, None))]
    return " ".join([args.script, *flags, f"--seed {args.seed}"])


@dataclass(frozen=True)
class ModelInput:
    """Image of a training batch, as the model gets it.

    Args:
        batch: number of the batch in its epoch.
        label: class in words, several after Mixup, "" without labels.
        image: [C, H, W], normalised.
        hidden: [h, w] bool, the hidden patches, or None.
    """

    batch: int
    label: str
    image: np.ndarray
    hidden: np.ndarray | None


class TrainingBatches:
    """Batches of a training script, made by its own functions.

    Args:
        args: flags of the script and of this tool.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        script = _module(args.script)
        # The lists of unreadable images belong to runs.
        data = replace(settings.settle(args).data, output_dir="")
        self.seed, self.num_workers = args.seed, args.num_workers
        self.normalization = settings.mean_std(args)
        models = models_mae.MODELS if args.script == "main_pretrain.py" else models_vit.MODELS
        # Only the patch embedding is needed, so the model has no blocks.
        sizes = {**settings.model_sizes(args, models[args.model]), "depth": 0}
        self.mask: Mask | None = None
        self.mixup: Mixup | None = None
        if args.script == "main_pretrain.py":
            patch_embed = models[args.model](**{**sizes, "decoder_depth": 0}).patch_embed
            self.mask = Mask(args.mask_mode, patch_embed.grid_size, args.mask_ratio)
            self.source = script.open_split(data, "train")
            self.loader = script.open_train(
                args, data, self.source, patch_embed, self.normalization, self.mask
            )
        else:
            patch_embed = models[args.model](**sizes).patch_embed
            self.source, _ = open_splits(data, num_classes=args.nb_classes, only_val=False)
            self.loader, self.mixup = script.open_train(
                args, data, self.source, patch_embed.img_size, self.normalization
            )
        self.img_size = patch_embed.img_size
        self.sampler = self.loader.sampler

    def first_images(self, epoch: int, count: int) -> list[int]:
        """Return the indices of the first `count` images of an epoch, or of all that it has."""
        found: list[int] = []
        for batch in range(len(self.sampler)):
            found += self.sampler.indices(epoch, batch)
            if len(found) >= count:
                break
        return found[:count]

    def load(self, indices: Sequence[int], epochs: Sequence[int]) -> dict[tuple[int, int], ModelInput]:
        """Load images in several epochs: {(epoch, index): ModelInput}.

        An epoch lacks the images that do not fill a batch. Mixup and CutMix need whole batches; otherwise
        only the wanted images are loaded.
        """
        batches: list[tuple[int, int, list[int]]] = []  # epoch, number of the batch or -1, indices of images
        places = {epoch: self.sampler.places(epoch, indices) for epoch in epochs}
        for epoch, found in places.items():
            if self.mixup is None:
                batches += [(epoch, -1, list(found))] if found else []
            else:
                batches += [
                    (epoch, number, self.sampler.indices(epoch, number))
                    for number in sorted({number for number, _ in found.values()})
                ]
        given = GivenBatches([[(epoch, index) for index in part] for epoch, _, part in batches])
        loader = make_loader(
            self.loader.samples,
            given,  # type: ignore[arg-type]  # as a sampler
            min(self.num_workers, len(batches)),
            bad_images=self.loader.bad_images,
        )
        inputs = {}
        for (epoch, number, part), batch in zip(batches, progress(loader, "reading"), strict=True):
            images, labels, hidden = self._as_in_training(epoch, number, *batch)
            for place, index in enumerate(part):
                if index in places[epoch]:
                    inputs[epoch, index] = ModelInput(
                        places[epoch][index][0], labels[place], images[place], hidden[place]
                    )
        return inputs

    def _as_in_training(self, epoch, number, images, other):
        """Transform a batch as the engines do: return images (numpy), labels in words and hidden patches.

        `other` is labels [N], or in pretraining noise [N, L]. `number` is that of the batch, for Mixup.
        """
        if self.mask is not None:
            mask = models_mae.random_masking(len(other), self.mask.num_patches, self.mask.ratio, other)[2]
            return images.numpy(), [""] * len(other), mask.numpy().reshape([-1, *self.mask.grid]) > 0.5
        if self.mixup is None:
            return images.numpy(), [self.class_name(label) for label in other.tolist()], [None] * len(other)
        step = epoch * len(self.loader) + number
        rng = keyed_generator(self.seed, MIXUP, step, distributed.rank())
        images, targets = self.mixup(images, other, rng)
        labels = [self._mixed_classes(target, self.mixup) for target in targets.numpy()]
        return images.numpy(), labels, [None] * len(other)

    def _mixed_classes(self, target, mixup):
        """Return the classes with a larger share of `target` [C] than label smoothing gives to all."""
        floor = mixup.label_smoothing / mixup.num_classes
        mixed = [label for label in np.argsort(-target) if target[label] > floor + 1e-6]
        return ", ".join(f"{self.class_name(label)} {target[label]:.2f}" for label in mixed)

    def class_name(self, label: int) -> str:
        """Return the name of a class."""
        return _printable(self.source.classes[label])

    def name(self, index: int) -> str:
        """Return the name of an image, and its class if it has one."""
        labels = self.source.labels
        return _printable(self.source.name(index)) + (
            "" if labels is None else f"  ({self.class_name(labels[index])})"
        )


class Cells:
    """Cells of the sheet.

    Args:
        batches: of the training.
        channels: shown channels, see util.look.figures.choose.
        image_backend: of the evaluation.
    """

    def __init__(self, batches: TrainingBatches, channels: Sequence[int] | None, image_backend: str) -> None:
        self.source, self.normalization, self.channels = batches.source, batches.normalization, channels
        self.eval_transform = EvalTransform(
            batches.img_size, **self.normalization, image_backend=image_backend
        )
        self.scale = -(-LEAST_SIDE // min(batches.img_size))
        self.size = tuple(side * self.scale for side in batches.img_size)

    def file(self, index: int) -> Cell:
        """Draw the whole image file, fitted into the cell."""
        height, width = self.size
        canvas = Image.new("RGB", (width, height), "white")
        try:
            image = self.source.load(index)
        except UnreadableImage as error:
            return "file", cut_off(f"cannot be read: {error.reason}", width), _to_array(canvas)
        factor = min(width / image.width, height / image.height)
        size = [max(1, int(side * factor)) for side in image.size]
        if image.mode == MULTIBAND:
            pixels = array_from_image(image.resize(size, Image.Resampling.BICUBIC))
            shown = to_image(self._drawn(self.eval_transform.normalize(pixels)))
        else:
            shown = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        canvas.paste(shown, ((width - shown.width) // 2, (height - shown.height) // 2))
        return "file", f"{image.width} x {image.height}", _to_array(canvas)

    def model_input(self, epoch: int, shown: ModelInput | None) -> list[Cell]:
        """Draw a model input, with the hidden patches beside it in pretraining. None gives blank cells."""
        if shown is None:
            blank = (f"epoch {epoch}", "not in this epoch", self._blank())
            return [blank] * (2 if self.source.labels is None else 1)
        picture = self._magnified(shown.image)
        cells = [(f"epoch {epoch}, batch {shown.batch}", cut_off(shown.label, self.size[1]), picture)]
        if shown.hidden is not None:
            masked = np.where(enlarge(shown.hidden, self.size), GREY, picture)
            cells.append(("", f"{shown.hidden.mean():.0%} hidden", masked))
        return cells

    def evaluation(self, index: int) -> Cell:
        """Draw an image as evaluation transforms it, which is always the same."""
        try:
            return "evaluation", "", self._magnified(self.eval_transform.normalized(self.source.open(index)))
        except UnreadableImage:
            return "evaluation", "left out", self._blank()

    def _magnified(self, image):
        return self._drawn(image).repeat(self.scale, axis=1).repeat(self.scale, axis=2)

    def _drawn(self, image):
        """Turn normalised values [C, height, width] into pixels of the shown channels."""
        return choose(to_pixels(image, **self.normalization, like=image), self.channels)

    def _blank(self):
        return np.ones([3, *self.size])


class GivenBatches:
    """Sampler of given batches of (epoch, index), in place of util.data.sampler.EpochSampler."""

    def __init__(self, batches: list[list[tuple[int, int]]]) -> None:
        self.batches, self.batch_size = batches, max(map(len, batches))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)

    def stop(self) -> None:
        """Do nothing: all batches are loaded already."""


def _module(script):
    return importlib.import_module(Path(script).stem)


def _to_array(image):
    return np.asarray(image).transpose(2, 0, 1) / 255


def _printable(name):
    return "".join(character if character.isprintable() else "?" for character in str(name))


if __name__ == "__main__":
    command_line.run(main, get_args_parser())
