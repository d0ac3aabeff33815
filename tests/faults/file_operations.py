"""Puts a fault at the n-th operation that a process does on the files of a folder."""

import builtins
import functools
import io
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# In `os`: functions that change a folder, with the number of paths that they begin with; and those that
# change a file.
ON_PATHS = {
    "replace": 2,
    "rename": 2,
    "link": 2,
    "symlink": 2,
    "unlink": 1,
    "remove": 1,
    "mkdir": 1,
    "rmdir": 1,
    "truncate": 1,
}
ON_DESCRIPTORS = {"fsync": 0, "fdatasync": 0, "ftruncate": 0, "write": 0, "sendfile": 0}


class FileOperations:
    """Counter of operations that change files below a folder, with an action before one of them.

    What a loss of power may do to files is followed, too: what was written to a file since its last fsync.

    Args:
        folder: the folder.
        at: number of the operation, from 0 on; None: none, they are only counted.
        act: called before it, with this object; kill, lose_power, or what `send` or the caller makes.
    """

    def __init__(self, folder, at=None, act=None):
        self.folder, self.at, self.act = os.path.abspath(folder), at, act
        self.count = multiprocessing.Value("q", 0)  # shared with children, of which one may be writing
        self.names = multiprocessing.Array("c", 1 << 18)
        self.unsynced = {}  # (device, inode) -> bytes that are safe
        self.synced = {}  # (device, inode) -> (bytes, time of modification) at the last fsync
        self.main = self.main_thread = None
        self.inside = threading.local()

    def install(self):
        """Begin, in this process and the children to come; `prepare` of forked_runs."""
        self.main = os.getpid()
        self.real = {name: getattr(os, name) for name in [*ON_PATHS, *ON_DESCRIPTORS, "open"]}
        self.real_open = builtins.open
        for name, paths in ON_PATHS.items():
            setattr(os, name, self._on_paths(name, paths))
        for name in ON_DESCRIPTORS:
            setattr(os, name, self._on_descriptor(name))
        os.open = self._os_open
        builtins.open = io.open = self._open

    def operations(self):
        """Return the operations so far, as ["open .log.txt.part", ...]."""
        return self.names.value.decode().splitlines()

    def _here(self, path):
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}").removesuffix(" (deleted)")
            except OSError:
                return None
        path = os.path.abspath(os.fsdecode(path))
        return path if path == self.folder or path.startswith(self.folder + os.sep) else None

    def _before(self, name, *paths):
        """Count an operation if it is one of the folder's."""
        here = [os.path.relpath(path, self.folder) for path in map(self._here, paths) if path is not None]
        if not here or getattr(self.inside, "act", False):
            return False
        with self.count.get_lock():
            number = self.count.value
            self.count.value += 1
            self.names.value = self.names.value + f"{name} {' '.join(here)}\n".encode()
        if number == self.at:
            self.inside.act = True
            try:
                self.act(self)
            finally:
                self.inside.act = False
        return True

    def _on_paths(self, name, number):
        real = self.real[name]

        @functools.wraps(real)
        def operation(*args, **others):
            self._before(name, *args[:number])
            return real(*args, **others)

        return operation

    def _on_descriptor(self, name):
        real = self.real[name]

        @functools.wraps(real)
        def operation(file, *args, **others):
            descriptor = file if isinstance(file, int) else file.fileno()
            if self._before(name, descriptor):
                status = os.fstat(descriptor)
                self.unsynced.setdefault(_key(status), status.st_size)
            result = real(file, *args, **others)
            if name in ("fsync", "fdatasync") and self._here(descriptor):
                status = os.fstat(descriptor)
                self.synced[_key(status)] = status.st_size, status.st_mtime_ns
                self.unsynced.pop(_key(status), None)
            return result

        return operation

    def _os_open(self, path, flags, *args, **others):
        if not flags & WRITING or not self._before("open", path):
            return self.real["open"](path, flags, *args, **others)
        descriptor = self.real["open"](path, flags, *args, **others)
        self._opened(descriptor, fresh=bool(flags & os.O_TRUNC))
        return descriptor

    def _open(self, file, mode="r", *args, **others):
        if not set(mode) & set("wax+") or not self._before("open", file):
            return self.real_open(file, mode, *args, **others)
        opened = self.real_open(file, mode, *args, **others)
        self._opened(opened.fileno(), fresh="w" in mode)
        return opened

    def _opened(self, descriptor, *, fresh):
        status = os.fstat(descriptor)
        safe = 0 if fresh else self.synced.get(_key(status), (status.st_size, 0))[0]
        self.unsynced[_key(status)] = min(safe, self.unsynced.get(_key(status), safe))

    def damage(self):
        """Take from the files what a loss of power may take: what no fsync has put on the disk."""
        for path in Path(self.folder).rglob("*"):
            status = os.lstat(path)
            key = _key(status)
            safe = self.unsynced.get(key)
            if (
                safe is None
                and key in self.synced
                and self.synced[key] != (status.st_size, status.st_mtime_ns)
            ):
                safe = min(self.synced[key][0], status.st_size)
            if safe is None or not path.is_file() or path.is_symlink():
                continue
            # In turn: nothing of it, half of it, and its length without its contents.
            kept = (safe, (safe + status.st_size) // 2, status.st_size)[self.at % 3]
            with self.real_open(path, "rb+") as f:
                f.truncate(safe if self.at % 3 == 2 else kept)
                f.truncate(kept)
            self.unsynced.pop(key, None)  # another name of it need not be damaged again


def kill(operations):
    """SIGKILL to the process, its workers and whatever else is of its group."""
    os.killpg(os.getpgrp(), signal.SIGKILL)
    time.sleep(60)  # until it arrives


def lose_power(operations):
    """The same, and the disk keeps only what was put there by fsync."""
    operations.damage()
    kill(operations)


def send(number, *, everyone=False):
    """Return an action that signals the process of the operation, or also its workers, as Ctrl-C does.

    The operation goes on.
    """

    def act(operations):
        if everyone:
            os.killpg(os.getpgrp(), number)
        else:
            os.kill(operations.main, number)

    return act


def _key(status):
    return status.st_dev, status.st_ino
