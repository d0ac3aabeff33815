"""Environment variables for a CPU: the values set, and a fresh process that imports Paddle with them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import write_pictures

from util.compute import cpu_runtime
from util.compute.cpu_runtime import prepare, settings

ROOT = Path(__file__).resolve().parents[2]
AMD512 = {"AuthenticAMD", "avx2", "avx512f", "avx512dq", "avx512bw", "avx512vl"}
AMD2 = {"AuthenticAMD", "avx2", "avx512f"}
INTEL = {"GenuineIntel", "avx2", "avx512f", "avx512dq", "avx512bw", "avx512vl"}


@pytest.mark.parametrize(
    "environ, cores, cpu, expected",
    [
        ({}, 4, INTEL, {"FLAGS_use_stride_kernel": "0", "OMP_NUM_THREADS": "4"}),
        ({}, 2, AMD2, {"FLAGS_use_stride_kernel": "0", "OMP_NUM_THREADS": "2", "MKL_DEBUG_CPU_TYPE": "5"}),
        ({}, 2, AMD512, {"FLAGS_use_stride_kernel": "0", "OMP_NUM_THREADS": "2", "MKL_DEBUG_CPU_TYPE": "7"}),
        ({}, 2, {"AuthenticAMD", "sse2"}, {"FLAGS_use_stride_kernel": "0", "OMP_NUM_THREADS": "2"}),
        # The user's values stay.
        ({"OMP_NUM_THREADS": "1"}, 8, INTEL, {"FLAGS_use_stride_kernel": "0"}),
        ({"OMP_NUM_THREADS": "3", "FLAGS_use_stride_kernel": "1", "MKL_DEBUG_CPU_TYPE": "4"}, 8, AMD512, {}),
        # MKL_DEBUG_CPU_TYPE would override it.
        (
            {"MKL_ENABLE_INSTRUCTIONS": "AVX2"},
            2,
            AMD512,
            {"FLAGS_use_stride_kernel": "0", "OMP_NUM_THREADS": "2"},
        ),
        # Launched processes share the cores; the launcher's own OMP_NUM_THREADS=1 is not the user's.
        (
            {"PADDLE_LOCAL_SIZE": "2", "OMP_NUM_THREADS": "1"},
            8,
            INTEL,
            {"FLAGS_use_stride_kernel": "0", "OMP_NUM_THREADS": "4"},
        ),
        ({"PADDLE_LOCAL_SIZE": "2"}, 8, INTEL, {"FLAGS_use_stride_kernel": "0", "OMP_NUM_THREADS": "4"}),
        ({"PADDLE_LOCAL_SIZE": "2", "OMP_NUM_THREADS": "3"}, 8, INTEL, {"FLAGS_use_stride_kernel": "0"}),
        (
            {"PADDLE_LOCAL_SIZE": "4", "OMP_NUM_THREADS": "1"},
            2,
            INTEL,
            {"FLAGS_use_stride_kernel": "0", "OMP_NUM_THREADS": "1"},
        ),
    ],
)
def test_settings(environ, cores, cpu, expected):
    assert settings(environ, cores=cores, cpu=cpu) == expected


@pytest.fixture
def prepared(tmp_path):
    """Function that runs prepare() in a fresh process, whose stand-in for Paddle prints the variables.

    Returns these, or [] if Paddle was not imported; and the lines of standard error.
    """
    (tmp_path / "paddle.py").write_text(
        "import os, sys\n"
        "print(*[os.environ.get(name) for name in ('FLAGS_use_stride_kernel', 'OMP_NUM_THREADS')])\n"
        "print('WARNING: OMP_NUM_THREADS set to 2, not 1', 'another line', sep='\\n', file=sys.stderr)\n"
    )

    def run(code="", **environ):
        code += "\nfrom util.compute.cpu_runtime import prepare; prepare()"
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", **environ}
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.split(), done.stderr.splitlines()

    return run


def test_a_fresh_process_is_prepared_before_paddle_is_imported(prepared):
    found, told = prepared()
    assert found == ["0", str(len(os.sched_getaffinity(0)))]
    assert told == ["another line"]


def test_a_user_keeps_control(prepared):
    assert prepared(OMP_NUM_THREADS="7", FLAGS_use_stride_kernel="1")[0] == ["1", "7"]
    assert prepared(MAE_CPU_RUNTIME="off") == ([], [])


def test_a_gpu_build_is_left_alone(prepared):
    pretend = "import importlib.metadata\nimportlib.metadata.version = lambda name: '2.6.2'"
    assert prepared(pretend) == ([], [])


@pytest.mark.parametrize(
    "cpu_max, expected",
    [("max 100000", 8), ("150000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8), (None, 8)],
)
def test_a_containers_quota_limits_the_cores(monkeypatch, tmp_path, cpu_max, expected):
    file = tmp_path / "cpu.max"
    if cpu_max is not None:
        file.write_text(cpu_max + "\n")
    monkeypatch.setattr(cpu_runtime, "QUOTA", str(file))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert cpu_runtime.available_cores() == expected


def test_the_line_of_the_log(monkeypatch):
    monkeypatch.setattr(cpu_runtime, "available_cores", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("FLAGS_use_stride_kernel", "0")
    for name in ("MKL_DEBUG_CPU_TYPE", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.setattr(cpu_runtime, "_is_gpu_build", lambda: False)
    assert cpu_runtime.describe() == (
        "3 cores, OMP_NUM_THREADS=2 FLAGS_use_stride_kernel=0 ONEDNN_MAX_CPU_ISA=AVX2"
    )
    monkeypatch.setattr(cpu_runtime, "_is_gpu_build", lambda: True)
    assert cpu_runtime.describe() == ""


def test_nothing_is_set_once_paddle_is_imported(monkeypatch):
    monkeypatch.delenv("FLAGS_use_stride_kernel", raising=False)
    prepare()
    assert "FLAGS_use_stride_kernel" not in os.environ


@pytest.mark.slow
def test_a_run_without_x86_and_linux(tmp_path):
    """No /proc, affinity or oneDNN, and another architecture, as on Apple silicon."""
    without = """
import builtins, glob, os, platform, runpy, sys
opened = open
def without_proc(path, *args, **more):
    if str(path).startswith(("/proc/", "/sys/")):
        raise FileNotFoundError(path)
    return opened(path, *args, **more)
builtins.open = without_proc
del os.sched_getaffinity, os.posix_fadvise
glob.glob = lambda pattern, **more: []
platform.machine = platform.processor = lambda: "arm64"
sys.argv = sys.argv[1:]
sys.path.insert(0, os.getcwd())
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    data = write_pictures(tmp_path / "data")
    words = [
        "main_pretrain.py",
        "--model",
        "mae_vit_tiny_patch4",
        "--input_size",
        8,
        "--batch_size",
        4,
        "--epochs",
        1,
        "--warmup_epochs",
        0,
        "--device",
        "cpu",
        "--log_dir",
        "",
        "--num_workers",
        0,
        "--data_path",
        data,
        "--output_dir",
        tmp_path / "out",
    ]

    def run(*more):
        return subprocess.run(
            [sys.executable, "-c", without, *map(str, words), *more], cwd=ROOT, capture_output=True, text=True
        )

    done = run()
    assert done.returncode == 0, done.stdout + done.stderr
    environment = json.loads((tmp_path / "out" / "environment.json").read_text())
    assert environment["instruction_set"] == environment["cpu"] == "arm64"
    assert environment["operations"] == (
        "Paddle's own operations on arm64, slower than oneDNN's: this Paddle carries no oneDNN"
    )
    assert environment["operations"] in done.stdout and not environment["cpu_runtime"]["MKL_DEBUG_CPU_TYPE"]
    refused = run("--amp", "bf16")
    assert refused.returncode == 2 and "--amp bf16: this CPU has neither avx512_bf16" in refused.stderr
