"""Whether somebody is watching."""
import sys


def shows_bars():
    """Whether progress is to be shown by bars: on a terminal. Output that goes elsewhere, if only a part, gets plain lines.

    (A bar beside the lines of `python main_pretrain.py | tee log` would tear them.)
    """
    return sys.stdout.isatty() and sys.stderr.isatty()
