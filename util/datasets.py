"""Where the pictures come from: folders, tar files, the CIFAR archives.

A source of images has `len()`, `load(index)` (a PIL image), `open(index)` (the same before decoding, if it has to be
decoded; see image_io.Picture), `name(index)` (for messages), `labels` (int64 [len], or None) and `classes` (a list of
names, or None). It holds no open file and few Python objects, so that workers can be forked or spawned with it at
little cost. A picture that cannot be read raises image_io.UnreadableImage.
"""
import bisect
import gzip
import io
import os
import pathlib
import pickle
import posixpath
import tarfile
import zlib

import numpy as np
from PIL import Image

from util import file_index, image_io, safe_pickle

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".npy")
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
DATASETS = ("folder", "cifar10", "cifar100")


def open_images(data_path, split, *, dataset="folder", labelled=True, in_chans=3):
    """The images of one split as a source (see the module's docstring).

    Args:
        data_path: for "folder" what holds the splits: DATA_PATH/<split>, DATA_PATH/<split>.tar, .tar.gz or .tgz, looked
            for in this order; the folder may hold tar files instead of images. Without labels and without such a split,
            DATA_PATH itself is the folder or the tar file. For CIFAR the official "python version" archive, the folder
            that holds it, or the folder of its unpacked batches.
        split: "train" or "val"; for CIFAR "val" is its test set.
        dataset: one of `DATASETS`.
        labelled: the first folder of each image's path is its class; sorted by name they are numbered 0, 1, ...
        in_chans: channels of the loaded images, see `image_io.decode`.
    """
    if dataset not in DATASETS:
        raise ValueError(f"--dataset {dataset}: choose from {', '.join(DATASETS)}.")
    if not os.path.exists(data_path):
        raise ValueError(f"--data_path {data_path} does not exist. {_layout(dataset, split, labelled)}")
    if dataset != "folder":
        return CifarImages(data_path, split, dataset=dataset, labelled=labelled, in_chans=in_chans)

    candidates = [os.path.join(data_path, split + suffix) for suffix in ("", *TAR_SUFFIXES)]
    path = next((path for path in candidates if os.path.exists(path)), None if labelled else data_path)
    if path is None:
        raise ValueError(f"--data_path {data_path} holds no '{split}'. {_layout(dataset, split, labelled)}")
    tars = _tar_files(path)
    if tars:
        return TarImages(tars, split, labelled=labelled, in_chans=in_chans)
    if not os.path.isdir(path):
        raise ValueError(f"--data_path: {path} is neither a folder nor a tar file. {_layout(dataset, split, labelled)}")
    return FolderImages(path, split, labelled=labelled, in_chans=in_chans)


def has_split(data_path, split, *, dataset="folder"):
    """Whether `open_images` would find a split of that name."""
    return dataset != "folder" or any(os.path.exists(os.path.join(data_path, split + suffix))
                                      for suffix in ("", *TAR_SUFFIXES))


def check_same_classes(train, val):
    """ValueError unless two labelled sources have the same classes, and so the same numbers for them."""
    only_train = sorted(set(train.classes) - set(val.classes))
    only_val = sorted(set(val.classes) - set(train.classes))
    if only_train or only_val:
        raise ValueError("--data_path: train and val must hold the same classes, or their labels would differ. "
                         f"Only in train: {_some(only_train)}. Only in val: {_some(only_val)}. "
                         "Add the missing class folders or take the others out.")


def open_classes(data_path, *, num_classes, dataset="folder", in_chans=3, only_val=False):
    """(train, val) as labelled sources whose classes agree with each other and fit `num_classes`; train may be None.

    Args:
        num_classes: outputs of the classifier; more than there are classes is allowed, as in the official code.
        only_val: leave the training images alone; then the first of the pair is None.
    """
    val = open_images(data_path, "val", dataset=dataset, in_chans=in_chans)
    train = None if only_val else open_images(data_path, "train", dataset=dataset, in_chans=in_chans)
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
                             f"{_layout('folder', split, labelled)}")

    def __len__(self):
        return len(self.paths)

    def name(self, index):
        return os.path.join(self.root, self.paths[index])

    def read(self, index):
        """The bytes of an image's file."""
        return image_io.read_file(self.name(index))

    def open(self, index):
        return image_io.Picture(self.name(index), in_chans=self.in_chans)

    def load(self, index):
        return image_io.decode(self.name(index), in_chans=self.in_chans)


class TarImages:
    """The images in one or more tar files, in sorted order; nothing is unpacked to disk.

    A tar file is read through for the places of its members, which file_index keeps, and then at those places in any
    order. A compressed one has no such places: it is decompressed into memory, once, and stays there.
    """

    def __init__(self, tars, split, *, labelled, in_chans=3):
        self.tars, self.in_chans = tars, in_chans
        self.unpacked = {number: _gunzip(tar) for number, tar in enumerate(tars) if not tar.lower().endswith(".tar")}
        where = tars[0] if len(tars) == 1 else os.path.dirname(tars[0])

        def make(watched):
            members = []
            with file_index.ListingProgress(where) as progress:
                for number, tar in enumerate(tars):
                    watched.look(tar)
                    members += [(path, number, *place) for path, *place in
                                _members(tar, self.unpacked.get(number), progress)]
            if all(path.startswith(split + "/") for path, *_ in members):  # the folder was packed, not its contents
                members = [(path[len(split) + 1:], *place) for path, *place in members]
            members.sort(key=lambda member: (_parts(member[0]), member[1:]))
            places = np.array([place for _, *place in members], np.int64).reshape(-1, 3)
            return file_index.Paths(path for path, *_ in members), places

        # places: [len, 3], number of the tar, offset, size
        if self.unpacked:  # what takes time is decompressing
            self.paths, self.places = make(file_index.Watched())
        else:
            self.paths, self.places = file_index.cached(where, make, tars=[os.path.realpath(tar) for tar in tars],
                                                        split=split, suffixes=IMAGE_SUFFIXES)
        if not self.paths:
            raise ValueError(f"--data_path: no images in {where} (looked for {' '.join(IMAGE_SUFFIXES)}). "
                             f"{_layout('folder', split, labelled)}")
        self.classes, self.labels = _classes(self.paths, [], where, split) if labelled else (None, None)

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
        with image_io.file_errors(self.name(index)):
            file = os.open(self.tars[number], os.O_RDONLY)
            try:
                data = os.pread(file, size, offset)
            finally:
                os.close(file)
        if len(data) < size:
            raise image_io.UnreadableImage(self.name(index), f"its tar file ends after {len(data)} of its {size} bytes")
        return data

    def open(self, index):
        return image_io.Picture(self.read(index), in_chans=self.in_chans, name=self.name(index))

    def load(self, index):
        return image_io.decode(self.read(index), in_chans=self.in_chans, name=self.name(index))


class CifarImages:
    """CIFAR-10 or CIFAR-100 (fine labels) in the order of the official archive, all of it in memory."""

    # dataset: archive, folder in it, file of the class names and key there, key of the labels, files of each split
    FORMATS = {
        "cifar10": ("cifar-10-python.tar.gz", "cifar-10-batches-py", "batches.meta", b"label_names", b"labels",
                    {"train": [f"data_batch_{number}" for number in range(1, 6)], "val": ["test_batch"]}),
        "cifar100": ("cifar-100-python.tar.gz", "cifar-100-python", "meta", b"fine_label_names", b"fine_labels",
                     {"train": ["train"], "val": ["test"]}),
    }

    def __init__(self, data_path, split, *, dataset, labelled, in_chans=3):
        archive, folder, meta, names_key, labels_key, splits = self.FORMATS[dataset]
        self.in_chans, self.title = in_chans, f"{dataset} {split}"
        files = splits[{"test": "val"}.get(split, split)]
        contents = _cifar_files(data_path, archive, folder, [meta, *files], dataset)
        try:
            batches = [_unpickle(contents[file]) for file in files]
            self.pixels = np.concatenate([batch[b"data"] for batch in batches]).reshape(-1, 3, 32, 32)
            labels = np.concatenate([batch[labels_key] for batch in batches]).astype(np.int64)
            classes = [name.decode() for name in _unpickle(contents[meta])[names_key]]
        except (pickle.UnpicklingError, EOFError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(f"--data_path {data_path} does not hold {dataset} as it was published ({error}). "
                             f"{_layout(dataset, split, labelled)}") from error
        self.labels, self.classes = (labels, classes) if labelled else (None, None)

    def __len__(self):
        return len(self.pixels)

    def name(self, index):
        return f"{self.title} {index}"

    def open(self, index):
        return self.load(index)  # there is nothing to decode

    def load(self, index):
        return image_io.to_channels(Image.fromarray(self.pixels[index].transpose(1, 2, 0)), self.in_chans)


def _layout(dataset, split, labelled):
    """What --data_path should look like, in a sentence."""
    if dataset != "folder":
        archive, folder, *_ = CifarImages.FORMATS[dataset]
        return f"For --dataset {dataset} it is {archive} (\"python version\"), its folder, or the unpacked {folder}/."
    if labelled:
        return (f"Expected are DATA_PATH/{split}/<class>/<image>, or tar files with members <class>/<image> as "
                f"DATA_PATH/{split}.tar, {split}.tar.gz or {split}/*.tar.")
    return (f"Expected are images in any folders under DATA_PATH/{split} or DATA_PATH, or in tar files as "
            f"DATA_PATH/{split}.tar, {split}.tar.gz or {split}/*.tar.")


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
    return sorted(tars)


def _classes(paths, folders, where, split):
    """Names and int64 [len(paths)] labels of sorted <class>/<image>; `folders` are those that must hold an image."""
    layout = _layout("folder", split, True)
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


def _gunzip(path):
    try:
        with gzip.open(path) as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"--data_path: {path} cannot be decompressed ({error}). Download or pack it again.") from error


def _members(path, data, progress):
    """(path, offset, size) of each image in the tar file `path`, or in `data`, the same decompressed, if not None."""
    found, links, places = [], [], {}
    try:
        with tarfile.open(path if data is None else None, "r:", None if data is None else io.BytesIO(data)) as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # or it keeps 1 kB for each of a million members
                name = posixpath.normpath(member.name.lstrip("/"))
                if member.isreg() and not member.issparse():
                    places[name] = member.offset_data, member.size
                if not member.isdir() and _is_image(name):
                    found.append(name)
                    progress.update()
                    if member.islnk():
                        links.append((name, posixpath.normpath(member.linkname)))
                    elif member.issym():
                        links.append((name, posixpath.normpath(posixpath.join(name, "..", member.linkname))))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(f"--data_path: {path} cannot be read as a tar file ({error}). "
                         "Download or pack it again.") from error
    places.update({name: places[target] for name, target in links if target in places})
    lost = [name for name in found if name not in places]
    if lost:
        raise ValueError(f"--data_path: {path} has the names but not the contents of images: {_some(lost)} (links out "
                         "of the archive, or sparse files). Pack it again with tar --dereference.")
    return [(name, *places[name]) for name in dict.fromkeys(found)]


def _cifar_files(data_path, archive, folder, wanted, dataset):
    """{name: bytes} of the `wanted` files, from the archive or from its unpacked folder."""
    if os.path.isdir(data_path):
        for place in (data_path, os.path.join(data_path, folder)):
            if all(os.path.isfile(os.path.join(place, name)) for name in wanted):
                return {name: pathlib.Path(place, name).read_bytes() for name in wanted}
        data_path = os.path.join(data_path, archive)
    if not os.path.isfile(data_path):
        raise ValueError(f"--data_path: there is no {data_path}. {_layout(dataset, '', True)}")
    contents = {}
    try:
        with tarfile.open(data_path) as tar:
            for member in tar:
                if member.isreg() and posixpath.basename(member.name) in wanted:
                    contents[posixpath.basename(member.name)] = tar.extractfile(member).read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"--data_path: {data_path} cannot be read as a tar file ({error}). "
                         "Download it again.") from error
    missing = [name for name in wanted if name not in contents]
    if missing:
        raise ValueError(f"--data_path: {data_path} lacks {', '.join(missing)}. {_layout(dataset, '', True)}")
    return contents


def _unpickle(data):
    return safe_pickle.Unpickler(io.BytesIO(data), encoding="bytes").load()  # Python 2 wrote them
