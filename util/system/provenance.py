"""What code and which versions this process runs: it is kept with whatever the process writes."""
import functools
import platform
import subprocess
from pathlib import Path

import numpy as np


@functools.cache
def git_state():
    """(revision, whether files differ from it) of this code, or (None, None) without git. Asks git once a process."""
    git = ["git", "-C", str(Path(__file__).resolve().parents[2])]
    try:
        revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True,
                                  check=True).stdout.strip()
        dirty = bool(subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout)
    except (OSError, subprocess.CalledProcessError):  # no git, or not a checkout
        return None, None
    return revision, dirty


def versions():
    """{"python", "paddle", "numpy"}: version numbers as text."""
    import paddle
    return {"python": platform.python_version(), "paddle": paddle.__version__, "numpy": np.__version__}
