"""The pictures that a command line names, and batches of them."""
import contextlib
import glob
import os
import sys
from pathlib import Path, PurePath

import numpy as np

from util.data import file_index, layout
from util.images import decode

LIST_SUFFIXES = (".txt", ".lst", ".list")


class Pictures:
    """The picture files that --img_path names, in its order: a sequence of paths.

    A name is that of a picture; of a folder, whose pictures at any depth are taken in sorted order; a pattern with *, ?
    or [...] (** for any depth), whose files are taken in sorted order; of a list (.txt, .lst, .list) with a name a
    line; or -, for such a list on standard input. Names in lists are taken from the current folder, as those given.

    Args:
        flag: which is named in errors.
    """

    def __init__(self, paths, flag="--img_path"):
        self.flag = flag
        if list(paths).count("-") > 1:
            raise ValueError(f"{flag} -: standard input can be read once; give - once")
        self.paths = [name for path in paths for name in self._names(path)]
        # What stands in the place of each path: itself, or the pictures in it, relative to it.
        self.parts = [self._below(path) if os.path.isdir(path) else None for path in self.paths]
        self.starts = np.cumsum([0, *(1 if part is None else len(part) for part in self.parts)])
        # Whether the command line names a single file itself: its answer needs no name.
        self.alone = len(paths) == 1 and self.paths == list(paths) and self.parts == [None]

    def _names(self, path):
        """The names that one on the command line stands for: those in a list or of a pattern, or itself."""
        if path == "-":
            return self._lines("-", b"" if sys.stdin is None else sys.stdin.buffer.read(), "names on standard input")
        if path.lower().endswith(LIST_SUFFIXES) and not os.path.isdir(path):
            try:
                return self._lines(path, Path(path).read_bytes(), "names in this list")
            except OSError as error:
                raise ValueError(f"{self.flag} {path}: this list of names cannot be read ({error.strerror})") from error
        if glob.has_magic(path) and not os.path.lexists(path):
            found = sorted(name for name in glob.iglob(path, recursive=True) if not os.path.isdir(name))
            if not found:
                raise ValueError(f"{self.flag} {path}: no file fits this pattern")
            return found
        return [path]

    def _lines(self, path, data, what):
        names = [os.fsdecode(line) for line in data.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()]
        if b"\0" in data:
            raise ValueError(f"{self.flag} {path}: a list is text with a name a line; this holds zero bytes")
        if not names:
            raise ValueError(f"{self.flag} {path}: no {what}")
        return names

    def _below(self, folder):
        with contextlib.redirect_stdout(sys.stderr):  # what it says about a large folder is no answer
            found = file_index.list_files_below(folder, layout.IMAGE_SUFFIXES)
        if not found:
            raise ValueError(f"{self.flag} {folder}: no pictures in this folder (looked for "
                             f"{' '.join(layout.IMAGE_SUFFIXES)})")
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
    """Iterates over the pictures, `batch_size` at once, as [(place in `pictures`, what `preprocess` made of it)].

    An UnreadableImage stands there for one that cannot be read.
    """

    def __init__(self, pictures, preprocess, *, batch_size):
        self.pictures, self.preprocess, self.batch_size = pictures, preprocess, batch_size

    def __iter__(self):
        for start in range(0, len(self.pictures), self.batch_size):
            yield [(place, self._try(place))
                   for place in range(start, min(start + self.batch_size, len(self.pictures)))]

    def __len__(self):
        return -(-len(self.pictures) // self.batch_size)

    def readable(self):
        """Yield (place, images [1, C, height, width]) of each picture that can be read, without a word about others."""
        for place in range(len(self.pictures)):
            with contextlib.suppress(decode.UnreadableImage):
                yield place, self.read(place)[None]

    def _try(self, place):
        try:
            return self.read(place)
        except decode.UnreadableImage as error:
            return error

    def read(self, place):
        return self.preprocess(self.pictures[place])


def answered(batches, compute):
    """Yield (place, its answer) of every picture of Batches, in their order; an UnreadableImage is that of such a one.

    Args:
        batches: Batches, or what passes them on.
        compute: function from ([place, ...], images [N, C, height, width]) to N answers.
    """
    for batch in batches:
        sound = {place: image for place, image in batch if not isinstance(image, decode.UnreadableImage)}
        found = dict(zip(sound, compute([*sound], np.stack([*sound.values()])), strict=True)) if sound else {}
        for place, image in batch:
            yield place, found.get(place, image)
