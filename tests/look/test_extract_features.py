"""tools/extract_features.py and tools/eval_features.py: features, accuracies, and errors."""

import pickle
import shutil

import numpy as np
import paddle
import pytest
from PIL import Image
from processor import assert_same_in_any_batch, batches_share_bits
from scripts import write_pictures

import models_mae
import models_vit
from tools import eval_features, extract_features
from util.look import feature_file
from util.weights import formats

SIZE = {"img_size": 8, "in_chans": 3}


@pytest.fixture
def call(call_script):
    """A function that runs a tool in this process and returns its output or its errors."""
    return lambda tool, *words, code=0: call_script(tool, *words, code=code)[1 if code else 0]


@pytest.fixture
def extract(call, tmp_path):
    """A function that extracts features of --img_path with a checkpoint: {name: array} of the file."""

    def extract(checkpoint, *words, code=0, output="out.npz"):
        said = call(
            extract_features,
            "--resume",
            checkpoint,
            "--device",
            "cpu",
            "--num_workers",
            0,
            "--output",
            tmp_path / output,
            *words,
            code=code,
        )
        return (
            said
            if code
            else feature_file.read(
                tmp_path / output,
                None
                if "--features" not in words
                else [word for word in words if word in ("cls", "mean", "tokens")],
            )
        )

    return extract


def save(path, model, **more):
    with open(path, "wb") as f:
        pickle.dump({"model": {name: value.numpy() for name, value in model.state_dict().items()}, **more}, f)
    return path


@pytest.fixture
def encoder(tmp_path):
    """A bare encoder in eval mode and its file, as another project would write it."""
    model = models_vit.vit_tiny_patch4(**SIZE, num_classes=2)
    model.eval()
    weights = {
        name: value.numpy() for name, value in model.state_dict().items() if not name.startswith("head.")
    }
    with open(tmp_path / "encoder.pd", "wb") as f:
        pickle.dump(weights, f)
    return model, tmp_path / "encoder.pd"


@pytest.fixture
def folder(tmp_path):
    return write_pictures(tmp_path / "data", train=7, val=4)


def test_the_features_of_a_picture_are_those_of_its_pixels(tmp_path, encoder, extract):
    """A picture of one colour stays that through every resize: the input can be written down."""
    model, checkpoint = encoder
    Image.new("RGB", (30, 20), (51, 102, 204)).save(tmp_path / "plain.png")
    file = extract(checkpoint, "--img_path", tmp_path / "plain.png", "--features", "cls", "mean", "tokens")
    colour = np.reshape([(0.2 - 0.485) / 0.229, (0.4 - 0.456) / 0.224, (0.8 - 0.406) / 0.225], [1, 3, 1, 1])
    tokens = model.norm(
        model.forward_tokens(paddle.to_tensor(np.broadcast_to(colour, [1, 3, 8, 8]).astype("float32")))
    ).numpy()
    np.testing.assert_allclose(file["cls"], tokens[:, 0], atol=1e-4)
    np.testing.assert_allclose(file["tokens"], tokens[:, 1:], atol=1e-4)
    np.testing.assert_allclose(file["mean"], file["tokens"].mean(axis=1), atol=1e-6)
    assert file["names"].tolist() == [str(tmp_path / "plain.png")] and "labels" not in file
    assert file["model"] == "vit_tiny_patch4" and file["norm"] == "norm" and file["block"] == 6
    assert file["weights_sha256"] == formats.checksum(pickle.loads(checkpoint.read_bytes()))
    np.testing.assert_allclose(file["image_mean"], [0.485, 0.456, 0.406])
    other = extract(checkpoint, "--img_path", tmp_path / "plain.png", "--mean", 0, 0, 0, "--std", 1, 1, 1)
    assert abs(other["mean"] - file["mean"]).max() > 1e-3 and other["image_std"].tolist() == [1, 1, 1]


def test_every_kind_of_checkpoint_has_the_features_of_its_encoder(tmp_path, encoder, folder, extract):
    model, checkpoint = encoder
    mae = models_mae.mae_vit_tiny_patch4(**SIZE)
    for name, value in mae.state_dict().items():
        if name in model.state_dict():
            value.set_value(model.state_dict()[name])
    described = {"name": "vit_tiny_patch4", **SIZE, "num_classes": 2, "global_pool": False}
    files = [
        checkpoint,
        save(tmp_path / "mae.pd", mae, architecture={"name": "mae_vit_tiny_patch4", **SIZE}),
        save(tmp_path / "classifier.pd", model, architecture=described),
    ]
    model.make_linear_probe()
    files.append(save(tmp_path / "probe.pd", model, architecture=described))
    first, *others = (extract(file, "--img_path", folder / "val") for file in files)
    assert first["mean"].std() > 0.01
    for other in others:
        assert (other["mean"] == first["mean"]).all() and (other["cls"] == first["cls"]).all()
        assert other["model"] == "vit_tiny_patch4"


def test_a_classifier_of_the_mean_has_its_own_norm(tmp_path, folder, extract):
    model = models_vit.vit_tiny_patch4(**SIZE, num_classes=2, global_pool=True)
    model.fc_norm.bias.set_value(np.full([96], 7, "float32"))
    file = extract(
        save(tmp_path / "c.pd", model), "--img_path", folder / "val", "--features", "mean", "tokens"
    )
    assert file["norm"] == "fc_norm" and file["mean"].mean() == pytest.approx(7, abs=1e-3)
    assert abs(file["tokens"].mean()) < 1


def test_a_block_has_no_norm(encoder, folder, extract):
    model, checkpoint = encoder
    model.norm.bias.set_value(np.full([96], 7, "float32"))
    last = extract(save(checkpoint, model), "--img_path", folder / "val", "--block", 6)
    first = extract(checkpoint, "--img_path", folder / "val", "--block", 1)
    assert (last["norm"], last["block"], first["block"]) == ("none", 6, 1)
    assert abs(last["mean"].mean()) < 1 and not np.allclose(first["mean"], last["mean"])


@pytest.mark.isa
def test_files_are_the_same_whatever_the_batch_and_the_workers(tmp_path, encoder, folder, extract):
    """In every bit on Paddle 3.3 with AVX-512."""
    words = ["--img_path", folder, "--features", "cls", "tokens"]
    whole = extract(encoder[1], *words, output="a.npz")
    parts = extract(encoder[1], *words, "--batch_size", 3, "--num_workers", 2, output="b.npz")
    for kind in ("cls", "tokens"):
        assert_same_in_any_batch(parts[kind], whole[kind], kind)
    if batches_share_bits():
        assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    order = [
        f"{split}/{name}/{n:03}.png"
        for split, count in (("train", 7), ("val", 4))
        for name in ("cat", "dog")
        for n in range(name == "dog", count, 2)
    ]
    assert whole["names"].tolist() == [f"{folder}/{name}" for name in order]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_cannot_be_read_is_named_and_has_no_row(encoder, folder, extract, tmp_path, workers):
    whole = extract(encoder[1], "--img_path", folder / "train")
    bad = folder / "train" / "cat" / "004.png"
    bad.write_bytes(b"no picture")
    said = extract(
        encoder[1], "--img_path", folder / "train", "--batch_size", 2, "--num_workers", workers, code=1
    )
    assert f"error: {bad} cannot be read as a picture" in said and "1 of 7 pictures could not be read" in said
    rest, kept = feature_file.read(tmp_path / "out.npz"), whole["names"] != str(bad)
    assert kept.sum() == 6 and rest["names"].tolist() == whole["names"][kept].tolist()
    np.testing.assert_allclose(rest["mean"], whole["mean"][kept], atol=1e-5)


def test_no_readable_picture_no_file(encoder, tmp_path, extract):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    for words in (["a.png"], ["a.png", "b.png"]):
        said = extract(encoder[1], "--img_path", *(tmp_path / word for word in words), code=2)
        assert f"none of the {len(words)} pictures can be read; nothing was written" in said
    assert not (tmp_path / "out.npz").exists()


def test_labels_stand_beside_names(encoder, folder, extract):
    file = extract(encoder[1], "--data_path", folder, "--split", "val", "--batch_size", 3)
    assert file["labels"].tolist() == [0, 0, 1, 1] and file["classes"].tolist() == ["cat", "dog"]
    assert [name.split("/")[-2] for name in file["names"]] == ["cat", "cat", "dog", "dog"]


def test_an_interrupted_one_leaves_nothing(encoder, folder, tmp_path, extract, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(extract_features, "extract_features", interrupted)
    assert "interrupted" in extract(encoder[1], "--img_path", folder, code=130)
    assert sorted(tmp_path.iterdir()) == before


def test_a_small_disk_is_seen_before_the_work(encoder, folder, tmp_path, extract, monkeypatch):
    """4 pictures, 4 patches and 96 channels: 6144 bytes of tokens, twice, and 1536 of each of the others."""
    usage = shutil.disk_usage(tmp_path)
    words = ["--img_path", folder / "val", "--features", "cls", "mean", "tokens"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * 6144 + 2 * 1536 - 1))
    said = extract(encoder[1], *words, code=2)
    assert f"--output {tmp_path}/out.npz: " in said and "fewer --features" in said
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2 * 6144 + 2 * 1536))
    assert extract(encoder[1], *words)["tokens"].shape == (4, 4, 96)


@pytest.mark.parametrize(
    "words, complaint",
    [
        (["--img_path", "data", "--resume", ""], "--resume FILE"),
        (["--img_path", "data", "--output", ""], "--output FILE.npz"),
        (["--img_path", "data", "--output", "x.npy"], "--output x.npy: the name must end in .npz"),
        ([], "--img_path PATH or --data_path FOLDER"),
        (["--img_path", "data", "--data_path", "data"], "--img_path PATH or --data_path FOLDER"),
        (["--data_path", "data"], "--split train or --split val"),
        (["--img_path", "data", "--split", "val"], "--split: "),
        (["--img_path", "data", "--bad_images", "skip"], "--bad_images: "),
        (["--img_path", "data", "--dataset", "folder"], "--dataset: "),
        (["--img_path", "data", "--batch_size", 0], "--batch_size 0"),
        (["--img_path", "data", "--block", 7], "--block 7: the model has blocks 1 to 6"),
        (["--img_path", "none.png"], "--img_path none.png"),
    ],
)
def test_mistakes_end_in_a_sentence_before_anything_is_written(
    encoder, folder, tmp_path, extract, monkeypatch, words, complaint
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert complaint in extract(encoder[1], *words, code=2)
    assert sorted(tmp_path.iterdir()) == before


# --- evaluating them ---

ORIGIN = {
    "weights_sha256": "ab",
    "block": 6,
    "norm": "norm",
    "img_size": (8, 8),
    "image_mean": (0.5,),
    "image_std": (0.2,),
    "image_backend": "pillow",
    "precision": "float32",
}


def clusters(path, true, *, noise, kinds=("mean",), **more):
    """Features around the corners of a simplex, a class each."""
    rng = np.random.default_rng(len(true))
    rows = {
        kind: (np.eye(3)[true] + noise * rng.standard_normal([len(true), 3])).astype("float32")
        for kind in kinds
    }
    np.savez(
        path,
        **{
            **ORIGIN,
            "names": [str(n) for n in range(len(true))],
            "labels": true,
            "classes": ["a", "b", "c"],
            **rows,
            **more,
        },
    )
    return path


@pytest.mark.parametrize("most", [0, 100_000])
def test_what_can_be_told_apart_is(tmp_path, call, monkeypatch, most):
    """Both solvers: our own one is for many features."""
    monkeypatch.setattr(eval_features, "MOST_FOR_SCIKIT_LEARN", most)
    train = clusters(tmp_path / "train.npz", np.arange(60) % 3, noise=0.02, kinds=("mean", "cls"))
    val = clusters(tmp_path / "val.npz", np.arange(9) % 3, noise=0.02, kinds=("mean", "cls"))
    said = call(eval_features, train, val, "--k", 3, 500, "--weight_decay", 1, 1e-3, 1e-2)
    for kind in ("mean", "cls"):
        assert f"* k-NN Acc@1 100.000 k 3 ({kind})" in said and f"* k-NN Acc@1 100.000 k 500 ({kind})" in said
        assert f"linear classifiers of {kind}, of 48 training features, on the 12 others:" in said
        assert f"* linear Acc@1 100.000 weight decay 1.0e+00 ({kind}, all 60 training features)" in said
    assert (
        said.count("the best is the largest that was tried: give more to --weight_decay") == 2
    )  # the first of equals
    only = call(eval_features, train, val, "--features", "cls")
    assert "(mean" not in only and "(cls)" in only


def test_val_has_no_part_in_the_choice(tmp_path, call):
    """Its labels are wrong: that lowers its accuracy and changes nothing else."""
    train = clusters(tmp_path / "train.npz", np.arange(60) % 3, noise=0.5)
    said = []
    for labels in (np.arange(9) % 3, (np.arange(9) + 1) % 3):
        val = clusters(tmp_path / "val.npz", np.arange(9) % 3, noise=0.02, labels=labels)
        lines = [line.partition("] ")[2] for line in call(eval_features, train, val, "--k", 5).splitlines()]
        said.append([line for line in lines if not line.startswith("*")])
        (accuracy,) = (float(line.split()[3]) for line in lines if line.startswith("* linear"))
        assert (accuracy > 80) == (labels[0] == 0)
    assert said[0] == said[1]


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"weights_sha256": "cd"}, "weights_sha256 is ab in one and cd in the other"),
        ({"classes": ["a", "b", "d"]}, "only in one: c, d"),
        ({"mean": np.full([9, 3], np.nan, "float32")}, "val.npz: NaN or Inf in mean"),
    ],
)
def test_files_that_do_not_fit_together(tmp_path, call, changes, complaint):
    train = clusters(tmp_path / "train.npz", np.arange(60) % 3, noise=0.1)
    val = clusters(tmp_path / "val.npz", np.arange(9) % 3, noise=0.1, **changes)
    assert complaint in call(eval_features, train, val, code=2)


def test_features_that_cannot_be_judged(tmp_path, call, encoder, folder, extract):
    train = clusters(tmp_path / "train.npz", np.arange(60) % 3, noise=0.1)
    assert "two files are needed: TRAIN.npz VAL.npz" in call(eval_features, train, code=2)
    assert "holds mean, not cls" in call(eval_features, train, train, "--features", "cls", code=2)
    few = clusters(tmp_path / "few.npz", np.arange(3), noise=0.1)
    assert "3 training features are too few" in call(eval_features, few, few, code=2)
    extract(encoder[1], "--img_path", folder / "val")
    assert "out.npz: has no labels" in call(eval_features, tmp_path / "out.npz", tmp_path / "out.npz", code=2)
    extract(encoder[1], "--img_path", folder / "val", "--features", "tokens")
    assert "out.npz: holds tokens, not mean" in call(
        eval_features, tmp_path / "out.npz", tmp_path / "out.npz", "--features", "mean", code=2
    )
