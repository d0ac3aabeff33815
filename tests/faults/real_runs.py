"""Runs of the scripts as a user starts them, in processes that can be watched and killed."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

from scripts import ROOT, SET_HERE

MARK = "MAE_FAULT_RUN"  # environment variable that every process of a run inherits
PATIENCE = 30  # seconds for a run to end by itself after a signal
POLL = 0.001
PHASES = ("setup", "training", "evaluation", "saving")


class RealRun:
    """A script under way.

    Args:
        words: the script and its arguments.
        logs: folder for what it prints; with several processes, also the launcher's.
    """

    def __init__(self, words, *, processes, output_dir, logs):
        self.processes, self.output_dir, self.mark = processes, Path(output_dir), uuid.uuid4().hex
        self.evaluates = words[0] != "main_pretrain.py"
        logs.mkdir(parents=True)
        python = [sys.executable]
        if processes > 1:
            python += [
                "-m",
                "paddle.distributed.launch",
                "--nproc_per_node",
                str(processes),
                "--log_dir",
                str(logs),
            ]
        self.own_output = logs / "output.txt"
        self.output = logs / "workerlog.0" if processes > 1 else self.own_output
        environment = {name: value for name, value in os.environ.items() if name not in SET_HERE}
        self.before = self._times()
        with open(self.own_output, "wb") as f:
            self.process = subprocess.Popen(
                [*python, str(ROOT / words[0]), *words[1:]],
                cwd=ROOT,
                stdout=f,
                stderr=f,
                env={**environment, MARK: self.mark},
                start_new_session=True,
            )

    def said(self):
        """Return the output of its first process so far."""
        with contextlib.suppress(FileNotFoundError):
            return self.output.read_text(encoding="utf-8", errors="replace")
        return ""

    def own_said(self):
        """Return the output of the launcher, if there is one."""
        return self.own_output.read_text(encoding="utf-8", errors="replace") if self.processes > 1 else ""

    def ended(self):
        return self.process.poll() is not None

    def wait_for_lines(self, pattern, number):
        """Until `number` lines match; False if the run ended before."""
        return self.wait_until(lambda: len(re.findall(pattern, self.said(), flags=re.MULTILINE)) >= number)

    def wait_for_writing(self, number):
        """Wait for `number` changes of files in the output folder; False if the run ended before."""
        seen, last = 0, self.before

        def changed():
            nonlocal seen, last
            now = self._times()
            seen, last = seen + (now != last), now
            return seen >= number

        return self.wait_until(changed)

    def wait(self, seconds):
        """False if the run ended before."""
        until = time.monotonic() + seconds
        return self.wait_until(lambda: time.monotonic() >= until)

    def wait_until(self, condition):
        """False if the run ended before."""
        while not condition():
            if self.ended():
                return False
            time.sleep(POLL)
        return not self.ended()

    def _times(self):
        with contextlib.suppress(FileNotFoundError):
            return {
                entry.name: entry.stat(follow_symlinks=False).st_mtime_ns
                for entry in os.scandir(self.output_dir)
            }
        return {}

    def phase(self):
        """Return its phase, one of PHASES."""
        said = self.said()
        if any(name.startswith(".") for name in self._times().keys() - self.before.keys()):
            return "saving"
        if "Epoch: [" not in said:
            return "setup"
        if self.evaluates and said.rfind("Averaged stats") > max(
            said.rfind("  eta: "), said.rfind("* Acc@1")
        ):
            return "evaluation"
        return "training"

    def roles(self):
        """Return the running {"launcher": [pid], "main": [pids in the order of ranks], "worker": [pids]}."""
        parents = {pid: _parent(pid) for pid in self.pids()}
        if self.processes == 1:
            launcher, main = [], [self.process.pid]
        else:
            launcher = [self.process.pid]
            main = sorted(pid for pid, parent in parents.items() if parent == self.process.pid)
        return {
            "launcher": launcher,
            "main": main,
            "worker": sorted(pid for pid, parent in parents.items() if parent in main),
        }

    def pids(self):
        """All its processes that are alive."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if f"{MARK}={self.mark}".encode() in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                    found.append(int(name))
        return found

    def kill(self):
        """SIGKILL to everything."""
        while pids := self.pids():
            for pid in pids:
                signal_to(pid, signal.SIGKILL)
            self.process.poll()
        self.process.wait()

    def finish(self):
        """(exit code or None if it hung, seconds until then); nothing of it is left afterwards."""
        start = time.monotonic()
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            code = None
        seconds = time.monotonic() - start
        self.kill()
        return code, round(seconds, 2)


def signal_to(pid, number):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _parent(pid):
    with contextlib.suppress(OSError):
        return int(Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[1])
    return 0
