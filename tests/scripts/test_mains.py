"""The scripts, one after another, through their command lines, on grey images that are not square."""

import json
import re

import numpy as np
import pytest
import yaml
from scripts import read_log, read_state, run, write_pictures

import main_finetune
import main_linprobe
import main_pretrain
from tools import eval_features, extract_features
from util.look import feature_file
from util.options import command_line

SIZES = ["--input_size", 32, 48, "--patch_size", 8, "--in_chans", 1]  # 4 x 6 patches of 64 values
SHORT = ["--epochs", 1, "--warmup_epochs", 0, "--batch_size", 4, "--num_workers", 0, "--device", "cpu"]
CLASSES = ["bird", "cat", "dog"]


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """{step: output} of all scripts, and "folder", in which they ran."""
    folder = tmp_path_factory.mktemp("chain")
    data = write_pictures(folder / "data", train=12, val=7, classes=CLASSES, size=(40, 60), mode="L")
    common = [*SIZES, "--data_path", data]
    vit = ["--model", "vit_tiny_patch4", *common]
    printed = {"folder": folder}

    printed["pretrain"] = run(
        "main_pretrain.py",
        "--model",
        "mae_vit_tiny_patch4",
        *common,
        *SHORT,
        "--norm_pix_loss",
        "--accum_iter",
        2,
        "--no_pin_mem",
        "--local_rank",
        0,
        "--print_freq",
        2,
        "--output_dir",
        folder / "mae",
    )
    mae = folder / "mae" / "checkpoint-latest.pd"
    printed["finetune"] = run(
        "main_finetune.py",
        *vit,
        *SHORT,
        "--finetune",
        mae,
        "--nb_classes",
        3,
        "--mixup",
        0.8,
        "--cutmix",
        1.0,
        "--clip_grad",
        1.0,
        "--output_dir",
        folder / "finetune",
        "--log_dir",
        folder / "scalars",
    )
    printed["eval"] = run(
        "main_finetune.py",
        *vit,
        *SHORT,
        "--nb_classes",
        3,
        "--eval",
        "--resume",
        folder / "finetune" / "checkpoint-best.pd",
        "--output_dir",
        folder / "eval",
    )
    printed["linprobe"] = run(
        "main_linprobe.py",
        *vit,
        *SHORT,
        "--finetune",
        mae,
        "--nb_classes",
        3,
        "--output_dir",
        folder / "linprobe",
        "--log_dir",
        "",
    )
    printed["linprobe eval"] = run(
        "main_linprobe.py",
        *vit,
        *SHORT,
        "--nb_classes",
        3,
        "--eval",
        "--resume",
        folder / "linprobe" / "checkpoint-0.pd",
        "--output_dir",
        folder / "eval",
    )
    printed["infer"] = run(
        "main_infer.py",
        "--resume",
        folder / "finetune" / "checkpoint-best.pd",
        "--img_path",
        data / "val" / "cat" / "001.png",
    )
    printed["features"] = run(
        "tools/extract_features.py",
        "--resume",
        mae,
        "--data_path",
        data,
        "--split",
        "train",
        "--num_workers",
        1,
        "--batch_size",
        5,
        "--output",
        folder / "features" / "train.npz",
    )
    printed["report"] = run(
        "tools/report.py", folder / "mae", folder / "finetune", "--output", folder / "runs.html"
    )
    return printed


def accuracy_lines(text):
    return re.findall(r"\* Acc@1 (\d+\.\d{3}) Acc@5 (\d+\.\d{3}) loss (\d+\.\d{3})", text)


def shapes(path):
    return {name: list(value.shape) for name, value in read_state(path)["model"].items()}


def test_sizes_reach_every_model(chain):
    """1 + 24 positions, 64 = 8 * 8 * 1 values per patch; width 96, and 64 in the decoder."""
    encoder = {
        "pos_embed": [1, 25, 96],
        "patch_embed.proj.weight": [96, 1, 8, 8],
        "cls_token": [1, 1, 96],
        "blocks.5.mlp.fc1.weight": [96, 384],
    }
    mae = shapes(chain["folder"] / "mae" / "checkpoint-latest.pd")
    assert encoder.items() <= mae.items()
    decoder = {"decoder_pos_embed": [1, 25, 64], "decoder_pred.weight": [64, 64], "decoder_pred.bias": [64]}
    assert decoder.items() <= mae.items()
    finetuned = shapes(chain["folder"] / "finetune" / "checkpoint-best.pd")
    assert {**encoder, "head.weight": [96, 3], "fc_norm.bias": [96]}.items() <= finetuned.items()
    probe = shapes(chain["folder"] / "linprobe" / "checkpoint-latest.pd")
    assert {
        **encoder,
        "head.1.weight": [96, 3],
        "head.0._mean": [96],
        "norm.bias": [96],
    }.items() <= probe.items()


def test_files_of_pretraining(chain):
    folder = chain["folder"] / "mae"
    names = {path.name for path in folder.iterdir()}
    assert {"checkpoint-0.pd", "checkpoint-latest.pd", "log.txt", "options.yaml", "environment.json"} <= names
    assert any(name.startswith("vdlrecords.") for name in names)  # without --log_dir they are here
    assert not any(name.endswith(".part") or "best" in name for name in names)
    (line,) = read_log(folder)
    assert (
        line.keys()
        == {"train_lr", "train_loss", "train_grad_norm", "train_images_per_s", "train_data_wait", "epoch"}
        and 0 < line["train_loss"] < 10
    )
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["processes"] == 1
    assert environment["operations"].endswith(environment["instruction_set"])
    assert environment["instruction_set"].startswith(("AVX", "SSE"))
    kept = yaml.safe_load((folder / "options.yaml").read_text())
    assert kept["input_size"] == [32, 48] and kept["accum_iter"] == 2 and kept["norm_pix_loss"] is True
    state = read_state(folder / "checkpoint-latest.pd")
    assert state["architecture"] == {
        "name": "mae_vit_tiny_patch4",
        "img_size": [32, 48],
        "patch_size": 8,
        "in_chans": 1,
        "norm_pix_loss": True,
        "num_heads": 3,
        "decoder_num_heads": 4,
    }
    assert state["epoch"] == 0 and "classes" not in state and "max_accuracy" not in state


def test_output_of_pretraining(chain):
    said = chain["pretrain"]
    assert "batch 4 x accum 2 x 1 processes = 8, lr 3.1e-05" in said  # 1e-3 * 8 / 256
    assert "mae_vit_tiny_patch4: 12 images, 3 steps an epoch, 6 of 24 patches visible" in said
    # --no_pin_mem, --local_rank
    assert [line for line in said.splitlines() if "no effect" in line][0].count("--") == 2
    assert said.count("no effect") == 1
    assert re.findall(r"Epoch: \[0\]  \[(\d)/3\]", said) == ["0", "2"]
    # step 0: no warm-up, no decay yet
    assert re.search(r"lr: 3\.125e-05  loss: \d+\.\d{4} \(\d+\.\d{4}\)", said)


def test_finetuning_starts_from_the_pretrained_encoder(chain):
    """After one epoch at a learning rate of 1.6e-5 the weights are still close to those of the encoder."""
    before = read_state(chain["folder"] / "mae" / "checkpoint-latest.pd")["model"]
    after = read_state(chain["folder"] / "finetune" / "checkpoint-latest.pd")["model"]
    for name in (
        "pos_embed",
        "blocks.0.attn.qkv.weight",
        "blocks.5.mlp.fc2.weight",
        "patch_embed.proj.weight",
    ):
        difference = np.abs(after[name] - before[name]).max()
        assert 0 < difference < 1e-3, name


def test_files_of_finetuning(chain):
    folder = chain["folder"] / "finetune"
    assert {path.name for path in folder.iterdir()} == {
        "checkpoint-0.pd",
        "checkpoint-latest.pd",
        "checkpoint-best.pd",
        "confusion.npz",
        "log.txt",
        "options.yaml",
        "environment.json",
    }
    assert list((chain["folder"] / "scalars").glob("vdlrecords.*"))
    (line,) = read_log(folder)
    assert line.keys() == {
        "train_lr",
        "train_loss",
        "train_grad_norm",
        "train_images_per_s",
        "train_data_wait",
        "test_loss",
        "test_acc1",
        "test_acc5",
        "n_parameters",
        "epoch",
    }
    state = read_state(folder / "checkpoint-best.pd")
    assert state["classes"] == CLASSES and state["max_accuracy"] == line["test_acc1"]
    assert line["n_parameters"] == sum(value.size for value in state["model"].values())
    assert line["test_acc5"] == 100.0  # of three classes, the right one is among the first five


def test_probing_leaves_the_encoder_as_it_was(chain):
    before = read_state(chain["folder"] / "mae" / "checkpoint-latest.pd")["model"]
    state = read_state(chain["folder"] / "linprobe" / "checkpoint-latest.pd")
    encoder = {name: value for name, value in state["model"].items() if not name.startswith("head.")}
    assert len(encoder) == 78 and all((before[name] == value).all() for name, value in encoder.items())
    assert state["optimizer"].keys() == {"head.1.weight", "head.1.bias"} and state["classes"] == CLASSES
    (line,) = read_log(chain["folder"] / "linprobe")
    assert line["n_parameters"] == 96 * 3 + 3
    assert not list((chain["folder"] / "linprobe").glob("vdlrecords.*"))  # --log_dir ""


@pytest.mark.parametrize("step", ["finetune", "linprobe"])
def test_an_evaluation_repeats_what_training_said(chain, step):
    (line,) = read_log(chain["folder"] / step)
    expected = f"{line['test_acc1']:.3f}", f"{line['test_acc5']:.3f}", f"{line['test_loss']:.3f}"
    assert accuracy_lines(chain[step]) == [expected]
    assert accuracy_lines(chain["eval" if step == "finetune" else "linprobe eval"]) == [expected]
    assert not (chain["folder"] / "eval").exists()  # evaluating writes nothing


def test_inference_knows_size_channels_and_classes_from_the_checkpoint(chain):
    lines = [line.split(": ") for line in chain["infer"].splitlines()]
    assert sorted(name for name, _ in lines) == CLASSES
    probabilities = [float(probability) for _, probability in lines]
    assert probabilities == sorted(probabilities, reverse=True)
    assert sum(probabilities) == pytest.approx(1, abs=2e-4)


def test_features_know_size_channels_and_normalisation_from_the_checkpoint(chain):
    file = feature_file.read(chain["folder"] / "features" / "train.npz")
    assert file["mean"].shape == file["cls"].shape == (12, 96) and file["img_size"].tolist() == [32, 48]
    assert file["labels"].tolist() == [0] * 4 + [1] * 4 + [2] * 4 and file["classes"].tolist() == CLASSES
    assert [name[-12:] for name in file["names"][:5]] == [f"bird/{n:03}.png" for n in (0, 3, 6, 9)] + [
        "/cat/001.png"
    ]
    assert "of 12 pictures" in chain["features"] and len(file["image_mean"]) == 1


def test_features_are_evaluated(chain, monkeypatch, capsys):
    """The classes differ in brightness only, which an encoder at its start does not hide."""
    train, val = (chain["folder"] / "features" / f"{split}.npz" for split in ("train", "val"))
    answered(
        extract_features,
        [
            "--resume",
            chain["folder"] / "mae" / "checkpoint-latest.pd",
            "--data_path",
            chain["folder"] / "data",
            "--split",
            "val",
            "--num_workers",
            0,
            "--device",
            "cpu",
            "--output",
            val,
        ],
        monkeypatch,
        capsys,
    )
    said = answered(eval_features, [train, val, "--k", 1, 5, "--features", "mean"], monkeypatch, capsys)
    assert "12 training and 7 val features of 3 classes, norm: norm, block 6" in said
    found = re.findall(r"\* k-NN Acc@1 (\d+\.\d{3}) k (\d+) \(mean\)", said)
    assert [k for _, k in found] == ["1", "5"] and all(float(accuracy) > 50 for accuracy, _ in found)
    accuracy, decay = re.search(
        r"\* linear Acc@1 (\d+\.\d{3}) weight decay (\S+) \(mean, all 12", said
    ).groups()
    table = dict(re.findall(r"  weight decay (\S+)  Acc@1 +(\d+\.\d{3})  \(\d+ steps\)", said))
    assert len(table) == 8 and float(accuracy) > 50
    assert float(table[decay]) == max(map(float, table.values()))


def test_the_report(chain):
    (line,) = read_log(chain["folder"] / "finetune")
    assert chain["report"].startswith("wrote ")
    page = (chain["folder"] / "runs.html").read_text(encoding="utf-8")
    assert f"{line['train_loss']:.4g}" in page and "Confusion matrix" in page


def test_a_wrong_file_is_an_error_without_traceback(chain):
    finetuned = chain["folder"] / "finetune" / "checkpoint-latest.pd"
    said = run(
        "main_finetune.py",
        "--model",
        "vit_tiny_patch4",
        *SIZES,
        *SHORT,
        "--nb_classes",
        3,
        "--data_path",
        chain["folder"] / "data",
        "--finetune",
        finetuned,
        "--output_dir",
        chain["folder"] / "refused",
        code=2,
    )
    assert f"main_finetune.py: error: {finetuned}: --finetune starts from a pretrained encoder" in said
    assert "Traceback" not in said and not (chain["folder"] / "refused").exists()


# The rest runs in this process: the main function of a script as its last line calls it.


def answered(main, words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["main.py", *map(str, words)])
    command_line.run(main.main, main.get_args_parser())
    return capsys.readouterr().out


def refused(main, words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["main.py", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        command_line.run(main.main, main.get_args_parser())
    said = capsys.readouterr()
    assert stop.value.code == 2 and "Traceback" not in said.err
    return said.err.partition("error: ")[2]


TINY = ["--input_size", 8, "--num_workers", 0, "--batch_size", 4, "--device", "cpu"]


MISTAKES = {
    main_pretrain: [
        (["--accum_iter", 4], ["--accum_iter 4", "3 micro-batches"]),
        (["--batch_size", 13], ["--batch_size 13", "12"]),
        (["--mask_ratio", 1], ["--mask_ratio 1.0", "0 of 4"]),
        (["--input_size", 10], ["--input_size 10 10", "--patch_size 4"]),
        (["--device", "gpu"], ["--device gpu", "no GPU"]),
        (["--amp", "fp16"], ["--amp fp16", "float32"]),
        (["--resume", "none.pd"], ["none.pd", "no such file"]),
        (["--data_path", "nowhere"], ["--data_path nowhere"]),
    ],
    main_finetune: [
        (["--nb_classes", 1], ["--nb_classes 1", "2 classes"]),
        (["--eval"], ["--eval", "--resume FILE"]),
        (["--accum_iter", 4], ["--accum_iter 4"]),
        (["--finetune", "none.pd"], ["none.pd", "no such file"]),
    ],
    main_linprobe: [(["--eval"], ["--eval", "--resume FILE"]), (["--accum_iter", 4], ["--accum_iter 4"])],
}


@pytest.mark.parametrize("main", MISTAKES)
def test_mistakes_are_refused_before_anything_is_written(main, tmp_path, monkeypatch, capsys):
    data = write_pictures(tmp_path / "data", size=(8, 8))
    monkeypatch.chdir(tmp_path)
    model = "mae_vit_tiny_patch4" if main is main_pretrain else "vit_tiny_patch4"
    for words, complaints in MISTAKES[main]:
        said = refused(main, ["--model", model, *TINY, "--data_path", data, *words], monkeypatch, capsys)
        assert all(complaint in said for complaint in complaints), said
        assert [path.name for path in tmp_path.iterdir()] == ["data"]
