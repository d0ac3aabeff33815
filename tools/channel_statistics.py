"""Mean and standard deviation of each channel of a data set, as flags for the other scripts.

    python tools/channel_statistics.py --data_path my_data --in_chans 13

Every pixel of every image counts once. 8-bit pixels have values from 0 to 1, all others keep their values.
Standard output has one line, the flags. main_pretrain.py, main_finetune.py and main_linprobe.py need them if
--in_chans is not 1, 3 or 4; checkpoints store them.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

import numpy as np

from util.data.bad_images import BadImages
from util.data.sources import open_source
from util.images.bands import ImageLike, array_from_image
from util.images.decode import UnreadableImage
from util.options import command_line, flags
from util.system import console

CHUNK = 64  # images between two updates of the progress


def get_args_parser() -> command_line.Parser:
    """Return the parser of the command line."""
    parser = command_line.Parser("Mean and standard deviation of each channel of a data set.")
    flags.add_data(parser)
    parser.set_defaults(data_path="")
    parser.add_argument("--split", default="train", choices=["train", "val"], help="part of --data_path")
    parser.add_argument("--in_chans", type=int, default=3, help=flags.CHANNELS)
    return parser


@dataclass(frozen=True)
class Moments:
    """Number of pixels, and mean and sum of squared deviations of each channel, float64 [C].

    8-bit pixels count from 0 to 255 here.
    """

    count: int
    mean: np.ndarray
    squares: np.ndarray
    eight_bit: bool

    @classmethod
    def of(cls, image: ImageLike) -> Moments:
        """Compute the moments of one image."""
        pixels = array_from_image(image)
        pixels = pixels.reshape(len(pixels), -1)  # [C, number of pixels]
        mean = pixels.mean(axis=1, dtype=np.float64)
        squares = np.square(pixels - mean[:, None]).sum(axis=1)
        return cls(pixels.shape[1], mean, squares, pixels.dtype == np.uint8)

    def combined(self, other: Moments) -> Moments:
        """Return the moments of both sets of pixels (Chan, Golub, LeVeque 1979).

        The formula keeps the digits that sums of squares would lose. Raises ValueError for different types.
        """
        if self.eight_bit != other.eight_bit:
            raise ValueError(
                "--data_path: some pictures have 8-bit pixels, whose values go from 0 to 1, and "
                "some have wider numbers; save all of them as one type"
            )
        count, apart = self.count + other.count, other.mean - self.mean
        squares = self.squares + other.squares + apart**2 * (self.count * other.count / count)
        return Moments(count, self.mean + apart * (other.count / count), squares, self.eight_bit)

    def mean_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation of the values, float64 [C] each."""
        largest = 255 if self.eight_bit else 1
        return self.mean / largest, np.sqrt(self.squares / self.count) / largest


def main(args: argparse.Namespace) -> None:
    """Print the flags."""
    if not args.data_path:
        raise ValueError("--data_path PATH is needed")
    if args.image_backend != "pillow":
        raise ValueError(f"--image_backend {args.image_backend}: nothing is resized here; remove the flag")
    source = open_source(
        args.data_path,
        args.split,
        dataset=args.dataset,
        labelled=False,
        in_chans=args.in_chans,
        image_root=args.image_root,
    )
    bad_images = BadImages(args.bad_images, args.split, len(source))

    def moments_of(index):
        try:
            return Moments.of(source.load(index))
        except UnreadableImage as error:
            return error

    whole: Moments | None = None
    with ThreadPoolExecutor(max(1, args.num_workers)) as pool:
        starts = range(0, len(source), CHUNK)
        for start in console.track(starts, "pictures", say, bar=sys.stderr.isatty()):
            found = list(pool.map(moments_of, range(start, min(start + CHUNK, len(source)))))
            bad_images.add([(one.name, one.reason) for one in found if isinstance(one, UnreadableImage)])
            parts = [one for one in [whole, *found] if isinstance(one, Moments)]
            whole = reduce(Moments.combined, parts) if parts else None
    assert whole is not None  # BadImages never allows all of them
    mean, std = whole.mean_std()
    if not std.all():
        raise ValueError(
            f"--data_path: channel {np.flatnonzero(std == 0)[0] + 1} has the same value in "
            "every pixel and cannot be normalised; leave it out of the files"
        )
    say(f"{whole.count:,} pixels of {len(source):,} pictures")
    say(bad_images.listing())
    print("--mean", *(f"{value:.6g}" for value in mean), "--std", *(f"{value:.6g}" for value in std))


def say(line: str) -> None:
    """Print a line to standard error."""
    if line:
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    command_line.run(main, get_args_parser())
