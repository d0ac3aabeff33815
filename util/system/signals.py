"""SIGTERM and SIGINT as a wish to stop, which a run grants once it has saved what it would lose.

Schedulers send SIGTERM some time before they kill; Ctrl-C sends SIGINT. Paddle's launcher answers either with several
SIGTERMs to every process that it started and to their DataLoader workers, and kills them after 30 seconds.
"""
import atexit
import ctypes
import multiprocessing
import os
import signal
import sys

from util.system import distributed

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: no failure, the same command is to be given once more

PR_SET_PDEATHSIG = 1  # of Linux's prctl: the signal that a process gets when its parent dies

_handler_of = None  # the process that has the handlers; its workers inherit them
_wish = ""          # the name of the signal that has come
_patient = False    # whether the run looks at the wish; before that, a signal is an exception


class Stopped(BaseException):
    """The run ends because it was asked to; the message says what of it is kept. No error that anything may catch."""


def listen():
    """From now on a signal ends this process by the exception Stopped."""
    global _handler_of, _wish, _patient
    _handler_of, _wish, _patient = os.getpid(), "", False
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)
    atexit.register(_end_workers)


def wait_for_update():
    """From now on a signal is kept for `wished`; but a second Ctrl-C ends this process at once."""
    global _patient
    _patient = True


def spare_worker(number):
    """For a DataLoader worker to call first: it lives as long as the training process, and no longer.

    Schedulers and terminals send their signals to it, too, and Paddle's own handler for workers would die of them. On
    the other hand it would wait for work for ever once the training process is gone, however that ended.
    """
    if _handler_of is not None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if multiprocessing.parent_process().pid != os.getppid():  # it was too late for that
            os._exit(1)


def wished():
    """The name of the signal that asks this process to stop, or ""."""
    return _wish


def _on_signal(number, frame):
    global _wish
    if os.getpid() != _handler_of:
        return  # a worker that is being started
    if _wish:
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        return
    _wish = signal.Signals(number).name
    if not _patient:
        raise Stopped(f"stopped by {_wish} before the training had begun; there was nothing to save")
    if distributed.is_main():
        # Not print, which may be at work below this very line.
        os.write(2, f"{_wish}: the run will be saved between two updates, and end\n".encode())


def _end_workers():
    # Python ends them by SIGTERM, to which they do not listen.
    for worker in multiprocessing.active_children():
        worker.kill()
