"""--amp on a CPU: what is refused, and that bfloat16 is bfloat16 in the products and float32 everywhere else."""
import paddle
import pytest

from util.compute import amp, cpu_runtime, onednn, operations


@pytest.fixture
def cpu_with(monkeypatch):
    def cpu_with(*features):
        monkeypatch.setattr(cpu_runtime, "features", lambda: frozenset(features))
    return cpu_with


def test_off_unless_asked_for():
    assert amp.resolve("auto", "cpu") is None and amp.resolve("off", "cpu") is None and amp.resolve("off", "gpu") is None
    assert amp.resolve("auto", "gpu") == amp.resolve("fp16", "gpu") == "float16"
    assert amp.resolve("bf16", "gpu") == "bfloat16"


def test_float16_is_not_for_a_cpu():
    with pytest.raises(ValueError, match="--amp fp16: .* pass --amp off or bf16"):
        amp.resolve("fp16", "cpu")


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16"])
def test_bfloat16_needs_a_processor_that_has_it(cpu_with, feature, monkeypatch):
    monkeypatch.setattr(operations, "unavailable", lambda: "")
    cpu_with("avx2", "avx512f")
    with pytest.raises(ValueError, match="--amp bf16: this CPU has neither avx512_bf16 nor amx_bf16.* pass --amp off"):
        amp.resolve("bf16", "cpu")
    cpu_with("avx2", feature)
    assert amp.resolve("bf16", "cpu") == "bfloat16"


def test_bfloat16_needs_onednn(cpu_with, monkeypatch):
    cpu_with("avx512_bf16")
    monkeypatch.setattr(operations, "unavailable", lambda: "MAE_CPU_RUNTIME=off")
    with pytest.raises(ValueError, match="--amp bf16: bfloat16 on a CPU needs oneDNN, and MAE_CPU_RUNTIME=off; pass"):
        amp.resolve("bf16", "cpu")


@pytest.mark.skipif(bool(operations.unavailable()), reason="no oneDNN here")
def test_an_autoencoder_in_bfloat16(make_mae, scramble, images):
    """The loss is rounded, by a part of 2 ** -8 at most; parameters, gradients and loss are float32."""
    model, noise = scramble(make_mae()), paddle.rand([2, 6])
    exact = model(images, 0.5, noise)[0].item()
    with amp.autocast("bfloat16")():
        loss = model(images, 0.5, noise, only_loss=True)
    loss.backward()
    assert loss.dtype == paddle.float32 and 0 < abs(loss.item() - exact) < exact * 2 ** -8
    for name, p in model.named_parameters():
        assert p.dtype == paddle.float32 and (p.stop_gradient or p.grad.dtype == paddle.float32), name
    assert operations._choice.products == onednn.F32  # as before
    with amp.autocast(None)():
        assert model(images, 0.5, noise, only_loss=True).item() == pytest.approx(exact, rel=1e-6)
