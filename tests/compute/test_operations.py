"""Operations of oneDNN against Paddle's own, in values and gradients."""

import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import paddle
import pytest
from processor import BOTH_PRECISIONS, needs_bfloat16

from layer import Block, LayerNorm, Linear
from util.compute import cpu_runtime, onednn, onednn_operations, operations

pytestmark = pytest.mark.isa
ROOT = Path(__file__).resolve().parents[2]


def random(*shape, seed=0):
    return paddle.to_tensor(np.random.default_rng(seed).standard_normal(shape).astype("float32"))


def run(layer, x, g, *args):
    """Return the output, the gradient of the input and those of the parameters as float32 arrays."""
    x = x.detach()
    x.stop_gradient = False
    layer.clear_gradients()
    y = layer(x, *args)
    assert y.dtype == paddle.float32
    y.backward(g)
    return [t.numpy() for t in (y, x.grad, *(p.grad for p in layer.parameters()))]


def assert_same(layer, x, g, *args, tolerance=3e-6):
    """Compare both up to float32 rounding, relative to the largest value of each tensor."""
    ours = run(layer, x, g, *args)
    with operations.by_paddle():
        expected = run(layer, x, g, *args)
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-3))


LAYERS = {
    "linear": (lambda d: Linear(d, 7), 7),
    "layer_norm": (LayerNorm, None),
    "block": (lambda d: Block(d, 3, mlp_ratio=2.5), None),
}


@pytest.fixture(params=LAYERS)
def make(request, scramble):
    layer, out = LAYERS[request.param]
    return lambda d: (scramble(layer(d)), out or d)


def test_these_tests_compare_onednn_with_paddle(monkeypatch):
    """Without a usable oneDNN the other tests would compare Paddle with itself."""
    called = []
    monkeypatch.setattr(onednn_operations, "_linear", lambda *args, **more: called.append(1) or random(2, 7))
    assert operations.unavailable() == ""
    Linear(5, 7)(random(2, 5))
    with operations.by_paddle():
        Linear(5, 7)(random(2, 5))
    assert len(called) == 1


@pytest.mark.parametrize("n, tokens, d", [(1, 1, 3), (3, 17, 33), (5, 2, 96), (2, 197, 48)])
def test_values_and_gradients(make, n, tokens, d):
    layer, out = make(d)
    assert_same(layer, random(n, tokens, d), random(n, tokens, out, seed=1))


@pytest.mark.parametrize("shape", [(0, 5, 12), (2, 0, 12)])
@pytest.mark.parametrize("name", ["linear", "layer_norm"])
def test_empty_batches(name, shape):
    if name == "linear" and paddle.__version__ < "3":
        pytest.skip("this Paddle's own linear refuses them")
    layer, out = LAYERS[name]
    y = layer(12)(paddle.zeros(shape))
    assert y.shape == [*shape[:2], out or 12]


@pytest.mark.parametrize("bytes_of_scores", [1, 12 * 5 * 5 * 4, 24 * 5 * 5 * 4])
def test_attention_in_groups_of_images(monkeypatch, scramble, bytes_of_scores):
    """Groups of one image, of 4 of 7 images, so that one is smaller, and of all images."""
    monkeypatch.setattr(onednn_operations, "SCORES_IN_CACHE", bytes_of_scores)
    assert_same(scramble(Block(12, 3)), random(7, 5, 12), random(7, 5, 12, seed=1))


def test_wanted_tokens(scramble):
    ids = paddle.to_tensor([[3, 1], [0, 4]])
    assert_same(scramble(Block(12, 3)), random(2, 5, 12), random(2, 2, 12, seed=1), ids)


def test_views(make):
    """Inputs and gradients are transposed views."""
    before = paddle.get_flags("FLAGS_use_stride_kernel") if paddle.__version__ >= "3" else None
    layer, out = make(12)
    if before is None:
        pytest.skip("this Paddle copies where a later one makes views")
    paddle.set_flags({"FLAGS_use_stride_kernel": True})
    try:
        x, g = random(5, 12, 2).transpose([2, 0, 1]), random(5, out, 2, seed=1).transpose([2, 0, 1])
        assert not x.is_contiguous() and not g.is_contiguous()
        assert_same(layer, x, g)
    finally:
        paddle.set_flags(before)


def test_drop_path(scramble):
    """Both drop the same images, drawn in the forward only."""
    layer = scramble(Block(12, 3, drop_path=0.5))

    def seeded(x):
        paddle.seed(3)
        return layer(x)

    seeded.clear_gradients, seeded.parameters = layer.clear_gradients, layer.parameters
    assert_same(seeded, random(6, 5, 12), random(6, 5, 12, seed=1))


def test_frozen_parameters_and_inputs(scramble):
    layer = scramble(Block(12, 3))
    x = random(2, 5, 12)
    with operations.by_paddle():  # Paddle's layer_norm is wrong with a frozen weight (3.3.1, 2.6.2)
        layer(x).sum().backward()
    whole = {name: p.grad.numpy() for name, p in layer.named_parameters()}
    for name, p in layer.named_parameters():
        p.clear_gradient(False)
        p.stop_gradient = "fc1" not in name and "norm1.bias" not in name
    layer(x).sum().backward()  # x gets no gradient either
    got = {name: p.grad.numpy() for name, p in layer.named_parameters() if p.grad is not None}
    assert got.keys() == {"norm1.bias", "mlp.fc1.weight", "mlp.fc1.bias"}
    for name, value in got.items():
        np.testing.assert_allclose(value, whole[name], atol=1e-5 * np.abs(value).max())


def test_gradients_accumulate(scramble):
    layer, x = scramble(Block(12, 3)), random(2, 5, 12)
    layer(x).sum().backward()
    once = [p.grad.numpy().copy() for p in layer.parameters()]
    layer(x).sum().backward()
    for a, p in zip(once, layer.parameters()):
        np.testing.assert_allclose(2 * a, p.grad.numpy(), rtol=1e-6)


@pytest.mark.parametrize(
    "name, register",
    [
        *(
            (name, "register_forward_post_hook")
            for name in ("norm1", "attn", "attn.proj", "norm2", "mlp", "mlp.fc1")
        ),
        ("attn", "register_forward_pre_hook"),
        ("mlp.fc1", "register_forward_pre_hook"),
    ],
)
def test_hooks_of_layers_in_a_branch_are_called(scramble, name, register):
    layer, x, called = scramble(Block(12, 3)), random(2, 5, 12), []
    expected = layer(x).numpy()
    handle = getattr(dict(layer.named_sublayers())[name], register)(lambda *args: called.append(name))
    np.testing.assert_allclose(layer(x).numpy(), expected, atol=1e-5)
    assert called == [name]
    handle.remove()
    np.testing.assert_array_equal(layer(x).numpy(), expected)
    assert called == [name]


@pytest.mark.parametrize("make", [lambda: Linear(12, 5), lambda: LayerNorm(12), lambda: Block(12, 3)])
def test_an_input_changed_in_place_before_the_backward_is_an_error(scramble, make):
    layer, x = scramble(make()), random(2, 5, 12)
    x.stop_gradient = False
    inner = x * 1
    y = layer(inner).square().sum()
    inner.add_(paddle.ones([1]))
    with pytest.raises(Exception, match="changed in place"):
        y.backward()


class Doubled(Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    "name, make",
    [
        ("attn.proj", lambda: Doubled(12, 12)),
        ("mlp.fc2", lambda: paddle.nn.Sequential(Linear(48, 12))),
        ("norm1", lambda: paddle.nn.LayerNorm(12)),
        ("attn.qkv", lambda: Linear(12, 36, bias_attr=False)),
    ],
)
def test_a_replaced_layer_of_a_branch_counts(scramble, name, make):
    layer, x = Block(12, 3), random(2, 5, 12)
    owner, _, last = name.rpartition(".")
    setattr(dict(layer.named_sublayers(include_self=True))[owner], last, make())
    scramble(layer)
    found = layer(x).numpy()
    with operations.by_paddle():
        np.testing.assert_allclose(found, layer(x).numpy(), atol=1e-5)


def test_weights_of_another_type_in_a_branch_are_not_read_as_float32(scramble):
    layer, x = scramble(Block(12, 3)), random(2, 5, 12)
    layer.attn.qkv.to(dtype="float64")
    with pytest.raises((RuntimeError, ValueError, TypeError)):
        layer(x)


def test_widths_that_do_not_fit_are_refused():
    for layer in (Linear(5, 7), LayerNorm(5)):
        with pytest.raises((RuntimeError, ValueError)):
            layer(random(2, 6))


def test_paddles_default_type_has_no_effect(scramble):
    layer, x, g = scramble(Linear(12, 5)), random(7, 12), random(7, 5, seed=1)
    onednn_operations._ones.cache_clear()
    paddle.set_default_dtype("float64")
    try:
        layer(x).backward(g)
    finally:
        paddle.set_default_dtype("float32")
        onednn_operations._ones.cache_clear()
    np.testing.assert_allclose(layer.bias.grad.numpy(), g.numpy().sum(axis=0), atol=1e-5)


def test_no_grad_keeps_nothing(scramble):
    layer, x = scramble(Block(12, 3)), random(2, 5, 12)
    with paddle.no_grad():
        y = layer(x)
    assert y.stop_gradient
    np.testing.assert_array_equal(y.numpy(), layer(x).numpy())


@pytest.mark.parametrize("dtype", BOTH_PRECISIONS)
def test_recompute(scramble, dtype):
    """The backward runs outside of the context, as in training."""
    layer, g = scramble(Block(12, 3, drop_path=0.5)), random(6, 5, 12, seed=1)
    results = []
    for call in (layer, lambda x: operations.recompute(layer, x)):
        x = random(6, 5, 12)
        x.stop_gradient = False
        layer.clear_gradients()
        paddle.seed(3)
        with operations.products(dtype):
            y = call(x)
        y.backward(g)
        results.append([t.numpy() for t in (y, x.grad, *(p.grad for p in layer.parameters()))])
    for a, b in zip(*results):
        np.testing.assert_array_equal(a, b)


def test_threads(scramble):
    """Each thread has its own primitives, because shared ones would mix up their memory."""
    layer, x = scramble(Block(48, 3)), random(4, 33, 48)
    with paddle.no_grad():
        expected = layer(x).numpy()
    wrong = []

    def work():
        with paddle.no_grad():
            for _ in range(20):
                if not (layer(x).numpy() == expected).all():
                    wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_forked_workers(scramble):
    """DataLoader workers are forked while the parent holds primitives and OpenMP threads."""
    layer, x = scramble(Block(12, 3)), random(2, 5, 12)
    before = layer(x).numpy()
    pid = os.fork()
    if pid == 0:
        os._exit(0 if np.array_equal(layer(x).numpy(), before) else 1)
    assert os.waitpid(pid, 0)[1] == 0
    np.testing.assert_array_equal(layer(x).numpy(), before)


@pytest.mark.slow
def test_memory_stays_flat_over_changing_shapes():
    layer = Linear(16, 24)

    rng = np.random.default_rng(0)

    def megabytes_after(steps):
        for rows in rng.integers(1, 600, steps):  # many more shapes than primitives that are kept
            layer(random(int(rows), 16)).sum().backward()
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

    start = megabytes_after(500)
    assert megabytes_after(1000) - start < 15  # a leak would be 300 kB a step


@pytest.mark.parametrize("dtype", BOTH_PRECISIONS)
def test_packed_weights(scramble, dtype, n=3, d=36):
    """Same values as without, from the weights at the time of packing, and no gradients."""
    layer, x = scramble(paddle.nn.Sequential(Block(d, 3), Linear(d, 5))), random(n, 5, d)
    with operations.products(dtype):
        expected = layer(x).numpy()
    packed = operations.packed(layer, dtype)
    layer[1].weight.set_value(paddle.zeros_like(layer[1].weight))
    with packed():
        found = layer(x)
    np.testing.assert_array_equal(found.numpy(), expected)
    assert found.stop_gradient
    np.testing.assert_array_equal(layer(x).numpy(), np.broadcast_to(layer[1].bias.numpy(), [n, 5, 5]))


def test_packed_weights_without_onednn(monkeypatch, scramble):
    layer, x = scramble(Linear(12, 5)), random(3, 12)
    monkeypatch.setattr(operations, "unavailable", lambda: "no reason")
    with operations.packed(layer, "float32")():
        expected = x.numpy() @ layer.weight.numpy() + layer.bias.numpy()
        np.testing.assert_allclose(layer(x).numpy(), expected, atol=1e-5)


@needs_bfloat16
@pytest.mark.parametrize("layer, tolerance", [(lambda: Linear(64, 32), 6e-3), (lambda: Block(48, 3), 2e-2)])
def test_bfloat16_products(scramble, layer, tolerance):
    """Inputs of products have 8 bits: near to float32, but not equal; results are float32."""
    layer = scramble(layer(), std=0.1)
    d = layer.parameters()[0].shape[0]
    x = random(4, 9, d)
    g = random(4, 9, layer.weight.shape[1] if isinstance(layer, Linear) else d, seed=1)
    exact = run(layer, x, g)
    with operations.products("bfloat16"):
        rounded = run(layer, x, g)
    for a, b in zip(exact, rounded):
        error = np.abs(a - b).max() / np.abs(a).max()
        assert error < tolerance
    assert np.abs(exact[0] - rounded[0]).max() / np.abs(exact[0]).max() > 1e-5


@needs_bfloat16
def test_bfloat16_linear_is_the_product_of_rounded_inputs_summed_in_float32():
    def rounded(values):  # to nearest even, on the upper 16 bits
        bits = values.view("uint32")
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype("uint32").view("float32")

    layer, x = Linear(64, 32), random(9, 64)
    expected = rounded(x.numpy()).astype("float64") @ rounded(layer.weight.numpy()) + layer.bias.numpy()
    with operations.products("bfloat16"):
        np.testing.assert_allclose(layer(x).numpy(), expected, atol=2e-6)


@needs_bfloat16
def test_the_normalisation_and_the_residual_of_a_branch_are_not_rounded(scramble):
    """With zero weights before the residual, a bfloat16 block returns its input bit for bit."""
    layer, x = scramble(Block(12, 3)), random(2, 5, 12)
    for p in (*layer.attn.proj.parameters(), *layer.mlp.fc2.parameters()):
        p.set_value(paddle.zeros_like(p))
    with operations.products("bfloat16"):
        np.testing.assert_array_equal(layer(x).numpy(), x.numpy())


def test_without_onednn_paddles_own_operations_run(monkeypatch, scramble):
    layer, x = scramble(Block(12, 3)), random(2, 5, 12)
    expected = layer(x).numpy()

    def library():
        raise onednn.Unavailable("this Paddle carries no oneDNN")

    monkeypatch.setattr(onednn, "library", library)
    operations.unavailable.cache_clear()
    try:
        np.testing.assert_allclose(layer(x).numpy(), expected, atol=1e-5)
        assert operations.describe().endswith("this Paddle carries no oneDNN")
    finally:
        operations.unavailable.cache_clear()


@pytest.mark.parametrize("name", ["matmul", "softmax_backward"])
def test_if_onednn_lacks_an_operation_paddles_own_run(monkeypatch, scramble, name):
    """One case lacks a forward, the other a backward."""
    layer, x, g = scramble(Block(12, 3)), random(2, 5, 12), random(2, 5, 12, seed=1)
    expected = run(layer, x, g)
    library = onednn.library()
    monkeypatch.setattr(library, f"dnnl_{name}_primitive_desc_create", lambda *args: onednn.UNIMPLEMENTED)
    monkeypatch.setattr(onednn, "_own", None)  # no primitive of earlier tests is left
    operations.unavailable.cache_clear()
    try:
        assert operations.describe().startswith("Paddle's own operations on ")
        assert f"its oneDNN {library.version} has no {name.replace('_', ' ')} for " in operations.describe()
        for a, b in zip(expected, run(layer, x, g)):
            np.testing.assert_allclose(a, b, rtol=0, atol=3e-6 * np.abs(b).max())
    finally:
        operations.unavailable.cache_clear()


@pytest.mark.parametrize(
    "bits, name",
    [
        (0x1, "SSE4.1"),
        (0x7, "AVX2"),
        (0x67, "AVX-512"),
        (0x1EF, "AVX-512 (bfloat16)"),
        (0xFEF, "AVX-512 + AMX (bfloat16)"),
        (0, "arm64"),
    ],
)
def test_names_of_instruction_sets(monkeypatch, bits, name):
    """Bits of dnnl_cpu_isa_t; 0 on a processor that is no x86."""
    monkeypatch.setattr(onednn.library(), "dnnl_get_effective_cpu_isa", lambda: bits)
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert onednn.instruction_set() == name and operations.describe().endswith(f" with {name}")


@pytest.mark.parametrize(
    "features, name",
    [
        ("Features : fp asimd", "arm64"),
        ("sse sse4_1 avx", "AVX"),
        ("avx512f avx512_bf16", "AVX-512 (bfloat16)"),
        ("avx512f avx512_bf16 amx_tile amx_bf16", "AVX-512 + AMX (bfloat16)"),
    ],
)
def test_the_processors_instruction_set_without_onednn(monkeypatch, features, name):
    def library():
        raise onednn.Unavailable("this Paddle carries no oneDNN")

    monkeypatch.setattr(onednn, "library", library)
    monkeypatch.setattr(cpu_runtime, "features", lambda: frozenset(features.split()))
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    operations.unavailable.cache_clear()
    try:
        assert onednn.instruction_set() == name
        assert operations.describe().startswith(f"Paddle's own operations on {name}, slower")
    finally:
        operations.unavailable.cache_clear()


@pytest.mark.parametrize(
    "break_it, reason",
    [
        ("import glob; glob.glob = lambda path: []", "this Paddle carries no oneDNN"),
        ("import glob; glob.glob = lambda path: ['/nowhere/libdnnl.so.3']", "its oneDNN cannot be loaded"),
        (
            "from util.compute import onednn; onednn._SIGNATURES['dnnl_new_in_4'] = []",
            "its oneDNN cannot be loaded",
        ),
        ("import os; os.environ['MAE_CPU_RUNTIME'] = 'off'", "MAE_CPU_RUNTIME=off"),
    ],
)
def test_the_reason_without_onednn(break_it, reason):
    code = f"{break_it}\nfrom util.compute import operations; print(operations.unavailable())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert reason in done.stdout


def test_float64_is_left_to_paddle():
    layer = Linear(5, 7)
    layer.to(dtype="float64")
    assert layer(random(2, 5).astype("float64")).dtype == paddle.float64
