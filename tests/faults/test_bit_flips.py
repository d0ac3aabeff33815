"""A short run of tests/faults/bit_flips.py, and that it would notice."""

import bit_flips
import pytest

from util.weights import sealed_pickle


def test_every_load_is_right_or_refused():
    record = bit_flips.run(160)
    assert record["refused"] + record["right"] == 160 and record["wrong"] == 0
    assert record["refused"] > 140
    assert set(record["by_damage"]) == {damage.__name__ for damage in bit_flips.DAMAGES}


def test_without_the_checksum_some_loads_would_be_wrong(monkeypatch):
    monkeypatch.setattr(sealed_pickle, "_checked", lambda state, *_: state)
    with pytest.raises(AssertionError, match="wrong"):
        bit_flips.run(160)
