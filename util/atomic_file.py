"""Files that are either whole or not there."""
import contextlib
import os
import shutil
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path, mode="wb"):
    """Open a temporary file beside `path`; it takes that name only once it is complete and on the disk.

    If the body raises, the temporary file is removed and what stood at `path` is untouched.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def alias(path, name):
    """Let the file `path` also be known as `name` in the same folder: a hard link where there are such, else a copy."""
    path = Path(path)
    part = path.with_name(f".{name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(path, part)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, part)
    os.replace(part, path.with_name(name))
