"""When progress is shown by bars."""
import sys

import pytest

from util.system import console


@pytest.mark.parametrize("out, error", [(True, True), (True, False), (False, True), (False, False)])
def test_bars_need_a_terminal_for_all_that_is_printed(monkeypatch, out, error):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: out)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: error)
    assert console.shows_bars() == (out and error)
