"""Files that are either complete or absent."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def atomic_write(path: Path | str, mode: str = "wb") -> Iterator[IO]:
    """Open a temporary file beside `path`, and rename it to `path` once it is complete and on the disk.

    If the body raises, the temporary file is removed and `path` does not change.

    Raises ValueError if `path` is a device or a pipe, because renaming would replace it.
    """
    path = Path(path)
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path}: a device or a pipe, not a file; name another path")
    # File systems limit the length of a name, in bytes.
    part = path.with_name(f".{os.fsdecode(os.fsencode(path.name)[:200])}.{os.getpid()}.part")
    try:
        with open(part, mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # the error of a full disk names no file
        raise
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


def alias(path: Path | str, name: str) -> None:
    """Give the file `path` a second name in its folder: a hard link, or a copy if that is not possible."""
    path = Path(path)
    part = path.with_name(f".{name}.{os.getpid()}.part")
    part.unlink(missing_ok=True)
    try:
        os.link(path, part)
    except OSError:  # the file system has no hard links
        _copy(path, part)
    os.replace(part, path.with_name(name))
    part.unlink(missing_ok=True)  # os.replace leaves `part` if both are hard links to the same file
    sync_folder(path.parent)


def sync_folder(folder: Path | str) -> None:
    """Flush the directory entries of `folder` to the disk, so that they survive a power failure."""
    if os.name == "posix":  # other systems cannot open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno != errno.EINVAL:  # some network file systems do not support it
                raise
        finally:
            os.close(descriptor)


def remove_parts(folder: Path | str) -> None:
    """Remove temporary files that killed processes left. No other process may be writing to `folder`."""
    for part in Path(folder).glob(".*.part"):
        part.unlink()


def _copy(path: Path, part: Path) -> None:
    try:
        with open(path, "rb") as source, open(part, "wb") as f:
            shutil.copyfileobj(source, f, 2**24)
            f.flush()
            os.fsync(f.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise
