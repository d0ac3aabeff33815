"""Flags for GPUs change no number, as far as a CPU can run them."""

import contextlib
from functools import partial

import numpy as np
import paddle
import pytest
from paddle.base.layer_helper import LayerHelper
from processor import BOTH_PRECISIONS
from scripts import launch, read_log, read_state, run, write_pictures
from test_engines import (
    assert_same,
    epoch_log,
    finetune,
    labelled_batches,
    pretrain,
    pretraining_batches,
    rule_of,
    sgd,
    values,
)

import engine_finetune
import engine_pretrain
from util.compute import amp, compilation, operations
from util.data.loaders import Samples, make_loader
from util.data.mixup import Mixup
from util.data.sampler import EpochSampler
from util.optim.clip_grad import clip_grad_norm
from util.optim.fused_adamw import FusedAdamW
from util.optim.param_groups import layer_decay_groups, weight_decay_groups
from util.run import checkpoints
from util.weights import checkpoint, loading


def gradients(model, loss):
    """Return the loss, the gradients by parameter name, and the "next" random numbers."""
    model.clear_gradients()
    loss.backward()
    found = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.numpy(), "next": paddle.rand([4]).numpy(), **found}


def mae_gradients(model, products="float32"):
    ((images, noise),) = pretraining_batches(1, size=4)
    paddle.seed(3)
    with operations.products(products):
        loss = model(images, 0.5, noise, only_loss=True)
    return gradients(model, loss)


def vit_gradients(model, products="float32"):
    ((images, labels),) = labelled_batches(1, size=8)
    paddle.seed(3)  # which images drop which branch
    with operations.products(products):
        logits = model(images)
    return gradients(model, paddle.nn.functional.cross_entropy(logits, labels))


@pytest.fixture(params=["mae", "vit"])
def both(request, make_mae, make_vit, scramble):
    """Function that makes one of the two models, and function that returns its loss and gradients."""
    make, found = {
        "mae": (partial(make_mae, norm_pix_loss=True), mae_gradients),
        "vit": (partial(make_vit, drop_path_rate=0.5), vit_gradients),
    }[request.param]
    return lambda **changes: scramble(make(**changes)), found


# ---- --attention


def test_fused_attention_gives_the_loss_and_the_gradients(both, library, monkeypatch):
    make, found = both
    expected, called = found(make()), []
    fused = paddle.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        paddle.nn.functional,
        "scaled_dot_product_attention",
        lambda q, k, v: called.append(tuple(q.shape)) or fused(q, k, v),
    )
    got = found(make(sdpa="float32"))
    assert {shape[2:] for shape in called} <= {(2, 4), (3, 4)} and len(called) >= 2  # [N, L, heads, size]
    assert len(got) > 30
    for name in expected:  # absolute, because the gradient of the keys' bias is nothing but rounding
        np.testing.assert_allclose(
            got[name], expected[name], rtol=0, err_msg=name, atol=2e-5 * max(1, np.abs(expected[name]).max())
        )


@pytest.mark.parametrize(
    "attention, device, precision, capability, sdpa",
    [
        ("auto", "cpu", None, None, None),
        ("sdpa", "cpu", "bfloat16", None, "float32"),
        ("auto", "gpu", None, (8, 0), None),
        ("auto", "gpu", "float16", (7, 5), None),
        ("auto", "gpu", "float16", (8, 0), "float16"),
        ("auto", "gpu", "bfloat16", (9, 0), "bfloat16"),
        ("math", "gpu", "float16", (9, 0), None),
        ("sdpa", "gpu", "float16", (7, 0), "float16"),
    ],
)
def test_the_type_of_the_attention(attention, device, precision, capability, sdpa, monkeypatch):
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda: capability)
    assert operations.sdpa_type(attention, device, precision) == sdpa


def test_flash_attention_needs_half_precision():
    with pytest.raises(ValueError, match="--attention sdpa: .* pass --amp fp16 or bf16, or --attention math"):
        operations.sdpa_type("sdpa", "gpu", None)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_flash_attention_is_handed_its_type(make_vit, monkeypatch, dtype):
    """A stand-in computes in float32, because a CPU has no such kernel, and returns its inputs' type."""
    fused, asked = paddle.nn.functional.scaled_dot_product_attention, []

    def standin(*qkv):
        asked.extend(tensor.dtype for tensor in qkv)
        return fused(*(tensor.astype("float32") for tensor in qkv)).astype(dtype).astype("float32")

    monkeypatch.setattr(paddle.nn.functional, "scaled_dot_product_attention", standin)
    ((images, _),) = labelled_batches(1)
    exact, rounded = make_vit(), make_vit(sdpa=dtype)
    rounded.set_state_dict(exact.state_dict())
    np.testing.assert_allclose(rounded(images).numpy(), exact(images).numpy(), atol=1e-2)
    assert asked == [getattr(paddle, dtype)] * 6


# ---- --recompute


@pytest.fixture
def computed(monkeypatch):
    """List with one entry for each computation of a block."""
    from layer import Block

    calls, branches = [], Block._forward
    monkeypatch.setattr(Block, "_forward", lambda self, x, ids: calls.append(1) or branches(self, x, ids))
    return calls


@pytest.mark.isa
@pytest.mark.parametrize("products", BOTH_PRECISIONS)
def test_recomputing_changes_no_bit(both, library, computed, products):
    """The second computation drops the same paths and does not change later random numbers."""
    make, found = both
    expected = found(make(), products)
    once = len(computed)
    got = found(make(recompute=True), products)
    assert len(computed) == 3 * once >= 6
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)


@pytest.mark.parametrize(
    "train, batches", [(pretrain, pretraining_batches(3)), (finetune, labelled_batches(3))]
)
def test_recomputing_with_accumulation(make_mae, make_vit, scramble, train, batches):
    make = make_mae if train is pretrain else partial(make_vit, drop_path_rate=0.5)
    plain, recomputed = scramble(make()), scramble(make(recompute=True))
    losses = [
        train(model, batches, optimizer=sgd(model), accum_iter=2)["loss"] for model in (plain, recomputed)
    ]
    assert losses[0] == losses[1]
    assert_same(values(recomputed), values(plain))


def test_an_evaluation_recomputes_nothing(make_vit, computed):
    model = make_vit(recompute=True)
    model.eval()
    model(labelled_batches(1)[0][0]).sum().backward()
    assert len(computed) == 2


def test_a_recomputed_layer_is_named(make_vit):
    model = make_vit(recompute=True)
    model.blocks[1].mlp.fc1.weight.set_value(np.full(model.blocks[1].mlp.fc1.weight.shape, 3e38, "float32"))
    with pytest.raises(FloatingPointError, match=r"blocks\.1\.mlp\.fc1"):
        finetune(model, labelled_batches(1))


# ---- --fused_adamw


def adamw_run(kind, make, loss_of, groups_of, steps=4, start=None):
    """Return the losses of `steps` updates, the model and its optimizer."""
    model = make()
    optimizer = kind(0.02, beta1=0.8, beta2=0.9, epsilon=1e-6, parameters=groups_of(model))
    if start:
        loading.resume(start, model, optimizer, amp.grad_scaler(None))
    losses = []
    for step in range(steps):
        optimizer.set_lr(0.02 / (step + 1))
        losses.append(loss_of(model)["loss"].item())
        optimizer.step()
        optimizer.clear_grad()
    return losses, model, optimizer


GROUPS = [lambda model: weight_decay_groups(model, 0.3), lambda model: layer_decay_groups(model, 0.3, 0.65)]


@pytest.mark.parametrize("groups_of", GROUPS, ids=["weight_decay", "layer_decay"])
def test_fused_adamw_makes_the_updates_of_adamw(make_vit, scramble, groups_of):
    make = lambda: scramble(make_vit())
    expected, model, _ = adamw_run(paddle.optimizer.AdamW, make, vit_gradients, groups_of)
    got, fused, _ = adamw_run(FusedAdamW, make, vit_gradients, groups_of)
    assert len(set(expected)) == 4
    assert got == pytest.approx(expected, rel=1e-6)
    # Bit for bit on a CPU, because the first update after a resume is not fused.
    assert all((value == values(model)[name]).all() for name, value in values(fused).items())


@pytest.mark.parametrize(
    "first, second", [(paddle.optimizer.AdamW, FusedAdamW), (FusedAdamW, paddle.optimizer.AdamW)]
)
def test_either_adamw_continues_the_checkpoint_of_the_other(make_vit, scramble, tmp_path, first, second):
    make = lambda: scramble(make_vit())
    _, model, optimizer = adamw_run(first, make, vit_gradients, GROUPS[1])
    checkpoints.save(tmp_path, checkpoint.pack(model, optimizer, amp.grad_scaler(None), 0, {}))
    start = tmp_path / "checkpoint-latest.pd"
    expected, model, _ = adamw_run(first, make, vit_gradients, GROUPS[1], start=start)
    got, other, _ = adamw_run(second, make, vit_gradients, GROUPS[1], start=start)
    assert got == pytest.approx(expected, rel=1e-6)
    assert_same(values(other), values(model), atol=1e-6)


def test_fused_adamw_leaves_parameters_without_a_gradient(make_vit, monkeypatch):
    model = make_vit()
    before = values(model)
    optimizer = FusedAdamW(0.1, parameters=weight_decay_groups(model, 0.5))
    model.head(paddle.ones([2, 8])).sum().backward()
    optimizer.step()  # the first step is AdamW's own
    operation, updated = paddle._C_ops.fused_adam_, []
    monkeypatch.setattr(
        paddle._C_ops,
        "fused_adam_",
        lambda ps, *more: updated.append([p.name for p in ps]) or operation(ps, *more),
    )
    optimizer.step()
    assert updated == [[model.head.bias.name], [model.head.weight.name]]
    changed = {name for name, value in values(model).items() if (value != before[name]).any()}
    assert changed == {"head.weight", "head.bias"}


def test_fused_adamw_needs_its_operation(monkeypatch):
    monkeypatch.delattr(paddle._C_ops, "fused_adam_")
    with pytest.raises(ValueError, match="--fused_adamw: .*no fused AdamW"):
        FusedAdamW(0.1, parameters=[{"params": paddle.nn.Linear(1, 1).parameters()}])


# ---- --compile


@pytest.mark.parametrize(
    "train, batches, changes",
    [
        (pretrain, pretraining_batches(4), {}),
        (pretrain, pretraining_batches(4), {"encoder_mask_tokens": True}),
        (finetune, labelled_batches(4), {"drop_path_rate": 0.5}),
    ],
)
@pytest.mark.parametrize("sdpa", [None, "float32"])
def test_a_compiled_model_has_the_same_losses(make_mae, make_vit, scramble, train, batches, changes, sdpa):
    """Four updates, of windows of 3 and 1, with the same drop path; then an evaluation."""
    make = partial(make_mae if train is pretrain else make_vit, **changes)
    models = scramble(make(), std=0.1), compilation.compiled(scramble(make(sdpa=sdpa), std=0.1))
    assert [*models[1].state_dict()] == [*models[0].state_dict()]
    logs = [], []
    for model, losses in zip(models, logs):
        for epoch in range(2):
            losses.append(train(model, batches, optimizer=sgd(model), epoch=epoch, accum_iter=3)["loss"])
        if train is finetune:
            tested = engine_finetune.evaluate(
                model, labelled_batches(1, size=3), autocast=amp.autocast(None), shared=False
            )
            losses += [tested[name] for name in ("loss", "acc1", "acc5")]
    assert logs[1] == pytest.approx(logs[0], rel=1e-5) and logs[0][0] != logs[0][1]
    assert_same(values(models[1]), values(models[0]), atol=1e-5)


def test_a_compiled_model_names_its_layer(make_mae):
    model = compilation.compiled(make_mae())
    good, bad = pretraining_batches(2)
    bad[0][0] = float("inf")
    with pytest.raises(FloatingPointError, match=r"epoch 0 step 1 .*output is not finite is patch_embed"):
        pretrain(model, [good, bad], sgd(model), lr_at=lambda _: 0.0)
    assert model(*good[:1], 0.5, good[1], only_loss=True).isfinite().item()  # it runs compiled again


def test_code_that_cannot_be_traced_is_an_error():
    class Untraceable(paddle.nn.Layer):
        def forward(self, x):
            return x * (x.data_ptr() > 0)

    model = Untraceable()
    assert model(paddle.ones([2])).tolist() == [1, 1]
    with pytest.raises(AttributeError, match="data_ptr"):
        compilation.compiled(model)(paddle.ones([2]))


def test_compile_against_other_flags():
    assert "slower" in compilation.check("cpu", None, False)
    assert compilation.check("gpu", "float16", False) == compilation.check("gpu", None, False) == ""
    with pytest.raises(ValueError, match="--compile: on a CPU .* pass --amp off"):
        compilation.check("cpu", "bfloat16", False)
    with pytest.raises(ValueError, match="--compile and --recompute .* pass one of the two"):
        compilation.check("gpu", "float16", True)


# ---- --amp_level O2


def half_run(make_vit, scramble, *, resume=None):
    """Return a classifier and its optimizer at the start of main_finetune --amp_level O2 in bfloat16."""
    model = scramble(make_vit())
    optimizer = paddle.optimizer.AdamW(
        0.1, parameters=layer_decay_groups(model, 0.1, 0.5), multi_precision=True
    )
    amp.keep_masters(model, optimizer)
    if resume:
        loading.resume(resume, model, optimizer, amp.grad_scaler(None))
    amp.halve(model, optimizer, "bfloat16")
    return model, optimizer


def make_moments(model, optimizer):
    """Make the moments of the first update, which has no bfloat16 kernel on a CPU."""
    optimizer.helper = LayerHelper("AdamW")
    optimizer._create_accumulators(paddle.static.default_main_program().global_block(), model.parameters())


def test_linear_maps_are_halved_and_nothing_else(make_vit, scramble):
    model, _ = half_run(make_vit, scramble)
    halved = {name for name, p in model.named_parameters() if p.dtype == paddle.bfloat16}
    linear = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert halved == {
        "head.weight",
        "head.bias",
        *(f"blocks.{i}.{layer}.{part}" for i in range(2) for layer in linear for part in ("weight", "bias")),
    }
    assert {p.dtype for name, p in model.named_parameters() if name not in halved} == {paddle.float32}


def test_a_checkpoint_holds_the_float32_masters(make_vit, scramble, tmp_path):
    """Runs with and without O2 continue from them exactly."""
    exact = values(scramble(make_vit()))
    model, optimizer = half_run(make_vit, scramble)
    masters = optimizer.state_dict()["master_weights"]
    name_of = {p.name: name for name, p in model.named_parameters()}
    assert len(masters) == 18
    for owner, master in masters.items():  # like an update
        exact[name_of[owner]] = exact[name_of[owner]] * np.float32(1.001)
        master.set_value(exact[name_of[owner]])
    make_moments(model, optimizer)
    state = checkpoint.pack(model, optimizer, amp.grad_scaler(None), 0, {})
    assert {array.dtype for array in state["model"].values()} == {np.dtype("float32")}
    assert_same(state["model"], exact)
    assert {name: sorted(moments) for name, moments in state["optimizer"].items()} == {
        name: ["beta1_pow_acc_0", "beta2_pow_acc_0", "moment1_0", "moment2_0"] for name in exact
    }
    for moments in state["optimizer"].values():
        moments["moment1_0"] = moments["moment1_0"] + np.float32(0.123)
    checkpoints.save(tmp_path, state)
    path = tmp_path / "checkpoint-latest.pd"

    again, optimizer = half_run(make_vit, scramble, resume=path)
    make_moments(again, optimizer)
    resumed = checkpoint.pack(again, optimizer, amp.grad_scaler(None), 0, {})
    assert_same(resumed["model"], exact)
    assert all((moments["moment1_0"] == np.float32(0.123)).all() for moments in resumed["optimizer"].values())
    rounded = again.head.weight.astype("float32").numpy()
    np.testing.assert_allclose(rounded, exact["head.weight"], rtol=2**-7)
    assert (rounded != exact["head.weight"]).any()

    plain = make_vit()
    optimizer = paddle.optimizer.AdamW(0.1, parameters=layer_decay_groups(plain, 0.1, 0.5))
    loading.resume(path, plain, optimizer, amp.grad_scaler(None))
    assert_same(values(plain), exact)
    vit_gradients(plain)
    optimizer.step()


def test_o2_needs_a_gpu_and_half_precision():
    for chosen in ("auto", "off", "bf16"):
        with pytest.raises(ValueError, match="--amp_level O2: a CPU .* pass --amp_level O1"):
            amp.resolve(chosen, "cpu", "O2")
    with pytest.raises(ValueError, match="--amp_level O2: .* pass --amp fp16"):
        amp.resolve("off", "gpu", "O2")
    assert [amp.resolve(chosen, "gpu", "O2") for chosen in ("auto", "fp16", "bf16")] == [
        "float16",
        "float16",
        "bfloat16",
    ]


@pytest.mark.parametrize("share", [0.25, 4.0])
def test_gradients_of_two_types_are_clipped_by_one_norm(share):
    first, second, none = (paddle.zeros([2], dtype) for dtype in ("float32", "bfloat16", "float32"))
    for p, gradient in ((first, [3.0, 0.0]), (second, [0.0, 4.0])):
        p.stop_gradient = False
        (p.astype("float32") * paddle.to_tensor(gradient)).sum().backward()
    clip_grad_norm([first, none, second], 5.0 * share)  # 3, 4, 5
    kept = min(share, 1.0)
    np.testing.assert_allclose(first.grad.numpy(), [3 * kept, 0], rtol=1e-5)
    np.testing.assert_allclose(second.grad.astype("float32").numpy(), [0, 4 * kept], rtol=1e-2)
    assert second.grad.dtype == paddle.bfloat16 and none.grad is None


# ---- --pin_mem, and batches ahead of their step


class Numbers:
    """Source whose pictures are their own numbers; it records the reads."""

    labels = None

    def __init__(self, broken=None):
        self.read, self.broken = [], broken

    def __len__(self):
        return 8

    def open(self, index):
        if index == self.broken:
            raise ValueError(f"number {index} is broken")
        self.read.append(index)
        return index


def numbers_loader(source, **options):
    samples = Samples(source, lambda number, rng: (np.float32(number),), seed=0)
    return make_loader(samples, EpochSampler(8, 2, seed=0, shuffle=False), 0, **options)


def test_the_next_batch_is_read_while_a_step_is_computed():
    import time

    source, seen = Numbers(), []
    for (batch,) in numbers_loader(source):
        ahead = min(8, 2 * len(seen) + 4)
        deadline = time.monotonic() + 5
        while len(source.read) < ahead and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(source.read) >= ahead
        seen.append(batch.numpy().tolist())
    assert seen == [[0, 1], [2, 3], [4, 5], [6, 7]] and source.read == list(range(8))


def test_an_error_ahead_comes_at_its_own_batch():
    seen = []
    with pytest.raises(ValueError, match="number 5 is broken"):
        for (batch,) in numbers_loader(Numbers(broken=5)):
            seen.append(batch.numpy().tolist())
    assert seen == [[0, 1], [2, 3]]


@pytest.mark.parametrize("pinned", [True, False])
def test_pin_mem_reaches_paddles_reader(pinned, monkeypatch):
    """The arguments are checked, because only the reader of a GPU build pins and copies."""
    from paddle.io.dataloader import dataloader_iter

    told, create = [], dataloader_iter.core.create_py_reader
    monkeypatch.setattr(
        dataloader_iter.core, "create_py_reader", lambda *args: told.append(args) or create(*args)
    )
    list(numbers_loader(Numbers(), pin_memory=pinned))
    ((*_, use_buffer_reader, _, pin_memory),) = [args[:9] for args in told]
    assert (use_buffer_reader, pin_memory) == (True, pinned)


# ---- no device synchronisation between lines of the log

READS = (
    "item",
    "numpy",
    "tolist",
    "__float__",
    "__bool__",
    "__int__",
    "__index__",
    "__array__",
    "__nonzero__",
)


@contextlib.contextmanager
def counted_reads(monkeypatch):
    """List of the reads of tensors, each of which would wait for a GPU."""
    reads, depth = [], []

    def counting(name, read):
        def counted(tensor, *args, **kwargs):
            if not depth:  # item() calls numpy(), for example
                reads.append(name)
            depth.append(1)
            try:
                return read(tensor, *args, **kwargs)
            finally:
                depth.pop()

        return counted

    with monkeypatch.context() as patch:
        for name in READS:
            if hasattr(paddle.Tensor, name):
                patch.setattr(paddle.Tensor, name, counting(name, getattr(paddle.Tensor, name)))
        yield reads


def gpu_log(batches):
    """Return an epoch's log that reads losses as on a GPU, before every fourth line and at the end."""
    log = epoch_log(batches)
    log.sync.read_every = 4
    return log


def test_these_reads_are_counted(monkeypatch):
    tensor = paddle.ones([])
    with counted_reads(monkeypatch) as reads:
        for read in (
            lambda x: x.item(),
            lambda x: x.numpy(),
            lambda x: x.tolist(),
            float,
            bool,
            int,
            np.asarray,
        ):
            read(tensor)
    assert len(reads) == 7


@pytest.mark.parametrize("fused", [False, True])
def test_pretraining_reads_the_device_for_the_log_only(make_mae, monkeypatch, fused):
    model, batches = make_mae(norm_pix_loss=True), pretraining_batches(8)
    kind = FusedAdamW if fused else paddle.optimizer.AdamW
    optimizer = kind(0.01, parameters=weight_decay_groups(model, 0.1))
    with counted_reads(monkeypatch) as reads:
        engine_pretrain.train_one_epoch(
            model, batches, rule_of(optimizer, accum_iter=3), gpu_log(batches), mask_ratio=0.5
        )
    # The loss of each step, all of them at steps 0, 4 and 7, and the gradient norm of each of 3 updates.
    assert reads == ["item"] * 11


@pytest.mark.parametrize("mixed", [False, True])
def test_finetuning_reads_the_device_for_the_log_only(make_vit, monkeypatch, mixed):
    model, batches = make_vit(drop_path_rate=0.5, global_pool=True), labelled_batches(8)
    mixup = Mixup(0.8, 1.0, None, prob=1.0, switch_prob=0.5, mode="elem", label_smoothing=0.1, num_classes=5)
    optimizer = paddle.optimizer.AdamW(0.01, parameters=layer_decay_groups(model, 0.1, 0.5))
    with counted_reads(monkeypatch) as reads:
        engine_finetune.train_one_epoch(
            model,
            batches,
            rule_of(optimizer, accum_iter=3, clip_grad=0.1),
            gpu_log(batches),
            regularization=engine_finetune.Regularization(0, mixup if mixed else None, 0.1),
        )
    assert reads == ["item"] * 11


# ---- through the scripts

SHORT = [
    "--input_size",
    8,
    "--device",
    "cpu",
    "--num_workers",
    0,
    "--batch_size",
    4,
    "--epochs",
    1,
    "--warmup_epochs",
    0,
    "--lr",
    1e-4,
    "--log_dir",
    "",
]


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, flags",
    [
        ("main_pretrain.py", ["--model", "mae_vit_tiny_patch4", "--accum_iter", 2]),
        pytest.param(
            "main_finetune.py",
            ["--model", "vit_tiny_patch4", "--nb_classes", 2, "--drop_path", 0.3, "--clip_grad", 1.0],
            marks=pytest.mark.long,
        ),
    ],
)
def test_the_flags_of_a_script_leave_its_loss(tmp_path, script, flags):
    data = write_pictures(tmp_path / "data", size=(12, 12))
    flags = [*flags, *SHORT, "--data_path", data]
    run(script, *flags, "--output_dir", tmp_path / "plain")
    expected = read_log(tmp_path / "plain")[0]["train_loss"]
    for given in (["--recompute", "--fused_adamw", "--attention", "sdpa"], ["--compile", "--no_pin_mem"]):
        said = run(script, *flags, *given, "--output_dir", tmp_path / "given")
        assert read_log(tmp_path / "given")[0]["train_loss"] == pytest.approx(expected, rel=1e-4)
        assert ("--compile on a CPU" in said) == ("--pin_mem" in said) == ("--compile" in given)
    assert "--amp_level O2" in run(script, *flags, "--amp_level", "O2", code=2)


@pytest.mark.long
def test_recomputing_in_two_processes(tmp_path):
    data = write_pictures(tmp_path / "data", train=16, size=(12, 12))
    flags = [
        "main_pretrain.py",
        "--model",
        "mae_vit_tiny_patch4",
        "--data_path",
        data,
        *SHORT,
        "--accum_iter",
        2,
        "--batch_size",
        2,
    ]
    for name, given in (("plain", []), ("given", ["--recompute", "--fused_adamw"])):
        launch(*flags, *given, "--output_dir", tmp_path / name, logs=tmp_path / f"logs {name}")
    weights = [read_state(tmp_path / name / "checkpoint-latest.pd")["model"] for name in ("plain", "given")]
    assert_same(*weights, atol=1e-6)
