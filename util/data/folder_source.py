"""Sources of image files: a folder, or the files that a list names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from util.data import image_lists
from util.data.class_labels import labels_of_class_folders
from util.data.file_index import list_files_below
from util.data.layout import IMAGE_SUFFIXES, expected_layout, find_folders
from util.images import decode

if TYPE_CHECKING:
    import numpy as np

    from util.data.file_index import Paths
    from util.images.bands import ImageLike

CHECKED_NAMES = 5  # names of a list that are looked for on the disk at the start


class FolderSource:
    """Images below a folder, in sorted order. Links are followed; hidden files and folders are left out.

    Args:
        root: the folder; split: its name in messages.
        labelled: take the first folder of each path as the class of its image.
        in_chans: see util.images.decode.decode.
    """

    paths: Paths
    classes: list[str] | None
    labels: np.ndarray | None

    def __init__(self, root: str, split: str, *, labelled: bool, in_chans: int = 3) -> None:
        self.root, self.in_chans = root, in_chans
        self.paths = list_files_below(root, IMAGE_SUFFIXES)
        self.classes, self.labels = None, None
        if labelled:
            self.classes, self.labels = labels_of_class_folders(self.paths, find_folders(root), root, split)
        if not self.paths:
            raise ValueError(
                f"--data_path: no images in {root} (looked for {' '.join(IMAGE_SUFFIXES)}). "
                f"{expected_layout(split, labelled)}"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return os.path.join(self.root, self.paths[index])

    def read(self, index: int) -> bytes:
        """Return the bytes of an image file."""
        return decode.read_file(self.name(index))

    def open(self, index: int) -> decode.EncodedImage:
        """Return an image that is not decoded yet."""
        return decode.EncodedImage(self.name(index), in_chans=self.in_chans)

    def load(self, index: int) -> ImageLike:
        """Return a decoded image."""
        return decode.decode(self.name(index), in_chans=self.in_chans)


class ListSource(FolderSource):
    """Images that a list names (util.data.image_lists), in the order of the list.

    Only the first few names are looked for on the disk at the start, because a list may have a million. One
    of them must exist.

    Args:
        path: the list; root: the folder from which its names start.
    """

    def __init__(self, path: str, root: str, *, labelled: bool, in_chans: int = 3) -> None:
        self.root, self.in_chans = root, in_chans
        self.list = image_lists.read_image_list(path, IMAGE_SUFFIXES)
        self.paths = self.list.names
        self.classes, self.labels = (self.list.classes, self.list.labels) if labelled else (None, None)
        if labelled and self.labels is None:
            raise ValueError(f"--data_path: the list {path} has names only; add a class to each name")
        first = [self.name(index) for index in range(min(CHECKED_NAMES, len(self)))]
        if not any(map(os.path.exists, first)):
            raise ValueError(
                f"--data_path: {path} names {self.paths[0]}, but {first[0]} does not exist, nor "
                f"do the next ones; names start from {root or 'the current folder'}, pass "
                "--image_root to start from another one"
            )
