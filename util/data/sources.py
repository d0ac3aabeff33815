"""Where the pictures come from: folders, tar files, lists, the CIFAR archives.

A source of images has `len()`, `load(index)` (a PIL image), `open(index)` (the same before decoding, if it has to be
decoded; see image_io.Picture), `name(index)` (for messages), `labels` (int64 [len], or None) and `classes` (a list of
names, or None). It holds no open file and few Python objects, so that workers can be forked or spawned with it at
little cost. A picture that cannot be read raises image_io.UnreadableImage.
"""
import bisect
import contextlib
import functools
import os
import posixpath

import numpy as np

from util.data import file_index, image_lists, tar_members
from util.data.cifar import CifarImages
from util.images import decode
from util.system import console

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".npy")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
DATASETS = ("folder", "cifar10", "cifar100")
FEW = 5         # names of a list that are looked for at once
HEADERS = 4096  # bytes between two images of a tar file, at most


def open_images(data_path, split, *, dataset="folder", labelled=True, in_chans=3, image_root=""):
    """The images of one split as a source (see the module's docstring).

    Args:
        data_path: for "folder" what holds the splits: DATA_PATH/<split>, DATA_PATH/<split>.tar, .tar.gz or .tgz, looked
            for in this order, or else one list, DATA_PATH/<split>.txt, .csv or .json; the folder may hold tar files
            instead of images. Without labels and without such a split, DATA_PATH itself is the folder, the tar file or
            the list. For CIFAR see util.data.cifar.
        split: "train" or "val"; for CIFAR "val" is its test set.
        dataset: one of `DATASETS`.
        labelled: the first folder of each image's path is its class; sorted by name they are numbered 0, 1, ... For
            lists see util.data.image_lists.
        in_chans: channels of the loaded images, see `image_io.decode`.
        image_root: the folder from which the names in a list start; "": the list's own.
    """
    if dataset not in DATASETS:
        raise ValueError(f"--dataset {dataset}: choose from {', '.join(DATASETS)}.")
    if dataset != "folder":
        if image_root:
            raise ValueError(f"--image_root {image_root}: it is for lists of images, not for --dataset {dataset}.")
        return CifarImages(data_path, split, dataset=dataset, labelled=labelled, in_chans=in_chans)
    if not os.path.exists(data_path):
        raise ValueError(f"--data_path {data_path} does not exist. {_layout(split, labelled)}")

    path = _find(data_path, split) or (None if labelled else data_path)
    if path is None:
        raise ValueError(f"--data_path {data_path} holds no '{split}'. {_layout(split, labelled)}")
    if path.lower().endswith(image_lists.SUFFIXES) and os.path.isfile(path):
        images = ListImages(path, image_root or os.path.dirname(path), labelled=labelled, in_chans=in_chans)
        if labelled and images.listed.numbered:
            _count_classes(images, data_path, split)
        return images
    if image_root:
        raise ValueError(f"--image_root {image_root}: it is for lists of images, and {path} is none. Leave it out.")
    for unread in _lists(data_path, split):
        console.tell(f"{path} is read, and the list {unread} is not; to go by the list, move it to a folder of its "
                      f"own and add --image_root {data_path}")
    tars = _tar_files(path)
    if tars:
        classes = tar_members.listed_classes(path) if os.path.isdir(path) else None
        return TarImages(tars, split, labelled=labelled, in_chans=in_chans, listed_classes=classes)
    if not os.path.isdir(path):
        raise ValueError(f"--data_path: {path} is neither a folder nor a tar file nor a list. "
                         f"{_layout(split, labelled)}")
    return FolderImages(path, split, labelled=labelled, in_chans=in_chans)


def has_split(data_path, split, *, dataset="folder"):
    """Whether `open_images` would find a split of that name."""
    return dataset != "folder" or _find(data_path, split) is not None


def check_same_classes(train, val):
    """ValueError unless two labelled sources have the same classes, and so the same numbers for them."""
    only_train = sorted(set(train.classes) - set(val.classes))
    only_val = sorted(set(val.classes) - set(train.classes))
    if only_train or only_val:
        raise ValueError("--data_path: train and val must hold the same classes, or their labels would differ. "
                         f"Only in train: {_some(only_train)}. Only in val: {_some(only_val)}. "
                         "Add the missing class folders or take the others out.")
    if train.classes != val.classes:  # sorted as names in a folder, and as numbers in a list
        name = next(name for name, other in zip(train.classes, val.classes) if name != other)
        raise ValueError(f"--data_path: the class {name} has the label {train.classes.index(name)} in train and "
                         f"{val.classes.index(name)} in val. Give both as folders or both as lists.")


def open_classes(data_path, *, num_classes, dataset="folder", in_chans=3, image_root="", only_val=False):
    """(train, val) as labelled sources whose classes agree with each other and fit `num_classes`; train may be None.

    Args:
        num_classes: outputs of the classifier; more than there are classes is allowed, as in the official code.
        only_val: leave the training images alone; then the first of the pair is None.
    """
    open_split = functools.partial(open_images, data_path, dataset=dataset, in_chans=in_chans, image_root=image_root)
    val = open_split("val")
    train = None if only_val else open_split("train")
    if train is not None:
        check_same_classes(train, val)
    if len(val.classes) > num_classes:
        raise ValueError(f"--nb_classes {num_classes}: --data_path {data_path} holds {len(val.classes)} classes; "
                         f"pass --nb_classes {len(val.classes)}.")
    return train, val


class FolderImages:
    """The images below a folder, in sorted order. Links are followed, hidden files and folders left out."""

    def __init__(self, root, split, *, labelled, in_chans=3):
        self.root, self.in_chans = root, in_chans
        self.paths = file_index.images_below(root, IMAGE_SUFFIXES)
        self.classes, self.labels = _classes(self.paths, _folders(root), root, split) if labelled else (None, None)
        if not self.paths:
            raise ValueError(f"--data_path: no images in {root} (looked for {' '.join(IMAGE_SUFFIXES)}). "
                             f"{_layout(split, labelled)}")

    def __len__(self):
        return len(self.paths)

    def name(self, index):
        return os.path.join(self.root, self.paths[index])

    def read(self, index):
        """The bytes of an image's file."""
        return decode.read_file(self.name(index))

    def open(self, index):
        return decode.EncodedImage(self.name(index), in_chans=self.in_chans)

    def load(self, index):
        return decode.decode(self.name(index), in_chans=self.in_chans)


class ListImages(FolderImages):
    """The images that a list names (util.data.image_lists), in its order; the names start from the folder `root`.

    A million names are not looked for on the disk at the start, only the first few, of which one must be there.
    `listed` is the util.data.image_lists.ImageList.
    """

    def __init__(self, path, root, *, labelled, in_chans=3):
        self.root, self.in_chans = root, in_chans
        self.listed = image_lists.read(path, IMAGE_SUFFIXES)
        self.paths = self.listed.names
        self.classes, self.labels = (self.listed.classes, self.listed.labels) if labelled else (None, None)
        if labelled and self.labels is None:
            raise ValueError(f"--data_path: the list {path} has names alone, and each needs its class beside it.")
        first = [self.name(index) for index in range(min(FEW, len(self)))]
        if not any(map(os.path.exists, first)):
            raise ValueError(f"--data_path: {path} names {self.paths[0]}, and there is no {first[0]}, nor are there "
                             f"the next ones. Names start from {root or 'the current folder'}; --image_root says from "
                             "where else.")


class TarImages:
    """The images in one or more tar files, in sorted order; nothing is unpacked to disk.

    Those of a list that was packed (`listed_classes`, see util.data.tar_members) stay in the order in which they lie there.

    A tar file is read through for the places of its members, which file_index keeps, and then at those places in any
    order. A compressed one has no such places: it is decompressed into memory, once, and stays there.
    """

    def __init__(self, tars, split, *, labelled, in_chans=3, listed_classes=None):
        self.tars, self.in_chans = tars, in_chans
        listed = listed_classes is not None
        self.unpacked = {number: tar_members.gunzip(tar) for number, tar in enumerate(tars)
                         if not tar.lower().endswith(".tar")}
        where = tars[0] if len(tars) == 1 else os.path.dirname(tars[0])

        def make(watched):
            members = []
            with file_index.ListingProgress(where) as progress:
                for number, tar in enumerate(tars):
                    watched.look(tar)
                    members += [(path, number, *place) for path, *place in
                                tar_members.images(tar, self.unpacked.get(number), _is_image, progress)]
            if not listed:
                if all(path.startswith(split + "/") for path, *_ in members):  # the folder was packed, too
                    members = [(path[len(split) + 1:], *place) for path, *place in members]
                members.sort(key=lambda member: (_parts(member[0]), member[1:]))
            places = np.array([place for _, *place in members], np.int64).reshape(-1, 3)
            return file_index.Paths(path for path, *_ in members), places

        # places: [len, 3], number of the tar, offset, size
        if self.unpacked:  # what takes time is decompressing
            self.paths, self.places = make(file_index.Watched())
        else:
            self.paths, self.places = file_index.cached(where, make, tars=[os.path.realpath(tar) for tar in tars],
                                                        split=split, suffixes=IMAGE_SUFFIXES,
                                                        **({"listed": True} if listed else {}))
        if not self.paths:
            raise ValueError(f"--data_path: no images in {where} (looked for {' '.join(IMAGE_SUFFIXES)}). "
                             f"{_layout(split, labelled)}")
        self.classes, self.labels = None, None
        if labelled and listed:
            self.classes, self.labels = listed_classes, _listed_labels(self.paths, listed_classes, where)
        elif labelled:
            self.classes, self.labels = _classes(self.paths, [], where, split)

    def __len__(self):
        return len(self.paths)

    def name(self, index):
        return posixpath.join(self.tars[self.places[index, 0]], self.paths[index])

    def read(self, index):
        """The bytes of an image's file."""
        number, offset, size = self.places[index].tolist()
        if number in self.unpacked:
            return self.unpacked[number][offset:offset + size]
        # Opened each time: a hundredth of the time for decoding, and nothing open to share with forked workers.
        with decode.file_errors(self.name(index)):
            file = os.open(self.tars[number], os.O_RDONLY)
            try:
                data = os.pread(file, size, offset)
            finally:
                os.close(file)
        if len(data) < size:
            raise decode.UnreadableImage(self.name(index), f"its tar file ends after {len(data)} of its {size} bytes")
        return data

    def shards(self):
        """For each tar file the indices of its images, in the order in which they lie there: a list of int64 arrays."""
        numbers, offsets, _ = self.places.T
        order = np.lexsort((offsets, numbers))
        return np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1)

    def announce(self, indices):
        """Let the operating system begin to read images that lie one behind the other, where it can be asked to."""
        if not hasattr(os, "posix_fadvise"):
            return
        numbers, starts, sizes = self.places[indices].T
        gaps = starts[1:] - (starts + sizes)[:-1]
        breaks = np.flatnonzero((np.diff(numbers) != 0) | (gaps < 0) | (gaps > HEADERS)) + 1
        for stretch in np.split(self.places[indices], breaks):
            number, start = stretch[0, :2].tolist()
            if number in self.unpacked:
                continue
            with contextlib.suppress(OSError):  # reading will tell
                file = os.open(self.tars[number], os.O_RDONLY)
                try:
                    os.posix_fadvise(file, start, int(stretch[-1, 1:].sum()) - start, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(file)

    def open(self, index):
        return decode.EncodedImage(self.read(index), in_chans=self.in_chans, name=self.name(index))

    def load(self, index):
        return decode.decode(self.read(index), in_chans=self.in_chans, name=self.name(index))


def _layout(split, labelled):
    """What --data_path should look like, in a sentence."""
    lists = f"or a list of images{' and classes' if labelled else ''}, DATA_PATH/{split}.txt, .csv or .json"
    if labelled:
        return (f"Expected are DATA_PATH/{split}/<class>/<image>, or tar files with members <class>/<image> as "
                f"DATA_PATH/{split}.tar, {split}.tar.gz or {split}/*.tar, {lists}.")
    return (f"Expected are images in any folders under DATA_PATH/{split} or DATA_PATH, or in tar files as "
            f"DATA_PATH/{split}.tar, {split}.tar.gz or {split}/*.tar, {lists}.")


def _listed_labels(paths, classes, where):
    """int64 [len(paths)] labels of <class>/<image>, in any order."""
    if not classes:
        raise ValueError(f"--data_path: {where} was packed from a list without classes.")
    numbers = {name: number for number, name in enumerate(classes)}
    labels = [numbers.get(path.partition("/")[0]) for path in paths]
    if None in labels:
        raise ValueError(f"--data_path: {paths[labels.index(None)]} in {where} is of no class of its manifest.json. "
                         "Pack the list again.")
    return np.array(labels, np.int64)


def _find(data_path, split):
    """The folder, the tar file or the list of a split, or None; ValueError for several lists."""
    for suffix in ("", *TAR_SUFFIXES):
        path = os.path.join(data_path, split + suffix)
        if os.path.exists(path):
            return path
    lists = _lists(data_path, split)
    if len(lists) > 1:
        raise ValueError(f"--data_path: both {lists[0]} and {lists[1]} are lists of '{split}'. Keep one.")
    return lists[0] if lists else None


def _lists(data_path, split):
    """The lists of a split in a folder."""
    paths = [os.path.join(data_path, split + suffix) for suffix in image_lists.SUFFIXES]
    return [path for path in paths if os.path.isfile(path)]


def _count_classes(images, data_path, split):
    """Let numbered classes run to the largest number in both splits' lists; tell which have no image in this one."""
    for path in _lists(data_path, {"train": "val", "val": "train"}[split]):
        other = image_lists.read(path, IMAGE_SUFFIXES)
        if other.numbered:
            images.classes = max(images.classes, other.classes, key=len)
    unused = np.setdiff1d(np.arange(len(images.classes)), images.labels)
    if unused.size:
        console.tell(f"the list of '{split}' has classes up to {images.classes[-1]}; no image is of class "
                      f"{_some([str(number) for number in unused])}")


def _some(names):
    """The first ten of the names, and how many more there are."""
    return (", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")) or "none"


def _parts(path):
    """Sorts all of class "a" before class "a b", although " " comes before "/"."""
    return path.split("/")


def _is_visible(path):
    return not any(part.startswith(".") for part in _parts(path))


def _is_image(path):
    return _is_visible(path) and path.lower().endswith(IMAGE_SUFFIXES)


def _folders(root):
    with os.scandir(root) as entries:
        return [entry.name for entry in entries if _is_visible(entry.name) and entry.is_dir()]


def _tar_files(path):
    """[path] if it is a tar file, the tar files in it if it is a folder of them, else []."""
    if not os.path.isdir(path):
        return [path] if path.lower().endswith(TAR_SUFFIXES) else []
    with os.scandir(path) as entries:
        tars, other = [], ""
        for entry in entries:
            if entry.name.lower().endswith(TAR_SUFFIXES) and _is_visible(entry.name) and not entry.is_dir():
                tars.append(entry.path)
            elif _is_visible(entry.name) and (entry.is_dir() or _is_image(entry.name)):
                other = min(other or entry.name, entry.name)
    if tars and other:
        raise ValueError(f"--data_path: {path} holds both tar files ({os.path.basename(min(tars))}) and images or "
                         f"folders ({other}), maybe the same images twice. Keep one kind there.")
    twice = [tar for tar in tars if tar.lower().endswith(".tar") and {tar + ".gz", tar[:-4] + ".tgz"} & set(tars)]
    if twice:
        raise ValueError(f"--data_path: {path} holds {os.path.basename(min(twice))} both as it is and compressed, the same "
                         "images twice. Keep one of the two.")
    return sorted(tars)


def _classes(paths, folders, where, split):
    """Names and int64 [len(paths)] labels of sorted <class>/<image>; `folders` are those that must hold an image."""
    layout = _layout(split, True)
    classes, starts = [], [0]
    while starts[-1] < len(paths):
        first = paths[starts[-1]]
        if "/" not in first:
            raise ValueError(f"--data_path: the image {first} in {where} is in no class folder. {layout}")
        classes.append(_parts(first)[0])
        # Twenty looks into a million paths find the end of a class.
        starts.append(bisect.bisect_right(paths, classes[-1], lo=starts[-1], key=lambda path: _parts(path)[0]))
    empty = sorted(set(folders) - set(classes))
    if not classes and not empty:
        raise ValueError(f"--data_path: {where} has no class folders. {layout}")
    if empty:
        raise ValueError(f"--data_path: no images in these class folders of {where}: {_some(empty)} (looked for "
                         f"{' '.join(IMAGE_SUFFIXES)}). Fill or remove them. {layout}")
    return classes, np.repeat(np.arange(len(classes), dtype=np.int64), np.diff(starts))
