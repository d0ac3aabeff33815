"""Time to read packed pictures from a drive, in random order and by --shuffle_buffer.

    python benchmarks/shards.py --folder /path/on/the/drive

Creates tar files of random bytes on the drive to measure, and drops them from the page cache before each
round. A round reads an epoch as one training process does, without decoding, whose time does not depend on
the order. `requests` and `read_mb` count the reads of the drive by all processes (/proc/diskstats).
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import sidebyside
from util.data.sampler import EpochSampler
from util.data.shuffle_buffer import ShuffleBuffer
from util.data.sources import open_source


def make_tars(root: str, *, tars: int, images: int, size: int) -> None:
    """Write `tars` files of `images` members of `size` bytes each, and flush them to the drive."""
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


def forget(paths: Iterable[str]) -> None:
    """Drop files from the page cache."""
    for path in paths:
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def drive_counts(path: str) -> tuple[int, int] | None:
    """Requests and bytes read so far of the drive that holds `path`; None without counters."""
    device = os.stat(path).st_dev
    for line in Path("/proc/diskstats").read_text().splitlines():
        major, minor, _, requests, _, sectors, *_ = line.split()
        if (int(major), int(minor)) == (os.major(device), os.minor(device)):
            return int(requests), 512 * int(sectors)
    return None


def side(name: str, images: Any, batch_size: int, buffer: ShuffleBuffer | None) -> sidebyside.Side:
    """Make a side that reads a new epoch in each round."""
    sampler, epochs = EpochSampler(len(images), batch_size, seed=0, buffer=buffer), iter(range(10**6))

    def round() -> dict[str, float]:
        sampler.set_epoch(next(epochs))
        forget(images.tars)
        before, started = drive_counts(images.tars[0]), time.perf_counter()
        for batch in sampler:
            for _, index in batch:
                images.read(index)
        measured = {"images_per_s": len(sampler) * batch_size / (time.perf_counter() - started)}
        if before is not None:
            now = drive_counts(images.tars[0])
            assert now is not None
            requests, read = now[0] - before[0], now[1] - before[1]
            measured |= {"requests": requests, "read_mb": read / 1e6}
        return measured

    return sidebyside.Side(name, round, sidebyside.versions("numpy"))


def main() -> None:
    """Create the tar files, and measure all orders in turns."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--folder", help="folder for the tar files, on the drive to measure (default: TMPDIR)"
    )
    parser.add_argument("--tars", type=int, default=10)
    parser.add_argument("--images", type=int, default=5000, help="per tar file")
    parser.add_argument("--size", type=int, default=20_000, help="bytes per image")
    parser.add_argument("--shuffle_buffer", type=int, default=5000, help="images")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", default="", help="write the record there")
    args = parser.parse_args()
    os.environ["MAE_INDEX_CACHE"] = "off"
    root = tempfile.mkdtemp(prefix="shards-", dir=args.folder)
    try:
        make_tars(root, tars=args.tars, images=args.images, size=args.size)
        images: Any = open_source(root, "train", labelled=False)
        buffers = [
            ShuffleBuffer(images.shards(), args.shuffle_buffer, announce)
            for announce in (images.announce, lambda indices: None)
        ]
        sides = [
            side("shuffle buffer", images, args.batch_size, buffers[0]),
            side("shuffle buffer, not announced", images, args.batch_size, buffers[1]),
            side("any order", images, args.batch_size, None),
        ]
        results = sidebyside.alternate(sides, rounds=args.rounds, warmup=1)
    finally:
        shutil.rmtree(root)
    settings = {
        name: getattr(args, name) for name in ("tars", "images", "size", "shuffle_buffer", "batch_size")
    }
    sidebyside.report(
        "shards", sides, results, measure="images_per_s", settings=settings, json_path=args.json
    )


if __name__ == "__main__":
    main()
