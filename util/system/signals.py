"""SIGTERM and SIGINT as stop requests: a run saves a checkpoint before it ends.

Schedulers send SIGTERM some time before they kill a job, and Ctrl-C sends SIGINT. Paddle's launcher answers
either with several SIGTERMs to its processes and their DataLoader workers, and kills them after 30 seconds.
"""

import atexit
import ctypes
import multiprocessing
import os
import signal
import sys

from util.system import distributed

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: a temporary failure; run the same command again

PR_SET_PDEATHSIG = 1  # of Linux's prctl: signal to this process when its parent dies

_handler_of: int | None = None  # id of the process that installed the handlers; its workers inherit them
_wish = ""  # name of the received signal
_patient = False  # True once the run checks for stop requests; before that, a signal raises Stopped


class Stopped(BaseException):
    """A requested end of the run. The message says what was saved.

    It is not an Exception, so that no `except Exception` catches it.
    """


def listen() -> None:
    """Install the handlers. From now on a signal raises Stopped."""
    global _handler_of, _wish, _patient
    _handler_of, _wish, _patient = os.getpid(), "", False
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)
    atexit.register(_end_workers)


def wait_for_update() -> None:
    """From now on record a signal for `wished` instead. A second Ctrl-C still ends the process at once."""
    global _patient
    _patient = True


def spare_worker(number: int) -> None:
    """Let a DataLoader worker live exactly as long as the training process. Called first in each worker.

    Schedulers and terminals also signal the workers, and would end them before the run saves a checkpoint.
    Conversely, a worker would wait forever once the training process has ended.

    Args:
        number: number of the worker; ignored.
    """
    if _handler_of is not None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        parent = multiprocessing.parent_process()
        if parent is None or parent.pid != os.getppid():  # the parent had already ended
            os._exit(1)


def wished() -> str:
    """Return the name of the received signal, or ""."""
    return _wish


def _on_signal(number: int, frame: object) -> None:
    global _wish
    if os.getpid() != _handler_of:
        return  # a worker that is starting
    if _wish:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        return
    _wish = signal.Signals(number).name
    if not _patient:
        raise Stopped(f"stopped by {_wish} before the training began; there was nothing to save")
    if distributed.is_main():
        # Not print: the signal may have interrupted a print.
        os.write(2, f"{_wish}: the run will be saved between two updates, and end\n".encode())


def _end_workers():
    # Python would send them SIGTERM, which they ignore.
    for worker in multiprocessing.active_children():
        worker.kill()
