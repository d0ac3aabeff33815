"""Image files named on a command line (--img_path), and batches of them."""

from __future__ import annotations

import contextlib
import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from util.data import file_index, layout
from util.images.decode import UnreadableImage

LIST_SUFFIXES = (".txt", ".lst", ".list")


class Pictures(Sequence[str]):
    """Paths of the image files that --img_path names, in its order.

    A name is one of these:

    - an image file;
    - a folder, whose images at any depth are taken in sorted order;
    - a pattern with *, ? or [...] (** for any depth), whose files are taken in sorted order;
    - a list (.txt, .lst, .list) with one name in each line;
    - "-", for such a list on standard input.

    Names in lists start from the current folder.

    Args:
        paths: the names.
        flag: the flag that errors name.

    Raises ValueError if a list, a pattern or a folder gives no file.
    """

    def __init__(self, paths: Sequence[str], flag: str = "--img_path") -> None:
        self.flag = flag
        if list(paths).count("-") > 1:
            raise ValueError(f"{flag} -: standard input can be read once; give - once")
        self.paths = [name for path in paths for name in self._expand(path)]
        # For each path: None if it is a file, else the images in the folder, relative to it.
        self.parts = [self._list_folder(path) if os.path.isdir(path) else None for path in self.paths]
        self.starts = np.cumsum([0, *(1 if part is None else len(part) for part in self.parts)])
        # True if the command line names a single file; its answer needs no name.
        self.alone = len(paths) == 1 and self.paths == list(paths) and self.parts == [None]

    def _expand(self, path: str) -> list[str]:
        """Return the names in a list, the files of a pattern, or the path itself."""
        if path == "-":
            return self._names_in(path, b"" if sys.stdin is None else sys.stdin.buffer.read())
        if path.lower().endswith(LIST_SUFFIXES) and not os.path.isdir(path):
            try:
                return self._names_in(path, Path(path).read_bytes())
            except OSError as error:
                raise ValueError(
                    f"{self.flag} {path}: this list of names cannot be read ({error.strerror})"
                ) from error
        if glob.has_magic(path) and not os.path.lexists(path):
            found = sorted(name for name in glob.iglob(path, recursive=True) if not os.path.isdir(name))
            if not found:
                raise ValueError(f"{self.flag} {path}: no file fits this pattern")
            return found
        return [path]

    def _names_in(self, path, data):
        lines = data.removeprefix(b"\xef\xbb\xbf").splitlines()
        names = [os.fsdecode(line) for line in lines if line.strip()]
        if b"\0" in data:
            raise ValueError(
                f"{self.flag} {path}: holds zero bytes; a list is text with one name in each line"
            )
        if not names:
            raise ValueError(
                f"{self.flag} {path}: no names {'on standard input' if path == '-' else 'in this list'}"
            )
        return names

    def _list_folder(self, folder):
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for answers
            found = file_index.list_files_below(folder, layout.IMAGE_SUFFIXES)
        if not found:
            raise ValueError(
                f"{self.flag} {folder}: no pictures in this folder (looked for "
                f"{' '.join(layout.IMAGE_SUFFIXES)})"
            )
        return found

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, index):
        folder, inside = self.split(index)
        return str(Path(folder, inside)) if folder else inside

    def split(self, index: int) -> tuple[str, str]:
        """Return (folder of --img_path, path in it) of an image, or ("", path) if it was named itself."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        part = self.parts[number]
        if part is None:
            return "", self.paths[number]
        return self.paths[number], part[index - int(self.starts[number])]

    def outputs(self, output_dir: Path | str, suffix: str) -> list[Path]:
        """Return the output file of each image, <stem><suffix>. Images of a folder keep their place in it.

        Raises ValueError if two images have the same output file, or if it is one of the images.
        """
        files: list[Path] = []
        owners: dict[Path, int] = {}
        own = {os.path.realpath(path) for path in self}
        for index in range(len(self)):
            folder, inside = self.split(index)
            below = PurePath(inside).parent if folder else ""
            file = Path(output_dir, below, f"{PurePath(inside).stem}{suffix}")
            if file in owners:
                raise ValueError(
                    f"--img_path: {self[owners[file]]} and {self[index]} would both be written "
                    f"to {file}; ask for them one by one, with another --output_dir"
                )
            if os.path.realpath(file) in own:
                raise ValueError(
                    f"--img_path: the result for {self[index]} would overwrite {file}, which is "
                    "one of the pictures; name another --output_dir"
                )
            files.append(file)
            owners[file] = index
        return files


Item = tuple[int, "np.ndarray | UnreadableImage"]


class Batches:
    """Batches of preprocessed images: lists of (index in `pictures`, image [C, height, width]).

    An unreadable image is an UnreadableImage instead.

    Args:
        pictures: paths of the images.
        preprocess: function from a path to an image [C, height, width].
    """

    def __init__(
        self, pictures: Sequence[str], preprocess: Callable[[str], np.ndarray], *, batch_size: int
    ) -> None:
        self.pictures, self.preprocess, self.batch_size = pictures, preprocess, batch_size

    def __iter__(self) -> Iterator[list[Item]]:
        for start in range(0, len(self.pictures), self.batch_size):
            yield [
                (index, self._read_or_error(index))
                for index in range(start, min(start + self.batch_size, len(self.pictures)))
            ]

    def __len__(self) -> int:
        return -(-len(self.pictures) // self.batch_size)

    def readable(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (index, images [1, C, height, width]) of each readable image, and skip the others."""
        for index in range(len(self.pictures)):
            with contextlib.suppress(UnreadableImage):
                yield index, self.read(index)[None]

    def _read_or_error(self, index):
        try:
            return self.read(index)
        except UnreadableImage as error:
            return error

    def read(self, index: int) -> np.ndarray:
        """Preprocess an image. Raises UnreadableImage."""
        return self.preprocess(self.pictures[index])


def answered(
    batches: Iterable[list[Item]], compute: Callable[[list[int], np.ndarray], Iterable[Any]]
) -> Iterator[tuple[int, Any]]:
    """Yield (index, answer) for every image of Batches in order.

    The answer of an unreadable image is its error.

    Args:
        batches: Batches, or a progress bar around it.
        compute: function ([index, ...], images [N, C, height, width]) -> N answers.
    """
    for batch in batches:
        readable = {index: image for index, image in batch if not isinstance(image, UnreadableImage)}
        answers: dict[int, Any] = {}
        if readable:
            found = compute([*readable], np.stack([*readable.values()]))
            answers = dict(zip(readable, found, strict=True))
        for index, image in batch:
            yield index, answers.get(index, image)
