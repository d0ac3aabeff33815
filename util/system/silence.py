"""Keeping what C++ libraries print away from the answers of a script."""
import contextlib
import os
import sys
import tempfile
import threading

_streams = threading.RLock()  # a second thread would take the first one's file for the process's own streams


@contextlib.contextmanager
def silence():
    """Context: nothing reaches standard output and standard error of the process; shown after all if the body raises.

    It is the whole process that is silent: for moments at the start, one thread at a time.
    """
    with _streams:
        sys.stdout.flush()
        sys.stderr.flush()
        kept = os.dup(1), os.dup(2)
        with tempfile.TemporaryFile() as printed:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            try:
                yield
            except BaseException:
                sys.stdout.flush()
                sys.stderr.flush()
                os.lseek(printed.fileno(), 0, os.SEEK_SET)
                os.write(kept[1], printed.read())
                raise
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                for number, stream in enumerate(kept, start=1):
                    os.dup2(stream, number)
                    os.close(stream)
