"""Losses and accuracies of training with --amp bf16 beside float32, for several seeds.

    python benchmarks/bfloat16_training.py --json FILE              # 3 seeds, about 15 minutes on 2 cores

Pretrains and finetunes the small model of configs/demo on the images in data/ by the ordinary scripts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import sidebyside
from util.system.atomic_file import atomic_write

PRECISIONS = {"float32": "off", "bfloat16": "bf16"}  # values of --amp


def train(script: str, config: str, output_dir: Path, *options: object) -> tuple[list[dict[str, Any]], int]:
    """Run a script; returns its log, one dict per epoch, and the steps of an epoch."""
    command = [sys.executable, script, "--config", config, "--output_dir", output_dir, *options]
    done = subprocess.run(
        [str(word) for word in command], cwd=sidebyside.ROOT, capture_output=True, text=True
    )
    if done.returncode:
        raise ValueError(f"{script} ended with code {done.returncode}: {done.stderr[-2000:]}")
    log = [json.loads(line) for line in Path(output_dir, "log.txt").read_text(encoding="utf-8").splitlines()]
    steps = re.search(r"(\d+) steps an epoch", done.stdout)
    assert steps is not None, done.stdout
    return log, int(steps[1])


def measure(seed: int, precision: str, epochs: int, folder: Path) -> dict[str, Any]:
    """Pretrain and finetune once."""
    options = ["--seed", seed, "--amp", PRECISIONS[precision]]
    pretrained, steps = train(
        "main_pretrain.py", "configs/demo/pretrain.yaml", folder / "pretrain", *options, "--epochs", epochs
    )
    finetuned, _ = train(
        "main_finetune.py",
        "configs/demo/finetune.yaml",
        folder / "finetune",
        *options,
        "--finetune",
        folder / "pretrain" / "checkpoint-latest.pd",
    )
    return {
        "seed": seed,
        "precision": precision,
        "steps": steps * epochs,
        "losses": [line["train_loss"] for line in pretrained],
        "finetune_losses": [line["train_loss"] for line in finetuned],
        "accuracy": finetuned[-1]["test_acc1"],
    }


def compare(runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield sentences about the differences between precisions and between seeds."""
    by = {(run["seed"], run["precision"]): run for run in runs}
    seeds = sorted({run["seed"] for run in runs})
    pairs = [(by[seed, "float32"], by[seed, "bfloat16"]) for seed in seeds]
    apart = max(
        abs(a - b) for full, half in pairs for a, b in zip(full["losses"], half["losses"], strict=True)
    )
    epochs = zip(*(full["losses"] for full, _ in pairs), strict=True)
    yield (
        f"pretraining loss of an epoch: the precisions differ by at most {apart:.5f} for a seed, "
        f"the seeds in float32 by at most {max(max(losses) - min(losses) for losses in epochs):.5f}"
    )
    for precision in PRECISIONS:
        accuracies = [by[seed, precision]["accuracy"] for seed in seeds]
        yield (
            f"accuracy after finetuning, {precision}: mean {statistics.fmean(accuracies):.2f} %, "
            f"{min(accuracies):.2f} to {max(accuracies):.2f} %"
        )


def main(args: argparse.Namespace) -> None:
    """Run all trainings, print the comparison, and write it as JSON."""
    runs = []
    for seed in range(args.seeds):
        for precision in PRECISIONS:
            with tempfile.TemporaryDirectory() as folder:
                runs.append(measure(seed, precision, args.epochs, Path(folder)))
            print(json.dumps(runs[-1]), flush=True)
    print(*compare(runs), sep="\n")
    if args.json:
        about = {
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "revision": sidebyside.revision(),
            "machine": sidebyside.machine(),
            **sidebyside.versions("paddlepaddle", "numpy"),
        }
        with atomic_write(args.json, "w") as f:
            json.dump(
                {
                    "benchmark": "bfloat16_training",
                    "about": about,
                    "settings": {"seeds": args.seeds, "epochs": args.epochs},
                    "runs": runs,
                },
                f,
                indent=2,
            )
            f.write("\n")
        print(f"wrote {args.json}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="of pretraining; 156 steps each")
    parser.add_argument("--json", metavar="FILE", default="", help="write the record there")
    try:
        main(parser.parse_args())
    except ValueError as error:
        sys.exit(f"bfloat16_training.py: error: {error}")
