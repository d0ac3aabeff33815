"""Lists of images: files that name one image in each line or entry, and its class if there are classes.

    .txt    photos/1.jpg              or with a class: photos/1.jpg 17, or photos/1.jpg<tab>tabby cat
    .csv    columns file (path, image, filename) and label (class); without such a header one or two columns
    .json   ["1.jpg", ...]; [["1.jpg", 17], ...]; [{"file": "1.jpg", "label": 17}, ...]; {"1.jpg": 17, ...}

In a .txt file, a tab separates name and class. In a file without tabs, the last word of each line is the
class, unless it ends like an image file: then the whole line is a name. Either all images have a class or
none.

Classes are all numbers or all names. Numbers are the labels themselves, so that a class without images does
not shift the others. Names are sorted and numbered 0, 1, ... An image that is named several times counts as
often.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from util.data.file_index import Paths

SUFFIXES = (".txt", ".csv", ".json")
NAME_COLUMNS, LABEL_COLUMNS = ("file", "path", "image", "filename"), ("label", "class")
MAX_CLASSES = 1_000_000  # a larger number comes from another column


@dataclass(frozen=True)
class ImageList:
    """Contents of a list.

    Args:
        names: in the order of the list.
        labels: int64 [len(names)], or None for a list without classes.
        classes: names of the labels 0, 1, ..., or None.
        numbered: True if the list has numbers as classes.
    """

    names: Paths
    labels: np.ndarray | None
    classes: list[str] | None
    numbered: bool


@dataclass
class _Entries:
    """Names and classes as a file has them.

    Args:
        path: of the file; unit: "line" or "entry"; numbers: number of each entry in the file.
        labels: class of each entry, or None.
    """

    path: str
    unit: str
    numbers: Sequence[int]
    names: list[str]
    labels: list[Any] | None

    def error(self, index, problem):
        """Return a ValueError about the entry `index`."""
        return _error(self.path, problem, self.unit, self.numbers[index])


def _error(path, problem, unit="", number=0):
    return ValueError(f"--data_path: {path}{f', {unit} {number}' if number else ''}: {problem}")


def read_image_list(path: Path | str, image_suffixes: tuple[str, ...]) -> ImageList:
    """Read a list of images.

    Args:
        path: of the list, a .txt, .csv or .json file.
        image_suffixes: in lower case; they tell names from classes in a .txt file.

    Raises ValueError, with the line or entry, if the file is damaged or ambiguous.
    """
    entries = READERS[Path(path).suffix.lower()](str(path), _read_text(path), image_suffixes)
    names = entries.names
    if not names:
        raise _error(path, "names no picture")
    if (
        len(names) > 1
        and not names[0].lower().endswith(image_suffixes)
        and names[1].lower().endswith(image_suffixes)
    ):
        raise entries.error(
            0,
            f"{_beginning([names[0]])} does not end like a picture's file, and "
            f"{_beginning([names[1]])} does; is it a header? One has "
            f"{' or '.join(NAME_COLUMNS)}, and {' or '.join(LABEL_COLUMNS)}",
        )
    if "" in names:
        raise entries.error(names.index(""), "there is no name here")
    try:
        paths = Paths(names)
    except UnicodeEncodeError as error:  # halves of characters, which JSON can write
        raise _error(path, f"it has a name that no file can have ({error.reason})") from error
    if entries.labels is None:
        return ImageList(paths, None, None, False)
    labels, classes, numbered = _integer_labels(entries)
    _check_repeated(entries, labels)
    return ImageList(paths, labels, classes, numbered)


def _read_text(path):
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise _error(path, f"this list cannot be read ({error.strerror})") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _error(
            path,
            "this is no text in UTF-8; save the list as UTF-8",
            "line",
            data.count(b"\n", 0, error.start) + 1,
        ) from error
    if "\0" in text:
        raise _error(
            path, "a zero byte, which no name can hold", "line", text.count("\n", 0, text.index("\0")) + 1
        )
    return text


# ---- formats


def _parse_txt(path, text, image_suffixes):
    lines = [(number, line.strip(" \r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    entries = _Entries(path, "line", [number for number, _ in lines], [line for _, line in lines], None)
    if "\t" in text:
        rows = [[part.strip() for part in line.split("\t")] for _, line in lines]
        for index, row in enumerate(rows):
            if len(row) != 2 or not row[1]:
                raise entries.error(
                    index, f"expected a name, a tab and a class, as in other lines; got {_beginning(row)}"
                )
        entries.names, entries.labels = [row[0] for row in rows], [row[1] for row in rows]
        return entries
    words = [line.rpartition(" ") for _, line in lines]
    has_class = [bool(before) and not last.lower().endswith(image_suffixes) for before, _, last in words]
    _check_all_or_none(entries, has_class)
    if any(has_class):
        entries.names = [before.rstrip() for before, _, _ in words]
        entries.labels = [last for _, _, last in words]
    return entries


def _parse_csv(path, text, image_suffixes):
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    numbers, rows = [], []
    try:
        for row in reader:
            if any(map(str.strip, row)):
                numbers.append(reader.line_num)
                rows.append([cell.strip() for cell in row])
    except csv.Error as error:
        raise _error(path, f"this is no CSV ({error})", "line", reader.line_num) from error
    if not rows:
        return _Entries(path, "line", [], [], None)
    header, width = [cell.lower() for cell in rows[0]], len(rows[0])
    if set(header) & set(NAME_COLUMNS):
        name, label = (_column(path, header, known, numbers[0]) for known in (NAME_COLUMNS, LABEL_COLUMNS))
        numbers, rows = numbers[1:], rows[1:]
    elif width <= 2:
        name, label = 0, (1 if width == 2 else None)
    else:
        raise _error(
            path,
            f"{width} columns need a header, with one of {', '.join(NAME_COLUMNS)}, and with "
            f"one of {', '.join(LABEL_COLUMNS)} if there are classes; got "
            f"{_beginning(rows[0])}",
            "line",
            numbers[0],
        )
    for number, row in zip(numbers, rows, strict=True):
        if len(row) != width:
            raise _error(
                path, f"expected {width} columns, as in the first line, got {len(row)}", "line", number
            )
        if label is not None and not row[label]:
            raise _error(path, f"there is no class beside {row[name]}", "line", number)
    return _Entries(
        path,
        "line",
        numbers,
        [row[name] for row in rows],
        None if label is None else [row[label] for row in rows],
    )


def _column(path, header, known, number):
    """Return the index of the column that has one of the `known` names, or None."""
    found = [place for place, cell in enumerate(header) if cell in known]
    if len(found) > 1:
        raise _error(
            path,
            f"several columns could be meant: {', '.join(header[place] for place in found)}; keep one",
            "line",
            number,
        )
    return found[0] if found else None


def _parse_json(path, text, image_suffixes):
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise _error(path, f"this is no JSON ({error.msg})", "line", error.lineno) from error
    except (_RepeatedKey, RecursionError) as error:
        raise _error(path, f"this is no list of images ({error})") from error
    if isinstance(found, dict):
        found = [[name, label] for name, label in found.items()]
    if not isinstance(found, list):
        raise _error(path, f"expected a list or an object, got {_beginning(found)}")
    entries = _Entries(path, "entry", range(1, len(found) + 1), [], None)
    labels = []
    for index, entry in enumerate(found):
        pair = _name_and_label(entry)
        if pair is None:
            raise entries.error(
                index,
                'expected a name, [name, class] or {"file": name, "label": class}, '
                "where a class is a whole number or a text; got "
                f"{_beginning(entry)}",
            )
        entries.names.append(pair[0])
        labels.append(pair[1])
    has_class = [label is not None for label in labels]
    _check_all_or_none(entries, has_class)
    entries.labels = labels if any(has_class) else None
    return entries


def _name_and_label(entry):
    """Return (name, class or None) of an entry of a JSON list, or None if it has another form."""
    if isinstance(entry, dict):
        names, labels = (
            [entry[key] for key in known if key in entry] for known in (NAME_COLUMNS, LABEL_COLUMNS)
        )
        if len(names) != 1 or len(labels) > 1:
            return None
        entry = [*names, *labels]
    elif isinstance(entry, str):
        entry = [entry]
    elif not isinstance(entry, list):
        return None
    if not 1 <= len(entry) <= 2 or not isinstance(entry[0], str) or "\0" in entry[0]:
        return None
    if len(entry) == 1:
        return entry[0], None
    name, label = entry
    is_class = type(label) is int or (isinstance(label, str) and label.strip())
    return (name, label) if is_class else None


class _RepeatedKey(ValueError):
    pass


def _unique(pairs):
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKey(
            f"{next(name for name in made if names.count(name) > 1)} stands twice in an object"
        )
    return made


READERS = {".txt": _parse_txt, ".csv": _parse_csv, ".json": _parse_json}


# ---- classes


def _integer_labels(entries):
    """Return (int64 labels, class names, True if the classes are numbers)."""
    labels = entries.labels
    known = set(labels)
    # pandas writes integers as 17.0
    if all(isinstance(label, str) and re.fullmatch(r"[0-9]+\.0*", label) for label in known):
        labels = [label.partition(".")[0] for label in labels]
        known = set(labels)
    numbers = {label for label in known if type(label) is int or (label.isascii() and label.isdecimal())}
    if numbers and numbers != known:
        first, other = (
            next(index for index, label in enumerate(labels) if (label in numbers) is wanted)
            for wanted in (True, False)
        )
        raise entries.error(
            other,
            f"the class is {labels[other]}, and in {entries.unit} "
            f"{entries.numbers[first]} it is {labels[first]}: classes are all numbers "
            "or all names",
        )
    if numbers:
        values = {label: int(label) for label in known}
        wrong = next(
            (index for index, label in enumerate(labels) if not 0 <= values[label] < MAX_CLASSES), None
        )
        if wrong is not None:
            raise entries.error(
                wrong, f"the class {labels[wrong]}: classes are numbered from 0 to {MAX_CLASSES - 1} at most"
            )
        classes = [str(number) for number in range(max(values.values()) + 1)]
    else:
        classes = sorted({label.strip() for label in known})
        places = {name: place for place, name in enumerate(classes)}
        values = {label: places[label.strip()] for label in known}
    return np.fromiter(map(values.__getitem__, labels), np.int64, len(labels)), classes, bool(numbers)


def _check_all_or_none(entries, has_class):
    if has_class and not all(has_class) and any(has_class):
        other = has_class.index(not has_class[0])
        here, first = ("a class", "none") if has_class[other] else ("none", "a class")
        unit = entries.unit
        raise entries.error(
            other,
            f"this {unit} has {here}, and {unit} {entries.numbers[0]} has {first}; "
            "give every picture a class, or none",
        )


def _check_repeated(entries, labels):
    """Raise ValueError if an image is named several times in different classes."""
    if len(set(entries.names)) == len(entries.names):
        return
    first: dict[str, int] = {}
    for index, name in enumerate(entries.names):
        before = first.setdefault(name, index)
        if labels[before] != labels[index]:
            raise entries.error(
                index, f"{name} is of another class in {entries.unit} {entries.numbers[before]}"
            )


def _beginning(value):
    """Return the beginning of a value as JSON, for a message."""
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 80 else shown[:80] + "..."
