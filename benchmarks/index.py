"""How long it takes to list a large folder of images: at the first start, and at the second, with the index cached.

    python benchmarks/index.py --files 1281000 --classes 1000

Makes the tree of hard links in a temporary folder (a minute for a million files) and removes it. Each start is a
process of its own; the files' folders are in the kernel's memory then, which they are not after a reboot.
"""
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

LINKS = 50_000  # to one file; ext4 allows 65,000


def make_tree(root, files, classes):
    """`files` hard links to small files as root/train/<class>/<image>, with names as long as ImageNet's."""
    for number in range(files):
        folder, image = f"{root}/train/n{number % classes:08d}", f"n{number % classes:08d}_{number // classes:05d}.JPEG"
        if number < classes:
            os.makedirs(folder)
        if number % LINKS == 0:
            original = f"{root}/{number}"
            Path(original).write_bytes(b"0")
        os.link(original, f"{folder}/{image}")


def start(root, cache):
    """{"seconds": ...} until the source of images is there, in a process of its own."""
    run = subprocess.run([sys.executable, __file__, "--open", root], capture_output=True, text=True, check=True,
                         env={**os.environ, "MAE_INDEX_CACHE": cache})
    return {"seconds": float(run.stdout.splitlines()[-1])}


def first_start(root, cache):
    shutil.rmtree(cache, ignore_errors=True)
    return start(root, cache)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--files", type=int, default=1_281_000)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--folder", help="where to make the tree, on the file system to measure; default: TMPDIR")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", default="", help="write the record there")
    parser.add_argument("--open", metavar="FOLDER", help=argparse.SUPPRESS)  # what `start` calls
    args = parser.parse_args()
    if args.open:
        started = time.perf_counter()
        open_source(args.open, "train")
        print(time.perf_counter() - started)
        return
    if args.files < file_index.MINIMUM:
        parser.error(f"--files {args.files}: lists of fewer than {file_index.MINIMUM} are not kept")
    root = tempfile.mkdtemp(prefix="index-", dir=args.folder)
    try:
        make_tree(root, args.files, args.classes)
        time.sleep(3)  # folders that were written to a moment ago are not trusted to stay as they are
        emptied, kept = os.path.join(root, "emptied"), os.path.join(root, "kept")
        about = sidebyside.versions("paddlepaddle", "paddlepaddle-gpu", "numpy")
        sides = [sidebyside.Side("second start", lambda: start(root, kept), about),
                 sidebyside.Side("first start", lambda: first_start(root, emptied), about)]
        results = sidebyside.alternate(sides, rounds=args.rounds, warmup=1)  # the warm-up fills `kept`
        print(f"the index takes {sum(path.stat().st_size for path in Path(kept).iterdir()) / 1e6:.1f} MB")
    finally:
        shutil.rmtree(root)
    sidebyside.report("index", sides, results, measure="seconds",
                      settings={"files": args.files, "classes": args.classes}, json_path=args.json)


if __name__ == "__main__":
    main()
