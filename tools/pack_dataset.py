"""Pack the images of a data set into tar files of small JPEGs, which train several times as fast to read.

    python tools/pack_dataset.py my_data packed --short_side 256
    python main_pretrain.py --data_path packed

my_data holds train and val (see the README), or is one folder of images. Each becomes packed/<split>/000000.tar,
000001.tar, ... with the same names in the same order, so that classes, labels and the draws of a seed stay the same.
Images of lists (with --image_root as in training) become <class>/<name>, and manifest.json keeps the labels of the
classes. With --shuffle images go into the tar files in random order, for --shuffle_buffer in training: neighbours are
not of one class then. Those of folders keep their numbers and draws all the same; those of lists get the new order.
An image is turned upright, made RGB as a viewer shows it, and brought to a shorter side of --short_side by the bicubic
filter and the rounding of evaluation; it is then a JPEG, whatever its name ends in. A JPEG that is small enough keeps
its bytes. 256 is what evaluation at 224 pixels looks at; 320 leaves more to random crops. Chroma is halved in both
directions (4:2:0), as most cameras do. --short_side 0 packs each file as it is, also one of other channels than RGB.

Stop it at any time: the same command goes on behind the last finished tar file.
"""
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
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from PIL import Image
from tqdm import tqdm

from util.data.bad_images import ACTIONS
from util.data.file_index import Paths
from util.data.folder_source import ListSource
from util.data.layout import IMAGE_SUFFIXES
from util.data.sources import has_split, open_source
from util.images import decode
from util.system import console
from util.system.atomic_file import atomic_write
from util.system.keyed_random import EPOCH_ORDER, keyed_generator

VERSION = 1             # of manifest.json
SPLITS = ("train", "val")
IMAGES_A_TASK = 4       # that a worker packs before it answers
TASKS_AHEAD = 3         # a worker; what bounds the memory
JPEG_SIDE = 65500       # pixels, the most that libjpeg writes
SAMPLE = 32             # images that tell how much space all will need


def get_args_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False,
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("src", metavar="SRC", help="a --data_path of the training scripts: folders, tar files or lists")
    parser.add_argument("dst", metavar="DST", help="the new --data_path")
    parser.add_argument("--short_side", type=int, required=True,
                        help="most pixels of the shorter side of an image; 0 packs the files as they are")
    parser.add_argument("--in_chans", type=int, default=3,
                        help="channels that the files must have; other than 3 only with --short_side 0: JPEGs are RGB")
    parser.add_argument("--image_root", default="", metavar="FOLDER",
                        help="where the names in lists start (default: in the list's folder)")
    parser.add_argument("--shuffle", type=int, default=None, metavar="SEED",
                        help="put the images into the tar files in the order that this seed draws")
    parser.add_argument("--split", nargs="+", metavar="NAME",
                        help="splits to pack; by default train and val, or SRC itself if it holds neither")
    parser.add_argument("--quality", type=int, default=90, help="of the JPEGs, 1 to 95")
    parser.add_argument("--shard_size", type=int, default=400, metavar="MB", help="size of a tar file")
    parser.add_argument("--bad_images", choices=list(ACTIONS), default="error",
                        type=lambda word: {"stop": "error"}.get(word, word),  # its first name
                        help="what to do about unreadable images: stop, or leave them out and list them at the end")
    parser.add_argument("--workers", type=int, default=_cores(), help="processes")
    return parser


def main(args):
    if not os.path.exists(args.src):
        raise ValueError(f"SRC: {args.src} does not exist")
    for name, value, least, most in (("short_side", args.short_side, 0, JPEG_SIDE), ("quality", args.quality, 1, 95),
                                     ("shard_size", args.shard_size, 1, 10 ** 7), ("workers", args.workers, 1, 1000)):
        if not least <= value <= most:
            raise ValueError(f"--{name} {value}: must be from {least} to {most}")
    if args.short_side and args.in_chans != 3:
        raise ValueError(f"--in_chans {args.in_chans}: JPEGs are made of RGB; pass --short_side 0, which packs the "
                         "files as they are")
    if args.shuffle is not None and args.shuffle < 0:
        raise ValueError(f"--shuffle {args.shuffle}: expected a seed, 0 or more")
    splits = args.split or [split for split in SPLITS if has_split(args.src, split)]
    for split in splits:
        if not has_split(args.src, split):
            raise ValueError(f"--split {split}: {args.src} holds no {split}, {split}.tar, {split}.tar.gz or list of it")
    others = sorted(path.name for path in (Path(args.src).iterdir() if splits else [])
                    if not path.name.startswith(".") and path.name.split(".")[0] not in splits)
    if others:
        print(f"only {' and '.join(splits)} are packed, not {', '.join(others[:10])}: see --split")
    with _alone(args.dst):
        for split in splits or [""]:
            images = open_source(args.src, split or SPLITS[0], labelled=False, in_chans=args.in_chans,
                                 image_root=args.image_root)
            names, classes = images.paths, None
            if isinstance(images, ListSource):
                classes = images.list.classes
                if classes and split:  # those of both lists, if they are numbers
                    classes = open_source(args.src, split, image_root=args.image_root).classes
                names = Paths(member_names(images.list, classes))
            pack(images, Path(args.dst, split), names=names, classes=classes, short_side=args.short_side,
                 quality=args.quality, shard_size=args.shard_size, bad_images=args.bad_images, workers=args.workers,
                 shuffle=args.shuffle)


def pack(images, folder, *, names, classes, short_side, quality, shard_size, bad_images, workers, shuffle=None):
    """Pack a source of images (util.data.sources) into tar files and manifest.json in `folder`; go on where it was left.

    Args:
        names: file_index.Paths of the members.
        classes: for images of a list, the names of its classes in the order of their labels, or None for those without.
        shuffle: seed of the order in which they go into the tar files; None: theirs.
        shard_size: bytes / 10^6 after which a tar file ends.
        bad_images: "error" raises ValueError at the first unreadable image, "skip" leaves them out.
    """
    options = {"short_side": short_side, "quality": quality, "shard_size": shard_size, "shuffle": shuffle}
    listed = {"classes": classes or []} if isinstance(images, ListSource) else {}
    manifest = _begin(folder, names, options, listed)
    if manifest["done"] < len(images):
        order = (range(len(images)) if shuffle is None else
                 keyed_generator(shuffle, EPOCH_ORDER, 0, 1).permutation(len(images)).tolist())
        todo = order[manifest["done"]:]
        with (_Workers(images, options, workers) as shrunk,
              _Progress(folder, len(images), manifest["done"]) as progress):
            _check_space(folder, images, todo, options)
            results = shrunk(todo)
            while manifest["done"] < len(images):
                _write_shard(folder, names, results, manifest, shard_size * 10 ** 6, bad_images, progress)
    packed = sum(shard["images"] for shard in manifest["shards"])
    print(f"{folder}: {packed:,} images in {len(manifest['shards'])} tar files, "
          f"{sum(shard['bytes'] for shard in manifest['shards']) / 1e6:,.1f} MB")
    if manifest["left_out"]:
        print(f"left out, because they cannot be read ({len(manifest['left_out'])}):")
        print("\n".join(f"  {image['name']}: {image['error']}" for image in manifest["left_out"]))
        if not listed:
            _check_classes(names, manifest["left_out"])


def member_names(listed, classes):
    """What the images of a list (util.data.image_lists.ImageList) are called in tar files: <class>/<name>, or <name>.

    All of them differ, lie below the top, are not hidden and end as a picture's file does. ValueError for a class that
    cannot be a folder.
    """
    wrong = next((name for name in classes or () if "/" in name or name.startswith(".")), None)
    if wrong is not None:
        raise ValueError(f"SRC: the class {wrong} cannot be the name of a folder; call it otherwise in the lists")
    names, used = [], set()
    for place, name in enumerate(listed.names):
        parts = [part.lstrip(".") for part in name.split("/")]
        if classes:
            parts.insert(0, classes[listed.labels[place]])
        stem, suffix = os.path.splitext("/".join(part for part in parts if part))
        if suffix.lower() not in IMAGE_SUFFIXES:
            stem, suffix = stem + suffix, ".jpg"
        unique = next(unique for number in itertools.count(1)
                      if (unique := f"{stem}{f'~{number}' if number > 1 else ''}{suffix}") not in used)
        used.add(unique)
        names.append(unique)
    return names


def shrink(data, name, *, short_side, quality, in_chans=3):
    """The bytes to pack for the bytes of an image file, see the top of this file; ValueError if it is unreadable."""
    picture = decode.EncodedImage(data, in_chans=in_chans, name=name)
    short = min(picture.size)
    if short_side == 0 or (short <= short_side and data.startswith(b"\xff\xd8\xff")):
        picture.decode()  # an error now, not in training
        return data
    if picture.is_multiband:
        raise decode.UnreadableImage(name, "a JPEG does not hold its numbers, which --short_side 0 packs as they are")
    if short > short_side:
        size = tuple(side * short_side // short for side in picture.size)
        # Large pictures are reduced in two steps, which is faster and not to be seen: first by averages of whole
        # pixels, in the decoder to no less than twice the size, then here to no less than three times.
        image, _ = picture.decode_reduced([2 * side for side in size])
        image = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3.0)
    else:
        image = picture.decode()
    if max(image.size) > JPEG_SIDE:
        raise decode.UnreadableImage(name, f"its {image.width} x {image.height} pixels do not fit into a JPEG")
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)
    return file.getvalue()


def _begin(folder, names, options, listed):
    """The manifest of `folder`, new or of an earlier run with the same images and options whose tar files are there."""
    wanted = {"version": VERSION, **options, **listed, "images": len(names),
              "names_sha256": hashlib.sha256(names.data).hexdigest()}
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
        manifest.setdefault("shuffle", None)  # of before there was this option
        different = [name for name in wanted if manifest[name] != wanted[name]]
        for name in options.keys() & set(different):
            raise ValueError(f"DST: {folder} was packed with --{name} {manifest[name]}, not {wanted[name]}. "
                             "Name another DST, remove it, or repeat the option.")
        if different:
            raise ValueError(f"DST: {folder} was packed from {manifest['images']} images; SRC now holds "
                             f"{len(names)}, or others by name or class. Name another DST, or remove it.")
        for shard in manifest["shards"]:
            path = folder / shard["file"]
            if not path.is_file() or path.stat().st_size != shard["bytes"]:
                raise ValueError(f"DST: {path} is missing or has another size than the {shard['bytes']} bytes that "
                                 f"were written. Remove {folder} and pack again.")
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"DST: {file} is not one of this tool ({error!r}); name a new folder") from error
    return manifest


def _write_shard(folder, names, results, manifest, size, bad_images, progress):
    """Fill the next tar file from `results`, (index, bytes, error) in order, and note it in the manifest."""
    name = f"{len(manifest['shards']):06d}.tar"
    packed, left_out = 0, []
    with atomic_write(folder / name) as file:
        # Of the formats that all programs read, this one takes names of any length and of any bytes.
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8") as tar:
            for index, data, error in results:
                if error is None:
                    member = tarfile.TarInfo(names[index])  # its time, owner and mode are constants
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
    """Processes that shrink images: called with indices, yields (index, bytes, error) in their order."""

    def __init__(self, images, options, workers):
        self.ahead = workers * TASKS_AHEAD
        self.pool = concurrent.futures.ProcessPoolExecutor(workers, initializer=_begin_worker,
                                                           initargs=(images, options))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.pool.shutdown(cancel_futures=True)

    def __call__(self, indices):
        tasks = (indices[start:start + IMAGES_A_TASK] for start in range(0, len(indices), IMAGES_A_TASK))
        running = collections.deque()
        try:
            for task in tasks:
                running.append(self.pool.submit(_shrink_some, task))
                if len(running) > self.ahead:
                    yield from running.popleft().result()
            while running:
                yield from running.popleft().result()
        except concurrent.futures.process.BrokenProcessPool as error:
            raise ValueError("a worker process was killed, for lack of memory maybe. The same command goes on; "
                             "give it fewer --workers.") from error


def _begin_worker(images, options):
    global _images, _options
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _images, _options = images, options


def _end_with_parent():
    """Ends this worker if the first process is killed, or it would wait for work forever."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _shrink_some(indices):
    found = []
    for index in indices:
        try:
            data = shrink(_images.read(index), _images.name(index), short_side=_options["short_side"],
                          quality=_options["quality"], in_chans=_images.in_chans)
            found.append((index, data, None))
        except decode.UnreadableImage as error:
            found.append((index, None, str(error)))
    return found


class _Progress:
    """A bar on a terminal, else a line for each finished tar file."""

    def __init__(self, folder, total, start):
        self.folder, self.total, self.start, self.done, self.began = folder, total, start, start, time.monotonic()
        print(f"{folder}: {start:,} of {total:,} images are packed already" if start else
              f"{folder}: {total:,} images to pack", flush=True)
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
            print(f"{self.folder}/{name}: {self.done:,} of {self.total:,} images, {rate:.0f} images/s", flush=True)


def _check_space(folder, images, todo, options):
    """ValueError if a sample of the images `todo` says that the disk is too small for all of them."""
    sizes = []
    for index in todo[::-(-len(todo) // SAMPLE)]:
        with contextlib.suppress(decode.UnreadableImage):  # it is told about when its turn comes
            data = shrink(images.read(index), "", short_side=options["short_side"], quality=options["quality"],
                          in_chans=images.in_chans)
            sizes.append(len(data) + 1024)  # its header, and filling up to a multiple of 512
    needed = len(todo) * sum(sizes) / max(1, len(sizes))
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(f"DST: {folder} has {free / 1e9:.1f} GB free, and about {needed / 1e9:.1f} GB are needed")


def _check_classes(names, left_out):
    """ValueError if leaving out images emptied a class: later classes would get other numbers."""
    have = collections.Counter(path.split("/")[0] for path in names)
    for name, lost in collections.Counter(image["name"].split("/")[0] for image in left_out).items():
        if lost == have[name]:
            raise ValueError(f"no image of the class {name} can be read, and without it the classes behind it would "
                             "have other numbers. Repair its images, or take it out of train and val of SRC.")


@contextlib.contextmanager
def _alone(folder):
    """ValueError if another process packs into `folder`."""
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
        sys.exit("pack_dataset.py: interrupted; the same command goes on")
    except ValueError as error:
        sys.exit(f"pack_dataset.py: error: {error}")
