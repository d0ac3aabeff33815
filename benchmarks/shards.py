"""Reading packed pictures that are not in memory: in any order, and with --shuffle_buffer, announced and not.

    python benchmarks/shards.py --folder /path/on/the/drive

Makes tar files of random bytes on the drive to measure, drops them from memory before each round, and reads an epoch as
one process does for training, without decoding: what decoding costs does not depend on the order. `requests` and
`read_mb` are what the drive was asked for in between, by anybody (/proc/diskstats).
"""
import argparse
import io
import os
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import sidebyside
from util.data.sampler import EpochSampler
from util.data.shuffle_buffer import ShuffleBuffer
from util.data.sources import open_source


def make_tars(root, *, tars, images, size):
    """`tars` files of `images` members of `size` bytes each in the folder `root`, written through to the drive."""
    data = np.random.default_rng(0).bytes(size)
    for number in range(tars):
        with open(Path(root, f"{number:06d}.tar"), "wb") as file:
            with tarfile.open(fileobj=file, mode="w") as tar:
                for place in range(images):
                    member = tarfile.TarInfo(f"{number:06d}/{place:06d}.jpg")
                    member.size = size
                    tar.addfile(member, io.BytesIO(data))
            file.flush()
            os.fsync(file.fileno())


def forget(paths):
    """Drop files from memory."""
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def drive_counts(path):
    """(requests to read, bytes read) so far of the drive that holds `path`, or None where the system does not say."""
    device = os.stat(path).st_dev
    for line in Path("/proc/diskstats").read_text().splitlines():
        major, minor, _, requests, _, sectors, *_ = line.split()
        if (int(major), int(minor)) == (os.major(device), os.minor(device)):
            return int(requests), 512 * int(sectors)
    return None


def side(name, images, batch_size, buffer):
    """A sidebyside.Side that reads an epoch, a new one in each round."""
    sampler, epochs = EpochSampler(len(images), batch_size, seed=0, buffer=buffer), iter(range(10 ** 6))

    def round():
        sampler.set_epoch(next(epochs))
        forget(images.tars)
        before, started = drive_counts(images.tars[0]), time.perf_counter()
        for batch in sampler:
            for _, index in batch:
                images.read(index)
        measured = {"images_per_s": len(sampler) * batch_size / (time.perf_counter() - started)}
        if before is not None:
            requests, read = (after - then for after, then in zip(drive_counts(images.tars[0]), before))
            measured |= {"requests": requests, "read_mb": read / 1e6}
        return measured

    return sidebyside.Side(name, round, sidebyside.versions("numpy"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--folder", help="where to make the tar files, on the drive to measure; not given: TMPDIR")
    parser.add_argument("--tars", type=int, default=10)
    parser.add_argument("--images", type=int, default=5000, help="in each of them")
    parser.add_argument("--size", type=int, default=20_000, help="bytes of an image")
    parser.add_argument("--shuffle_buffer", type=int, default=5000, help="images")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", default="", help="write the record there")
    args = parser.parse_args()
    os.environ["MAE_INDEX_CACHE"] = "off"
    root = tempfile.mkdtemp(prefix="shards-", dir=args.folder)
    try:
        make_tars(root, tars=args.tars, images=args.images, size=args.size)
        images = open_source(root, "train", labelled=False)
        buffers = [ShuffleBuffer(images.shards(), args.shuffle_buffer, announce)
                   for announce in (images.announce, lambda indices: None)]
        sides = [side("shuffle buffer", images, args.batch_size, buffers[0]),
                 side("shuffle buffer, not announced", images, args.batch_size, buffers[1]),
                 side("any order", images, args.batch_size, None)]
        results = sidebyside.alternate(sides, rounds=args.rounds, warmup=1)
    finally:
        shutil.rmtree(root)
    settings = {name: getattr(args, name) for name in ("tars", "images", "size", "shuffle_buffer", "batch_size")}
    sidebyside.report("shards", sides, results, measure="images_per_s", settings=settings, json_path=args.json)


if __name__ == "__main__":
    main()
