"""Checkpoints: values that are written and read, files that are refused, and strict loading."""

import os
import pickle
import re

import numpy as np
import paddle
import pytest
from scripts import flat, read_state

import models_mae
import models_vit
from util.compute import amp
from util.optim.lars import LARS
from util.optim.param_groups import layer_decay_groups, weight_decay_groups
from util.run import checkpoints
from util.system import provenance
from util.weights import architecture, checkpoint, loading
from util.weights.adapt import interpolate
from util.weights.checkpoint import CheckpointError

IDLE = amp.grad_scaler(None)  # as on a CPU


def weights_of(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def same(a, b):
    """Compare two dicts of arrays by names, types and bits."""
    return a.keys() == b.keys() and all(
        x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
        for x, y in ((a[k], b[k]) for k in a)
    )


def write(path, content):
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def train_step(model, optimizer, seed):
    """One update on random images; the gradients follow from the weights and `seed`."""
    rng = np.random.default_rng(seed)
    images = paddle.to_tensor(rng.standard_normal([4, 3, 12, 8]).astype("float32"))
    if hasattr(model, "mask_token"):
        loss = model(images, 0.5, paddle.to_tensor(rng.random([4, 6]).astype("float32")))[0]
    else:
        model.train()
        loss = paddle.nn.functional.cross_entropy(model(images), paddle.to_tensor(rng.integers(0, 5, [4])))
    loss.backward()
    optimizer.step()
    optimizer.clear_grad()


@pytest.fixture
def make_probe(make_vit):
    def make(**changes):
        model = make_vit(**changes)
        model.make_linear_probe()
        return model

    return make


# Saving


def test_round_trip_by_value(tmp_path, make_mae):
    model = make_mae()
    optimizer = paddle.optimizer.AdamW(0.01, parameters=weight_decay_groups(model, 0.05))
    train_step(model, optimizer, 0)
    more = {
        "architecture": {"name": "x", "img_size": [12, 8]},
        "normalization": {"mean": [0.5], "std": [0.25]},
    }
    checkpoints.save(tmp_path, checkpoint.pack(model, optimizer, IDLE, 3, {"lr": None, "seed": 0}, **more))
    state = checkpoint.read_checkpoint(tmp_path / "checkpoint-latest.pd")
    assert same(state["model"], weights_of(model))
    assert {name: state[name] for name in ("epoch", "args", "architecture", "normalization")} == {
        "epoch": 3,
        "args": {"lr": None, "seed": 0},
        **more,
    }
    trained = {name for name, p in model.named_parameters() if not p.stop_gradient}
    assert state["optimizer"].keys() == trained and "pos_embed" not in trained
    for moments in state["optimizer"].values():
        # beta ** (t + 1) after step t, for the next one.
        assert moments["beta1_pow_acc_0"].item() == pytest.approx(0.9**2) and moments["moment1_0"].any()
        assert moments["beta2_pow_acc_0"].item() == pytest.approx(0.999**2)


def test_a_file_says_what_wrote_it(tmp_path, make_mae, make_vit, make_probe):
    for make, kind in ((make_mae, "mae"), (make_vit, "classifier"), (make_probe, "linear_probe")):
        model = make()
        optimizer = paddle.optimizer.SGD(0.1, parameters=model.parameters())
        checkpoints.save(tmp_path, checkpoint.pack(model, optimizer, IDLE, 0, {}))
        state = read_state(tmp_path / "checkpoint-latest.pd")
        assert state["format"] == 1 and len(state["checksum"]) == 64 and state["kind"] == kind
        assert (state["git_revision"], state["versions"]) == (
            provenance.git_state()[0],
            provenance.versions(),
        )


def test_a_damaged_file_is_not_loaded(tmp_path, make_vit):
    model = make_vit()
    optimizer = paddle.optimizer.SGD(0.1, parameters=model.parameters())
    checkpoints.save(tmp_path, checkpoint.pack(model, optimizer, IDLE, 0, {}))
    path = tmp_path / "checkpoint-latest.pd"
    content = path.read_bytes()
    value = model.head.weight.numpy().tobytes()
    assert content.count(value) == 1
    path.write_bytes(content.replace(value, bytes([value[0] ^ 1]) + value[1:]))
    with pytest.raises(CheckpointError, match="checksum"):
        checkpoint.read_checkpoint(path)


def test_everything_in_a_file_is_plain(tmp_path, make_vit):
    model = make_vit()
    optimizer = paddle.optimizer.AdamW(0.01, parameters=layer_decay_groups(model, 0.05, 0.75))
    train_step(model, optimizer, 0)
    checkpoints.save(tmp_path, checkpoint.pack(model, optimizer, IDLE, 0, {}, classes=["a"]))
    for leaf in flat(read_state(tmp_path / "checkpoint-latest.pd")).values():
        assert type(leaf) in (np.ndarray, int, float, str, list, bool, type(None)), leaf


# Paddle's own files, and ours in Paddle


def test_paddle_reads_our_file(tmp_path, make_vit):
    model = make_vit()
    optimizer = paddle.optimizer.AdamW(0.01, parameters=model.parameters())
    train_step(model, optimizer, 0)
    checkpoints.save(tmp_path, checkpoint.pack(model, optimizer, IDLE, 2, {"a": [1]}))
    state = paddle.load(str(tmp_path / "checkpoint-latest.pd"), return_numpy=True)
    assert same(state["model"], weights_of(model)) and state["epoch"] == 2 and state["args"] == {"a": [1]}
    other = make_vit()
    missing, unexpected = other.set_state_dict(paddle.load(str(tmp_path / "checkpoint-latest.pd"))["model"])
    assert not missing and not unexpected and same(weights_of(other), weights_of(model))


@pytest.mark.parametrize("wrapped", [False, True], ids=["weights", "under model"])
def test_we_read_files_of_paddle_save(tmp_path, make_probe, wrapped):
    # its BatchNorm adds buffers, and entries of one element are special to some versions
    model = make_probe()
    path = str(tmp_path / "x.pdparams")
    paddle.save({"model": model.state_dict(), "epoch": 5} if wrapped else model.state_dict(), path)
    state = checkpoint.read_checkpoint(path)
    assert same(state["model"], weights_of(model)) and state.get("epoch") == (5 if wrapped else None)
    other = make_probe()
    loading.load_weights(path, state["model"], other)
    assert same(weights_of(other), weights_of(model))


def test_a_classifier_of_one_class_keeps_its_shapes(tmp_path, make_vit):
    model, other = make_vit(num_classes=1), make_vit(num_classes=1)
    paddle.save(model.state_dict(), str(tmp_path / "x.pd"))
    loading.load_weights("x", checkpoint.read_checkpoint(tmp_path / "x.pd")["model"], other)
    assert other.head.bias.shape == [1] and same(weights_of(other), weights_of(model))


# Files that are no checkpoint


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


WHOLE = pickle.dumps({"model": {"x": np.arange(100.0)}, "epoch": 1}, protocol=4)


def test_damaged_and_foreign_files(tmp_path):
    path = tmp_path / "x.pd"
    for content, said in [
        (b"", "empty"),
        (b"<html>404</html>", "web page"),
        (WHOLE[:-1], "damaged"),
        (WHOLE[: len(WHOLE) // 2], "damaged"),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f", "damaged"),
        (WHOLE + b"x", "after its end"),
        (b"\x80\x02cos\nsystem\n(S'true'\ntR.", "refused: .*os.system.*--trust_checkpoint"),
    ]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"^{re.escape(str(path))}: .*{said}"):
            checkpoint.read_checkpoint(path)
    with pytest.raises(CheckpointError, match="none.pd: .*no such file"):
        checkpoint.read_checkpoint(tmp_path / "none.pd")


def test_an_encoder_that_does_not_fit_is_called_what_its_file_is(tmp_path):
    """The error describes the whole file, not the part that --finetune takes."""
    pretrained = models_mae.mae_vit_tiny_patch4(img_size=8, decoder_depth=1)
    path = tmp_path / "mae.pd"
    path.write_bytes(
        pickle.dumps(
            {
                "model": {name: value.numpy() for name, value in pretrained.state_dict().items()},
                "architecture": {"name": "mae_vit_tiny_patch4", "img_size": [8], "in_chans": 3},
            }
        )
    )
    with pytest.raises(CheckpointError) as error:
        loading.load_encoder(path, models_vit.vit_tiny_patch4(img_size=8, mlp_ratio=2.0))
    assert "a whole masked autoencoder" in str(error.value)
    assert "made with --model mae_vit_tiny_patch4 --input_size 8 --in_chans 3" in str(error.value)
    assert "mis-shaped (18): blocks.0.mlp.fc1.bias [384] instead of [192], " in str(error.value)


def test_a_hostile_file_runs_nothing(tmp_path):
    path = write(tmp_path / "x.pd", {"model": {"x": np.zeros(2)}, "args": Hostile(tmp_path / "made")})
    with pytest.raises(CheckpointError, match=r"posix\.mkdir|os\.mkdir|nt\.mkdir"):
        checkpoint.read_checkpoint(path)
    assert not (tmp_path / "made").exists()
    pickle.loads(path.read_bytes())  # plain pickle would have run it
    assert (tmp_path / "made").exists()


def test_files_without_weights(tmp_path):
    for content in (
        {},
        {"model": {}},
        [],
        3,
        {"model": [np.zeros(2)]},
        {"epoch": 3},
        {"model": {"x": "y"}},
        {"model": {"x": ("y",)}},
        {"model": None},
    ):
        with pytest.raises(CheckpointError, match=r"x\.pd: .*weights"):
            checkpoint.read_checkpoint(write(tmp_path / "x.pd", content))


# Strict loading


def message_of(function, *arguments, **more):
    with pytest.raises(CheckpointError) as error:
        function(*arguments, **more)
    return str(error.value)


def test_what_does_not_fit_is_listed_exactly_and_nothing_is_loaded(make_vit):
    model = make_vit()
    before = {name: value.copy() for name, value in weights_of(model).items()}
    weights = {name: value + 1 for name, value in before.items()}
    del weights["blocks.1.mlp.fc2.bias"], weights["cls_token"]
    weights |= {"extra": np.zeros(2), "blocks.2.norm1.bias": np.zeros(8)}
    weights["head.bias"] = np.zeros(9, "float32")
    weights["blocks.0.attn.qkv.weight"] = weights["blocks.0.attn.qkv.weight"].T  # as PyTorch has it
    said = message_of(loading.load_weights, "x.pd", weights, model)
    assert said.splitlines()[1:] == [
        "  missing (2): blocks.1.mlp.fc2.bias, cls_token",
        "  unexpected (2): blocks.2.norm1.bias, extra",
        "  mis-shaped (2): blocks.0.attn.qkv.weight [24, 8] instead of [8, 24], head.bias [9] instead of [5]",
    ]
    assert same(weights_of(model), before)


def test_lists_that_are_empty_are_not_shown(make_vit):
    weights = weights_of(make_vit())
    said = message_of(loading.load_weights, "x.pd", {**weights, "extra": weights["cls_token"]}, make_vit())
    assert said.splitlines()[1:] == ["  unexpected (1): extra"]


@pytest.fixture
def files(tmp_path, make_mae, make_vit, make_probe):
    """{kind: path} of one file of each kind of weights, all of which fit together."""
    mae = weights_of(make_mae())
    encoder = {
        name: value for name, value in mae.items() if not name.startswith("decoder_") and name != "mask_token"
    }
    contents = {
        "mae": mae,
        "encoder": encoder,
        "classifier": weights_of(make_vit(global_pool=True)),
        "linear_probe": weights_of(make_probe()),
        "unknown": {"conv1.weight": np.zeros([2, 2], "float32")},
    }
    return {kind: write(tmp_path / f"{kind}.pd", {"model": weights}) for kind, weights in contents.items()}


def test_kinds(files):
    assert {
        kind: checkpoint.role(checkpoint.read_checkpoint(path)["model"]) for kind, path in files.items()
    } == {kind: kind for kind in files}


# role of a file: (its name in the message, the commands that take it)
CALLED = {
    "mae": ("whole masked autoencoder", ["main_finetune.py --finetune", "main_pretrain.py --resume"]),
    "encoder": (
        "encoder without decoder or head",
        ["main_finetune.py --finetune", "main_linprobe.py --finetune"],
    ),
    "classifier": ("finetuned classifier", ["main_finetune.py --eval --resume", "main_infer.py --resume"]),
    "linear_probe": ("linear probe", ["main_linprobe.py --eval --resume", "main_infer.py --resume"]),
    "unknown": ("neither a ViT nor", ["none of these scripts"]),
}


@pytest.mark.parametrize(
    "use, fitting",
    [
        ("pretrain --resume", {"mae"}),
        ("finetune --finetune", {"mae", "encoder"}),
        ("linprobe --finetune", {"mae", "encoder"}),
        ("finetune --resume", {"classifier"}),
        ("finetune --eval", {"classifier"}),
        ("linprobe --resume", {"linear_probe"}),
        ("linprobe --eval", {"linear_probe"}),
    ],
)
def test_each_role_of_a_file_in_each_script(use, fitting, files, make_mae, make_vit, make_probe):
    """A file that fits is loaded. For others, the error says what they are and which command takes them."""
    script, flag = use.split()
    if flag == "--finetune":
        model = make_vit(global_pool=script == "finetune")
    else:
        model = {
            "pretrain": make_mae,
            "finetune": lambda: make_vit(global_pool=True),
            "linprobe": make_probe,
        }[script]()
    optimizer = paddle.optimizer.SGD(0.1, parameters=model.parameters())
    load = {
        "--finetune": lambda file: loading.load_encoder(file, model),
        "--resume": lambda file: loading.resume(file, model, optimizer, IDLE),
        "--eval": lambda file: loading.load_for_evaluation(file, model, ["a"] * 5),
    }[flag]
    for role, (called, commands) in CALLED.items():
        if role in fitting:
            load(files[role])
            weights = read_state(files[role])["model"]
            for name in ("blocks.1.norm1.weight", "cls_token"):
                assert (model.state_dict()[name].numpy() == weights[name]).all()
        else:
            said = message_of(load, files[role]).splitlines()[0]
            assert str(files[role]) in said and called in said
            assert all(command in said for command in commands)


def test_evaluation_without_a_file(make_vit):
    assert "--resume" in message_of(loading.load_for_evaluation, "", make_vit(), ["a"])


# --finetune


@pytest.mark.parametrize("global_pool", [True, False])
@pytest.mark.parametrize("kind", ["mae", "encoder"])
def test_finetuning_takes_the_encoder_and_leaves_the_head(files, make_vit, scramble, kind, global_pool):
    model = scramble(make_vit(global_pool=global_pool))
    before = {name: value.copy() for name, value in weights_of(model).items()}
    loading.load_encoder(files[kind], model)
    file, after = read_state(files[kind])["model"], weights_of(model)
    fresh = {"head.weight", "head.bias"} | ({"fc_norm.weight", "fc_norm.bias"} if global_pool else set())
    assert same({name: after[name] for name in fresh}, {name: before[name] for name in fresh})
    taken = after.keys() - fresh
    assert same({name: after[name] for name in taken}, {name: file[name] for name in taken})
    assert ("norm.weight" in taken) is not global_pool


@pytest.mark.parametrize("missing", ["pos_embed", "norm.weight", "blocks.0.norm1.weight"])
def test_finetuning_needs_the_whole_encoder(files, make_vit, missing):
    weights = read_state(files["encoder"])["model"]
    del weights[missing]
    said = message_of(loading.load_encoder, write(files["encoder"], {"model": weights}), make_vit())
    assert said.splitlines()[1:] == [f"  missing (1): {missing}"]


def test_finetuning_takes_no_deeper_encoder(files, make_vit):
    said = message_of(loading.load_encoder, files["mae"], make_vit(depth=1))
    assert "unexpected (12): blocks.1." in said and "decoder" not in said.splitlines()[1]


def pretraining_file(tmp_path, model, **described):
    described = {
        "name": "mae",
        "norm_pix_loss": model.norm_pix_loss,
        **architecture.num_heads(model),
        **described,
    }
    return write(tmp_path / "x.pd", {"model": weights_of(model), "architecture": described})


def test_pretraining_starts_from_all_of_an_earlier_one(tmp_path, make_mae, scramble):
    path = pretraining_file(tmp_path, scramble(make_mae()))
    model = make_mae()
    assert loading.load_pretrained(path, model) == ""
    assert same(weights_of(model), checkpoint.read_checkpoint(path)["model"])


@pytest.mark.parametrize(
    "file, here, said",
    [
        (
            {},
            {"decoder_depth": 2},
            r"another \(decoder_blocks\.1\.attn\.proj\.bias, .*\); this run begins with a "
            r"new decoder",
        ),
        ({}, {"decoder_embed_dim": 24}, r"another \(decoder_blocks\.0\.attn\.proj\.bias, "),
        ({}, {"encoder_mask_tokens": True}, r"another \(encoder_mask_token, mask_token\)"),
        ({"norm_pix_loss": True}, {}, "its decoder predicts pixels with --norm_pix_loss; this run begins"),
        ({}, {"norm_pix_loss": True}, "its decoder predicts pixels without --norm_pix_loss"),
        (None, {}, "it has no decoder; this run begins with a new decoder"),
    ],
)
def test_pretraining_starts_from_an_encoder_if_the_decoder_is_of_no_use(
    tmp_path, make_mae, scramble, file, here, said
):
    """None: the file is an encoder alone."""
    old = scramble(make_mae(**(file or {})))
    path = pretraining_file(tmp_path, old)
    if file is None:
        path = write(
            path,
            {
                "model": {
                    name: value
                    for name, value in weights_of(old).items()
                    if not name.startswith(("decoder", "mask"))
                }
            },
        )
    model = make_mae(**here)
    before = {name: value.copy() for name, value in weights_of(model).items()}
    assert re.fullmatch(rf".*x\.pd: .*{said}.*", loading.load_pretrained(path, model))
    for name, value in weights_of(model).items():
        kept = before if name.startswith(("decoder", "mask", "encoder_mask")) else weights_of(old)
        assert (value == kept[name]).all(), name


def test_pretraining_starts_from_other_patches_and_channels(tmp_path, make_mae, scramble):
    """A plain picture is embedded the same; patches of other sizes need another decoder."""
    old, model = scramble(make_mae(in_chans=3)), make_mae(in_chans=1, patch_size=2, img_size=(6, 4))
    path = pretraining_file(tmp_path, old, img_size=[12, 8], norm_pix_loss=False)
    lines = loading.load_pretrained(path, model).splitlines()
    assert [line.split("its ")[1].split(" ")[0] for line in lines] == ["patch", "patch", "decoder"]
    assert (weights_of(model)["pos_embed"] == weights_of(old)["pos_embed"]).all()  # of as many patches
    kernels = [weights_of(each)["patch_embed.proj.weight"].sum(axis=(1, 2, 3)) for each in (old, model)]
    assert abs(kernels[0] - kernels[1]).max() < 0.5 * abs(kernels[0]).max() and (kernels[1] != 0).all()


@pytest.mark.parametrize(
    "size, more",
    [((12, 20), {}), ((4, 24), {}), ((24, 16), {"patch_size": 8}), ((24, 16), {"decoder_depth": 2})],
)
def test_pretraining_starts_from_another_grid(tmp_path, make_mae, size, more):
    """Of our own files, which say their size: 3 x 2 patches. What the decoder's table is, a new model has."""
    old, model = make_mae(), make_mae(img_size=size, **more)
    table = weights_of(model)["decoder_pos_embed"].copy()
    said = loading.load_pretrained(pretraining_file(tmp_path, old, img_size=[12, 8]), model)
    new = {**weights_of(model)}
    expected = interpolate(weights_of(old)["pos_embed"], (3, 2), model.patch_embed.grid_size)
    assert (new["pos_embed"] == expected).all()
    assert ("new decoder" in said) == bool(more)
    if more:
        assert (new["decoder_pos_embed"] == table).all()
    else:
        assert (
            new["decoder_pos_embed"]
            == interpolate(weights_of(old)["decoder_pos_embed"], (3, 2), model.patch_embed.grid_size)
        ).all()


def test_the_heads_that_a_file_says_are_those_that_attend(tmp_path, make_mae, make_vit):
    """The same weights attend otherwise with another number of heads."""
    path = pretraining_file(tmp_path, make_mae(num_heads=4))
    for load in (
        lambda: loading.load_encoder(path, make_vit()),
        lambda: loading.load_pretrained(path, make_mae()),
    ):
        with pytest.raises(CheckpointError, match="4 attention heads.* 2; pass --num_heads 4"):
            load()
    loading.load_encoder(path, make_vit(num_heads=4))
    path = pretraining_file(tmp_path, make_mae(decoder_num_heads=2))
    assert (
        "its decoder has 2 attention heads, that of this run 3; this run begins"
        in loading.load_pretrained(path, make_mae())
    )
    vit = make_vit(num_heads=4)
    path = write(tmp_path / "vit.pd", {"model": weights_of(vit), "architecture": architecture.num_heads(vit)})
    with pytest.raises(CheckpointError, match="--num_heads 4"):
        loading.load_for_evaluation(path, make_vit(), ["a"])


def test_a_decoder_of_other_components_or_of_an_unknown_target(tmp_path, make_mae):
    old, model = make_mae(pca_target=5), make_mae(pca_target=5)
    for value, part in ((0.0, old), (1.0, model)):
        part.pca_mean.set_value(np.full(part.pca_mean.shape, value, "float32"))
    assert "predicts other principal components" in loading.load_pretrained(
        pretraining_file(tmp_path, old, pca_target=5), model
    )
    assert (model.pca_mean.numpy() == 1).all()
    bare = write(tmp_path / "bare.pd", {"model": weights_of(make_mae())})
    assert (
        "does not say whether its decoder predicts pixels with --norm_pix_loss; this run continues with it"
        in (loading.load_pretrained(bare, make_mae(norm_pix_loss=True)))
    )


def test_another_normalization_is_told(tmp_path, make_mae, make_vit):
    then, now = {"mean": [0.5, 0.4, 0.3], "std": [0.2] * 3}, {"mean": [0.5] * 3, "std": [0.2] * 3}
    line = "it was trained with --mean 0.5 0.4 0.3 --std 0.2 0.2 0.2, and this run takes others"
    mae, vit = (
        write(tmp_path / f"{number}.pd", {"model": weights_of(model), "normalization": then})
        for number, model in enumerate((make_mae(), make_vit()))
    )
    for load in (
        lambda run: loading.load_encoder(mae, make_vit(), normalization=run),
        lambda run: loading.load_pretrained(mae, make_mae(), normalization=run),
        lambda run: loading.load_for_evaluation(vit, make_vit(), ["a"], normalization=run),
    ):
        assert load(now).endswith(line) and line not in load(then)


def test_pretraining_starts_from_no_classifier(files, make_mae):
    with pytest.raises(CheckpointError, match="--finetune starts from a pretrained encoder"):
        loading.load_pretrained(files["classifier"], make_mae())


def rows_and_columns(path, grid, **more):
    """Rewrite an encoder file: its position embeddings give the row and column of each patch of `grid`."""
    weights = read_state(path)["model"]
    table = np.zeros([1, 1 + grid[0] * grid[1], 8], "float32")
    table[0, 0] = 7.0
    table[0, 1:, 1] = np.repeat(np.arange(grid[0]), grid[1])
    table[0, 1:, 2] = np.tile(np.arange(grid[1]), grid[0])
    return write(path, {"model": {**weights, "pos_embed": table}, **more})


@pytest.mark.parametrize(
    "grid, more, new_size",
    [
        ((3, 2), {"architecture": {"name": "x", "img_size": [12, 8]}}, (12, 20)),
        ((3, 3), {"architecture": {"name": "x", "img_size": 12}}, (12, 20)),
        ((3, 3), {"architecture": {"name": "x", "img_size": (12,)}}, (12, 20)),
        ((3, 3), {}, (12, 20)),  # unknown: a square, as published weights are
        ((3, 4), {"architecture": {"name": "x", "img_size": [12, 16]}}, (12, 8)),
    ],
)
def test_positions_are_resized_to_other_sizes(files, make_vit, grid, more, new_size):
    """With as many rows as before, every patch of a row still says its row, whatever the columns become."""
    model = make_vit(img_size=new_size, global_pool=True)
    loading.load_encoder(rows_and_columns(files["encoder"], grid, **more), model)
    table = model.pos_embed.numpy()[0]
    assert (table[0] == 7.0).all()
    grid_size = model.patch_embed.grid_size
    rows, columns = table[1:, 1].reshape(grid_size), table[1:, 2].reshape(grid_size)
    np.testing.assert_allclose(rows, np.broadcast_to([[0], [1], [2]], rows.shape), atol=1e-5)
    assert (np.diff(columns, axis=1) > 0).all()
    np.testing.assert_allclose(columns.mean(), (grid[1] - 1) / 2, atol=1e-5)


def test_positions_of_a_turned_rectangle_are_turned(files, make_vit):
    """3 x 2 and 2 x 3 patches are equally many, and still not the same."""
    path = rows_and_columns(files["encoder"], (3, 2), architecture={"name": "x", "img_size": [12, 8]})
    model = make_vit(img_size=(8, 12), global_pool=True)
    loading.load_encoder(path, model)
    rows = model.pos_embed.numpy()[0, 1:, 1].reshape(2, 3)
    np.testing.assert_allclose(rows, np.broadcast_to(rows[:, :1], [2, 3]), atol=1e-5)
    assert rows[0, 0] < 1 < rows[1, 0]


def test_positions_of_the_same_size_are_taken_bit_for_bit(files, make_vit):
    path = rows_and_columns(files["encoder"], (3, 2), architecture={"name": "x", "img_size": [12, 8]})
    model = make_vit(global_pool=True)
    loading.load_encoder(path, model)
    assert (model.pos_embed.numpy() == read_state(path)["model"]["pos_embed"]).all()


def test_positions_of_an_unknown_rectangle_are_refused(files, make_vit):
    path = rows_and_columns(files["encoder"], (3, 4))
    said = message_of(loading.load_encoder, path, make_vit(img_size=(12, 20)))
    assert "12 patches, which is not a square grid" in said and "--input_size" in said


def test_resuming_at_another_size_is_refused(tmp_path, make_mae):
    """The optimizer's moments could not follow."""
    model = make_mae()
    optimizer = paddle.optimizer.AdamW(0.01, parameters=weight_decay_groups(model, 0.05))
    train_step(model, optimizer, 0)
    checkpoints.save(tmp_path, checkpoint.pack(model, optimizer, IDLE, 0, {}))
    other = make_mae(img_size=(8, 8))
    said = message_of(loading.resume, tmp_path / "checkpoint-latest.pd", other, optimizer, IDLE)
    assert "pos_embed [1, 7, 8] instead of [1, 5, 8]" in said


# --resume


def adamw_with_layer_decay(model):
    return paddle.optimizer.AdamW(0.01, parameters=layer_decay_groups(model, 0.05, 0.5))


def adamw(model):
    return paddle.optimizer.AdamW(0.01, beta1=0.9, beta2=0.95, parameters=weight_decay_groups(model, 0.05))


def lars(model):
    return LARS(0.1, model.head.parameters())


# Paddle says so at every step of a BatchNorm1D that trains.
@pytest.mark.filterwarnings("ignore:When training, we now always track global mean and variance")
@pytest.mark.parametrize(
    "fixture, make_optimizer",
    [("make_mae", adamw), ("make_vit", adamw_with_layer_decay), ("make_probe", lars)],
)
def test_a_resumed_run_goes_on_as_if_nothing_had_happened(tmp_path, request, fixture, make_optimizer):
    """Bit for bit, although Paddle names the parameters of the second model otherwise."""
    make = request.getfixturevalue(fixture)
    model = make()
    optimizer = make_optimizer(model)
    for seed in range(3):
        train_step(model, optimizer, seed)
    checkpoints.save(tmp_path, checkpoint.pack(model, optimizer, IDLE, 4, {}))

    make()  # moves the counters behind Paddle's generated names on
    resumed = make()
    assert resumed.parameters()[0].name != model.parameters()[0].name
    continued = make_optimizer(resumed)
    state = loading.resume(tmp_path / "checkpoint-latest.pd", resumed, continued, IDLE)
    assert state["epoch"] == 4
    again = checkpoint.pack(resumed, continued, IDLE, 4, {})  # it may be stopped before its first update
    assert same(flat(again["optimizer"]), flat(state["optimizer"]))
    for seed in (3, 4):
        train_step(model, optimizer, seed)
        train_step(resumed, continued, seed)
    a, b = (checkpoint.pack(*pair, IDLE, 5, {}) for pair in ((model, optimizer), (resumed, continued)))
    assert same(a["model"], b["model"]) and same(flat(a["optimizer"]), flat(b["optimizer"]))
    assert len(flat(a["optimizer"])) >= len(a["optimizer"]) > 0


def test_without_moments_the_run_would_differ(tmp_path, make_mae):
    """The test above can fail: the moments matter to the next weights."""
    model = make_mae()
    optimizer = adamw(model)
    train_step(model, optimizer, 0)
    path = write(tmp_path / "bare.pd", {"model": weights_of(model)})
    other = make_mae()
    state = loading.resume(path, other, adamw_of_other := adamw(other), IDLE)
    assert "epoch" not in state  # bare weights: they are taken, and the optimizer starts anew
    train_step(model, optimizer, 1)
    train_step(other, adamw_of_other, 1)
    assert not same(weights_of(model), weights_of(other))


def test_moments_of_other_parameters_are_refused_by_name(tmp_path, make_vit, make_probe):
    model = make_vit()
    optimizer = adamw(model)
    train_step(model, optimizer, 0)
    state = checkpoint.pack(model, optimizer, IDLE, 0, {})
    del state["optimizer"]["cls_token"], state["optimizer"]["head.bias"]
    said = message_of(loading.resume, write(tmp_path / "x.pd", state), make_vit(), optimizer, IDLE)
    assert "['cls_token', 'head.bias']" in said


@pytest.mark.parametrize(
    "moments, said",
    [
        ([1], "optimizer state"),
        ({"cls_token": 3}, "optimizer state"),
        ({"cls_token": {"moment1_0": np.zeros(3, "float32")}}, "moment1_0 of cls_token .* in shape"),
        ({"cls_token": {"moment1_0": 3}}, "moment1_0 of cls_token .* in shape"),
    ],
)
def test_moments_of_another_form_are_refused(tmp_path, make_vit, moments, said):
    model = make_vit()
    optimizer = adamw(model)
    train_step(model, optimizer, 0)
    state = checkpoint.pack(model, optimizer, IDLE, 0, {})
    state["optimizer"] = {**state["optimizer"], **moments} if isinstance(moments, dict) else moments
    assert re.search(
        said, message_of(loading.resume, write(tmp_path / "x.pd", state), make_vit(), optimizer, IDLE)
    )


# Classes


@pytest.mark.parametrize(
    "trained_on, classes",
    [(["cat", "dog"], ["cat", "dog"]), (None, ["cat"]), (["cat"], None), (("cat", "dog"), ["cat", "dog"])],
)
def test_classes_that_agree(trained_on, classes):
    loading.check_classes("x.pd", {"classes": trained_on}, classes)
    loading.check_classes("x.pd", {}, classes)


def test_classes_that_differ_are_listed():
    said = message_of(
        loading.check_classes, "x.pd", {"classes": ["ant", "cat", "dog"]}, ["cat", "dog", "eel"]
    )
    assert "only in the file ['ant'], only in the data ['eel']" in said


def test_evaluation_checks_the_classes(tmp_path, make_vit):
    path = write(tmp_path / "x.pd", {"model": weights_of(make_vit()), "classes": ["a", "b"]})
    assert "only in the data ['c']" in message_of(
        loading.load_for_evaluation, path, make_vit(), ["a", "b", "c"]
    )
    loading.load_for_evaluation(path, make_vit(), ["a", "b"])


def test_the_options_of_an_official_file_may_be_a_namespace(tmp_path):
    """PyTorch's scripts keep an argparse.Namespace; so do the Paddle ports of them."""
    import argparse

    path = write(
        tmp_path / "x.pd", {"model": {"x": np.zeros(2)}, "args": argparse.Namespace(lr=3, model="vit")}
    )
    assert checkpoint.read_checkpoint(path)["args"] == {"lr": 3, "model": "vit"}
