"""List of image paths below a folder or in tar files, cached from one start to the next.

Listing the 1.28 million files of ImageNet takes seconds on a local disk and many minutes on a network drive.
A list of `MINIMUM` paths or more is therefore cached in ${XDG_CACHE_HOME:-~/.cache}/mae-paddle. It is valid
as long as every folder and tar file that it was made from has the same inode, modification time and change
time: adding, removing or renaming a file changes the times of its folder.

MAE_INDEX_CACHE=FOLDER moves the cache. MAE_INDEX_CACHE=off lists the files at every start, for the rare file
systems that do not keep the times of a folder. The cache may be deleted at any time; a damaged or unwritable
cache is ignored.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from util.system import console, npz
from util.system.atomic_file import atomic_write

VERSION = 1  # of the files in the cache
MINIMUM = 20_000  # paths; shorter lists are made in a moment
# A file that changed less than this before the listing may change again without a new time stamp. On FAT,
# time stamps have a resolution of 2 seconds.
SETTLED_NS = 2 * 10**9
SECONDS_BETWEEN_LINES = 10


class Paths(Sequence[str]):
    """Sequence of str, stored in one array.

    Forked workers share the array. Strings would be copied page by page, because reading them changes their
    reference counts.
    """

    def __init__(self, paths: Iterable[str] = ()) -> None:
        # No path can hold a zero byte.
        self._set(np.frombuffer(os.fsencode("".join(path + "\0" for path in paths)), np.uint8))

    @classmethod
    def of_bytes(cls, data: np.ndarray) -> Paths:
        """Make from the `data` of another instance: uint8, each path followed by a zero byte."""
        paths = cls()
        paths._set(data)
        return paths

    def _set(self, data):
        self.data, self.ends = data, np.flatnonzero(data == 0)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index):
        index = range(len(self))[index]
        start = self.ends[index - 1] + 1 if index else 0
        return os.fsdecode(self.data[start : self.ends[index]].tobytes())

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


class Watched:
    """Record of the files and folders that a list is made from. Record each of them before reading it."""

    def __init__(self) -> None:
        self.since = time.time_ns()
        self.files: list[str] = []
        self.stamps: list[tuple[int, int, int]] = []
        self.no_folders: list[str] = []

    def look(self, path: str) -> os.stat_result:
        """Record a file or folder whose change makes the list invalid, and return its os.stat_result."""
        status = os.stat(path)
        self.files.append(path)
        self.stamps.append(_stamp(status))
        return status

    def no_folder(self, path: str) -> None:
        """Record a link to a file or to nothing. Its target can become a folder without changing any time."""
        self.no_folders.append(path)

    def settled(self) -> bool:
        """Return True if any later change will show in the times."""
        times = np.array(self.stamps, np.int64).reshape(-1, 3)[:, 1:]
        # A file system that does not keep times reports 0.
        return bool((times > 0).all() and (times < self.since - SETTLED_NS).all())


Listing = tuple[Paths, Any]  # paths, and an int64 array [len, n] with n numbers for each path, or None


def cached_listing(name: str, make: Callable[[Watched], Listing], **made_from: object) -> Listing:
    """Return what make(watched) returns, from the cache if it is still valid.

    Args:
        name: name of the folder or tar file in messages.
        make: returns the sorted `Paths` and an int64 array [len, n] or None; records what it reads in a
            `Watched`.
        made_from: plain values, such as the absolute path, that decide the result together with the recorded
            files.
    """
    about = json.dumps({"version": VERSION, **made_from}, sort_keys=True)
    file = _cache_file(about)
    cached = file and _read_cache(file, about)
    if cached:
        console.tell(f"{name}: index of {len(cached[0]):,} files from cache")
        return cached
    watched = Watched()
    paths, places = make(watched)
    if file and len(paths) >= MINIMUM and watched.settled():
        _write_cache(file, about, watched, paths, places)
    return paths, places


def list_files_below(root: str, suffixes: tuple[str, ...]) -> Paths:
    """List the files below the folder `root` whose lower-case names end in one of `suffixes`.

    Paths are relative to `root` and sorted part by part: all of folder "a" comes before "a b", although " "
    sorts before "/". Links are followed, except to a folder that contains the link. Hidden files and folders
    are left out.
    """
    real = os.path.realpath(root)

    def make(watched):
        with ListingProgress(root) as progress:
            return Paths(_walk(real, "", (), suffixes, watched, progress)), None

    return cached_listing(root, make, root=real, suffixes=suffixes)[0]


def _walk(root, below, above, suffixes, watched, progress):
    status = watched.look(os.path.join(root, below))
    here = status.st_dev, status.st_ino
    if here in above:  # a link to a folder that contains the link
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
            elif entry.is_symlink():  # links named like images are not checked: a million would take long
                watched.no_folder(entry.path)
    for name in sorted(names):
        if name in folders:
            yield from _walk(root, below + name + "/", (*above, here), suffixes, watched, progress)
        else:
            yield below + name


class ListingProgress:
    """Progress of a listing that takes long: a bar on a terminal, else lines."""

    def __init__(self, name: str) -> None:
        self.name, self.count, self.started = name, 0, time.monotonic()
        self.next_line = self.started + SECONDS_BETWEEN_LINES
        show_bar = console.shows_bars() and console.is_first_process()
        self.bar = tqdm(desc=f"listing {name}", unit=" files", delay=1, leave=False) if show_bar else None

    def __enter__(self) -> ListingProgress:
        return self

    def update(self) -> None:
        """Count one more file."""
        self.count += 1
        if self.count % 1000 == 0:
            if self.bar is not None:
                self.bar.update(1000)
            elif time.monotonic() > self.next_line:
                console.tell(f"{self.name}: listed {self.count:,} files so far")
                self.next_line += SECONDS_BETWEEN_LINES

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.close()
        if error[0] is None and self.count >= MINIMUM:
            seconds = time.monotonic() - self.started
            console.tell(f"{self.name}: listed {self.count:,} files in {seconds:.1f} s")


def _stamp(status):
    # Without the device number, which changes when a drive is mounted again.
    return status.st_ino & (2**63 - 1), status.st_mtime_ns, status.st_ctime_ns


def _cache_file(about):
    """Return the path of the cached list, or None if there is no cache."""
    folder = os.environ.get("MAE_INDEX_CACHE")
    if folder == "off":
        return None
    if not folder:
        base = os.environ.get("XDG_CACHE_HOME", "")
        if not os.path.isabs(base):  # the XDG specification ignores such a value
            base = os.path.join(os.path.expanduser("~"), ".cache")
        if not os.path.isabs(base):  # a user without a home
            return None
        folder = os.path.join(base, "mae-paddle")
    return os.path.join(folder, f"index-{hashlib.sha256(about.encode()).hexdigest()[:32]}.npz")


def _read_cache(file, about):
    """Return (paths, places) if the list in `file` is whole and valid, else None."""
    try:
        kept = npz.read_npz(file)
        if kept["about"].tobytes().decode() != about:
            return None
        watched, stamps = Paths.of_bytes(kept["watched"]), kept["stamps"]
        if any(os.path.isdir(path) for path in Paths.of_bytes(kept["no_folders"])):
            return None
        if any(
            _stamp(os.stat(path)) != tuple(stamp)
            for path, stamp in zip(watched, stamps.tolist(), strict=True)
        ):
            return None
        paths, places = Paths.of_bytes(kept["paths"]), kept.get("places")
        return (paths, places) if places is None or len(places) == len(paths) else None
    except (OSError, ValueError, LookupError, TypeError):  # damaged, another format, or a folder is gone
        return None


def _write_cache(file, about, watched, paths, places):
    arrays = {
        "about": np.frombuffer(about.encode(), np.uint8),
        "watched": Paths(watched.files).data,
        "stamps": np.array(watched.stamps, np.int64),
        "no_folders": Paths(watched.no_folders).data,
        "paths": paths.data,
    }
    if places is not None:
        arrays["places"] = places
    try:
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with atomic_write(file) as f:
            np.savez(f, **arrays)
    except OSError as error:
        console.tell(f"the index of {len(paths):,} files is not cached for the next start: {error}")
