"""Running the project's scripts from notebooks.

`!python ...` would need a `python` on the path, would continue after an error, and would write progress bars
into the notebook. Import this module after `cpu_runtime.prepare()`.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from util.system.signals import EXIT_CODE

ROOT = Path(__file__).resolve().parents[2]

# Time stamp of util.system.console.say. It is removed, so that a saved notebook only changes if its results
# do.
TIME_OF_DAY = re.compile(r"^\[\d\d:\d\d:\d\d\.\d+\] ")


def run(script: str, *words: Any, stop_at: str = "", **flags: Any) -> None:
    """Run a script in the project's folder with this Python, and print its command and output.

        run("main_infer.py", resume="outputs/checkpoint-best.pd", img_path=["a.jpg", "b.jpg"], batch_size=16)

    An interrupt (a notebook's stop button) is passed on as one Ctrl-C, so that a training run saves a
    checkpoint. KeyboardInterrupt is raised afterwards.

    Args:
        script: path of the script, relative to the project.
        words: positional arguments, before the flags.
        stop_at: send a Ctrl-C when a line of output contains this text. The script must then end with the
            exit code of a stopped run.
        flags: name=value becomes --name value. A list gives several values, True a switch, and False leaves
            the flag out.

    Raises RuntimeError for an exit code other than 0, or, with `stop_at`, other than that of a stopped run.
    """
    command = [script, *map(str, words)]
    for name, value in flags.items():
        if value is not False:
            command += [
                f"--{name}",
                *map(str, [] if value is True else value if isinstance(value, list) else [value]),
            ]
    print(f"$ python {shlex.join(command)}", flush=True)
    wanted, waiting, interrupted = EXIT_CODE if stop_at else 0, bool(stop_at), False
    # In its own session, so that a signal to all processes of the notebook does not reach it a second time.
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    ) as process:
        while True:
            assert process.stdout is not None
            try:
                line = process.stdout.readline()
                if not line:
                    break
                print(TIME_OF_DAY.sub("", line), end="", flush=True)
                if waiting and stop_at in line:
                    waiting = False
                    process.send_signal(signal.SIGINT)
            except KeyboardInterrupt:
                interrupted = True
                process.send_signal(signal.SIGINT)
    if interrupted:
        raise KeyboardInterrupt(f"{script}: exit code {process.returncode}")
    if process.returncode != wanted:
        raise RuntimeError(
            f"{script}: exit code {process.returncode}; its output is above"
            + (f" (it should have been stopped at {stop_at!r})" if stop_at else "")
        )
