"""The console: lines with the time, progress bars on a terminal, progress lines in a log, and silence for C++."""
import contextlib
import datetime
import os
import sys
import tempfile
import threading
import time

from tqdm import tqdm

from util.system import distributed

SECONDS_BETWEEN_LINES = 30


def shows_bars():
    """Whether progress is to be shown by bars: on a terminal. Output that goes elsewhere, if in part, gets plain lines.

    (A bar beside the lines of `python main_pretrain.py | tee log` would tear them.)
    """
    return sys.stdout.isatty() and sys.stderr.isatty()


def is_first_process():
    """Whether this is the first of the processes that Paddle's launcher started, found out without importing Paddle."""
    return os.environ.get("PADDLE_TRAINER_ID", "0") == "0"


def tell(text):
    """Print a line, on the first process only."""
    if is_first_process():
        print(text, flush=True)


def say(text):
    """Print a line with the time, on the first process only. An empty text prints nothing."""
    if text and distributed.is_main():
        print(f"[{datetime.datetime.now():%H:%M:%S.%f}] {text}", flush=True)


def progress(batches, title):
    """Yield `batches` behind a progress bar on a terminal; elsewhere print a line every 30 s."""
    return track(batches, title, say, bar=shows_bars() and distributed.is_main())


def track(batches, title, say, *, bar):
    """Pass `batches`, which know their number, on behind a bar; or tell `say` a line now and then, if it takes long.

    Args:
        say: called with a line.
        bar: whether a bar is to be shown, on standard error.
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


_streams = threading.RLock()  # a second thread would take the first one's temporary file for the process's streams


@contextlib.contextmanager
def silence():
    """Context that hides what the whole process prints, C++ libraries included; shows it if the body raises.

    One thread at a time: a second one waits.
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
