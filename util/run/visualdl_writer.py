"""VisualDL log of a run, which stays one curve however often the run was interrupted.

VisualDL shows only the newest record file of a folder, and every point in it. So a run that resumes appends
to that file, after removing the points that it will make again.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from google.protobuf.message import DecodeError

from util.system import distributed
from util.system.atomic_file import atomic_write

# Their x axis is in thousandths of an epoch, so that runs with different batch sizes compare, as in the
# official code. All other curves have one point per epoch.
WITHIN_EPOCH = ("train_loss", "loss", "lr", "grad_norm")


def thousandth(epoch: int, share: float) -> int:
    """Return the x coordinate of a step that begins after `share` of the epoch."""
    return int((epoch + share) * 1000)


def open_writer(log_dir: str, *, place: tuple[int, float] | None = None) -> Any:
    """Open a VisualDL writer in the first process; return None in others, and without a folder.

    Args:
        log_dir: folder, or "" for none.
        place: (epoch, share of it that is done) at which a run resumes the one in the folder; None for a new
            run.
    """
    if not log_dir or not distributed.is_main():
        return None
    from visualdl import LogWriter  # imports pandas and more: a second that runs without it save

    files = [] if place is None else sorted(Path(log_dir).glob("vdlrecords.*.log"))
    if not files or place is None:
        return LogWriter(logdir=str(log_dir))
    _cut(files[-1], *place)
    with contextlib.redirect_stdout(io.StringIO()):  # VisualDL prints that it appends
        return LogWriter(logdir=str(log_dir), file_name=files[-1].name)


def _cut(path: Path, epoch: int, share: float) -> None:
    """Remove the points from `share` of `epoch` on from the record file at `path`."""
    with open(path, "rb") as old, atomic_write(path) as new:
        for data, point in _records(old):
            end = thousandth(epoch, share) if point.tag in WITHIN_EPOCH else epoch
            if point.WhichOneof("one_value") == "meta_data" or point.id < end:
                new.write(struct.pack("<Q", len(data)) + data)


def _records(file: BinaryIO) -> Iterator[tuple[bytes, Any]]:
    """Yield (bytes, point) of each record, up to the damaged end that a killed writer may have left."""
    from visualdl.proto.record_pb2 import Record

    while len(header := file.read(8)) == 8:
        data, record = file.read(struct.unpack("<Q", header)[0]), Record()
        try:
            record.ParseFromString(data)
        except DecodeError:
            return
        if not record.values:
            return
        yield data, record.values[0]
