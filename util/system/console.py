"""Console output: time-stamped lines, progress as bars or lines, and hiding the output of C++ libraries."""

import contextlib
import datetime
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from util.system import distributed

SECONDS_BETWEEN_LINES = 30

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Batches(Protocol[T_co]):
    """Iterable of known length."""

    def __iter__(self) -> Iterator[T_co]: ...

    def __len__(self) -> int: ...


def shows_bars() -> bool:
    """Return True if progress is shown as bars, which needs both output streams to be a terminal.

    With `python main_pretrain.py | tee log`, for example, a bar would break up the lines.
    """
    return sys.stdout.isatty() and sys.stderr.isatty()


def is_first_process() -> bool:
    """Return True in the first process of Paddle's launcher. Does not import Paddle."""
    return os.environ.get("PADDLE_TRAINER_ID", "0") == "0"


def tell(text: str) -> None:
    """Print a line in the first process. Does not import Paddle."""
    if is_first_process():
        print(text, flush=True)


def say(text: str) -> None:
    """Print a line with the time in the first process. An empty text prints nothing."""
    if text and distributed.is_main():
        print(f"[{datetime.datetime.now():%H:%M:%S.%f}] {text}", flush=True)


def progress(batches: Batches[T], title: str) -> Iterable[T]:
    """Yield `batches` and show progress: a bar on a terminal, else a line every 30 s."""
    return track(batches, title, say, bar=shows_bars() and distributed.is_main())


def track(batches: Batches[T], title: str, say: Callable[[str], Any], *, bar: bool) -> Iterable[T]:
    """Yield `batches` and show progress.

    Args:
        say: called with a line every 30 s.
        bar: show a bar on standard error instead.
    """
    return tqdm(batches, desc=title, leave=False) if bar else _with_lines(batches, title, say)


def _with_lines(batches, title, say):
    began = last = time.monotonic()
    for number, batch in enumerate(batches, 1):
        yield batch
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES:
            left = datetime.timedelta(seconds=int((now - began) / number * (len(batches) - number)))
            say(f"{title}: {number} of {len(batches)} batches, eta: {left}")
            last = now


_streams = threading.RLock()  # two threads must not redirect the streams of the process at the same time


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hide the output of the whole process, C++ libraries included. It is shown if the body raises.

    One thread at a time can be in this context; others wait.
    """
    with _streams:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = os.dup(1), os.dup(2)
        with tempfile.TemporaryFile() as printed:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            try:
                yield
            except BaseException:
                sys.stdout.flush()
                sys.stderr.flush()
                os.lseek(printed.fileno(), 0, os.SEEK_SET)
                os.write(kept[1], printed.read())
                raise
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                for number, stream in enumerate(kept, start=1):
                    os.dup2(stream, number)
                    os.close(stream)
