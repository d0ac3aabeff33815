"""Hostile pickles in every envelope are refused by name and run nothing; plain pickle would run them."""

import copyreg
import pickle
import re
import subprocess
import sys
import time
from pathlib import Path

import hostile_pickles
import numpy as np
import pytest

from util.weights import checkpoint, formats
from util.weights.checkpoint import CheckpointError
from util.weights.formats import WeightFileError

TITLES = sorted(hostile_pickles.pickles("."))


@pytest.fixture(autouse=True)
def registered(tmp_path, monkeypatch):
    """The number in copyreg belongs to os.system, also in the cache that plain pickle looks at first."""
    hostile_pickles.arm(tmp_path)
    import os

    monkeypatch.setitem(copyreg._extension_cache, hostile_pickles.EXTENSION, os.system)
    yield
    copyreg.remove_extension("os", "system", hostile_pickles.EXTENSION)


def test_there_are_enough_of_them():
    armed = [title for title, (_, _, armed) in hostile_pickles.pickles(".").items() if armed]
    assert len(TITLES) >= 40 and len(armed) >= 30


def test_plain_pickle_runs_them(tmp_path):
    subprocess.run(
        [sys.executable, hostile_pickles.__file__, str(tmp_path)], check=True, capture_output=True, timeout=60
    )
    time.sleep(0.2)  # some are processes that nobody waits for
    armed = {title for title, (_, _, armed) in hostile_pickles.pickles(tmp_path).items() if armed}
    assert {title for title in TITLES if Path(tmp_path, title).exists()} == armed


@pytest.mark.parametrize("envelope", hostile_pickles.ENVELOPES)
def test_refused_by_name(tmp_path, envelope):
    path = tmp_path / envelope
    path.touch()
    before = sorted(tmp_path.iterdir())
    for title in TITLES:
        payload, asks, _ = hostile_pickles.pickles(tmp_path)[title]
        path.write_bytes(hostile_pickles.ENVELOPES[envelope](hostile_pickles.whole(payload)))
        for read, error in (
            (checkpoint.read_checkpoint, CheckpointError),
            (formats.read_weights, WeightFileError),
        ):
            with pytest.raises(error, match=rf": refused: .*{re.escape(asks)}.*--trust_checkpoint"):
                read(path)
        assert sorted(tmp_path.iterdir()) == before, title


@pytest.mark.parametrize("envelope", hostile_pickles.ENVELOPES)
def test_without_the_payload_they_are_read(tmp_path, envelope):
    """The payload is refused above, not the envelope."""
    path = tmp_path / envelope
    path.write_bytes(hostile_pickles.ENVELOPES[envelope](hostile_pickles.whole(b"}")))
    assert formats.read_weights(path).weights["w"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("envelope", hostile_pickles.ENVELOPES)
def test_trusted_they_run_and_it_is_said(tmp_path, envelope, capsys):
    payload, _, _ = hostile_pickles.pickles(tmp_path)["os.system"]
    path = tmp_path / envelope
    path.write_bytes(hostile_pickles.ENVELOPES[envelope](hostile_pickles.whole(payload)))
    assert formats.read_weights(path, trusted=True).weights["w"].tolist() == [1, 1, 1]
    assert (tmp_path / "os.system").exists()
    assert capsys.readouterr().err == f"{path}: trusted (--trust_checkpoint), so any code in it is run\n"


def test_a_second_pickle_in_an_archive(tmp_path):
    """Two programs could then read different ones."""
    payload, _, _ = hostile_pickles.pickles(tmp_path)["os.system"]
    path = tmp_path / "two.pth"
    for other in (b"xrchive", b"archive"):
        content = hostile_pickles.zipped(
            archive__data_pkl=hostile_pickles.whole(b"}"), xrchive__data_pkl=hostile_pickles.whole(payload)
        )
        path.write_bytes(content.replace(b"data_pkl", b"data.pkl").replace(b"xrchive", other))
        with pytest.raises(WeightFileError, match="found 2"):
            formats.read_weights(path)
    assert not (tmp_path / "os.system").exists()


def test_the_pickles_of_a_legacy_file_are_all_read_so(tmp_path):
    payload, _, _ = hostile_pickles.pickles(tmp_path)["os.system"]
    evil = b"\x80\x02" + payload + b"."
    plain = [pickle.dumps(value, protocol=2) for value in (1001, {"little_endian": True}, {"model": {}}, [])]
    head = hostile_pickles.LEGACY_HEAD[:15]
    path = tmp_path / "legacy.pth"
    for place in range(4):
        path.write_bytes(head + b"".join([*plain[:place], evil, *plain[place + 1 :]]))
        with pytest.raises(WeightFileError, match="refused: .*os.system"):
            formats.read_weights(path)
    assert not (tmp_path / "os.system").exists()


def test_objects_in_an_npz(tmp_path):
    np.savez(tmp_path / "w.npz", w=np.array([hostile_pickles.Runs(f"touch {tmp_path}/ran")], dtype=object))
    with pytest.raises(WeightFileError, match="Python objects"):
        formats.read_weights(tmp_path / "w.npz")
    assert not (tmp_path / "ran").exists()
    np.load(tmp_path / "w.npz", allow_pickle=True)["w"]
    assert (tmp_path / "ran").exists()
