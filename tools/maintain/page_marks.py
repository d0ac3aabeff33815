"""Pages of which a tool writes the part between two marks, and people the rest."""


def between_marks(content, text, path, marks):
    """The content of a page with other `text` between its `marks`; ValueError, naming `path`, if it has not both."""
    before, start, rest = content.partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not start or not end:
        raise ValueError(f"{path}: expected the marks {marks[0].strip()} and {marks[1].strip()}")
    return f"{before}{start}\n{text}\n{end}{after}"
