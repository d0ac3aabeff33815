"""Runs that revision 8fdb8ca stopped within an epoch continue, and end with the losses that it ended with.

Its commands were those below; the images are random. Both folders hold the stopped run, and expected.jsonl
holds the log of the run that it went on to. (tests/golden/test_earlier.py continues from the end of an
epoch.)
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts import read_log

import main_finetune
import main_pretrain
from util.run import confusion

RUNS = Path(__file__).resolve().parents[1] / "golden" / "earlier" / "runs"
COMMON = (
    "--data_path data --output_dir run --log_dir= --input_size 8 --patch_size 4 --embed_dim 8 --depth "
    "1 --num_heads 2 "
    "--batch_size 4 --epochs 3 --warmup_epochs 1 --num_workers 0 --seed 3 --device cpu --resume auto "
    "--blr 0.1"
)
COMMANDS = {
    "pretrain": (
        main_pretrain,
        "--model mae_vit_tiny_patch4 --decoder_embed_dim 8 --decoder_depth 1 "
        "--decoder_num_heads 2 --norm_pix_loss --ema --ema_decay 0.9 --val_every 1",
        3,
    ),
    "finetune": (
        main_finetune,
        "--model vit_tiny_patch4 --nb_classes 2 --accum_iter 2 --sched plateau "
        "--patience_epochs 0 --mixup 0.8",
        4,
    ),
}


def write_data(folder):
    rng = np.random.default_rng(16)
    for split, count in (("train", 12), ("val", 4)):
        for label in ("cat", "dog"):
            (folder / split / label).mkdir(parents=True)
            for number in range(count):
                image = Image.fromarray(rng.integers(0, 256, [8, 8, 3], "uint8"))
                image.save(folder / split / label / f"{label}{number:02d}.png")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_stopped_within_an_epoch_ends_with_the_same_losses(tmp_path, monkeypatch, call_script, name):
    main, flags, step = COMMANDS[name]
    write_data(tmp_path / "data")
    shutil.copytree(RUNS / name, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    said, _ = call_script(main, *COMMON.split(), *flags.split())
    assert f"continuing with epoch 1 step {step}" in said
    lines = read_log(tmp_path / "run")
    expected = [json.loads(line) for line in (RUNS / name / "expected.jsonl").read_text().splitlines()]
    assert len(lines) == len(expected) == 3
    for found, wanted in zip(lines, expected, strict=True):
        assert found.keys() == wanted.keys()
        for key in wanted.keys() - {"train_images_per_s", "train_data_wait"}:
            assert found[key] == pytest.approx(wanted[key], rel=1e-5), key
    if name == "finetune":
        assert confusion.read(tmp_path / "run")[2] == 1  # epoch with the best accuracy
