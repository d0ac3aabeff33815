"""VisualDL's records, read with its own reader."""

from visualdl import LogReader


def points(folder):
    """{tag: [(step, value or "image"), ...]} of what VisualDL shows of a folder: its newest record file."""
    newest = sorted(folder.glob("vdlrecords.*"))[-1]
    reader = LogReader(file_path=str(newest))
    found = {}
    for kind, tags in reader.get_tags().items():
        if kind != "meta_data":
            for tag in tags:
                found[tag] = [
                    (point.id, "image" if kind == "image" else round(point.value, 3))
                    for point in reader.get_data(kind, tag)
                ]
    return found
