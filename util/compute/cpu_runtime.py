"""Environment variables that make Paddle fast on a CPU, set before its import. A GPU build is left alone.

Paddle sets OMP_NUM_THREADS to 1 if it is unset. MKL, which computes the operations that
util.compute.operations does not have, takes a slow path on AMD processors. Paddle's strided views are copied
slowly.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import io
import math
import os
import platform
import sys
import warnings
from collections.abc import Collection, Mapping

VARIABLES = ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", "FLAGS_use_stride_kernel")
ONEDNN_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
LIMITS = (*ONEDNN_LIMITS, "MKL_ENABLE_INSTRUCTIONS")  # the instruction sets that a user allows

# Instruction sets: the bit in oneDNN's dnnl_cpu_isa_t, the name, and the feature flags in /proc/cpuinfo.
BFLOAT16, AMX = 0x80, 0x200
SETS = {
    0x20: ("AVX-512", {"avx512f"}),
    0x4: ("AVX2", {"avx2"}),
    0x2: ("AVX", {"avx"}),
    0x1: ("SSE4.1", {"sse4_1"}),
    BFLOAT16: ("bfloat16", {"avx512_bf16", "amx_bf16"}),
    AMX: ("AMX", {"amx_bf16"}),
}
# The container's quota: microseconds of processor time in a period, and the length of the period.
QUOTA = "/sys/fs/cgroup/cpu.max"


def prepare() -> None:
    """Set the environment variables that make Paddle fast on this CPU, and import it; the user's values stay.

    Does nothing with MAE_CPU_RUNTIME=off, or once Paddle is imported, because it reads the variables only
    then.
    """
    if "paddle" in sys.modules or is_off() or _is_gpu_build():
        return
    # Concerns compiled extensions, which this project has none of.
    warnings.filterwarnings("ignore", message="No ccache found")
    os.environ.update(settings(os.environ, cores=available_cores(), cpu=features()))
    with contextlib.redirect_stderr(io.StringIO()) as told:
        importlib.import_module("paddle")
    for line in told.getvalue().splitlines():  # the complaint about threads concerns OpenBLAS builds only
        if "OMP_NUM_THREADS" not in line:
            print(line, file=sys.stderr)


def is_off() -> bool:
    """Return True if the user wants Paddle left as it is (MAE_CPU_RUNTIME=off)."""
    return os.environ.get("MAE_CPU_RUNTIME", "").lower() == "off"


def settings(environ: Mapping[str, str], *, cores: int, cpu: Collection[str]) -> dict[str, str]:
    """Return the environment variables to set.

    Args:
        environ: the environment; a value set there stays. The exception is OMP_NUM_THREADS=1 in a launched
            process: Paddle's launcher passes on the 1 that its own import of Paddle has set.
        cores: number of cores that this process may use.
        cpu: vendor name and feature flags, as `features` returns them.
    """
    local_processes = int(environ.get("PADDLE_LOCAL_SIZE", 0))
    wanted = {"FLAGS_use_stride_kernel": "0"}
    if "OMP_NUM_THREADS" not in environ or (local_processes and environ["OMP_NUM_THREADS"] == "1"):
        wanted["OMP_NUM_THREADS"] = str(max(1, cores // max(1, local_processes)))
    if "AuthenticAMD" in cpu and "MKL_ENABLE_INSTRUCTIONS" not in environ:  # the type would override it
        if {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= set(cpu):
            wanted["MKL_DEBUG_CPU_TYPE"] = "7"
        elif "avx2" in cpu:
            wanted["MKL_DEBUG_CPU_TYPE"] = "5"
    return {name: value for name, value in wanted.items() if name not in environ or name == "OMP_NUM_THREADS"}


def describe() -> str:
    """Return cores, the variables of `prepare` and the user's limits for the log; "" on a GPU build."""
    if _is_gpu_build():
        return ""
    found = [f"{name}={os.environ[name]}" for name in (*VARIABLES, *LIMITS) if name in os.environ]
    return f"{available_cores()} cores, {' '.join(found)}"


def available_cores() -> int:
    """Return the number of cores that this process may use, by its affinity and by its container's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open(QUOTA, encoding="utf-8") as f:
            quota, period = f.read().split()
    except (OSError, ValueError):  # no cgroup of version 2
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


@functools.cache
def features() -> frozenset[str]:
    """Return the words of /proc/cpuinfo, among them vendor name and feature flags; none on other systems."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            return frozenset(f.read().split())
    except OSError:
        return frozenset()


def instruction_sets(cpu: Collection[str]) -> int:
    """Return the bits of SETS that a processor with the words `cpu` has; 0 if it is no x86."""
    return sum(bit for bit, (_, words) in SETS.items() if words & set(cpu))


def name_of(sets: int) -> str:
    """Return bits of SETS in words: "AVX2", or "AVX-512 + AMX (bfloat16)"; the architecture's name for 0."""
    widest = next((name for bit, (name, _) in SETS.items() if sets & bit), platform.machine())
    return widest + " + AMX" * bool(sets & AMX) + " (bfloat16)" * bool(sets & BFLOAT16)


def _is_gpu_build() -> bool:
    try:
        importlib.metadata.version("paddlepaddle-gpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
