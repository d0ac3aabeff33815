"""Layout of --data_path: how a folder, tar files or a list of a split are found."""

from __future__ import annotations

import os
from collections.abc import Sequence

from util.data import image_lists

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".npy")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")


def expected_layout(split: str, labelled: bool) -> str:
    """Return a sentence about the layout that --data_path should have, for the end of an error."""
    lists = f"or a list of images{' and classes' if labelled else ''}, DATA_PATH/{split}.txt, .csv or .json"
    if labelled:
        return (
            f"Expected are DATA_PATH/{split}/<class>/<image>, or tar files with members <class>/<image> "
            f"as DATA_PATH/{split}.tar, {split}.tar.gz or {split}/*.tar, {lists}."
        )
    return (
        f"Expected are images in any folders under DATA_PATH/{split} or DATA_PATH, or in tar files as "
        f"DATA_PATH/{split}.tar, {split}.tar.gz or {split}/*.tar, {lists}."
    )


def find_split(data_path: str, split: str) -> str | None:
    """Find the folder, tar file or list of a split. Returns None if there is none.

    Raises ValueError if there are several lists.
    """
    for suffix in ("", *TAR_SUFFIXES):
        path = os.path.join(data_path, split + suffix)
        if os.path.exists(path):
            return path
    lists = find_lists(data_path, split)
    if len(lists) > 1:
        raise ValueError(f"--data_path: both {lists[0]} and {lists[1]} are lists of '{split}'; keep one")
    return lists[0] if lists else None


def find_lists(data_path: str, split: str) -> list[str]:
    """Find the lists of a split in a folder."""
    paths = [os.path.join(data_path, split + suffix) for suffix in image_lists.SUFFIXES]
    return [path for path in paths if os.path.isfile(path)]


def find_tar_files(path: str) -> list[str]:
    """Return [path] for a tar file, the sorted tar files in a folder, else [].

    Raises ValueError if a folder holds images twice: beside tar files, or in both forms of one tar file.
    """
    if not os.path.isdir(path):
        return [path] if path.lower().endswith(TAR_SUFFIXES) else []
    with os.scandir(path) as entries:
        tars, other = [], ""
        for entry in entries:
            if entry.name.lower().endswith(TAR_SUFFIXES) and is_visible(entry.name) and not entry.is_dir():
                tars.append(entry.path)
            elif is_visible(entry.name) and (entry.is_dir() or is_image(entry.name)):
                other = min(other or entry.name, entry.name)
    if tars and other:
        raise ValueError(
            f"--data_path: {path} holds both tar files ({os.path.basename(min(tars))}) and "
            f"images or folders ({other}), maybe the same images twice; keep one kind there"
        )
    twice = [
        tar for tar in tars if tar.lower().endswith(".tar") and {tar + ".gz", tar[:-4] + ".tgz"} & set(tars)
    ]
    if twice:
        raise ValueError(
            f"--data_path: {path} holds {os.path.basename(min(twice))} both as it is and "
            "compressed, the same images twice; keep one of the two"
        )
    return sorted(tars)


def find_folders(root: str) -> list[str]:
    """Return the names of the visible folders in a folder."""
    with os.scandir(root) as entries:
        return [entry.name for entry in entries if is_visible(entry.name) and entry.is_dir()]


def path_parts(path: str) -> list[str]:
    """Split a path with "/". As a sort key it puts all of folder "a" before "a b", although " " < "/"."""
    return path.split("/")


def is_visible(path: str) -> bool:
    """Tell whether no part of a path is hidden, that is begins with a dot."""
    return not any(part.startswith(".") for part in path_parts(path))


def is_image(path: str) -> bool:
    """Tell whether a path is visible and has the suffix of an image."""
    return is_visible(path) and path.lower().endswith(IMAGE_SUFFIXES)


def first_names(names: Sequence[str]) -> str:
    """Return the first ten names and the number of further ones, for a message."""
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return shown or "none"
