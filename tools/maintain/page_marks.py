"""Pages with a part between two marks that a tool writes; the rest is written by hand."""

from pathlib import Path


def between_marks(content: str, text: str, path: Path | str, marks: tuple[str, str]) -> str:
    """Replace the part of a page between its marks by `text`.

    Raises ValueError, naming `path`, if the page lacks a mark.
    """
    before, start, rest = content.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not start or not end:
        raise ValueError(f"{path}: expected the marks {marks[0].strip()} and {marks[1].strip()}")
    return f"{before}{start}\n{text}\n{end}{after}"
