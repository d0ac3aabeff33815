"""The pictures that a command line names, and batches of them."""
import contextlib
import os
import sys
from pathlib import Path, PurePath

import numpy as np

from util import datasets, file_index, image_io


class Pictures:
    """The picture files that --img_path names, in its order: a sequence of paths. A folder's are sorted.

    Args:
        flag: which is named in errors.
    """

    def __init__(self, paths, flag="--img_path"):
        self.paths, self.flag = paths, flag
        # What stands in the place of each path: itself, or the pictures in it, relative to it.
        self.parts = [self._below(path) if Path(path).is_dir() else None for path in paths]
        self.starts = np.cumsum([0, *(1 if part is None else len(part) for part in self.parts)])

    def _below(self, folder):
        with contextlib.redirect_stdout(sys.stderr):  # what it says about a large folder is no answer
            found = file_index.images_below(folder, datasets.IMAGE_SUFFIXES)
        if not found:
            raise ValueError(f"{self.flag} {folder}: no pictures in this folder (looked for "
                             f"{' '.join(datasets.IMAGE_SUFFIXES)})")
        return found

    def __len__(self):
        return int(self.starts[-1])

    def __getitem__(self, index):
        folder, inside = self.split(index)
        return str(Path(folder, inside)) if folder else inside

    def split(self, index):
        """(folder of --img_path, path in it) of a picture, or ("", path) if it was named itself."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        part = self.parts[number]
        return ("", self.paths[number]) if part is None else (self.paths[number], part[index - int(self.starts[number])])

    def outputs(self, output_dir, suffix):
        """The file of each picture's result, <stem><suffix>; those of a folder keep their place in it.

        ValueError if two pictures would share one, or one of the pictures would be overwritten.
        """
        files, owners = [], {}
        own = {os.path.realpath(path) for path in self}
        for place in range(len(self)):
            folder, inside = self.split(place)
            below = PurePath(inside).parent if folder else ""
            file = Path(output_dir, below, f"{PurePath(inside).stem}{suffix}")
            if file in owners:
                raise ValueError(f"--img_path: {self[owners[file]]} and {self[place]} would both be written to "
                                 f"{file}; ask for them one by one, with another --output_dir")
            if os.path.realpath(file) in own:
                raise ValueError(f"--img_path: the result for {self[place]} would overwrite {file}, which is one of the "
                                 "pictures; name another --output_dir")
            files.append(file)
            owners[file] = place
        return files


class Batches:
    """Iterates over ([place in `pictures`, ...], normalised images [N, C, height, width]), unreadable ones left out.

    They are named on standard error, and counted in `unreadable`.
    """

    def __init__(self, pictures, transform, *, in_chans, batch_size):
        self.pictures, self.transform, self.in_chans, self.batch_size = pictures, transform, in_chans, batch_size
        self.unreadable = 0

    def __iter__(self):
        places, images = [], []
        for place in range(len(self.pictures)):
            try:
                images.append(self.read(place))
                places.append(place)
            except image_io.UnreadableImage as error:
                if len(self.pictures) == 1:
                    raise
                self.unreadable += 1
                print(f"{Path(sys.argv[0]).name}: error: {error}", file=sys.stderr, flush=True)
            if images and (len(images) == self.batch_size or place == len(self.pictures) - 1):
                yield places, np.stack(images)
                places, images = [], []

    def __len__(self):
        return -(-len(self.pictures) // self.batch_size)

    def readable(self):
        """Yield (place, images [1, C, height, width]) of each picture that can be read, without a word about others."""
        for place in range(len(self.pictures)):
            with contextlib.suppress(image_io.UnreadableImage):
                yield place, self.read(place)[None]

    def read(self, place):
        return self.transform.normalized(image_io.decode(self.pictures[place], in_chans=self.in_chans))
