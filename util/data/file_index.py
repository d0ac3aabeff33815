"""The list of image paths below a folder, or in tar files, kept from one start to the next.

Listing the 1.28 million files of ImageNet takes seconds on a local disk and many minutes on a network drive. A list of
`MINIMUM` paths or more is therefore kept in ${XDG_CACHE_HOME:-~/.cache}/mae-paddle, and used again for as long as
every folder and tar file that it was made from has the inode, the modification time and the change time it had then:
adding, removing or renaming a file changes the times of its folder. MAE_INDEX_CACHE=FOLDER keeps the lists elsewhere,
MAE_INDEX_CACHE=off lists anew at every start, which is for the rare file systems that do not keep a folder's times.
The cache is never needed: it may be deleted at any time, and a damaged or unwritable one is as good as none.
"""
import hashlib
import json
import os
import time

import numpy as np
from tqdm import tqdm

from util.system import console, npz
from util.system.atomic_file import atomic_write

VERSION = 1         # of the files in the cache
MINIMUM = 20_000    # paths; fewer are listed in a moment
# What changed less than this before it was looked at may change again without a change of its times: FAT counts in
# steps of 2 seconds.
SETTLED_NS = 2 * 10 ** 9
SECONDS_BETWEEN_LINES = 10


class Paths:
    """A list of str in one piece of memory: reference counts make forked workers copy a million strings, not this."""

    def __init__(self, paths=()):
        # No path can hold a zero byte.
        self._keep(np.frombuffer(os.fsencode("".join(path + "\0" for path in paths)), np.uint8))

    @classmethod
    def of_bytes(cls, data):
        """From the `data` of another: uint8, each path followed by a zero byte."""
        paths = cls()
        paths._keep(data)
        return paths

    def _keep(self, data):
        self.data, self.ends = data, np.flatnonzero(data == 0)

    def __len__(self):
        return len(self.ends)

    def __getitem__(self, index):
        index = range(len(self))[index]
        start = self.ends[index - 1] + 1 if index else 0
        return os.fsdecode(self.data[start:self.ends[index]].tobytes())


class Watched:
    """Notes the state of what a list is made from. Each thing must be noted before it is read."""

    def __init__(self):
        self.since = time.time_ns()
        self.files, self.stamps, self.no_folders = [], [], []

    def look(self, path):
        """Note a folder or file whose change shall make the list anew; its os.stat_result."""
        status = os.stat(path)
        self.files.append(path)
        self.stamps.append(_stamp(status))
        return status

    def no_folder(self, path):
        """Note a link that leads nowhere or to a file: what it leads to can become a folder, and changes no times."""
        self.no_folders.append(path)

    def settled(self):
        """Whether any later change will show."""
        times = np.array(self.stamps, np.int64).reshape(-1, 3)[:, 1:]
        # A file system that does not keep times has them at 0.
        return bool((times > 0).all() and (times < self.since - SETTLED_NS).all())


def cached(name, make, **made_from):
    """What make(watched) returns: sorted `Paths`, and an int64 array [len, n] of what belongs to each, or None.

    Args:
        name: what messages call it: the folder or the tar file.
        make: notes what it reads in a `Watched`.
        made_from: plain values that decide, with the files noted, what `make` returns, as the absolute path.
    """
    about = json.dumps({"version": VERSION, **made_from}, sort_keys=True)
    file = _cache_file(about)
    kept = file and _read(file, about)
    if kept:
        console.tell(f"{name}: index of {len(kept[0]):,} files from cache")
        return kept
    watched = Watched()
    paths, places = make(watched)
    if file and len(paths) >= MINIMUM and watched.settled():
        _write(file, about, watched, paths, places)
    return paths, places


def images_below(root, suffixes):
    """`Paths` of the files below the folder `root` whose lower-case names end in one of `suffixes`, a tuple.

    They are relative to `root`, and sorted part by part: all of folder "a" comes before "a b", although " " comes
    before "/". Links are followed, except to a folder that holds the link; hidden files and folders are left out.
    """
    real = os.path.realpath(root)

    def make(watched):
        with ListingProgress(root) as progress:
            return Paths(_walk(real, "", (), suffixes, watched, progress)), None

    return cached(root, make, root=real, suffixes=suffixes)[0]


def _walk(root, below, above, suffixes, watched, progress):
    status = watched.look(os.path.join(root, below))
    here = status.st_dev, status.st_ino
    if here in above:  # a link to a folder that holds the link
        return
    names, folders = [], set()
    with os.scandir(os.path.join(root, below)) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.add(entry.name)
                names.append(entry.name)
            elif entry.name.lower().endswith(suffixes):
                names.append(entry.name)
                progress.update()
            elif entry.is_symlink():  # one named as an image stays an image: asking for a million links takes long
                watched.no_folder(entry.path)
    for name in sorted(names):
        if name in folders:
            yield from _walk(root, below + name + "/", (*above, here), suffixes, watched, progress)
        else:
            yield below + name


class ListingProgress:
    """Shows how many files of `name` have been listed, if it takes long: a count on a terminal, else lines."""

    def __init__(self, name):
        self.name, self.listed, self.started = name, 0, time.monotonic()
        self.next_line = self.started + SECONDS_BETWEEN_LINES
        show_bar = console.shows_bars() and console.is_first_process()
        self.bar = tqdm(desc=f"listing {name}", unit=" files", delay=1, leave=False) if show_bar else None

    def __enter__(self):
        return self

    def update(self):
        self.listed += 1
        if self.listed % 1000 == 0:
            if self.bar is not None:
                self.bar.update(1000)
            elif time.monotonic() > self.next_line:
                console.tell(f"{self.name}: listed {self.listed:,} files so far")
                self.next_line += SECONDS_BETWEEN_LINES

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()
        if error[0] is None and self.listed >= MINIMUM:
            console.tell(f"{self.name}: listed {self.listed:,} files in {time.monotonic() - self.started:.1f} s")


def _stamp(status):
    # Not the device: a drive that is mounted again has another number.
    return status.st_ino & (2 ** 63 - 1), status.st_mtime_ns, status.st_ctime_ns


def _cache_file(about):
    """Where the list is kept, or None for nowhere."""
    folder = os.environ.get("MAE_INDEX_CACHE")
    if folder == "off":
        return None
    if not folder:
        base = os.environ.get("XDG_CACHE_HOME", "")
        if not os.path.isabs(base):  # the XDG specification wants such a value ignored
            base = os.path.join(os.path.expanduser("~"), ".cache")
        if not os.path.isabs(base):  # a user without a home
            return None
        folder = os.path.join(base, "mae-paddle")
    return os.path.join(folder, f"index-{hashlib.sha256(about.encode()).hexdigest()[:32]}.npz")


def _read(file, about):
    """(paths, places) if the list in `file` is whole and still true, else None."""
    try:
        kept = npz.read_npz(file)
        if kept["about"].tobytes().decode() != about:
            return None
        watched, stamps = Paths.of_bytes(kept["watched"]), kept["stamps"]
        if any(os.path.isdir(path) for path in Paths.of_bytes(kept["no_folders"])):
            return None
        if any(_stamp(os.stat(path)) != tuple(stamp)
               for path, stamp in zip(watched, stamps.tolist(), strict=True)):
            return None
        paths, places = Paths.of_bytes(kept["paths"]), kept.get("places")
        return (paths, places) if places is None or len(places) == len(paths) else None
    except (OSError, ValueError, LookupError, TypeError):  # damaged, of another format, or a folder that is gone
        return None


def _write(file, about, watched, paths, places):
    arrays = {"about": np.frombuffer(about.encode(), np.uint8), "watched": Paths(watched.files).data,
              "stamps": np.array(watched.stamps, np.int64), "no_folders": Paths(watched.no_folders).data,
              "paths": paths.data}
    if places is not None:
        arrays["places"] = places
    try:
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with atomic_write(file) as f:
            np.savez(f, **arrays)
    except OSError as error:
        console.tell(f"the index of {len(paths):,} files is not kept for the next start: {error}")
