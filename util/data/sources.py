"""Sources of images: folders, lists, tar files and the CIFAR archives.

Every source has the interface of `ImageSource`. It holds no open file and few Python objects, so that workers
can be forked or spawned with it at little cost.
"""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Protocol

import numpy as np

from util.data import image_lists
from util.data.cifar import CifarSource
from util.data.class_labels import check_same_classes
from util.data.folder_source import FolderSource, ListSource
from util.data.layout import (
    IMAGE_SUFFIXES,
    expected_layout,
    find_lists,
    find_split,
    find_tar_files,
    first_names,
)
from util.data.tar_source import TarSource, read_packed_classes
from util.system import console

if TYPE_CHECKING:
    from util.images.bands import ImageLike
    from util.images.decode import EncodedImage

DATASETS = ("folder", "cifar10", "cifar100")


class ImageSource(Protocol):
    """Images of a split, and their labels if there are any.

    An image that cannot be read raises util.images.decode.UnreadableImage.
    """

    labels: np.ndarray | None  # int64 [len]
    classes: list[str] | None  # names in the order of the labels

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the name of an image for messages."""

    def open(self, index: int) -> ImageLike | EncodedImage:
        """Return an image, before decoding if it has to be decoded."""

    def load(self, index: int) -> ImageLike:
        """Return a decoded image."""


def open_source(
    data_path: str,
    split: str,
    *,
    dataset: str = "folder",
    labelled: bool = True,
    in_chans: int = 3,
    image_root: str = "",
) -> ImageSource:
    """Open the images of one split.

    Args:
        data_path: for "folder", the folder that holds DATA_PATH/<split>, DATA_PATH/<split>.tar, .tar.gz or
            .tgz, looked for in this order, or else one list, DATA_PATH/<split>.txt, .csv or .json. The folder
            of the split may hold tar files instead of images. Without labels and without such a split,
            DATA_PATH itself is the folder, the tar file or the list. For CIFAR see util.data.cifar.
        split: "train" or "val"; for CIFAR "val" is its test set.
        dataset: one of DATASETS.
        labelled: take the first folder of each image's path as its class. Classes are sorted by name and
            numbered 0, 1, ... For lists see util.data.image_lists.
        in_chans: channels of the loaded images, see util.images.decode.decode.
        image_root: the folder from which the names in a list start; "" for the list's own.

    Raises ValueError if there are no images, or if the layout is ambiguous.
    """
    if dataset not in DATASETS:
        raise ValueError(f"--dataset {dataset}: unknown; choose from {', '.join(DATASETS)}")
    if dataset != "folder":
        if image_root:
            raise ValueError(
                f"--image_root {image_root}: is for lists of images, not for --dataset "
                f"{dataset}; leave it out"
            )
        return CifarSource(data_path, split, dataset=dataset, labelled=labelled, in_chans=in_chans)
    if not os.path.exists(data_path):
        raise ValueError(f"--data_path {data_path}: does not exist. {expected_layout(split, labelled)}")

    path = find_split(data_path, split) or (None if labelled else data_path)
    if path is None:
        raise ValueError(f"--data_path {data_path}: holds no '{split}'. {expected_layout(split, labelled)}")
    if path.lower().endswith(image_lists.SUFFIXES) and os.path.isfile(path):
        source = ListSource(path, image_root or os.path.dirname(path), labelled=labelled, in_chans=in_chans)
        if labelled and source.list.numbered:
            _extend_numbered_classes(source, data_path, split)
        return source
    if image_root:
        raise ValueError(
            f"--image_root {image_root}: is for lists of images, and {path} is none; leave it out"
        )
    for unread in find_lists(data_path, split):
        console.tell(
            f"{path} is read, and the list {unread} is not; to read the list, move it to a folder "
            f"of its own and add --image_root {data_path}"
        )
    tars = find_tar_files(path)
    if tars:
        packed_classes = read_packed_classes(path) if os.path.isdir(path) else None
        return TarSource(tars, split, labelled=labelled, in_chans=in_chans, packed_classes=packed_classes)
    if not os.path.isdir(path):
        raise ValueError(
            f"--data_path: {path} is neither a folder nor a tar file nor a list. "
            f"{expected_layout(split, labelled)}"
        )
    return FolderSource(path, split, labelled=labelled, in_chans=in_chans)


def has_split(data_path: str, split: str, *, dataset: str = "folder") -> bool:
    """Tell whether `open_source` would find a split of that name."""
    return dataset != "folder" or find_split(data_path, split) is not None


def open_train_val(
    data_path: str,
    *,
    num_classes: int,
    dataset: str = "folder",
    in_chans: int = 3,
    image_root: str = "",
    only_val: bool = False,
) -> tuple[ImageSource | None, ImageSource]:
    """Open train and val as labelled sources with the same classes. With `only_val`, train is None.

    The other arguments are those of `open_source`. The classifier may have more outputs, `num_classes`, than
    there are classes, as in the official code.

    Raises ValueError as `open_source`, if the classes differ, or if there are more than `num_classes`.
    """
    open_split = functools.partial(
        open_source, data_path, dataset=dataset, in_chans=in_chans, image_root=image_root
    )
    val = open_split("val")
    train = None if only_val else open_split("train")
    if train is not None:
        check_same_classes(train, val)
    found = len(val.classes or ())
    if found > num_classes:
        raise ValueError(
            f"--nb_classes {num_classes}: --data_path {data_path} holds {found} classes; pass "
            f"--nb_classes {found}"
        )
    return train, val


def _extend_numbered_classes(source: ListSource, data_path: str, split: str) -> None:
    """Extend numbered classes to the largest number in the lists of both splits. Tell which have no image."""
    assert source.classes is not None and source.labels is not None
    classes = source.classes
    for path in find_lists(data_path, {"train": "val", "val": "train"}[split]):
        other = image_lists.read_image_list(path, IMAGE_SUFFIXES)
        if other.numbered:
            classes = max(classes, other.classes or [], key=len)
    source.classes = classes
    unused = sorted(set(range(len(classes))) - set(np.unique(source.labels).tolist()))
    if unused:
        console.tell(
            f"the list of '{split}' has classes up to {classes[-1]}; no image is of class "
            f"{first_names([str(number) for number in unused])}"
        )
