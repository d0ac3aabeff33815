"""The project's commands from Python, as the notebooks run them.

`!python ...` in a notebook would need a `python` on the path, would go on after an error, and would draw progress bars
into the file. Imported after `cpu_runtime.prepare()`.
"""
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from util.system.signals import EXIT_CODE

ROOT = Path(__file__).resolve().parents[2]

# Of util.system.console.say. A notebook that is kept shall change where what it says changes.
TIME_OF_DAY = re.compile(r"^\[\d\d:\d\d:\d\d\.\d+\] ")


def run(script, *words, stop_at="", **flags):
    """Run a script of the project in the project's folder with this Python; show the command and what it prints.

        run("main_infer.py", resume="outputs/checkpoint-best.pd", img_path=["a.jpg", "b.jpg"], batch_size=16)

    An interrupt (a notebook's stop button) reaches the command as one Ctrl-C, upon which a training run saves itself;
    then KeyboardInterrupt is raised.

    Args:
        words: what the command line has without a flag, or before the flags.
        stop_at: the command gets a Ctrl-C once a line of it contains this, and has to end as a run that saved itself.
        flags: name=value is --name value, a list is several values, True is a switch, False one that is left out.
    Raises RuntimeError for another exit code than 0.
    """
    command = [script, *map(str, words)]
    for name, value in flags.items():
        if value is not False:
            command += [f"--{name}", *map(str, [] if value is True else value if isinstance(value, list) else [value])]
    print(f"$ python {shlex.join(command)}", flush=True)
    wanted, waiting, interrupted = EXIT_CODE if stop_at else 0, bool(stop_at), False
    # A session of its own, so that a signal to all processes of a notebook does not reach it a second time.
    with subprocess.Popen([sys.executable, *command], cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "utf-8"},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace",
                          start_new_session=True) as process:
        while True:
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
        raise KeyboardInterrupt(f"{script} ended with exit code {process.returncode}")
    if process.returncode != wanted:
        raise RuntimeError(f"{script} ended with exit code {process.returncode}; what it said is above"
                           + (f" (it was to be stopped at a line with {stop_at!r})" if stop_at else ""))
