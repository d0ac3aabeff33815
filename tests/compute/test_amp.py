"""--amp on a CPU: refusals, and bfloat16 in the products with float32 everywhere else."""

import os
import subprocess
import sys
from pathlib import Path

import paddle
import pytest
from processor import needs_bfloat16

from util.compute import amp, cpu_runtime, onednn, operations

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cpu_with(monkeypatch):
    """A function that makes this a processor with these features, whose oneDNN is not limited."""

    def library():
        raise onednn.Unavailable("not here")

    def cpu_with(*features):
        monkeypatch.setattr(onednn, "library", library)
        monkeypatch.setattr(cpu_runtime, "features", lambda: frozenset(features))

    return cpu_with


def test_off_unless_asked_for():
    assert amp.resolve("auto", "cpu") is amp.resolve("off", "cpu") is amp.resolve("off", "gpu") is None
    assert amp.resolve("auto", "gpu") == amp.resolve("fp16", "gpu") == "float16"
    assert amp.resolve("bf16", "gpu") == "bfloat16"


def test_float16_is_not_for_a_cpu():
    with pytest.raises(ValueError, match="--amp fp16: .* pass --amp off or bf16"):
        amp.resolve("fp16", "cpu")


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16"])
def test_bfloat16_needs_a_processor_that_has_it(cpu_with, feature, monkeypatch):
    monkeypatch.setattr(operations, "unavailable", lambda: "")
    cpu_with("avx2", "avx512f")
    with pytest.raises(ValueError, match="--amp bf16: .*neither avx512_bf16 nor amx_bf16.* pass --amp off"):
        amp.resolve("bf16", "cpu")
    cpu_with("avx2", feature)
    assert amp.resolve("bf16", "cpu") == "bfloat16"


def test_bfloat16_needs_onednn(cpu_with, monkeypatch):
    cpu_with("avx512_bf16")
    monkeypatch.setattr(operations, "unavailable", lambda: "MAE_CPU_RUNTIME=off")
    with pytest.raises(ValueError, match="--amp bf16: .* needs oneDNN, and MAE_CPU_RUNTIME=off; pass"):
        amp.resolve("bf16", "cpu")


@pytest.mark.parametrize("limit, name", [("AVX2", "AVX2"), ("SSE41", "SSE4.1")])
def test_bfloat16_is_refused_if_onednn_is_limited(limit, name):
    """Three ways ask for it: the flag, the products and a static graph."""
    code = """
from util.compute import cpu_runtime; cpu_runtime.prepare()
import paddle
from layer import Linear
from util.compute import amp, operations
from util.infer import static_engine
print(operations.describe())
def products():
    with operations.products("bfloat16"):
        Linear(4, 4)(paddle.ones([2, 4]))
for ask in (lambda: amp.resolve("bf16", "cpu"), products,
            lambda: static_engine.Runtime("cpu", "bfloat16")):
    try:
        ask()
    except Exception as error:
        print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": limit},
    )
    described, resolved, computed, exported = done.stdout.splitlines()
    assert described.startswith("operations by oneDNN 3.") and described.endswith(f" with {name}")
    assert resolved == exported and resolved.startswith("--amp bf16: ") and "pass --amp off" in resolved
    assert "neither avx512_bf16" in resolved or f"ONEDNN_MAX_CPU_ISA={limit}" in resolved
    assert computed.endswith(f"for {name}") and "has no " in computed and "status" not in done.stdout


@pytest.mark.isa
@needs_bfloat16
def test_an_autoencoder_in_bfloat16(make_mae, scramble, images):
    """The loss differs by at most 2 ** -8 of itself; parameters, gradients and loss are float32."""
    model, noise = scramble(make_mae()), paddle.rand([2, 6])
    exact = model(images, 0.5, noise)[0].item()
    with amp.autocast("bfloat16")():
        loss = model(images, 0.5, noise, only_loss=True)
    loss.backward()
    assert loss.dtype == paddle.float32 and 0 < abs(loss.item() - exact) < exact * 2**-8
    for name, p in model.named_parameters():
        assert p.dtype == paddle.float32 and (p.stop_gradient or p.grad.dtype == paddle.float32), name
    assert operations._choice.products == onednn.F32  # as before
    with amp.autocast(None)():
        assert model(images, 0.5, noise, only_loss=True).item() == pytest.approx(exact, rel=1e-6)
