"""Pack the images of a data set into tar files of small JPEGs, which training reads several times as fast.

    python tools/pack_dataset.py my_data packed --short_side 256
    python main_pretrain.py --data_path packed

my_data holds train and val (docs/en/data.md), or is one folder of images. Each split becomes
packed/<split>/000000.tar, 000001.tar, ... with the same names in the same order, so that classes, labels and
the draws of a seed stay the same. Images of lists become <class>/<name>, and manifest.json keeps their
labels; pass --image_root as in training.

With --shuffle, images go into the tar files in random order, for --shuffle_buffer in training: then
neighbours have different classes. Images of folders keep their numbers and draws; images of lists get the new
order.

Every image is turned upright, converted to RGB, and reduced to a shorter side of --short_side by the bicubic
filter and the rounding of evaluation. It is stored as a JPEG with 4:2:0 chroma, as most cameras do, whatever
its suffix. A JPEG that is small enough keeps its bytes. Evaluation at 224 pixels needs 256; 320 leaves more
for random crops. --short_side 0 packs each file as it is, also images with other channels than RGB.

Packing may be interrupted at any time. The same command continues behind the last finished tar file.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import fcntl
import hashlib
import io
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from PIL import Image
from tqdm import tqdm

from util.data.bad_images import ACTIONS
from util.data.file_index import Paths
from util.data.folder_source import FolderSource, ListSource
from util.data.image_lists import ImageList
from util.data.layout import IMAGE_SUFFIXES
from util.data.sources import has_split, open_source
from util.data.tar_source import TarSource
from util.images import decode
from util.system import console
from util.system.atomic_file import atomic_write
from util.system.keyed_random import EPOCH_ORDER, keyed_generator

VERSION = 1  # of manifest.json
SPLITS = ("train", "val")
IMAGES_PER_TASK = 4  # of a worker
TASKS_AHEAD = 3  # per worker; bounds the memory
MAX_JPEG_SIDE = 65500  # pixels, the limit of libjpeg
SAMPLE = 32  # images from which the needed space is estimated


@dataclass(frozen=True)
class Options:
    """Options that decide the contents of the tar files.

    Args:
        short_side: largest shorter side of an image in pixels; 0 packs the files as they are.
        quality: of the JPEGs.
        shard_size: MB after which a tar file ends.
        shuffle: seed of the order of the images; None keeps the order of the source.
    """

    short_side: int
    quality: int
    shard_size: int
    shuffle: int | None = None


def get_args_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "src", metavar="SRC", help="a --data_path of the training scripts: folders, tar files or lists"
    )
    parser.add_argument("dst", metavar="DST", help="the new --data_path")
    parser.add_argument(
        "--short_side",
        type=int,
        required=True,
        help="largest shorter side of an image in pixels; 0 packs the files as they are",
    )
    parser.add_argument(
        "--in_chans",
        type=int,
        default=3,
        help="channels that the files must have; other than 3 only with --short_side 0: JPEGs are RGB",
    )
    parser.add_argument(
        "--image_root",
        default="",
        metavar="FOLDER",
        help="where the names in lists start (default: in the list's folder)",
    )
    parser.add_argument(
        "--shuffle",
        type=int,
        default=None,
        metavar="SEED",
        help="put the images into the tar files in the order that this seed draws",
    )
    parser.add_argument(
        "--split",
        nargs="+",
        metavar="NAME",
        help="splits to pack; by default train and val, or SRC itself if it holds neither",
    )
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs, 1 to 95")
    parser.add_argument("--shard_size", type=int, default=400, metavar="MB", help="size of a tar file")
    parser.add_argument(
        "--bad_images",
        choices=list(ACTIONS),
        default="error",
        type=lambda word: {"stop": "error"}.get(word, word),  # its first name
        help="unreadable images: stop, or leave them out and list them at the end",
    )
    parser.add_argument("--workers", type=int, default=_cores(), help="processes")
    return parser


def main(args: argparse.Namespace) -> None:
    """Pack every split that the options name."""
    check_options(args)
    splits = find_splits(args.src, args.split)
    options = Options(args.short_side, args.quality, args.shard_size, args.shuffle)
    with _alone(args.dst):
        for split in splits or [""]:
            source = open_source(
                args.src,
                split or SPLITS[0],
                labelled=False,
                in_chans=args.in_chans,
                image_root=args.image_root,
            )
            assert isinstance(source, (FolderSource, TarSource))
            names, classes = source.paths, None
            if isinstance(source, ListSource):
                classes = source.list.classes
                if classes and split:  # numbered classes are those of both lists
                    classes = open_source(args.src, split, image_root=args.image_root).classes
                names = Paths(member_names(source.list, classes))
            pack(
                source,
                Path(args.dst, split),
                names=names,
                classes=classes,
                options=options,
                bad_images=args.bad_images,
                workers=args.workers,
            )


def check_options(args: argparse.Namespace) -> None:
    """Raise ValueError for options that are out of range or do not fit each other."""
    if not os.path.exists(args.src):
        raise ValueError(f"SRC: {args.src} does not exist")
    for name, value, low, high in (
        ("short_side", args.short_side, 0, MAX_JPEG_SIDE),
        ("quality", args.quality, 1, 95),
        ("shard_size", args.shard_size, 1, 10**7),
        ("workers", args.workers, 1, 1000),
    ):
        if not low <= value <= high:
            raise ValueError(f"--{name} {value}: must be from {low} to {high}")
    if args.short_side and args.in_chans != 3:
        raise ValueError(
            f"--in_chans {args.in_chans}: JPEGs are made of RGB; pass --short_side 0, which "
            "packs the files as they are"
        )
    if args.shuffle is not None and args.shuffle < 0:
        raise ValueError(f"--shuffle {args.shuffle}: expected a seed, 0 or more")


def find_splits(src: str, wanted: Sequence[str] | None) -> Sequence[str]:
    """Return the splits to pack, [] for `src` itself, and print what is not packed.

    Raises ValueError for a wanted split that `src` does not hold.
    """
    splits = wanted or [split for split in SPLITS if has_split(src, split)]
    for split in splits:
        if not has_split(src, split):
            raise ValueError(
                f"--split {split}: {src} holds no {split}, {split}.tar, {split}.tar.gz or list of it"
            )
    others = sorted(
        path.name
        for path in (Path(src).iterdir() if splits else [])
        if not path.name.startswith(".") and path.name.split(".")[0] not in splits
    )
    if others:
        print(f"only {' and '.join(splits)} are packed, not {', '.join(others[:10])}: see --split")
    return splits


def pack(
    source: FolderSource | TarSource,
    folder: Path,
    *,
    names: Paths,
    classes: list[str] | None,
    options: Options,
    bad_images: str,
    workers: int,
) -> None:
    """Pack a source into tar files and manifest.json in `folder`, or continue where an earlier run stopped.

    Args:
        source: the images.
        folder: of the split.
        names: of the members of the tar files.
        classes: for images of a list, the names of its classes in the order of their labels, or None.
        options: decide the contents of the tar files.
        bad_images: "error" raises ValueError at the first unreadable image, "skip" leaves them out.
        workers: number of processes.
    """
    is_list = isinstance(source, ListSource)
    manifest = _open_manifest(folder, names, options, {"classes": classes or []} if is_list else {})
    if manifest["done"] < len(source):
        order = (
            range(len(source))
            if options.shuffle is None
            else keyed_generator(options.shuffle, EPOCH_ORDER, 0, 1).permutation(len(source)).tolist()
        )
        todo = order[manifest["done"] :]
        with (
            _Workers(source, options, workers) as shrunk,
            _Progress(folder, len(source), manifest["done"]) as progress,
        ):
            _check_space(folder, source, todo, options)
            results = shrunk(todo)
            while manifest["done"] < len(source):
                _write_shard(
                    folder, names, results, manifest, options.shard_size * 10**6, bad_images, progress
                )
    packed = sum(shard["images"] for shard in manifest["shards"])
    print(
        f"{folder}: {packed:,} images in {len(manifest['shards'])} tar files, "
        f"{sum(shard['bytes'] for shard in manifest['shards']) / 1e6:,.1f} MB"
    )
    if manifest["left_out"]:
        print(f"left out, because they cannot be read ({len(manifest['left_out'])}):")
        print("\n".join(f"  {image['name']}: {image['error']}" for image in manifest["left_out"]))
        if not is_list:
            _check_classes(names, manifest["left_out"])


def member_names(image_list: ImageList, classes: list[str] | None) -> list[str]:
    """Return the names of the images of a list in tar files: <class>/<name>, or <name>.

    They are unique, relative, not hidden and have an image suffix. Raises ValueError for a class that cannot
    be the name of a folder.
    """
    wrong = next((name for name in classes or () if "/" in name or name.startswith(".")), None)
    if wrong is not None:
        raise ValueError(f"SRC: the class {wrong} cannot be the name of a folder; rename it in the lists")
    names: list[str] = []
    used: set[str] = set()
    for place, name in enumerate(image_list.names):
        parts = [part.lstrip(".") for part in name.split("/")]
        if classes and image_list.labels is not None:
            parts.insert(0, classes[image_list.labels[place]])
        stem, suffix = os.path.splitext("/".join(part for part in parts if part))
        if suffix.lower() not in IMAGE_SUFFIXES:
            stem, suffix = stem + suffix, ".jpg"
        unique = next(
            unique
            for number in itertools.count(1)
            if (unique := f"{stem}{f'~{number}' if number > 1 else ''}{suffix}") not in used
        )
        used.add(unique)
        names.append(unique)
    return names


def shrink(data: bytes, name: str, *, short_side: int, quality: int, in_chans: int = 3) -> bytes:
    """Return the bytes to pack for the bytes of an image file. Raises UnreadableImage."""
    picture = decode.EncodedImage(data, in_chans=in_chans, name=name)
    short = min(picture.size)
    if short_side == 0 or (short <= short_side and data.startswith(b"\xff\xd8\xff")):
        picture.decode()  # so that an unreadable file is an error now, not in training
        return data
    if picture.is_multiband:
        raise decode.UnreadableImage(
            name, "a JPEG cannot hold its values; --short_side 0 packs them as they are"
        )
    if short > short_side:
        size = picture.width * short_side // short, picture.height * short_side // short
        # Averages of whole pixels reduce large images first, which is faster without a visible difference: in
        # the decoder to twice the size or more, then here to three times or more.
        image, _ = picture.decode_reduced((2 * size[0], 2 * size[1]))
        assert isinstance(image, Image.Image)
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    else:
        image = picture.decode()
    assert isinstance(image, Image.Image)  # not multi-band, as checked above
    if max(image.size) > MAX_JPEG_SIDE:
        raise decode.UnreadableImage(
            name, f"its {image.width} x {image.height} pixels do not fit into a JPEG"
        )
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)
    return file.getvalue()


def _open_manifest(folder: Path, names: Paths, options: Options, listed: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of `folder`, a new one or that of an earlier run.

    Raises ValueError if the earlier run had other images or options, or if one of its tar files is missing.
    """
    wanted = {
        "version": VERSION,
        **asdict(options),
        **listed,
        "images": len(names),
        "names_sha256": hashlib.sha256(names.data).hexdigest(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for part in folder.glob(".*.part"):  # of a run that was killed
        part.unlink()
    file = folder / "manifest.json"
    if not file.exists():
        others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if others:
            raise ValueError(f"DST: {folder} holds other files ({', '.join(others[:3])}); name a new folder")
        manifest = {**wanted, "done": 0, "shards": [], "left_out": []}
        _write_manifest(folder, manifest)
        return manifest
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        manifest.setdefault("shuffle", None)  # older versions had no such option
        different = [name for name in wanted if manifest[name] != wanted[name]]
        for name in asdict(options).keys() & set(different):
            raise ValueError(
                f"DST: {folder} was packed with --{name} {manifest[name]}, not {wanted[name]}. "
                "Name another DST, remove it, or repeat the option."
            )
        if different:
            raise ValueError(
                f"DST: {folder} was packed from {manifest['images']} images; SRC now holds "
                f"{len(names)}, or others by name or class. Name another DST, or remove it."
            )
        for shard in manifest["shards"]:
            path = folder / shard["file"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise ValueError(
                    f"DST: {path} is missing or has another size than the {shard['bytes']} "
                    f"bytes that were written. Remove {folder} and pack again."
                )
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"DST: {file} is not one of this tool ({error!r}); name a new folder") from error
    return manifest


def _write_shard(
    folder: Path,
    names: Paths,
    results: Iterator[tuple[int, bytes, str | None]],
    manifest: dict[str, Any],
    size: int,
    bad_images: str,
    progress: _Progress,
) -> None:
    """Write the next tar file from `results`, (index, bytes, error) in order, and note it in the manifest."""
    name = f"{len(manifest['shards']):06d}.tar"
    packed, left_out = 0, []
    with atomic_write(folder / name) as file:
        # This widely supported format allows names of any length and any bytes.
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8") as tar:
            for index, data, error in results:
                if error is None:
                    member = tarfile.TarInfo(names[index])  # with a constant time, owner and mode
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
                    packed += 1
                elif bad_images == "error":
                    raise ValueError(f"{error} Or leave out such images: --bad_images skip.")
                else:
                    left_out.append({"name": names[index], "error": error})
                progress.update()
                if file.tell() >= size:
                    break
    manifest["done"] += packed + len(left_out)
    manifest["shards"].append({"file": name, "images": packed, "bytes": (folder / name).stat().st_size})
    manifest["left_out"] += left_out
    _write_manifest(folder, manifest)
    progress.finished(name)


def _write_manifest(folder, manifest):
    with atomic_write(folder / "manifest.json", "w") as f:
        json.dump(manifest, f, indent=1)


class _Workers:
    """Worker processes: called with indices, they yield (index, bytes, error) in the same order."""

    def __init__(self, source, options, workers):
        self.ahead = workers * TASKS_AHEAD
        self.pool = concurrent.futures.ProcessPoolExecutor(
            workers, initializer=_begin_worker, initargs=(source, options)
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.pool.shutdown(cancel_futures=True)

    def __call__(self, indices):
        tasks = (
            indices[start : start + IMAGES_PER_TASK] for start in range(0, len(indices), IMAGES_PER_TASK)
        )
        running: collections.deque[concurrent.futures.Future] = collections.deque()
        try:
            for task in tasks:
                running.append(self.pool.submit(_shrink_some, task))
                if len(running) > self.ahead:
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise ValueError(
                "a worker process was killed, maybe for lack of memory; repeat the command with "
                "fewer --workers, it continues"
            ) from error


_source: FolderSource | TarSource  # of a worker
_options: Options


def _begin_worker(source, options):
    global _source, _options
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _source, _options = source, options


def _end_with_parent():
    """End this worker when the first process is killed. It would wait for work forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)


def _shrink_some(indices):
    found: list[tuple[int, bytes | None, str | None]] = []
    for index in indices:
        try:
            data = shrink(
                _source.read(index),
                _source.name(index),
                short_side=_options.short_side,
                quality=_options.quality,
                in_chans=_source.in_chans,
            )
            found.append((index, data, None))
        except decode.UnreadableImage as error:
            found.append((index, None, str(error)))
    return found


class _Progress:
    """Progress of the packing: a bar on a terminal, else a line for each finished tar file."""

    def __init__(self, folder, total, start):
        self.folder, self.total, self.start, self.done = folder, total, start, start
        self.began = time.monotonic()
        print(
            f"{folder}: {start:,} of {total:,} images are packed already"
            if start
            else f"{folder}: {total:,} images to pack",
            flush=True,
        )
        self.bar = tqdm(total=total, initial=start, unit=" images") if console.shows_bars() else None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()

    def update(self):
        self.done += 1
        if self.bar is not None:
            self.bar.update()

    def finished(self, name):
        if self.bar is None:
            rate = (self.done - self.start) / (time.monotonic() - self.began)
            print(
                f"{self.folder}/{name}: {self.done:,} of {self.total:,} images, {rate:.0f} images/s",
                flush=True,
            )


def _check_space(folder, source, todo, options):
    """Raise ValueError if the disk is too small, by a sample of the images `todo`."""
    sizes = []
    for index in todo[:: -(-len(todo) // SAMPLE)]:
        with contextlib.suppress(decode.UnreadableImage):  # reported when its turn comes
            data = shrink(
                source.read(index),
                "",
                short_side=options.short_side,
                quality=options.quality,
                in_chans=source.in_chans,
            )
            sizes.append(len(data) + 1024)  # with its header, padded to a multiple of 512
    needed = len(todo) * sum(sizes) / max(1, len(sizes))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"DST: {folder} has {free / 1e9:.1f} GB free, and about {needed / 1e9:.1f} GB are needed"
        )


def _check_classes(names, left_out):
    """Raise ValueError if a class has lost all images, because later classes would get other numbers."""
    have = collections.Counter(path.split("/")[0] for path in names)
    for name, lost in collections.Counter(image["name"].split("/")[0] for image in left_out).items():
        if lost == have[name]:
            raise ValueError(
                f"SRC: no image of the class {name} can be read, and without it later classes "
                "would have other numbers; repair its images, or take it out of train and val"
            )


@contextlib.contextmanager
def _alone(folder):
    """Lock `folder`. Raises ValueError if another process packs into it."""
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, ".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"DST: another process packs into {folder}") from error
        yield


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


if __name__ == "__main__":
    try:
        main(get_args_parser().parse_args())
    except KeyboardInterrupt:
        sys.exit("pack_dataset.py: interrupted; the same command continues")
    except ValueError as error:
        sys.exit(f"pack_dataset.py: error: {error}")
