"""Files that are either whole or not there."""
import contextlib
import errno
import os
import shutil
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path, mode="wb"):
    """Open a temporary file beside `path`; it takes that name only once it is complete and on the disk.

    If the body raises, the temporary file is removed and what stood at `path` is untouched. ValueError if that is no file:
    a device would be replaced, for everybody.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path}: this is a device or a pipe, and a file is to be written there; name another")
    # Names may be as long as the file system allows, which is counted in bytes.
    part = path.with_name(f".{os.fsdecode(os.fsencode(path.name)[:200])}.{os.getpid()}.part")
    try:
        with open(part, mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a disk that is full does not say whose
        raise
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def alias(path, name):
    """Let the file `path` also be known as `name` in the same folder: a hard link where there are such, else a copy."""
    path = Path(path)
    part = path.with_name(f".{name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(path, part)
    except OSError:  # a file system without hard links
        _copy(path, part)
    os.replace(part, path.with_name(name))
    part.unlink(missing_ok=True)  # if both were names of one file already, replacing does nothing
    sync_folder(path.parent)


def sync_folder(folder):
    """Return once the names in `folder` are on the disk: after a power failure a renamed file has its new name."""
    if os.name == "posix":  # elsewhere folders cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # a file system that cannot, such as some that are mounted over a network
                raise
        finally:
            os.close(descriptor)


def remove_parts(folder):
    """Remove what writers that were killed have left in `folder`; nobody else may be writing there."""
    for part in Path(folder).glob(".*.part"):
        part.unlink()


def _copy(path, part):
    try:
        with open(path, "rb") as source, open(part, "wb") as f:
            shutil.copyfileobj(source, f, 2 ** 24)
            f.flush()
            os.fsync(f.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
