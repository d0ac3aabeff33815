"""Runs of the scripts in forked children of a process that has imported Paddle, to save two seconds a run.

Paddle survives a fork as long as nothing has been computed: a program that uses this module must not, either.
"""

import atexit
import contextlib
import importlib
import os
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path

import small_runs  # noqa: F401 - makes what follows importable
from scripts import ROOT

from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

for script in ("main_pretrain", "main_finetune", "main_linprobe"):
    importlib.import_module(script)  # with all that they import

PATIENCE = 30  # seconds that a run may take


class Ended:
    """End of a run.

    codes: exit code of each process, negative for a signal. hung: it had to be killed. said: output of all.
    """

    def __init__(self, codes, hung, said):
        self.codes, self.hung, self.said = codes, hung, said

    @property
    def code(self):
        """Exit code of the first process, which writes the files."""
        return self.codes[0]


def run(words, *, said_in, processes=1, prepare=None):
    """Run a script; returns Ended.

    Args:
        words: the script and its arguments.
        said_in: file for the output of all processes.
        processes: as Paddle's launcher would start them.
        prepare: called in each child before the script begins, to put faults in.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    endpoints = _endpoints(processes) if processes > 1 else []
    group, pids = 0, []
    with open(said_in, "wb") as said:
        for rank in range(processes):
            pid = os.fork()
            if pid == 0:
                os.setpgid(0, group)
                _child(words, said.fileno(), _launched(endpoints, rank) if endpoints else {}, prepare)
            with contextlib.suppress(PermissionError, ProcessLookupError):  # the child was quicker
                os.setpgid(pid, group or pid)
            group = group or pid
            pids.append(pid)
    codes, hung = _wait(pids)
    with contextlib.suppress(ProcessLookupError):  # workers that are left
        os.killpg(group, signal.SIGKILL)
    return Ended(codes, hung, Path(said_in).read_text(encoding="utf-8", errors="surrogateescape"))


def _child(words, said, environment, prepare):
    code = 1
    try:
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.environ.update(environment)
        sys.argv = [str(ROOT / words[0]), *words[1:]]
        if prepare is not None:
            prepare()
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # as the interpreter does
        traceback.print_exc()
    finally:
        # What the interpreter does at its end, without freeing what the parent has as well.
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pids):
    """([exit code, ...], whether some had to be killed)."""
    codes, deadline = {}, time.monotonic() + PATIENCE
    while len(codes) < len(pids) and time.monotonic() < deadline:
        for pid in pids:
            ended, status = os.waitpid(pid, os.WNOHANG) if pid not in codes else (0, 0)
            if ended:
                codes[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    hung = [pid for pid in pids if pid not in codes]
    for pid in hung:
        os.kill(pid, signal.SIGKILL)
        codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return [codes[pid] for pid in pids], bool(hung)


def _endpoints(processes):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(processes)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [f"127.0.0.1:{one.getsockname()[1]}" for one in sockets]


def _launched(endpoints, rank):
    """The environment that `python -m paddle.distributed.launch` gives a process on a CPU."""
    return {
        "PADDLE_MASTER": endpoints[0],
        "PADDLE_TRAINER_ENDPOINTS": ",".join(endpoints),
        "PADDLE_CURRENT_ENDPOINT": endpoints[rank],
        "PADDLE_TRAINERS_NUM": str(len(endpoints)),
        "PADDLE_TRAINER_ID": str(rank),
        "PADDLE_GLOBAL_SIZE": str(len(endpoints)),
        "PADDLE_LOCAL_SIZE": str(len(endpoints)),
        "PADDLE_GLOBAL_RANK": str(rank),
        "PADDLE_LOCAL_RANK": str(rank),
        "PADDLE_RANK_IN_NODE": str(rank),
        "PADDLE_NNODES": "1",
        "PADDLE_DISTRI_BACKEND": "gloo",
    }
