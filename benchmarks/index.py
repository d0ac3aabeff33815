"""Time to list a large folder of images at the first start, and at the second with the cached index.

    python benchmarks/index.py --files 1281000 --classes 1000

Creates the tree of hard links in a temporary folder (a minute for a million files) and removes it. Each start
is a process of its own. The folders are in the kernel's cache, which they would not be after a reboot.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import sidebyside
from util.data import file_index
from util.data.sources import open_source

LINKS = 50_000  # to one file, of which ext4 allows 65,000


def make_tree(root: str, files: int, classes: int) -> None:
    """Create hard links to small files as root/train/<class>/<image>, with names as long as ImageNet's."""
    for number in range(files):
        folder, image = (
            f"{root}/train/n{number % classes:08d}",
            f"n{number % classes:08d}_{number // classes:05d}.JPEG",
        )
        if number < classes:
            os.makedirs(folder)
        if number % LINKS == 0:
            original = f"{root}/{number}"
            Path(original).write_bytes(b"0")
        os.link(original, f"{folder}/{image}")


def start(root: str, cache: str) -> dict[str, float]:
    """Measure the opening of the source of images in a process of its own: {"seconds": ...}."""
    run = subprocess.run(
        [sys.executable, __file__, "--open", root],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MAE_INDEX_CACHE": cache},
    )
    return {"seconds": float(run.stdout.splitlines()[-1])}


def first_start(root: str, cache: str) -> dict[str, float]:
    """Measure `start` without a cached index."""
    shutil.rmtree(cache, ignore_errors=True)
    return start(root, cache)


def main() -> None:
    """Create the tree, and measure both starts in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--files", type=int, default=1_281_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument(
        "--folder", help="folder for the tree, on the file system to measure (default: TMPDIR)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", default="", help="write the record there")
    parser.add_argument("--open", metavar="FOLDER", help=argparse.SUPPRESS)  # used by `start`
    args = parser.parse_args()
    if args.open:
        started = time.perf_counter()
        open_source(args.open, "train")
        print(time.perf_counter() - started)
        return
    if args.files < file_index.MINIMUM:
        parser.error(
            f"--files {args.files}: must be at least {file_index.MINIMUM}; smaller lists are not cached"
        )
    root = tempfile.mkdtemp(prefix="index-", dir=args.folder)
    try:
        make_tree(root, args.files, args.classes)
        time.sleep(3)  # the index is not cached for folders that changed a moment ago
        emptied, kept = os.path.join(root, "emptied"), os.path.join(root, "kept")
        about = sidebyside.versions("paddlepaddle", "paddlepaddle-gpu", "numpy")
        sides = [
            sidebyside.Side("second start", lambda: start(root, kept), about),
            sidebyside.Side("first start", lambda: first_start(root, emptied), about),
        ]
        results = sidebyside.alternate(sides, rounds=args.rounds, warmup=1)  # the warm-up fills `kept`
        print(f"the index takes {sum(path.stat().st_size for path in Path(kept).iterdir()) / 1e6:.1f} MB")
    finally:
        shutil.rmtree(root)
    sidebyside.report(
        "index",
        sides,
        results,
        measure="seconds",
        settings={"files": args.files, "classes": args.classes},
        json_path=args.json,
    )


if __name__ == "__main__":
    main()
