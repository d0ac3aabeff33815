"""Answers of a classifier, written one by one as text, JSON, JSON lines or CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from typing import Protocol, TextIO

DECIMALS = 6  # of a probability, except in text (4); later ones may depend on the batch size

Classes = Sequence[tuple[int, str, float]]  # [(label, class name, probability), ...], best first


class AnswerWriter(Protocol):
    """Writer of answers, in one of FORMATS."""

    def answer(self, name: str, classes: Classes) -> None: ...

    def unreadable(self, name: str, reason: str) -> None: ...

    def end(self) -> None: ...


class Text:
    """Text: lines `class: probability`, indented below the name of the picture.

    A single picture (`alone`) has no name. Unreadable pictures have no line.
    """

    def __init__(self, stream: TextIO, *, alone: bool = False) -> None:
        self.stream, self.alone = stream, alone

    def answer(self, name: str, classes: Classes) -> None:
        """Write the classes of a picture."""
        if not self.alone:
            print(name, file=self.stream)
        for _, class_name, probability in classes:
            print(f"{'' if self.alone else '  '}{class_name}: {probability:.4f}", file=self.stream)

    def unreadable(self, name: str, reason: str) -> None:
        """Write nothing."""

    def end(self) -> None:
        """Write nothing."""


class JsonLines:
    """One object per line: {"file", "classes"} or, for an unreadable picture, {"file", "error"}.

    Classes are [{"class", "label", "probability"}, ...].
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def answer(self, name: str, classes: Classes) -> None:
        """Write the classes of a picture."""
        self._object(
            {
                "file": name,
                "classes": [
                    {"class": class_name, "label": label, "probability": round(probability, DECIMALS)}
                    for label, class_name, probability in classes
                ],
            }
        )

    def unreadable(self, name: str, reason: str) -> None:
        """Write the reason why a picture cannot be read."""
        self._object({"file": name, "error": reason})

    def _object(self, entry):
        print(_json(entry), file=self.stream)

    def end(self) -> None:
        """Write nothing."""


class Json(JsonLines):
    """One JSON list of the objects that JsonLines writes."""

    count = 0

    def _object(self, entry):
        print("," if self.count else "[", file=self.stream)
        print(f"  {_json(entry)}", end="", file=self.stream)
        self.count += 1

    def end(self) -> None:
        """Close the list."""
        print("\n]" if self.count else "[]", file=self.stream)


class Csv:
    """Header, then a row for each class of each picture. An unreadable picture has a row with the reason."""

    def __init__(self, stream: TextIO) -> None:
        self.writers = {
            quoting: csv.writer(stream, lineterminator="\n", quoting=quoting)
            for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)
        }
        self._row("file", "rank", "class", "label", "probability", "error")

    def answer(self, name: str, classes: Classes) -> None:
        """Write the classes of a picture."""
        for rank, (label, class_name, probability) in enumerate(classes, start=1):
            self._row(name, rank, class_name, label, f"{probability:.{DECIMALS}f}", "")

    def unreadable(self, name: str, reason: str) -> None:
        """Write the reason why a picture cannot be read."""
        self._row(name, "", "", "", "", reason)

    def _row(self, *fields):
        # An unquoted carriage return in a file name would end the row.
        splits = any("\r" in str(field) for field in fields)
        self.writers[csv.QUOTE_ALL if splits else csv.QUOTE_MINIMAL].writerow(fields)

    def end(self) -> None:
        """Write nothing."""


FORMATS = {"text": Text, "json": Json, "jsonl": JsonLines, "csv": Csv}
SUFFIXES = {".json": "json", ".jsonl": "jsonl", ".csv": "csv"}  # others are text


def _json(entry):
    try:
        return json.dumps(entry, ensure_ascii=False).encode().decode()
    except UnicodeEncodeError:  # a file name that is not UTF-8
        return json.dumps(entry)
