"""Lists of images: files that name pictures, a line or an entry each, and their classes if they have any.

    .txt    photos/1.jpg                           or with a class: photos/1.jpg 17, or photos/1.jpg<tab>tabby cat
    .csv    columns file (path, image, filename) and label (class); without such a header one or two columns
    .json   ["1.jpg", ...]; [["1.jpg", 17], ...]; [{"file": "1.jpg", "label": 17}, ...]; {"1.jpg": 17, ...}

In text a tab stands before the class. In a file without tabs the last word of each line is its class, unless it ends as
a picture's file does: then all of the line is a name. Either every picture has a class, or none has.

Classes are numbers everywhere or names everywhere. Numbers are the labels themselves, so that one without a picture
does not shift the others; names are sorted, and numbered 0, 1, ... A picture that is named several times counts as
often.
"""
import csv
import io
import json
import re
from pathlib import Path

import numpy as np

from util.data.file_index import Paths

SUFFIXES = (".txt", ".csv", ".json")
NAME_COLUMNS, LABEL_COLUMNS = ("file", "path", "image", "filename"), ("label", "class")
MOST_CLASSES = 1_000_000    # a larger number is of another column


class ImageList:
    """What a list holds.

    names: file_index.Paths, in the order of the list; labels: int64 [len(names)], or None for a list without classes;
    classes: the names of the labels 0, 1, ..., or None; numbered: whether these are numbers.
    """

    def __init__(self, names, labels, classes, numbered):
        self.names, self.labels, self.classes, self.numbered = names, labels, classes, numbered


def read(path, image_suffixes):
    """The ImageList of the file `path`; ValueError, with the place in it, if it is not one.

    Args:
        image_suffixes: in lower case, which tell names in a .txt from classes.
    """
    unit, numbers, names, labels = READERS[Path(path).suffix.lower()](path, _text(path), image_suffixes)
    if not names:
        raise _error(path, "names no picture")
    if len(names) > 1 and not names[0].lower().endswith(image_suffixes) and names[1].lower().endswith(image_suffixes):
        raise _error(path, f"{_some([names[0]])} does not end as a picture's file, and {_some([names[1]])} does: is it a "
                           f"header? One has {' or '.join(NAME_COLUMNS)}, and {' or '.join(LABEL_COLUMNS)}", unit, numbers[0])
    empty = next((number for number, name in zip(numbers, names) if not name), None)
    if empty is not None:
        raise _error(path, "there is no name here", unit, empty)
    try:
        paths = Paths(names)
    except UnicodeEncodeError as error:  # halves of characters, which JSON can write
        raise _error(path, f"it has a name that no file can have ({error.reason})") from error
    if labels is None:
        return ImageList(paths, None, None, False)
    labels, classes, numbered = _as_numbers(path, unit, numbers, labels)
    _check_repeated(path, unit, numbers, names, labels)
    return ImageList(paths, labels, classes, numbered)


def _error(path, what, unit="", number=0):
    return ValueError(f"--data_path: {path}{f', {unit} {number}' if number else ''}: {what}")


def _text(path):
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise _error(path, f"this list cannot be read ({error.strerror})") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _error(path, "this is no text in UTF-8; save the list as UTF-8", "line",
                     data.count(b"\n", 0, error.start) + 1) from error
    if "\0" in text:
        raise _error(path, "a zero byte, which no name can hold", "line", text.count("\n", 0, text.index("\0")) + 1)
    return text


# ---- forms; each gives what its places are called, the number of each, names, and classes or None

def _from_text(path, text, image_suffixes):
    lines = [(number, line.strip(" \r")) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    numbers = [number for number, _ in lines]
    if "\t" in text:
        rows = [[part.strip() for part in line.split("\t")] for _, line in lines]
        for number, row in zip(numbers, rows):
            if len(row) != 2 or not row[1]:
                raise _error(path, f"expected a name, a tab and a class, as in other lines; got {_some(row)}",
                             "line", number)
        return "line", numbers, [row[0] for row in rows], [row[1] for row in rows]
    rows = [(line, line.rpartition(" ")) for _, line in lines]
    has_class = [bool(row[0]) and not row[2].lower().endswith(image_suffixes) for _, row in rows]
    _check_all_or_none(path, "line", numbers, has_class)
    if any(has_class):
        return "line", numbers, [row[0].rstrip() for _, row in rows], [row[2] for _, row in rows]
    return "line", numbers, [line for line, _ in rows], None


def _from_csv(path, text, image_suffixes):
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
        return "line", [], [], None
    header, width = [cell.lower() for cell in rows[0]], len(rows[0])
    if set(header) & set(NAME_COLUMNS):
        name, label = (_column(path, header, known, numbers[0]) for known in (NAME_COLUMNS, LABEL_COLUMNS))
        numbers, rows = numbers[1:], rows[1:]
    elif width <= 2:
        name, label = 0, (1 if width == 2 else None)
    else:
        raise _error(path, f"{width} columns need a header, with one of {', '.join(NAME_COLUMNS)}, and with one of "
                           f"{', '.join(LABEL_COLUMNS)} if there are classes; got {_some(rows[0])}", "line", numbers[0])
    for number, row in zip(numbers, rows):
        if len(row) != width:
            raise _error(path, f"expected {width} columns, as in the first line, got {len(row)}", "line", number)
        if label is not None and not row[label]:
            raise _error(path, f"there is no class beside {row[name]}", "line", number)
    return "line", numbers, [row[name] for row in rows], None if label is None else [row[label] for row in rows]


def _column(path, header, known, number):
    """The place of the column of a header that has one of the `known` names, or None."""
    found = [place for place, cell in enumerate(header) if cell in known]
    if len(found) > 1:
        raise _error(path, f"several columns could be meant: {', '.join(header[place] for place in found)}; keep one",
                     "line", number)
    return found[0] if found else None


def _from_json(path, text, image_suffixes):
    try:
        found = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise _error(path, f"this is no JSON ({error.msg})", "line", error.lineno) from error
    except (_Twice, RecursionError) as error:
        raise _error(path, f"this is no list of images ({error})") from error
    if isinstance(found, dict):
        found = [[name, label] for name, label in found.items()]
    if not isinstance(found, list):
        raise _error(path, f"expected a list or an object, got {_some(found)}")
    numbers, pairs = range(1, len(found) + 1), []
    for number, entry in zip(numbers, found):
        pair = _pair(entry)
        if pair is None:
            raise _error(path, 'expected a name, [name, class] or {"file": name, "label": class}, where a class is a '
                               f"whole number or a text; got {_some(entry)}", "entry", number)
        pairs.append(pair)
    has_class = [label is not None for _, label in pairs]
    _check_all_or_none(path, "entry", numbers, has_class)
    return "entry", numbers, [name for name, _ in pairs], [label for _, label in pairs] if any(has_class) else None


def _pair(entry):
    """(name, class or None) of an entry of a JSON list, or None if it has neither form."""
    if isinstance(entry, dict):
        names, labels = ([entry[key] for key in known if key in entry] for known in (NAME_COLUMNS, LABEL_COLUMNS))
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
    return (entry[0], entry[1]) if type(entry[1]) is int or (isinstance(entry[1], str) and entry[1].strip()) else None


class _Twice(ValueError):
    pass


def _unique(pairs):
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise _Twice(f"{next(name for name in made if names.count(name) > 1)} stands twice in an object")
    return made


READERS = {".txt": _from_text, ".csv": _from_csv, ".json": _from_json}


# ---- classes

def _as_numbers(path, unit, numbers, labels):
    """(int64 labels, names of the classes, whether they are numbers) of classes as a list has them."""
    known = set(labels)
    if all(isinstance(label, str) and re.fullmatch(r"[0-9]+\.0*", label) for label in known):  # as pandas writes them
        labels = [label.partition(".")[0] for label in labels]
        known = set(labels)
    are_numbers = {label for label in known if type(label) is int or (label.isascii() and label.isdecimal())}
    if are_numbers and are_numbers != known:
        first, other = (next(place for place, label in enumerate(labels) if (label in are_numbers) is wanted)
                        for wanted in (True, False))
        raise _error(path, f"the class is {labels[other]}, and in {unit} {numbers[first]} it is {labels[first]}: "
                           "classes are all numbers or all names", unit, numbers[other])
    if are_numbers:
        values = {label: int(label) for label in known}
        wrong = next((place for place, label in enumerate(labels) if not 0 <= values[label] < MOST_CLASSES), None)
        if wrong is not None:
            raise _error(path, f"the class {labels[wrong]}: classes are numbered from 0 to {MOST_CLASSES - 1} at most",
                         unit, numbers[wrong])
        classes = [str(number) for number in range(max(values.values()) + 1)]
    else:
        classes = sorted({label.strip() for label in known})
        places = {name: place for place, name in enumerate(classes)}
        values = {label: places[label.strip()] for label in known}
    return np.fromiter(map(values.__getitem__, labels), np.int64, len(labels)), classes, bool(are_numbers)


def _check_all_or_none(path, unit, numbers, has_class):
    if has_class and not all(has_class) and any(has_class):
        other = has_class.index(not has_class[0])
        here, first = ("a class", "none") if has_class[other] else ("none", "a class")
        raise _error(path, f"this {unit} has {here}, and {unit} {numbers[0]} has {first}: give every picture a class, "
                           "or none", unit, numbers[other])


def _check_repeated(path, unit, numbers, names, labels):
    """A picture may be named several times, but in one class."""
    if len(set(names)) == len(names):
        return
    first = {}
    for place, name in enumerate(names):
        before = first.setdefault(name, place)
        if labels[before] != labels[place]:
            raise _error(path, f"{name} is of another class in {unit} {numbers[before]}", unit, numbers[place])


def _some(value):
    """The beginning of it, for a message."""
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 80 else shown[:80] + "..."
