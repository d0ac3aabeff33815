"""util/silence.py: what is printed below Python stays away, unless something fails."""
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from util.silence import silence


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


def test_several_threads_leave_the_streams_as_they_were(capfd):
    def quiet(_):
        with silence():
            os.write(1, b"nothing\n")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(quiet, range(40)))
    os.write(1, b"still here\n")
    assert capfd.readouterr() == ("still here\n", "")
