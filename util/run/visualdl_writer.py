"""The VisualDL points and pictures of a run, which stay one curve however often the run was interrupted.

VisualDL shows the newest record file of a folder alone, and every point in it. A run that continues therefore goes on
in the file that it finds, once the points that it will make again are out of it.
"""
import contextlib
import io
import struct
from pathlib import Path

from google.protobuf.message import DecodeError

from util.system import distributed
from util.system.atomic_file import atomic_write

# Their points stand at thousandths of an epoch, so that runs with other batch sizes compare (as in the official code);
# all others stand at the number of their epoch.
WITHIN_EPOCH = ("train_loss", "loss", "lr", "grad_norm")


def thousandth(epoch, share):
    """Where the point of a step stands that begins after `share` of the epoch."""
    return int((epoch + share) * 1000)


def open_writer(log_dir, *, place=None):
    """A VisualDL writer on the first process, or None where `log_dir` is empty.

    Args:
        place: (epoch, share of it that is done) from which a run continues the one whose points are in the folder;
            None: it is a new one.
    """
    if not log_dir or not distributed.is_main():
        return None
    from visualdl import LogWriter  # brings pandas and more; a second at start-up that a run without it saves
    files = [] if place is None else sorted(Path(log_dir).glob("vdlrecords.*.log"))
    if not files:
        return LogWriter(logdir=str(log_dir))
    _cut(files[-1], *place)
    with contextlib.redirect_stdout(io.StringIO()):  # VisualDL says that it appends
        return LogWriter(logdir=str(log_dir), file_name=files[-1].name)


def _cut(path, epoch, share):
    """Leave in the record file at `path` what stands before `share` of `epoch`."""
    with open(path, "rb") as old, atomic_write(path) as new:
        for data, point in _records(old):
            end = thousandth(epoch, share) if point.tag in WITHIN_EPOCH else epoch
            if point.WhichOneof("one_value") == "meta_data" or point.id < end:
                new.write(struct.pack("<Q", len(data)) + data)


def _records(file):
    """Yield (bytes, point) of each record; a writer that was killed may have left a damaged end."""
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
