"""A file from the network: checked, whole or not there, and fetched once however many processes want it."""
import contextlib
import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from util.system import console
from util.system.atomic_file import atomic_write

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CHUNK = 1 << 20             # bytes
PATIENCE_SECONDS = 30       # for an answer, and for each part of it
SECONDS_BETWEEN_LINES = 10


def fetch(url, path, *, md5, flag):
    """Download `url` to the file `path`, unless it is there; of several processes one does, and the others wait for it.

    Args:
        md5: hexadecimal, of the whole file.
        flag: which errors begin with.

    ValueError, and no file, if there is no connection, if it is cut, if the disk is too small or the checksum is wrong.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if not has(path, md5):
                for part in path.parent.glob(f".{path.name}.*.part"):  # of a process that was killed
                    part.unlink()
                _download(url, path, md5, flag)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        there = f"; the file that is there has not the MD5 {md5} of the published one" if path.is_file() else ""
        raise ValueError(f"{flag}: {url} cannot be downloaded to {path} ({reason}){there}. Get it on a machine that can, and "
                         "put it there, or elsewhere and name the file by --data_path") from error


def has(path, md5):
    """Whether `path` is a file with this checksum, hexadecimal."""
    digest = _md5()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return False
    return digest.hexdigest() == md5


def _md5():
    return hashlib.md5(usedforsecurity=False)  # against damage, not against malice


@contextlib.contextmanager
def _alone(path):
    """Wait until no other process downloads to `path`."""
    if fcntl is None:
        yield
        return
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(url, path, md5, flag):
    with urllib.request.urlopen(url, timeout=PATIENCE_SECONDS) as answer, atomic_write(path) as file:
        total = int(answer.headers.get("Content-Length") or 0)
        free = shutil.disk_usage(path.parent).free
        if total > free:
            raise ValueError(f"{flag}: {path.parent} has {free / 1e6:,.0f} MB free, and {url} has {total / 1e6:,.0f} "
                             "MB. Make room, or name another folder by --data_path")
        digest, done = _md5(), 0
        with _Progress(url, path, total) as progress:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                progress.update(len(chunk))
        if done < total:
            raise ValueError(f"{flag}: {url} broke off after {done:,} of {total:,} bytes, which were removed. Start "
                             "again")
        if digest.hexdigest() != md5:
            raise ValueError(f"{flag}: what came from {url} has the MD5 {digest.hexdigest()} instead of {md5}, and was "
                             "removed: it is damaged, or another file, such as a page of a proxy")


class _Progress:
    """A bar on a terminal, else a line now and then. Only the process that downloads has one, whichever it is."""

    def __init__(self, url, path, total):
        self.total, self.done = total, 0
        self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        size = f" ({total / 1e6:,.0f} MB)" if total else ""
        print(f"downloading {url} to {path}{size}", flush=True)
        self.bar = (tqdm(total=total or None, unit="B", unit_scale=True, desc=path.name, leave=False)
                    if console.shows_bars() else None)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()

    def update(self, count):
        self.done += count
        if self.bar is not None:
            self.bar.update(count)
        elif time.monotonic() > self.next_line:
            of = f" of {self.total / 1e6:,.0f}" if self.total else ""
            print(f"downloaded {self.done / 1e6:,.0f}{of} MB", flush=True)
            self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES
