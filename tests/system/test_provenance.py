"""Revision and versions, as checkpoints store them."""

import subprocess
import sys

import numpy as np
import paddle

from util.system import provenance


def test_git_is_asked_once_a_process(monkeypatch):
    provenance.git_state()
    monkeypatch.setattr(subprocess, "run", lambda *arguments, **more: 1 / 0)
    revision, dirty = provenance.git_state()
    assert revision is None or (len(revision) == 40 and isinstance(dirty, bool))


def test_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state.__wrapped__() == (None, None)


def test_versions():
    assert provenance.versions() == {
        "python": ".".join(map(str, sys.version_info[:3])),
        "paddle": paddle.__version__,
        "numpy": np.__version__,
    }
