"""tools/convert_checkpoint.py, and files of other programs in the models."""

import itertools
import os
import pickle
from pathlib import Path

import numpy as np
import paddle
import pytest
import scripts

import models_mae
import models_vit
from tools import convert_checkpoint
from util.infer import trained_model
from util.infer.model_spec import checkpoint_spec
from util.weights import checkpoint, formats, loading, name_maps

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
OUTPUTS = np.load(GOLDEN / "weight_files.npz")  # of transformers 5.23.0 and timm 1.0.31 with torch 2.13.0
SUFFIXES = formats.SUFFIXES


def convert(*arguments):
    return convert_checkpoint.main([*map(str, arguments)])


def save(path, model, **beside):
    state = {"model": {name: value.numpy() for name, value in model.state_dict().items()}, **beside}
    path.write_bytes(pickle.dumps(state, protocol=4))
    return path


def load(path, model):
    loading.load_weights(path, checkpoint.read_checkpoint(path)["model"], model)
    model.eval()
    return model


def golden_mae():
    return models_mae.MaskedAutoencoderViT(
        img_size=8,
        patch_size=4,
        embed_dim=8,
        depth=2,
        num_heads=2,
        decoder_embed_dim=4,
        decoder_depth=1,
        decoder_num_heads=1,
    )


def golden_vit(*, global_pool):
    return models_vit.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2, num_classes=5, global_pool=global_pool
    )


def golden_probe():
    model = golden_vit(global_pool=False)
    model.make_linear_probe()
    return model


# Outputs of the other programs, with their own files and with those that went through a conversion


def converted(folder, name, suffix, to="official"):
    """Path of a file, or, with a suffix, of the file into which the tool converts it."""
    if suffix is None:
        return GOLDEN / name
    assert convert(GOLDEN / name, folder / f"converted{suffix}", "--to", to) == 0
    return folder / f"converted{suffix}"


@pytest.mark.parametrize(
    "suffix, to",
    [
        (None, ""),
        (".pd", "hf"),
        (".pdparams", "paddle"),
        (".safetensors", "official"),
        (".npz", "hf"),
        (".pth", "paddle"),
    ],
)
@paddle.no_grad()
def test_a_masked_autoencoder_of_transformers(tmp_path, suffix, to):
    model = load(converted(tmp_path, "hf_vitmae.safetensors", suffix, to), golden_mae())
    loss, pred, mask = model(paddle.to_tensor(OUTPUTS["images"]), 0.75, paddle.to_tensor(OUTPUTS["noise"]))
    assert np.array_equal(mask.numpy(), OUTPUTS["mae_mask"])
    np.testing.assert_allclose(pred.numpy(), OUTPUTS["mae_pred"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(loss.numpy(), OUTPUTS["mae_loss"], rtol=1e-5)


@pytest.mark.parametrize(
    "name, make, output",
    [
        ("timm_vit.pth", lambda: golden_vit(global_pool=True), "vit_logits"),
        ("timm_linear_probe.pth", golden_probe, "probe_logits"),
    ],
)
@pytest.mark.parametrize("suffix", [None, ".pth", ".npz"])
@paddle.no_grad()
def test_classifiers_of_timm(tmp_path, name, make, output, suffix):
    logits = load(converted(tmp_path, name, suffix), make())(paddle.to_tensor(OUTPUTS["images"]))
    np.testing.assert_allclose(logits.numpy(), OUTPUTS[output], rtol=1e-5, atol=1e-5)


# Conversions


def models(make_mae, make_vit):
    encoder = make_vit()
    del encoder.head
    probe = make_vit()
    probe.make_linear_probe()
    return {
        "mae": make_mae(),
        "encoder": encoder,
        "classifier": make_vit(),
        "pooled": make_vit(global_pool=True),
        "linear_probe": probe,
    }


@pytest.mark.parametrize("kind", ["mae", "encoder", "classifier", "pooled", "linear_probe"])
def test_round_trips_of_every_pair_of_formats_are_bit_equal(
    tmp_path, make_mae, make_vit, scramble, kind, capsys
):
    model = scramble(models(make_mae, make_vit)[kind])
    source = save(tmp_path / "source.pd", model)
    wanted = {name: value.numpy().tobytes() for name, value in model.state_dict().items()}
    to = [] if kind in ("mae", "encoder", "classifier") else ["--to", "official"]  # .safetensors is hf else
    first = {suffix: tmp_path / f"first{suffix}" for suffix in SUFFIXES}
    for path in first.values():
        assert convert(source, path, *to) == 0
    for start, end in itertools.product(SUFFIXES, repeat=2):
        second, back = tmp_path / f"second{end}", tmp_path / "back.pd"
        assert convert(first[start], second, *to, "--force") == 0
        assert second.read_bytes() == first[end].read_bytes()  # whatever it was made from
        assert convert(second, back, "--force") == 0
        found = checkpoint.read_checkpoint(back)["model"]
        assert {name: value.tobytes() for name, value in found.items()} == wanted
    sums = {line for line in capsys.readouterr().out.splitlines() if "SHA256" in line}
    assert len(sums) == 1 and formats.checksum(found) in sums.pop()


def test_the_suffix_chooses_the_names(tmp_path, make_vit):
    source, ours = save(tmp_path / "source.pd", make_vit()), "blocks.0.mlp.fc1.weight"
    for suffix, name, shape in [
        (".pd", ours, (8, 32)),
        (".pdparams", ours, (8, 32)),
        (".npz", ours, (8, 32)),
        (".pth", ours, (32, 8)),
        (".safetensors", "vit.encoder.layer.0.intermediate.dense.weight", (32, 8)),
    ]:
        assert convert(source, tmp_path / f"w{suffix}") == 0
        assert formats.read_weights(tmp_path / f"w{suffix}").weights[name].shape == shape


def test_timm_gets_the_encoder_of_an_autoencoder(tmp_path, make_mae, capsys):
    assert convert(save(tmp_path / "source.pd", make_mae()), tmp_path / "w.pth", "--to", "timm") == 0
    assert (
        "left out    20 tensors for which timm has no place: mask_token, decoder_pos_embed"
        in capsys.readouterr().out
    )
    assert checkpoint.role(checkpoint.read_checkpoint(tmp_path / "w.pth")["model"]) == "encoder"


def test_what_is_beside_the_weights(tmp_path, make_vit, capsys):
    beside = {
        "optimizer": {"w": {"moment1": np.ones(2)}},
        "epoch": 3,
        "classes": ["cat", "dog"],
        "architecture": {"name": "x"},
        "normalization": {"mean": [0.5], "std": [0.5]},
    }
    source = save(tmp_path / "source.pd", make_vit(), **beside)
    assert convert(source, tmp_path / "w.pd") == 0
    assert "left out    optimizer, epoch" in capsys.readouterr().out
    state = checkpoint.read_checkpoint(tmp_path / "w.pd")
    assert {name: value for name, value in state.items() if name != "model"} == {
        name: beside[name] for name in ("architecture", "normalization", "classes")
    }
    assert convert(source, tmp_path / "w.npz") == 0
    assert "left out    optimizer, epoch, classes, architecture, normalization" in capsys.readouterr().out


def test_a_converted_file_says_what_model_it_is(tmp_path):
    model = models_vit.vit_tiny_patch4(num_classes=7, global_pool=True, img_size=16, in_chans=1)
    source = save(tmp_path / "source.pd", model)
    assert convert(source, tmp_path / "w.pth") == 0 and convert(tmp_path / "w.pth", tmp_path / "w.pd") == 0
    state = checkpoint.read_checkpoint(tmp_path / "w.pd")
    assert state["architecture"] == {
        "name": "vit_tiny_patch4",
        "img_size": 16,
        "in_chans": 1,
        "num_classes": 7,
        "global_pool": True,
    }
    rebuilt = trained_model.load_model(checkpoint_spec(tmp_path / "w.pd", state, models_vit.MODELS))
    assert np.array_equal(rebuilt.head.weight.numpy(), model.head.weight.numpy())
    # What a checkpoint of this project says of itself is kept as it is.
    own = {**state["architecture"], "img_size": [16, 16], "patch_size": 4}
    assert convert(save(source, model, architecture=own), tmp_path / "w.pd", "--force") == 0
    assert checkpoint.read_checkpoint(tmp_path / "w.pd")["architecture"] == own


def test_other_entries_of_a_file(tmp_path, make_vit):
    model = make_vit()
    source = save(
        tmp_path / "source.pd",
        model,
        model_ema={name: 2 * value.numpy() for name, value in model.state_dict().items()},
    )
    assert convert(source, tmp_path / "w.pd", "--entry", "model_ema") == 0
    assert np.array_equal(
        checkpoint.read_checkpoint(tmp_path / "w.pd")["model"]["head.weight"], 2 * model.head.weight.numpy()
    )


# What it tells


def test_info(tmp_path, capsys, monkeypatch):
    path = GOLDEN / "timm_linear_probe.pth"
    assert convert("--info", path) == 0
    told = capsys.readouterr().out
    for line in (
        "PyTorch (zip archive), 13,952 bytes, MD5 ",
        "official / timm, PyTorch layout",
        "22 tensors with 1,389 values; in the file 22 float32, 1 int64",
        "a linear probe on a frozen encoder",
        "none of the sizes of this project (width 8, depth 1, patch 4, MLP 32)",
        "not needed  1: head.0.num_batches_tracked",
        "missing     0\n",
        "unexpected  0\n",
        "mis-shaped  0\n",
    ):
        assert line in told, line
    assert "published" not in told
    monkeypatch.setitem(convert_checkpoint.PUBLISHED, formats.md5(path)[:6], "mae_of_that_name.pth")
    assert convert("--info", path) == 0
    assert "as published for mae_of_that_name.pth" in capsys.readouterr().out


def test_info_of_known_sizes(tmp_path, capsys):
    model = models_mae.mae_vit_tiny_patch4()
    assert convert("--info", save(tmp_path / "w.pd", model, epoch=1)) == 0
    told = capsys.readouterr().out
    assert "(encoder and decoder): mae_vit_tiny_patch4, img_size 32, in_chans 3\n" in told
    assert "entry       'model'; beside it: epoch\n" in told
    values = sum(value.size for value in model.state_dict().values())
    assert f"{len(model.state_dict())} tensors with {values:,} values; in the file " in told


def misfits(weights):
    """Three faults of three kinds."""
    del weights["norm.bias"]
    weights["blocks.0.norm1.weight"] = np.zeros(3, "float32")
    weights["pooler.dense.bias"] = weights["fc_norm.bias"] = np.zeros(8, "float32")
    return weights


LISTS = (
    "  missing     1: norm.bias\n  unexpected  2: pooler.dense.bias, fc_norm.bias\n"
    "  mis-shaped  1: blocks.0.norm1.weight [3] instead of [8]\n"
)


def test_lists_of_what_does_not_fit(tmp_path, make_vit, capsys):
    weights = misfits({name: value.numpy() for name, value in make_vit().state_dict().items()})
    formats.write_weights(tmp_path / "w.npz", weights)
    assert convert("--info", tmp_path / "w.npz") == 0
    assert LISTS in capsys.readouterr().out
    assert convert(tmp_path / "w.npz", tmp_path / "w.pd") == 2
    assert LISTS + "--drop PATTERN leaves unexpected ones out" in capsys.readouterr().err
    assert not (tmp_path / "w.pd").exists()


def test_an_unknown_name_is_an_error_unless_it_is_dropped(tmp_path, make_vit, capsys):
    weights = {name: value.numpy() for name, value in make_vit().state_dict().items()}
    formats.write_weights(tmp_path / "w.npz", {**weights, "pooler.dense.bias": weights["head.bias"]})
    assert convert(tmp_path / "w.npz", tmp_path / "w.pd") == 2
    assert convert(tmp_path / "w.npz", tmp_path / "w.pd", "--drop", "pool.*") == 2
    assert "w.npz: --drop pool.*: " in capsys.readouterr().err
    assert convert(tmp_path / "w.npz", tmp_path / "w.pd", "--drop", "pooler.*") == 0
    assert "dropped     1: pooler.dense.bias\n" in capsys.readouterr().out
    assert checkpoint.read_checkpoint(tmp_path / "w.pd")["model"].keys() == weights.keys()


# What it refuses


def test_files_that_cannot_be_converted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.savez("resnet.npz", **{"conv1.weight": np.zeros([64, 3, 7, 7], "float32")})
    Path("truncated.pth").write_bytes((GOLDEN / "timm_vit.pth").read_bytes()[:-100])
    Path("page.pth").write_bytes(b"<!DOCTYPE html>")
    Path("code.pdparams").write_bytes(b"\x80\x02cos\nmkdir\nX\x04\x00\x00\x00made\x85R.")
    before = sorted(os.listdir())
    for name, said in (
        ("resnet.npz", "not the weights of a ViT"),
        ("truncated.pth", "damaged"),
        ("page.pth", "web page"),
        ("code.pdparams", "refused: "),
        ("none.pth", "no such file"),
    ):
        for arguments in (["--info", name], [name, "w.pd"]):
            assert convert(*arguments) == 2
            told = capsys.readouterr()
            assert f"error: {name}: " in told.err and said in told.err and told.out == ""
    assert sorted(os.listdir()) == before


def test_a_file_is_replaced_on_request_only(tmp_path, capsys):
    target = tmp_path / "w.pd"
    target.write_bytes(b"mine")
    assert convert(GOLDEN / "timm_vit.pth", target) == 2
    assert f"{target}: already exists; pass --force" in capsys.readouterr().err
    assert target.read_bytes() == b"mine"
    assert convert(GOLDEN / "timm_vit.pth", target, "--force") == 0
    assert len(checkpoint.read_checkpoint(target)["model"]) == 20
    assert convert(target, target, "--force") == 0  # onto itself
    assert len(checkpoint.read_checkpoint(target)["model"]) == 20


@pytest.mark.parametrize(
    "destination, message",
    [("w.bin", ".pd, .pdparams"), ("none/w.pd", "there is no folder"), ("w.safetensors", "--to hf: ")],
)
def test_destinations_that_cannot_be_written(tmp_path, capsys, destination, message):
    assert convert(GOLDEN / "timm_vit.pth", tmp_path / destination) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_line_is_one_of_two(capsys):
    for arguments in ([], ["a.pth"], ["--info", "a.pth", "a.pth", "b.pd"]):
        assert convert(*arguments) == 2
        assert "either SOURCE and DESTINATION, or --info FILE" in capsys.readouterr().err


def test_as_a_script(tmp_path):
    scripts.run("tools/convert_checkpoint.py", GOLDEN / "timm_vit.pth", tmp_path / "w.npz")
    assert (tmp_path / "w.npz").exists()
    error = scripts.run("tools/convert_checkpoint.py", "--info", tmp_path, code=2)
    assert f"convert_checkpoint.py: error: {tmp_path}: " in error and "folder" in error


# Files of other programs in util.weights.checkpoint


def test_read_gives_the_weights_alone_under_our_names():
    for name in ("hf_vitmae.safetensors", "timm_vit.pth"):
        state = checkpoint.read_checkpoint(GOLDEN / name)
        assert list(state) == ["model"]
        assert state["model"]["blocks.0.attn.qkv.weight"].shape == (8, 24)
        assert all(value.flags.c_contiguous for value in state["model"].values())


def test_read_renames_files_of_other_paddle_ports(tmp_path, make_vit):
    model = make_vit(global_pool=True)
    table = [
        ("patch_embed.proj", "patch_embedding.patch_embedding"),
        ("pos_embed", "encoder_position_embedding"),
        ("blocks.", "encoder.layers."),
        ("norm1", "attn_norm"),
        ("norm2", "mlp_norm"),
        ("attn.proj", "attn.out"),
        ("fc_norm", "encoder_norm"),
        ("head", "classifier"),
    ]
    weights = {}
    for name, value in model.state_dict().items():
        for ours, theirs in table:
            name = name.replace(ours, theirs)
        weights[name] = value
    paddle.save(weights, str(tmp_path / "paddlevit.pdparams"))
    copy = load(tmp_path / "paddlevit.pdparams", make_vit(global_pool=True))
    for name, value in model.state_dict().items():
        assert np.array_equal(copy.state_dict()[name].numpy(), value.numpy()), name


def test_finetuning_starts_from_a_file_of_transformers():
    model = golden_vit(global_pool=False)
    model.blocks.append(models_vit.Block(8, 2))
    before = model.head.weight.numpy()
    loading.load_encoder(GOLDEN / "hf_vitmae.safetensors", model)
    wanted = name_maps.to_ours(formats.read_weights(GOLDEN / "hf_vitmae.safetensors").weights).weights
    assert np.array_equal(model.norm.weight.numpy(), wanted["norm.weight"])
    assert np.array_equal(model.blocks[1].attn.proj.weight.numpy(), wanted["blocks.1.attn.proj.weight"])
    assert np.array_equal(model.head.weight.numpy(), before)


def test_resuming_takes_the_weights_of_a_training_checkpoint_of_torch(tmp_path, make_mae):
    source = save(tmp_path / "w.pd", make_mae())
    assert convert(source, tmp_path / "w.pth") == 0
    model = make_mae()
    optimizer = paddle.optimizer.AdamW(parameters=model.parameters())
    state = loading.resume(tmp_path / "w.pth", model, optimizer, paddle.amp.GradScaler(enable=False))
    assert list(state) == ["model"]
    assert np.array_equal(model.cls_token.numpy(), checkpoint.read_checkpoint(source)["model"]["cls_token"])


def test_names_without_a_place_are_listed_when_loading(tmp_path, make_vit):
    weights = {name: value.numpy() for name, value in make_vit().state_dict().items()}
    formats.write_weights(tmp_path / "w.npz", {**weights, "pooler.dense.bias": weights["head.bias"]})
    with pytest.raises(checkpoint.CheckpointError, match=r"unexpected \(1\): pooler.dense.bias"):
        load(tmp_path / "w.npz", make_vit())
    np.savez(tmp_path / "w.npz", **{"conv1.weight": np.zeros([2, 3, 7, 7])})
    with pytest.raises(checkpoint.CheckpointError, match="not the weights of a ViT"):
        checkpoint.read_checkpoint(tmp_path / "w.npz")
