"""A classifier's answers about pictures, written one after the other as text, JSON, JSON lines or CSV."""
import csv
import json

DECIMALS = 6  # of a probability; text has 4. What lies behind may depend on the batch that a picture was computed in.


class Text:
    """Lines `class: probability`, below the picture's name and indented unless it is `alone`. Errors have no line."""

    def __init__(self, stream, *, alone=False):
        self.stream, self.alone = stream, alone

    def answer(self, name, classes):
        """Classes: [(label, class name, probability), ...], best first."""
        if not self.alone:
            print(name, file=self.stream)
        for _, class_name, probability in classes:
            print(f"{'' if self.alone else '  '}{class_name}: {probability:.4f}", file=self.stream)

    def unreadable(self, name, reason):
        """A picture without an answer."""

    def end(self):
        """Nothing follows."""


class JsonLines:
    """An object a line: {"file", "classes": [{"class", "label", "probability"}, ...]}, or {"file", "error"}."""

    def __init__(self, stream):
        self.stream = stream

    def answer(self, name, classes):
        self._object({"file": name, "classes": [
            {"class": class_name, "label": label, "probability": round(probability, DECIMALS)}
            for label, class_name, probability in classes]})

    def unreadable(self, name, reason):
        self._object({"file": name, "error": reason})

    def _object(self, entry):
        print(_json(entry), file=self.stream)

    def end(self):
        """Nothing follows."""


class Json(JsonLines):
    """The same objects as one list."""

    count = 0

    def _object(self, entry):
        print("," if self.count else "[", file=self.stream)
        print(f"  {_json(entry)}", end="", file=self.stream)
        self.count += 1

    def end(self):
        print("\n]" if self.count else "[]", file=self.stream)


class Csv:
    """A row for each class of each picture, under a header; a picture that cannot be read has one with the reason."""

    def __init__(self, stream):
        self.writers = {quoting: csv.writer(stream, lineterminator="\n", quoting=quoting)
                        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL)}
        self._row("file", "rank", "class", "label", "probability", "error")

    def answer(self, name, classes):
        for rank, (label, class_name, probability) in enumerate(classes, start=1):
            self._row(name, rank, class_name, label, f"{probability:.{DECIMALS}f}", "")

    def unreadable(self, name, reason):
        self._row(name, "", "", "", "", reason)

    def _row(self, *fields):
        # Unquoted, a carriage return in a file name would end the row for those who read it.
        splits = any("\r" in str(field) for field in fields)
        self.writers[csv.QUOTE_ALL if splits else csv.QUOTE_MINIMAL].writerow(fields)

    def end(self):
        """Nothing follows."""


FORMATS = {"text": Text, "json": Json, "jsonl": JsonLines, "csv": Csv}
SUFFIXES = {".json": "json", ".jsonl": "jsonl", ".csv": "csv"}  # of files that are not text


def _json(entry):
    try:
        return json.dumps(entry, ensure_ascii=False).encode().decode()
    except UnicodeEncodeError:  # a file name that is not UTF-8, and would make the whole file none
        return json.dumps(entry)
