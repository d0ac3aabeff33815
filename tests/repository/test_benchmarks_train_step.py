"""benchmarks/train_step.py: records, profiles, and the number of operations."""

import json

import pytest

from benchmarks import train_step


def run(*options):
    train_step.main(
        train_step.get_args_parser().parse_args(
            ["--model", "tiny", "--rounds", "1", "--warmup", "0", *options]
        )
    )


def test_it_runs_and_records(tmp_path, capsys):
    run("--task", "finetune", "--json", str(tmp_path / "record.json"))
    record = json.loads((tmp_path / "record.json").read_text())
    (found,) = record["sides"]["onednn float32"]["rounds"]
    assert found["images_per_s"] > 0 and found["peak_mb"] > 50
    assert found["share_of_matmul"] == pytest.approx(found["gflops"] / found["matmul_gflops"])
    assert record["settings"]["task"] == "finetune" and "images_per_s" in capsys.readouterr().out


def test_profile(tmp_path, capsys):
    run("--profile", "--json", str(tmp_path / "record.json"))
    spent = json.loads((tmp_path / "record.json").read_text())["sides"]["onednn float32"]["rounds"][0]
    whole = spent.pop("step")
    assert {"matrix products", "AdamW", "softmax"} < spent.keys()
    assert sum(spent.values()) == pytest.approx(whole)
    assert "%  matrix products" in capsys.readouterr().out


def test_operations_of_a_step():
    # tiny: 4 patches of 48 values, width 8. A block of t tokens: 8 x 24 + 8 x 8 + 8 x 32 + 32 x 8 = 768
    # products a token, and t x t x 8 for the scores, as many for what they weigh. Forward and twice that
    # backward, 2 for each product.
    classifier = 4 * 48 * 8 + (5 * 768 + 2 * 25 * 8) + 8 * 10
    assert train_step.flops("tiny", "finetune") == 2 * 3 * 2 * classifier
    # One patch stays visible: 2 tokens in the encoder, 5 in the decoder.
    autoencoder = 4 * 48 * 8 + (2 * 768 + 2 * 4 * 8) + 2 * 8 * 8 + (5 * 768 + 2 * 25 * 8) + 5 * 8 * 48
    assert train_step.flops("tiny", "pretrain") == 2 * 3 * 2 * autoencoder
