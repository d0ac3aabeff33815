"""Images per second of the input pipeline for pretraining: reading, decoding, cropping, resizing, batching.

    python benchmarks/input_pipeline.py --images data/photos
    python benchmarks/input_pipeline.py --images FOLDER --packed FOLDER_OF_TARS --json input_pipeline.json \
        --against torch --torch_python /path/to/python

Time counts from the arrival of a round's first batch to that of its last, without the start of the worker.
The opponent is torchvision: open, RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize in
PyTorch's DataLoader.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import sidebyside
from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

from util.data.loaders import train_loader
from util.data.masking import Mask
from util.data.sources import open_source
from util.images import resize
from util.images.normalize import default_mean_std
from util.images.transforms import PretrainTransform
from util.system import distributed


class Repeated:
    """A source without labels that repeats its images up to `count`."""

    labels = None

    def __init__(self, images: Any, count: int) -> None:
        self.images, self.count = images, count

    def __len__(self) -> int:
        return self.count

    def open(self, index: int) -> Any:
        """Open image `index`."""
        return self.images.open(index % len(self.images))


def side(name: str, path: str, image_backend: str, args: argparse.Namespace) -> sidebyside.Side:
    """Make a side whose round is one epoch over the images in `path`."""
    images = open_source(path, "train", labelled=False)
    mean, std = default_mean_std(3)
    mask = Mask("random", (args.input_size // 16,) * 2, 0.75)
    source: Any = Repeated(images, args.batch_size * args.batches)
    transform = PretrainTransform(
        (args.input_size,) * 2, draw_noise=mask.draw, mean=mean, std=std, image_backend=image_backend
    )
    loader = train_loader(source, transform, args.batch_size, args.num_workers, seed=0)
    epochs = iter(range(10**6))

    def round() -> dict[str, float]:
        loader.sampler.set_epoch(next(epochs))
        batches = iter(loader)
        next(batches)
        start = time.perf_counter()
        rest = sum(len(batch) for batch, _ in batches)
        return {"images_per_s": rest / (time.perf_counter() - start)}

    manifest = Path(path, "manifest.json")  # of tools/pack_dataset.py
    packed = (
        {"short_side": json.loads(manifest.read_text(encoding="utf-8"))["short_side"]}
        if manifest.exists()
        else {}
    )
    return sidebyside.Side(
        name,
        round,
        {
            "images": len(images),
            "image_backend": image_backend,
            **packed,
            **sidebyside.versions("paddlepaddle", "paddlepaddle-gpu", "numpy", "pillow", "cykooz-resizer"),
        },
    )


def get_args_parser() -> argparse.ArgumentParser:
    """Define the flags of this script."""
    parser = argparse.ArgumentParser(
        description="Images per second of the input pipeline.",
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--images", metavar="FOLDER", required=True, help="folder with images at any depth")
    parser.add_argument(
        "--packed",
        metavar="PATH",
        default="",
        help="the same images, packed by tools/pack_dataset.py, to measure as well",
    )
    parser.add_argument(
        "--image_backend", nargs="+", default=list(resize.BACKENDS), choices=list(resize.BACKENDS)
    )
    parser.add_argument("--input_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=13, help="per round; the first one is not timed")
    parser.add_argument("--num_workers", type=int, default=1, help="0 for no worker process")
    sidebyside.add_arguments(parser, rounds=7)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all sides in turns, and report them."""
    args = get_args_parser().parse_args(argv)
    if args.batches < 2:
        raise ValueError(f"--batches {args.batches}: must be at least 2, because the first is not timed")
    distributed.init("cpu")
    sides = [side(name, args.images, name, args) for name in args.image_backend]
    if args.packed:
        sides += [side(f"{name}, packed", args.packed, name, args) for name in args.image_backend]
    if args.against == "torch":
        options = [
            word
            for name in ("images", "input_size", "batch_size", "batches", "num_workers")
            for word in (f"--{name}", getattr(args, name))
        ]
        sides.append(sidebyside.torch_side("torchvision", "torch_input.py", options, args))
    results = sidebyside.alternate(sides, rounds=args.rounds, warmup=args.warmup)
    sidebyside.report(
        "input_pipeline", sides, results, measure="images_per_s", settings=vars(args), json_path=args.json
    )


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"{Path(__file__).name}: error: {error}")
