"""Revision of the code and versions of its libraries, for checkpoints and records."""

import functools
import platform
import subprocess
from pathlib import Path

import numpy as np


@functools.cache
def git_state() -> tuple[str | None, bool | None]:
    """Return (revision, whether tracked files differ from it), or (None, None) without git. Cached."""
    git = ["git", "-C", str(Path(__file__).resolve().parents[2])]
    try:
        revision = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = bool(
            subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
        )
    except (OSError, subprocess.CalledProcessError):  # no git, or no repository
        return None, None
    return revision, dirty


def versions() -> dict[str, str]:
    """Return the version numbers of "python", "paddle" and "numpy"."""
    import paddle

    return {"python": platform.python_version(), "paddle": paddle.__version__, "numpy": np.__version__}
