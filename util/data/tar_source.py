"""Source of images in tar files, which are read in place and never unpacked to the disk."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import posixpath
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from util.data.class_labels import labels_of_class_folders, labels_of_packed_list
from util.data.file_index import ListingProgress, Paths, Watched, cached_listing
from util.data.layout import IMAGE_SUFFIXES, expected_layout, is_image, path_parts
from util.images import decode

if TYPE_CHECKING:
    from util.images.bands import ImageLike

MAX_GAP = 4096  # bytes of tar headers between two neighbouring images


class TarSource:
    """Images in one or more tar files, in sorted order.

    A tar file is scanned once for the offsets of its members, which util.data.file_index caches. Images are
    then read at these offsets in any order. A compressed tar file has no such offsets, so it is decompressed
    into memory.

    Args:
        tars: paths of the tar files; split: name of the split, for messages.
        labelled: take the first folder of each member as the class of its image.
        in_chans: see util.images.decode.decode.
        packed_classes: see `read_packed_classes`. With it, images stay in the order of the tar files.
    """

    classes: list[str] | None
    labels: np.ndarray | None

    def __init__(
        self,
        tars: Sequence[str],
        split: str,
        *,
        labelled: bool,
        in_chans: int = 3,
        packed_classes: list[str] | None = None,
    ) -> None:
        self.tars, self.in_chans = tars, in_chans
        self.unpacked = {
            number: read_compressed_tar(tar)
            for number, tar in enumerate(tars)
            if not tar.lower().endswith(".tar")
        }
        where = tars[0] if len(tars) == 1 else os.path.dirname(tars[0])
        # places: int64 [len, 3]: number of the tar file, offset and size of each image
        self.paths, self.places = self._listing(where, split, keep_order=packed_classes is not None)
        if not self.paths:
            raise ValueError(
                f"--data_path: no images in {where} (looked for {' '.join(IMAGE_SUFFIXES)}). "
                f"{expected_layout(split, labelled)}"
            )
        self.classes, self.labels = None, None
        if labelled and packed_classes is not None:
            self.classes = packed_classes
            self.labels = labels_of_packed_list(self.paths, packed_classes, where)
        elif labelled:
            self.classes, self.labels = labels_of_class_folders(self.paths, [], where, split)

    def _listing(self, where: str, split: str, *, keep_order: bool) -> tuple[Paths, np.ndarray]:
        def make(watched):
            with ListingProgress(where) as progress:
                members = self._members(watched, progress)
            if not keep_order:
                # True if the archive contains the split's folder itself.
                if all(path.startswith(split + "/") for path, *_ in members):
                    members = [(path[len(split) + 1 :], *place) for path, *place in members]
                members.sort(key=lambda member: (path_parts(member[0]), member[1:]))
            places = np.array([place for _, *place in members], np.int64).reshape(-1, 3)
            return Paths(path for path, *_ in members), places

        if self.unpacked:  # decompressing takes longer than listing
            return make(Watched())
        made_from = {"listed": True} if keep_order else {}
        return cached_listing(
            where,
            make,
            tars=[os.path.realpath(tar) for tar in self.tars],
            split=split,
            suffixes=IMAGE_SUFFIXES,
            **made_from,
        )

    def _members(self, watched, progress):
        """List (path, number of the tar file, offset, size) of all images."""
        members = []
        for number, tar in enumerate(self.tars):
            watched.look(tar)
            members += [
                (path, number, offset, size)
                for path, offset, size in list_tar_images(tar, self.unpacked.get(number), progress)
            ]
        return members

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return the path of the tar file followed by that of the image."""
        return posixpath.join(self.tars[self.places[index, 0]], self.paths[index])

    def read(self, index: int) -> bytes:
        """Return the bytes of an image file. Raises UnreadableImage if the tar file is shorter now."""
        number, offset, size = self.places[index].tolist()
        if number in self.unpacked:
            return self.unpacked[number][offset : offset + size]
        # Opened each time: this costs a hundredth of the decoding, and forked workers share no open file.
        with decode.file_errors(self.name(index)), _opened(self.tars[number]) as file:
            data = os.pread(file, size, offset)
        if len(data) < size:
            raise decode.UnreadableImage(
                self.name(index), f"its tar file ends after {len(data)} of its {size} bytes"
            )
        return data

    def open(self, index: int) -> decode.EncodedImage:
        """Return an image that is not decoded yet."""
        return decode.EncodedImage(self.read(index), in_chans=self.in_chans, name=self.name(index))

    def load(self, index: int) -> ImageLike:
        """Return a decoded image."""
        return decode.decode(self.read(index), in_chans=self.in_chans, name=self.name(index))

    def shards(self) -> list[np.ndarray]:
        """Return for each tar file the indices of its images, int64, in the order of the file."""
        numbers, offsets, _ = self.places.T
        order = np.lexsort((offsets, numbers))
        return np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)

    def announce(self, indices: np.ndarray) -> None:
        """Ask the operating system to read ahead images that are adjacent in the file, if it can."""
        if not hasattr(os, "posix_fadvise"):
            return
        numbers, starts, sizes = self.places[indices].T
        gaps = starts[1:] - (starts + sizes)[:-1]
        breaks = np.flatnonzero((np.diff(numbers) != 0) | (gaps < 0) | (gaps > MAX_GAP)) + 1
        for stretch in np.split(self.places[indices], breaks):
            number, start = stretch[0, :2].tolist()
            if number in self.unpacked:
                continue
            length = int(stretch[-1, 1:].sum()) - start
            with contextlib.suppress(OSError), _opened(self.tars[number]) as file:  # reading will report it
                os.posix_fadvise(file, start, length, os.POSIX_FADV_WILLNEED)


@contextlib.contextmanager
def _opened(path):
    file = os.open(path, os.O_RDONLY)
    try:
        yield file
    finally:
        os.close(file)


def read_compressed_tar(path: str) -> bytes:
    """Return the decompressed bytes of a .tar.gz or .tgz file. Raises ValueError if it is damaged."""
    try:
        with gzip.open(path) as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(
            f"--data_path: {path} cannot be decompressed ({error}); download or pack it again"
        ) from error


def list_tar_images(path: str, data: bytes | None, progress: ListingProgress) -> list[tuple[str, int, int]]:
    """List (name, offset, size) of the images in a tar file. Links within the file count as images.

    Args:
        path: path of the tar file.
        data: its decompressed bytes, or None for a file that is not compressed.
        progress: is updated for each image.

    Raises ValueError if the file is damaged, or has the names but not the contents of images.
    """
    found, links, places = [], [], {}
    try:
        with tarfile.open(
            path if data is None else None, "r:", None if data is None else io.BytesIO(data)
        ) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep 1 kB for each member
                name = posixpath.normpath(member.name.lstrip("/"))
                if member.isreg() and not member.issparse():
                    places[name] = member.offset_data, member.size
                if not member.isdir() and is_image(name):
                    found.append(name)
                    progress.update()
                    if member.islnk():
                        links.append((name, posixpath.normpath(member.linkname)))
                    elif member.issym():
                        links.append((name, posixpath.normpath(posixpath.join(name, "..", member.linkname))))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(
            f"--data_path: {path} cannot be read as a tar file ({error}); download or pack it again"
        ) from error
    places.update({name: places[target] for name, target in links if target in places})
    lost = [name for name in found if name not in places]
    if lost:
        raise ValueError(
            f"--data_path: {path} has the names but not the contents of images: "
            f"{', '.join(lost[:10])}{', ...' if len(lost) > 10 else ''} (links out of the "
            "archive, or sparse files); pack it again with tar --dereference"
        )
    return [(name, *places[name]) for name in dict.fromkeys(found)]


def read_packed_classes(folder: str) -> list[str] | None:
    """Read the class names that tools/pack_dataset.py stored from a list, in the order of their labels.

    Returns [] for a list without classes, and None if no list was packed into the folder.
    """
    try:
        manifest = json.loads(Path(folder, "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # no manifest, or another program's
        return None
    return manifest.get("classes") if isinstance(manifest, dict) and "names_sha256" in manifest else None
