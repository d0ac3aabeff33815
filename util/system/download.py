"""Downloads: verified, atomic, and done once if several processes need the same file."""

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
    fcntl = None  # type: ignore[assignment]

CHUNK = 1 << 20  # bytes
TIMEOUT_SECONDS = 30  # of the connection, and of each read
SECONDS_BETWEEN_LINES = 10


def fetch(url: str, path: Path | str, *, md5: str, flag: str) -> None:
    """Download `url` to the file `path`, unless it is there. One process downloads; the others wait.

    Args:
        md5: checksum of the file, in hexadecimal.
        flag: flag with which error messages begin.

    Raises ValueError, and leaves no file, if the download fails, the disk has too little space, or the
    checksum is wrong.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if not has(path, md5):
                for part in path.parent.glob(f".{path.name}.*.part"):  # left by a killed process
                    part.unlink()
                _download(url, path, md5, flag)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        there = f"; the file there does not have the published MD5 {md5}" if path.is_file() else ""
        raise ValueError(
            f"{flag}: {url} cannot be downloaded to {path} ({reason}){there}. Download it "
            "elsewhere and put it there, or pass the file as --data_path"
        ) from error


def has(path: Path | str, md5: str) -> bool:
    """Return True if `path` is a file with this checksum, in hexadecimal."""
    digest = _md5()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return False
    return digest.hexdigest() == md5


def _md5():
    return hashlib.md5(usedforsecurity=False)  # detects damage, not tampering


@contextlib.contextmanager
def _alone(path):
    """Lock the download to `path`: wait until no other process holds the lock."""
    if fcntl is None:
        yield
        return
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(url, path, md5, flag):
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer, atomic_write(path) as file:
        total = int(answer.headers.get("Content-Length") or 0)
        free = shutil.disk_usage(path.parent).free
        if total > free:
            raise ValueError(
                f"{flag}: {path.parent} has {free / 1e6:,.0f} MB free, and {url} needs "
                f"{total / 1e6:,.0f} MB; free space, or pass another --data_path"
            )
        digest, done = _md5(), 0
        with _Progress(url, path, total) as progress:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                progress.update(len(chunk))
        if done < total:
            raise ValueError(
                f"{flag}: {url} ended after {done:,} of {total:,} bytes, which were removed; try again"
            )
        if digest.hexdigest() != md5:
            raise ValueError(
                f"{flag}: the download of {url} has the MD5 {digest.hexdigest()} instead of "
                f"{md5} and was removed; it is damaged, or a page of a proxy"
            )


class _Progress:
    """Progress of a download: a bar on a terminal, else a line every few seconds."""

    def __init__(self, url, path, total):
        self.total, self.done = total, 0
        self.next_line = time.monotonic() + SECONDS_BETWEEN_LINES
        size = f" ({total / 1e6:,.0f} MB)" if total else ""
        print(f"downloading {url} to {path}{size}", flush=True)
        self.bar = (
            tqdm(total=total or None, unit="B", unit_scale=True, desc=path.name, leave=False)
            if console.shows_bars()
            else None
        )

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
