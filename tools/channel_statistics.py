"""Mean and standard deviation of each channel of a data set, as the flags that every script takes.

    python tools/channel_statistics.py --data_path my_data --in_chans 13

Over every pixel of every picture, each pixel counting once. 8-bit pixels count from 0 to 1, all others as they are
(util/images/band_files.py). The flags are the last line, and all that goes to standard output; main_pretrain.py,
main_finetune.py and main_linprobe.py need them where --in_chans is not 1, 3 or 4, and a checkpoint keeps them.
"""
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

import numpy as np

from util.data.bad_images import BadImages
from util.data.sources import open_source
from util.images.bands import array_from_image
from util.images.decode import UnreadableImage
from util.options import command_line, flags
from util.system import console

AT_ONCE = 64    # pictures between two lines of progress


def get_args_parser():
    parser = command_line.Parser("Mean and standard deviation of each channel of a data set.")
    flags.add_data(parser)
    parser.set_defaults(data_path="")
    parser.add_argument("--split", default="train", choices=["train", "val"], help="which part of --data_path")
    parser.add_argument("--in_chans", type=int, default=3, help=flags.CHANNELS)
    return parser


class Moments(NamedTuple):
    """Of pixels: how many, and of each channel the mean and the sum of squared distances from it, float64 [C].

    eight_bit: whether they are 8-bit pixels, as whole numbers.
    """

    count: int
    mean: np.ndarray
    squares: np.ndarray
    eight_bit: bool

    @classmethod
    def of(cls, image):
        """Moments of one image."""
        pixels = array_from_image(image)
        pixels = pixels.reshape(len(pixels), -1)  # [C, number of pixels]
        mean = pixels.mean(axis=1, dtype=np.float64)
        return cls(pixels.shape[1], mean, np.square(pixels - mean[:, None]).sum(axis=1), pixels.dtype == np.uint8)

    def __add__(self, other):
        """Of both together, without the loss of digits that sums of squares have (Chan, Golub, LeVeque 1979)."""
        if self.eight_bit != other.eight_bit:
            raise ValueError("--data_path: some pictures have 8-bit pixels, which count from 0 to 1, and some wider "
                             "numbers, which count as they are; save all of them as one type")
        count, apart = self.count + other.count, other.mean - self.mean
        return Moments(count, self.mean + apart * (other.count / count),
                       self.squares + other.squares + apart ** 2 * (self.count * other.count / count), self.eight_bit)

    def normalization(self):
        """(mean, standard deviation) of the values that are normalised, float64 [C] each."""
        largest = 255 if self.eight_bit else 1
        return self.mean / largest, np.sqrt(self.squares / self.count) / largest


def main(args):
    if not args.data_path:
        raise ValueError("--data_path PATH is needed")
    if args.image_backend != "pillow":
        raise ValueError(f"--image_backend {args.image_backend}: nothing is resized here; leave it out")
    images = open_source(args.data_path, args.split, dataset=args.dataset, labelled=False, in_chans=args.in_chans,
                         image_root=args.image_root)
    bad_images = BadImages(args.bad_images, args.split, len(images))

    def look(index):
        try:
            return Moments.of(images.load(index))
        except UnreadableImage as error:
            return error

    whole = None
    with ThreadPoolExecutor(max(1, args.num_workers)) as pool:
        starts = range(0, len(images), AT_ONCE)
        for start in console.track(starts, "pictures", say, bar=sys.stderr.isatty()):
            found = list(pool.map(look, range(start, min(start + AT_ONCE, len(images)))))
            bad_images.add([(one.name, one.reason) for one in found if isinstance(one, UnreadableImage)])
            parts = [one for one in [whole, *found] if isinstance(one, Moments)]
            whole = reduce(Moments.__add__, parts) if parts else None
    mean, std = whole.normalization()
    if not std.all():
        raise ValueError(f"--data_path: channel {np.flatnonzero(std == 0)[0] + 1} has the same value in every pixel, "
                         "by which nothing can be normalised; leave it out of the files")
    say(f"{whole.count:,} pixels of {len(images):,} pictures")
    say(bad_images.listing())
    print("--mean", *(f"{value:.6g}" for value in mean), "--std", *(f"{value:.6g}" for value in std))


def say(line):
    if line:
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    command_line.run(main, get_args_parser())
