"""Progress bars need a terminal, and `silence` hides output of C++ libraries unless something fails."""

import os
import sys
import threading

import pytest

from util.system import console
from util.system.console import silence


def test_bars_need_a_terminal_for_both_streams(monkeypatch):
    for out, error in ((True, True), (True, False), (False, True), (False, False)):
        monkeypatch.setattr(sys.stdout, "isatty", lambda out=out: out)
        monkeypatch.setattr(sys.stderr, "isatty", lambda error=error: error)
        assert console.shows_bars() == (out and error)


def test_nothing_reaches_the_streams(capfd, monkeypatch):
    with open(1, "w", closefd=False) as stdout:  # as Python has it, with a buffer of its own
        monkeypatch.setattr("sys.stdout", stdout)
        print("before")
        with silence():
            os.write(1, b"on the first\n")
            os.write(2, b"on the second\n")
            print("by Python")
        print("afterwards")
    assert capfd.readouterr() == ("before\nafterwards\n", "")


def test_it_is_shown_with_an_error(capfd):
    with pytest.raises(ZeroDivisionError), silence():
        os.write(1, b"on the first\n")
        os.write(2, b"on the second\n")
        1 / 0
    assert capfd.readouterr() == ("", "on the first\non the second\n")


def test_a_second_thread_waits(capfd):
    """Otherwise it would restore the first one's temporary file as the stream of the process."""
    inside, may_end = threading.Event(), threading.Event()

    def second():
        with silence():
            inside.set()
            may_end.wait(10)

    thread = threading.Thread(target=second)
    with silence():
        thread.start()
        assert not inside.wait(0.2)
    assert inside.wait(10)
    may_end.set()
    thread.join()
    os.write(1, b"still here\n")
    assert capfd.readouterr() == ("still here\n", "")
