"""Progress of long work: bars where somebody is watching, lines where output goes elsewhere."""
import datetime
import os
import sys
import time

from tqdm import tqdm

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


def progress(batches, title, say, *, bar):
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
