"""Memory of this machine or container, and a limit that turns running out of it into an exception."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import paddle

from util.compute import cpu_runtime
from util.run.checkpoints import in_words
from util.run.dry_run.verdict import Verdict
from util.system import distributed

try:
    import resource
except ImportError:  # Windows has no such limit
    resource = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Memory:
    """Memory in bytes, and what limits it."""

    total: float
    left: float
    limit: str

    def __str__(self) -> str:
        return f"{in_words(self.total)} ({self.limit})"

    @classmethod
    def now(cls, proc: Path | str = "/proc", cgroups: Path | str = "/sys/fs/cgroup") -> Memory:
        """Read the memory from /proc/meminfo and from the control groups (version 1 or 2) of this process.

        The smallest limit counts. Cached files count as free. Without /proc the memory is unlimited.
        """
        try:
            info = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path(proc, "meminfo").read_text(), re.MULTILINE))
            found = cls(int(info["MemTotal"]) * 1024, int(info["MemAvailable"]) * 1024, "the machine's")
            groups = Path(proc, "self", "cgroup").read_text().splitlines()
        except OSError:
            return cls(math.inf, math.inf, "not known here")
        for line in groups:
            _, controllers, path = line.split(":", 2)
            version, root, names = (2, Path(cgroups), ("memory.max", "memory.current", "inactive_file"))
            if "memory" in controllers.split(","):
                version, root = 1, root / "memory"
                names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            elif controllers:
                continue
            folder = root / path.lstrip("/")
            for group in (folder, *(parent for parent in folder.parents if parent.is_relative_to(root))):
                # Raised if there is no such group here, or for "max": no limit.
                with contextlib.suppress(OSError, ValueError, KeyError):
                    limit = int((group / names[0]).read_text())
                    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                    left = limit - int((group / names[1]).read_text()) + int(stat[names[2]])
                    if limit < found.total:
                        found = cls(limit, min(found.left, max(0, left)), f"the limit of cgroup v{version}")
        return found


@contextlib.contextmanager
def capped(more: float) -> Iterator[None]:
    """Limit this process to `more` further bytes: beyond, it gets a MemoryError instead of being killed.

    Works on Linux and for training on a CPU; drivers of a GPU map more than they use.
    """
    if resource is None or paddle.get_device() != "cpu" or more == math.inf:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _status("VmData") + int(more)
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def tell_memory(verdict: Verdict, memory: Memory, workers: Sequence[int]) -> None:
    """Print the memory used so far, and add a reason if it is more than there is.

    Args:
        verdict: takes lines and reasons.
        memory: of the machine, before training.
        workers: bytes of the loader's workers, in training and in evaluation.
    """
    # The processes of a machine share its memory.
    mine = [_status("VmHWM"), max(workers, default=0)]
    processes, local = distributed.world_size(), local_processes()
    peak, of_workers = (value * local / processes for value in distributed.all_sum(mine))
    if not peak:  # no /proc
        return
    needed = peak + of_workers
    verdict.line(
        "memory",
        f"{in_words(peak)} at most"
        + (f", and workers {in_words(of_workers)}" if of_workers else "")
        + f"; there are {memory}",
    )
    if paddle.get_device() != "cpu":
        used = paddle.device.cuda.max_memory_allocated()
        verdict.line(
            "GPU memory",
            f"{in_words(used)} at most of "
            f"{in_words(paddle.device.cuda.get_device_properties().total_memory)}",
        )
    if needed > memory.total:
        verdict.against(
            f"{local} process(es) and their workers need {in_words(needed)} of memory, and there "
            f"are {memory}. Lower --batch_size or --num_workers"
        )
    elif needed > 0.9 * memory.total:
        verdict.line("warning", "this is more than nine tenths of the memory")


def private_bytes(pid: int) -> int:
    """Return the memory that a process shares with no other; 0 if the system does not tell."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    found = re.findall(r"^Private_\w+:\s+(\d+) kB", text, re.MULTILINE)
    return sum(int(kilobytes) * 1024 for kilobytes in found)


def local_processes() -> int:
    """Return the number of training processes on this machine."""
    return int(os.environ.get("PADDLE_LOCAL_SIZE", 1))


def available_cores() -> float:
    """Return this process's share of the cores; less than one if there are more processes than cores."""
    return cpu_runtime.available_cores() / local_processes()


def _status(name: str) -> int:
    """Return the bytes of an entry of /proc/self/status; 0 without it."""
    try:
        match = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) * 1024 if match else 0
