"""Zip archives from anywhere: nothing is unpacked that would be out of proportion to the file."""
import contextlib
import os
import zipfile

from util.system.safe_pickle import check_volume


@contextlib.contextmanager
def opened(f):
    """The zipfile.ZipFile in an open binary file.

    Raises ValueError for one that would unpack to far more bytes than it has, and zipfile.BadZipFile.
    """
    with zipfile.ZipFile(f) as archive:
        entries = archive.infolist()
        if not all(entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
            raise ValueError("it is compressed by another method than deflate")
        check_volume(sum(entry.file_size for entry in entries), os.fstat(f.fileno()).st_size)
        yield archive


def read(archive, name):
    """The bytes of an entry, as many as its directory says; zipfile.ZipFile.read unpacks more where that is a lie."""
    entry = archive.getinfo(name)
    with archive.open(entry) as f:
        content = f.read(entry.file_size)
    if len(content) != entry.file_size:
        raise EOFError(f"{name} ends before its last byte")
    return content
