"""Write the features that the encoder of a checkpoint computes from whole pictures into an .npz file.

    python tools/extract_features.py --resume checkpoint-latest.pd --img_path photos --output photos.npz
    python tools/extract_features.py --resume mae.pth --data_path my_data --split train --output train.npz

Every kind of checkpoint is accepted. util/look/feature_file.py describes the file.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

import models_vit
from util.compute import amp, operations
from util.data.bad_images import BadImages
from util.data.loaders import Samples, make_loader
from util.data.picture_paths import Pictures
from util.data.sampler import EpochSampler
from util.data.sources import open_source
from util.images import decode
from util.images.transforms import EvalTransform
from util.infer import trained_model
from util.infer.model_spec import read_model_spec
from util.look import feature_file
from util.look.encoder_features import extract_features, norm_of, shapes
from util.look.feature_file import KINDS
from util.options import command_line, flags
from util.run.checkpoints import in_words
from util.system import distributed, provenance
from util.system.console import progress, say
from util.weights import formats


def get_args_parser() -> command_line.Parser:
    """Define the flags of this script."""
    parser = command_line.Parser("Features of pictures into an .npz file.")
    parser.add_argument(
        "--resume", default="", metavar="FILE", help="checkpoint: autoencoder, encoder or classifier"
    )
    flags.add_trust(parser)
    parser.add_argument("--output", default="", metavar="FILE.npz", help="output file")
    parser.add_argument(
        "--features",
        nargs="+",
        default=["mean", "cls"],
        choices=KINDS,
        help="mean patch token, class token, or all patch tokens, which need much disk space",
    )
    parser.add_argument(
        "--block",
        type=int,
        default=None,
        metavar="N",
        help="take the output of block N (1 is the first), without the final norm (default: the "
        "last block, with it)",
    )
    parser.add_argument(
        "--img_path",
        nargs="+",
        default=[],
        metavar="PATH",
        help="pictures, and folders with pictures at any depth, in sorted order; without labels",
    )
    flags.add_data(parser)
    parser.set_defaults(data_path="", dataset=None, bad_images=None, image_root=None)
    parser.add_argument("--split", default=None, choices=["train", "val"], help="part of --data_path")
    flags.add_input_override(parser)
    flags.add_device(parser)
    parser.add_argument(
        "--batch_size", type=int, default=64, help="pictures per batch; does not change the features"
    )
    return parser


class NamedPictures:
    """util.data.picture_paths.Pictures as a source of images (util.data.sources) without labels."""

    labels = classes = None

    def __init__(self, paths: Sequence[str], in_chans: int) -> None:
        self.pictures, self.in_chans = Pictures(paths), in_chans

    def __len__(self) -> int:
        return len(self.pictures)

    def name(self, index: int) -> str:
        """Path of a picture."""
        return self.pictures[index]

    def open(self, index: int) -> decode.EncodedImage:
        """Open a picture without decoding it."""
        return decode.EncodedImage(self.pictures[index], in_chans=self.in_chans)


class NumberedSamples(Samples):
    """Pixels with the index of the image, because batches leave out images that cannot be read."""

    def at(self, place, index):
        """Load image `index`: (pixels, index)."""
        pixels, *_ = super().at(place, index)
        return pixels, np.int64(index)


class LeftOut:
    """Counts the pictures of --img_path that cannot be read, and names them on standard error."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, found: Iterable[tuple[str, str]]) -> None:
        """Report unreadable pictures [(name, reason), ...]."""
        for name, reason in found:
            self.count += 1
            print(
                f"extract_features.py: error: {decode.UnreadableImage(name, reason)}",
                file=sys.stderr,
                flush=True,
            )

    def agree(self) -> None:
        """Do nothing, because there is one process only."""

    def listing(self) -> str:
        """Return no summary, because every picture was named already."""
        return ""


def check(args: argparse.Namespace) -> None:
    """Raise ValueError for flags that are missing, out of range, or without effect beside the others."""
    for flag, what in (("resume", "FILE"), ("output", "FILE.npz")):
        if not getattr(args, flag):
            raise ValueError(f"--{flag} {what}: missing")
    if Path(args.output).suffix != ".npz":
        raise ValueError(f"--output {args.output}: the name must end in .npz")
    if bool(args.img_path) == bool(
        args.data_path or args.dataset not in (None, "folder")
    ):  # others are downloaded
        raise ValueError("--img_path PATH or --data_path FOLDER: give exactly one of them")
    if not args.img_path and args.split is None:
        raise ValueError("--split train or --split val: missing beside --data_path")
    for name in ("split", "dataset", "bad_images", "image_root"):
        if args.img_path and getattr(args, name) is not None:
            raise ValueError(f"--{name}: has no effect with --img_path; remove the flag")
    for name, least in (("batch_size", 1), ("num_workers", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} {getattr(args, name)}: must be at least {least}")
    if Path(args.output).is_dir():
        raise ValueError(f"--output {args.output}: is a folder; name a file in it")


def source_of_flags(args: argparse.Namespace, in_chans: int) -> tuple[Any, Any]:
    """Open the pictures: (source of images, collector of unreadable ones)."""
    if args.img_path:
        images = NamedPictures(args.img_path, in_chans)
        if len(images) == 1 and not Path(images.name(0)).is_file():
            raise ValueError(f"--img_path {images.name(0)}: no such file")
        return images, LeftOut()
    source = open_source(
        args.data_path,
        args.split,
        dataset=args.dataset or "folder",
        in_chans=in_chans,
        image_root=args.image_root or "",
    )
    return source, BadImages(args.bad_images or "error", args.split, len(source))


def check_space(path: Path, needed: int) -> None:
    """Raise ValueError if the disk of the file `path` has fewer than `needed` free bytes."""
    free = shutil.disk_usage(path.parent).free
    if needed > free:
        raise ValueError(
            f"--output {path}: {in_words(free)} free, {in_words(needed)} needed; make room, choose "
            "another folder, or extract fewer --features"
        )


def main(args: argparse.Namespace) -> None:
    """Extract the features and write the file."""
    check(args)
    device = distributed.init(args.device)
    if device == "cpu":
        say(f"{cpu_runtime.describe()}; {operations.describe()}")
    precision = amp.resolve(args.amp, device)
    spec = read_model_spec(
        args.resume,
        models_vit.MODELS,
        {"img_size": args.input_size, "mean": args.mean, "std": args.std},
        features=args.features,
        trusted=args.trust_checkpoint,
    )
    model = trained_model.load_model(spec)
    norm, name, normalization = norm_of(model, args.block), spec.name, spec.normalization
    size, in_chans = model.patch_embed.img_size, model.patch_embed.in_chans
    images, bad_images = source_of_flags(args, in_chans)
    output, kinds = Path(args.output), sorted(set(args.features), key=KINDS.index)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"--output {output}: cannot create its folder ({error.strerror})") from error
    check_space(output, feature_file.space(shapes(model, kinds), len(images)))

    sampler = EpochSampler(
        len(images), args.batch_size, seed=0, shuffle=False, drop_last=False, rank=0, world_size=1
    )
    transform = EvalTransform(size, **normalization, image_backend=args.image_backend)
    loader = make_loader(
        NumberedSamples(images, transform, seed=0),
        sampler,
        min(args.num_workers, len(sampler)),
        bad_images=bad_images,
        replace=False,
    )
    # On a CPU always with packed weights, so that few pictures get the same roundings as many.
    compute = operations.packed(model, precision or "float32") if device == "cpu" else amp.autocast(precision)
    say(
        f"{args.resume}: {name or 'an encoder of its own sizes'}, {', '.join(kinds)} of block "
        f"{args.block or len(model.blocks)} (norm: {norm}), "
        f"{len(images)} pictures of {size[0]} x {size[1]}"
    )
    places = []
    with feature_file.Rows(output, shapes(model, kinds)) as rows:
        for pixels, index in progress(loader, "features"):
            with compute():
                found = extract_features(model, pixels, kinds, block=args.block)
            rows.append({kind: values.numpy() for kind, values in found.items()})
            places.append(index.numpy())
        bad_images.agree()
        if not places:
            raise ValueError(f"none of the {len(images)} pictures can be read; nothing was written")
        read = np.concatenate(places)
        labels = {} if images.labels is None else {"labels": images.labels[read], "classes": images.classes}
        rows.write(
            {
                "names": [images.name(place) for place in read],
                **labels,
                "block": args.block or len(model.blocks),
                "norm": norm,
                "checkpoint": args.resume,
                "weights_sha256": formats.checksum(spec.state["model"]),
                "model": name,
                "img_size": size,
                "image_mean": normalization["mean"],
                "image_std": normalization["std"],
                "image_backend": args.image_backend,
                "precision": precision or "float32",
                "git_revision": provenance.git_state()[0] or "",
            }
        )
    say(bad_images.listing())
    say(f"wrote {output}: {', '.join(kinds)} of {len(read)} pictures")
    if args.img_path and bad_images.count:
        print(
            f"extract_features.py: {bad_images.count} of {len(images)} pictures could not be read",
            file=sys.stderr,
        )
        sys.exit(1)


if __name__ == "__main__":
    command_line.run(main, get_args_parser())
