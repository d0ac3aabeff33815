"""Class names and integer labels of images, from the folders that they are in."""

from __future__ import annotations

import bisect
from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np

from util.data.layout import IMAGE_SUFFIXES, expected_layout, first_names, path_parts


class Labelled(Protocol):
    """Source with class names in the order of their labels."""

    classes: list[str] | None


def labels_of_class_folders(
    paths: Sequence[str], folders: Collection[str], where: str, split: str
) -> tuple[list[str], np.ndarray]:
    """Return the class names and labels, int64 [len(paths)], of sorted paths <class>/<image>.

    Raises ValueError if an image is in no class folder, if there are no classes, or if one of `folders` holds
    no image. `where` and `split` are for the message.
    """
    layout = expected_layout(split, labelled=True)
    classes: list[str] = []
    starts = [0]
    while starts[-1] < len(paths):
        first = paths[starts[-1]]
        if "/" not in first:
            raise ValueError(f"--data_path: the image {first} in {where} is in no class folder. {layout}")
        classes.append(path_parts(first)[0])
        # Bisection finds the end of a class in twenty steps among a million paths.
        starts.append(
            bisect.bisect_right(paths, classes[-1], lo=starts[-1], key=lambda path: path_parts(path)[0])
        )
    empty = sorted(set(folders) - set(classes))
    if not classes and not empty:
        raise ValueError(f"--data_path: {where} has no class folders. {layout}")
    if empty:
        raise ValueError(
            f"--data_path: no images in these class folders of {where}: {first_names(empty)} "
            f"(looked for {' '.join(IMAGE_SUFFIXES)}). Fill or remove them. {layout}"
        )
    return classes, np.repeat(np.arange(len(classes), dtype=np.int64), np.diff(starts))


def labels_of_packed_list(paths: Sequence[str], classes: Sequence[str], where: str) -> np.ndarray:
    """Return the labels, int64 [len(paths)], of paths <class>/<image> packed from a list, in any order.

    Raises ValueError if the list had no classes, or if a class is not among `classes`.
    """
    if not classes:
        raise ValueError(
            f"--data_path: {where} was packed from a list without classes; labels need a list with classes"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    labels = [numbers.get(path.partition("/")[0]) for path in paths]
    if None in labels:
        raise ValueError(
            f"--data_path: the class of {paths[labels.index(None)]} in {where} is not in its "
            "manifest.json; pack the list again"
        )
    return np.array(labels, np.int64)


def check_same_classes(train: Labelled, val: Labelled) -> None:
    """Raise ValueError unless both sources have the same classes with the same labels."""
    train_classes, val_classes = train.classes or [], val.classes or []
    only_train = sorted(set(train_classes) - set(val_classes))
    only_val = sorted(set(val_classes) - set(train_classes))
    if only_train or only_val:
        raise ValueError(
            "--data_path: train and val must hold the same classes, or their labels would "
            f"differ. Only in train: {first_names(only_train)}. Only in val: "
            f"{first_names(only_val)}. Add the missing class folders or take the others out."
        )
    if train_classes != val_classes:  # folders sort classes as names, lists may number them
        name = next(name for name, other in zip(train_classes, val_classes, strict=True) if name != other)
        raise ValueError(
            f"--data_path: the class {name} has the label {train_classes.index(name)} in train "
            f"and {val_classes.index(name)} in val; give both as folders or both as lists"
        )
