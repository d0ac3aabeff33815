"""What a model is really fed: a sheet of pictures as files, as training makes them, and as evaluation does.

    python tools/browse_dataset.py main_finetune.py --config configs/demo/finetune.yaml --sheet sheet.png
    python tools/browse_dataset.py main_pretrain.py --model mae_vit_base_patch16 --data_path photos --epoch 3 \
        --batch_size 4 --sheet sheet.png

The first word names a training script, whose flags follow, and whose own functions make the batches of one process. A
row is a picture of the first batches of --epoch. It shows the file, what that becomes in this epoch and in the next
ones (--draws), which for an autoencoder is also shown with the patches that are hidden, and what evaluation makes of
it. Pixels are those that the model gets behind random erasing, Mixup and CutMix, brought back from normalisation and
cut off at black and white.
"""
import importlib
import sys
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
LEAST_SIDE = 168    # pixels of a picture in the sheet; smaller ones are magnified


def get_args_parser():
    """The flags of the script that the command line names first, and this tool's."""
    script = sys.argv[1] if len(sys.argv) > 1 else ""
    parser = _module(script).get_args_parser() if script in SCRIPTS else command_line.Parser("What a model is really fed.")
    parser.add_argument("script", nargs="?", choices=SCRIPTS, help="whose batches; its own flags follow")
    group = parser.add_argument_group("the sheet")
    group.add_argument("--sheet", default="", metavar="FILE.png", help="where it goes")
    group.add_argument("--pictures", type=int, default=8, help="of the first batches of --epoch")
    group.add_argument("--draws", type=int, default=4, help="epochs, from --epoch on, in which each picture is shown")
    group.add_argument("--epoch", type=int, default=0, help="the first of them")
    if script != "main_pretrain.py":  # which has it
        flags.add_show_channels(group)
    return parser


def main(args):
    check(args)
    distributed.init("cpu")
    training = Training(args)
    epochs = range(args.epoch, args.epoch + args.draws)
    indices = training.first_pictures(args.epoch, args.pictures)
    fed = training.feed(indices, epochs)
    rows = [(training.describe(), [])]
    for index in indices:
        cells = [cell for epoch in epochs for cell in training.as_fed(epoch, fed.get((epoch, index)))]
        rows.append((training.name(index), [training.file(index), *cells, training.evaluated(index)]))
    for epoch, index in sorted(fed, key=lambda place: (indices.index(place[1]), place[0])):
        shown = fed[epoch, index]
        say(f"epoch {epoch}  batch {shown.batch}  image {index}  {training.name(index)}"
            + (f"  label {shown.label}" if shown.label else ""))
    with atomic_write(args.sheet) as file:
        sheet(rows, least_side=1).save(file, format="PNG")
    say(training.loader.bad_images.listing())
    say(f"wrote {args.sheet}: {len(indices)} pictures, epochs {epochs[0]} to {epochs[-1]}")


def check(args):
    """ValueError for what is missing, and for what would be ignored."""
    if not hasattr(args, "data_path"):
        raise ValueError(f"the first word must be {', '.join(SCRIPTS[:-1])} or {SCRIPTS[-1]}; its flags follow")
    if Path(args.sheet).suffix != ".png":
        raise ValueError(f"--sheet {args.sheet}: the name of a file that ends in .png is needed")
    if not Path(args.sheet).parent.is_dir():
        raise ValueError(f"--sheet {args.sheet}: there is no folder {Path(args.sheet).parent}")
    for name, least in (("pictures", 1), ("draws", 1), ("epoch", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} {getattr(args, name)}: expected {least} or more")
    for name in ("eval", "dry_run"):
        if getattr(args, name, False):
            raise ValueError(f"--{name}: what is shown is training; leave it out")


@dataclass(frozen=True)
class Fed:
    """A picture in a batch of training.

    Args:
        batch: its number in the epoch; label: in words, "" without one; image: [C, H, W], normalised.
        hidden: [h, w] bool, which patches, or None.
    """

    batch: int
    label: str
    image: np.ndarray
    hidden: np.ndarray | None


class Training:
    """The batches of a training script, and cells of a sheet about them: (title, note, picture)."""

    def __init__(self, args):
        script, self.args = _module(args.script), args
        data = replace(settings.settle(args).data, output_dir="")  # lists no unreadable images there
        self.normalization = settings.mean_std(args)
        self.channels = settings.channels_shown(args, args.in_chans)
        models = models_mae.MODELS if args.script == "main_pretrain.py" else models_vit.MODELS
        # What patches there are, without the layers that take them.
        sizes = {**settings.model_sizes(args, models[args.model]), "depth": 0}
        if args.script == "main_pretrain.py":
            self.patch_embed = models[args.model](**{**sizes, "decoder_depth": 0}).patch_embed
            mask = Mask(args.mask_mode, self.patch_embed.grid_size, args.mask_ratio)
            self.images, self.mixup = script.open_split(data, "train"), None
            self.loader = script.open_train(args, data, self.images, self.patch_embed, self.normalization, mask)
        else:
            self.patch_embed = models[args.model](**sizes).patch_embed
            self.images, _ = open_splits(data, num_classes=args.nb_classes, only_val=False)
            self.loader, self.mixup = script.open_train(args, data, self.images, self.patch_embed.img_size,
                                                        self.normalization)
        self.sampler = self.loader.sampler
        self.evaluation = EvalTransform(self.patch_embed.img_size, **self.normalization,
                                        image_backend=args.image_backend)
        self.scale = -(-LEAST_SIDE // min(self.patch_embed.img_size))
        self.size = tuple(side * self.scale for side in self.patch_embed.img_size)

    def first_pictures(self, epoch, count):
        """Indices of the first `count` images of an epoch, or of all that it has."""
        found = []
        for batch in range(len(self.sampler)):
            found += self.sampler.indices(epoch, batch)
            if len(found) >= count:
                break
        return found[:count]

    def feed(self, indices, epochs):
        """{(epoch, index): Fed}. An epoch may lack an image: those that do not fill a batch are left out.

        Mixup and CutMix take whole batches, and so these are loaded; otherwise the images alone.
        """
        batches = []  # [(epoch, number or None, indices of images)]
        places = {epoch: self.sampler.places(epoch, indices) for epoch in epochs}
        for epoch, found in places.items():
            if self.mixup is None:
                batches += [(epoch, None, list(found))] if found else []
            else:
                batches += [(epoch, number, self.sampler.indices(epoch, number))
                            for number in sorted({number for number, _ in found.values()})]
        listed = Listed([[(epoch, index) for index in part] for epoch, _, part in batches])
        loader = make_loader(self.loader.samples, listed, min(self.args.num_workers, len(batches)),
                             bad_images=self.loader.bad_images)
        fed = {}
        for (epoch, number, part), batch in zip(batches, progress(loader, "reading"), strict=True):
            images, labels, hidden = self._finished(epoch, number, *batch)
            for place, index in enumerate(part):
                if index in places[epoch]:
                    fed[epoch, index] = Fed(places[epoch][index][0], labels[place], images[place], hidden[place])
        return fed

    def _finished(self, epoch, number, images, other):
        """What the engines do to a batch before the model gets it: images numpy, labels in words, hidden patches.

        Args:
            number: of the batch in its epoch, for Mixup; other: labels [N], or in pretraining noise [N, L].
        """
        if self.images.labels is None:
            mask = models_mae.random_masking(len(other), self.patch_embed.num_patches, self.args.mask_ratio, other)[2]
            return images.numpy(), [""] * len(other), mask.numpy().reshape([-1, *self.patch_embed.grid_size]) > 0.5
        if self.mixup is None:
            return images.numpy(), [self._class(label) for label in other.tolist()], [None] * len(other)
        step = epoch * len(self.loader) + number
        images, targets = self.mixup(images, other, keyed_generator(self.args.seed, MIXUP, step, distributed.rank()))
        return images.numpy(), [self._in_words(target) for target in targets.numpy()], [None] * len(other)

    def _in_words(self, target):
        """The classes of which there is more in `target` [C] than label smoothing gives to all."""
        floor = self.mixup.label_smoothing / self.mixup.num_classes
        mixed = [label for label in np.argsort(-target) if target[label] > floor + 1e-6]
        return ", ".join(f"{self._class(label)} {target[label]:.2f}" for label in mixed)

    def _class(self, label):
        return _printable(self.images.classes[label])

    def describe(self):
        """What changes the pictures and their labels, and in pretraining hides them, as flags."""
        names = ["augment", "crop", "color_jitter", "aa", "reprob", "mixup", "cutmix", "cutmix_minmax", "smoothing",
                 "mask_ratio", "mask_mode"]
        given = [f"--{name} {value}" for name in names if (value := getattr(self.args, name, None))]
        return " ".join([self.args.script, *given, f"--seed {self.args.seed}"])

    def name(self, index):
        """The picture's name, and its class if it has one."""
        labels = self.images.labels
        return _printable(self.images.name(index)) + ("" if labels is None else f"  ({self._class(labels[index])})")

    def file(self, index):
        """The whole file, as large as the cell."""
        height, width = self.size
        canvas = Image.new("RGB", (width, height), "white")
        try:
            image = self.images.load(index)
        except UnreadableImage as error:
            return "file", cut_off(f"cannot be read: {error.reason}", width), _picture(canvas)
        factor = min(width / image.width, height / image.height)
        size = [max(1, int(side * factor)) for side in image.size]
        if image.mode == MULTIBAND:
            pixels = array_from_image(image.resize(size, Image.Resampling.BICUBIC))
            shown = to_image(self._drawn(self.evaluation.normalize(pixels)))
        else:
            shown = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        canvas.paste(shown, ((width - shown.width) // 2, (height - shown.height) // 2))
        return "file", f"{image.width} x {image.height}", _picture(canvas)

    def as_fed(self, epoch, fed):
        """One cell about a Fed, or with hidden patches two; blank ones for None."""
        if fed is None:
            return [(f"epoch {epoch}", "not in this epoch", self._blank())] * (2 if self.images.labels is None else 1)
        picture = self._magnified(fed.image)
        cells = [(f"epoch {epoch}, batch {fed.batch}", cut_off(fed.label, self.size[1]), picture)]
        if fed.hidden is not None:
            masked = np.where(enlarge(fed.hidden, self.size), GREY, picture)
            cells.append(("", f"{fed.hidden.mean():.0%} hidden", masked))
        return cells

    def evaluated(self, index):
        """What evaluation makes of the file, always the same."""
        try:
            return "evaluation", "", self._magnified(self.evaluation.normalized(self.images.open(index)))
        except UnreadableImage:
            return "evaluation", "left out", self._blank()

    def _magnified(self, image):
        return self._drawn(image).repeat(self.scale, axis=1).repeat(self.scale, axis=2)

    def _drawn(self, image):
        """Normalised values [C, height, width] as those of a picture, of the channels that are to be seen."""
        return choose(to_pixels(image, **self.normalization, like=image), self.channels)

    def _blank(self):
        return np.ones([3, *self.size])


class Listed:
    """Batches of (epoch, index) that are given, in the place of a util.data.sampler.EpochSampler."""

    def __init__(self, batches):
        self.batches, self.batch_size = batches, max(map(len, batches))

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)

    def stop(self):
        """There are no more than are under way."""


def _module(script):
    return importlib.import_module(Path(script).stem)


def _picture(image):
    return np.asarray(image).transpose(2, 0, 1) / 255


def _printable(name):
    return "".join(character if character.isprintable() else "?" for character in str(name))


if __name__ == "__main__":
    command_line.run(main, get_args_parser())
