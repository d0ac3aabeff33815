"""What a CPU needs to be told before Paddle is imported.

Paddle sets OMP_NUM_THREADS to 1 where it is unset, its MKL takes a slow path on AMD processors (what MKL is left with:
operations that util.compute.operations does not have), and its strided views are copied slowly. A GPU build is left alone.
"""
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

VARIABLES = ("OMP_NUM_THREADS", "MKL_DEBUG_CPU_TYPE", "FLAGS_use_stride_kernel")
ONEDNN_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
LIMITS = (*ONEDNN_LIMITS, "MKL_ENABLE_INSTRUCTIONS")  # the instruction sets that a user allows

# Instruction sets by their bits in oneDNN's dnnl_cpu_isa_t, and the features that stand for them in /proc/cpuinfo.
BFLOAT16, AMX = 0x80, 0x200
SETS = {0x20: ("AVX-512", {"avx512f"}), 0x4: ("AVX2", {"avx2"}), 0x2: ("AVX", {"avx"}), 0x1: ("SSE4.1", {"sse4_1"}),
        BFLOAT16: ("bfloat16", {"avx512_bf16", "amx_bf16"}), AMX: ("AMX", {"amx_bf16"})}
QUOTA = "/sys/fs/cgroup/cpu.max"  # of the container: microseconds of processor time in a period, and that period


def prepare():
    """Set the environment variables that make Paddle fast on this CPU, and import it; what the user has set stays.

    MAE_CPU_RUNTIME=off switches all of it off. Does nothing once Paddle is imported: it reads them only then.
    """
    if "paddle" in sys.modules or is_off() or _is_gpu_build():
        return
    # About compiling extensions, which nobody does here; printed once a process otherwise.
    warnings.filterwarnings("ignore", message="No ccache found")
    os.environ.update(settings(os.environ, cores=available_cores(), cpu=features()))
    with contextlib.redirect_stderr(io.StringIO()) as told:
        importlib.import_module("paddle")
    for line in told.getvalue().splitlines():  # all but the complaint about threads, which is about OpenBLAS builds
        if "OMP_NUM_THREADS" not in line:
            print(line, file=sys.stderr)


def is_off():
    """Whether the user wants Paddle left as it is."""
    return os.environ.get("MAE_CPU_RUNTIME", "").lower() == "off"


def settings(environ, *, cores, cpu):
    """The variables to set, as a dict of strings.

    Args:
        environ: the environment; what it has wins. Paddle's launcher passes on the OMP_NUM_THREADS=1 that its own
            import of Paddle has set: in a launched process that value is not the user's.
        cores: how many this process may use.
        cpu: the vendor's name and the feature flags, as words.
    """
    local_processes = int(environ.get("PADDLE_LOCAL_SIZE", 0))
    wanted = {"FLAGS_use_stride_kernel": "0"}
    if "OMP_NUM_THREADS" not in environ or (local_processes and environ["OMP_NUM_THREADS"] == "1"):
        wanted["OMP_NUM_THREADS"] = str(max(1, cores // max(1, local_processes)))
    if "AuthenticAMD" in cpu and "MKL_ENABLE_INSTRUCTIONS" not in environ:  # which the type would override
        if {"avx512f", "avx512dq", "avx512bw", "avx512vl"} <= cpu:
            wanted["MKL_DEBUG_CPU_TYPE"] = "7"
        elif "avx2" in cpu:
            wanted["MKL_DEBUG_CPU_TYPE"] = "5"
    return {name: value for name, value in wanted.items() if name not in environ or name == "OMP_NUM_THREADS"}


def describe():
    """What `prepare` has set or found set, and the user's limits, for a line of the log; "" where it does not apply."""
    if _is_gpu_build():
        return ""
    found = [f"{name}={os.environ[name]}" for name in (*VARIABLES, *LIMITS) if name in os.environ]
    return f"{available_cores()} cores, {' '.join(found)}"


def available_cores():
    """How many cores this process may use, by its affinity and by the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        with open(QUOTA, encoding="utf-8") as f:
            quota, period = f.read().split()
    except (OSError, ValueError):  # no cgroup of version 2
        return cores
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))


@functools.lru_cache(maxsize=None)
def features():
    """The words of /proc/cpuinfo: the vendor's name and the feature flags among them. None of them on other systems."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            return frozenset(f.read().split())
    except OSError:
        return frozenset()


def instruction_sets(cpu):
    """The bits of SETS that a processor has; `cpu` as for `settings`. 0 for one that is no x86."""
    return sum(bit for bit, (_, words) in SETS.items() if words & set(cpu))


def name_of(sets):
    """The bits of SETS as words for a log: "AVX2", or "AVX-512 + AMX (bfloat16)"; that of the architecture for 0."""
    widest = next((name for bit, (name, _) in SETS.items() if sets & bit), platform.machine())
    return widest + " + AMX" * bool(sets & AMX) + " (bfloat16)" * bool(sets & BFLOAT16)


def _is_gpu_build():
    try:
        importlib.metadata.version("paddlepaddle-gpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
