"""Run the whole workflow on data/fashion_mnist with the ordinary scripts, and show each command.

python tools/demo.py            (or: make demo)
"""

from __future__ import annotations

import json
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = "outputs/demo"
CLASSIFIER = f"{OUTPUT}/finetune/checkpoint-best.pd"
AUTOENCODER = f"{OUTPUT}/pretrain/checkpoint-latest.pd"
BOOT = "data/fashion_mnist/ankle-boot.png"

EXTRACT = "tools/extract_features.py --config configs/demo/features.yaml"
TRAIN, VAL = f"{OUTPUT}/features/train.npz", f"{OUTPUT}/features/val.npz"
FEATURES = f"tools/eval_features.py {TRAIN} {VAL} --k 20"
STEPS = [
    (
        "Pretrain a masked autoencoder on the images, without their labels",
        "main_pretrain.py --config configs/demo/pretrain.yaml",
    ),
    ("Features of all images, computed once", f"{EXTRACT} --split train --output {TRAIN}"),
    ("Features of the held-out images", f"{EXTRACT} --split val --output {VAL}"),
    ("Nearest neighbours and linear classifiers on these features, with a frozen encoder", FEATURES),
    (
        "Linear probe: a linear classifier on the frozen encoder",
        "main_linprobe.py --config configs/demo/linprobe.yaml",
    ),
    ("Finetune the encoder as a classifier", "main_finetune.py --config configs/demo/finetune.yaml"),
    (
        "The same classifier from scratch, for comparison",
        "main_finetune.py --config configs/demo/scratch.yaml",
    ),
    (
        "Evaluate the finetuned classifier",
        f"main_finetune.py --config configs/demo/finetune.yaml --eval --resume {CLASSIFIER}",
    ),
    ("Classify a held-out picture", f"main_infer.py --resume {CLASSIFIER} --img_path {BOOT}"),
    (
        "Classify a photograph (the model has seen clothes only)",
        f"main_infer.py --resume {CLASSIFIER} --img_path data/photos/rocket.jpg",
    ),
    (
        "Reconstruct a picture of which the autoencoder sees a quarter",
        f"tools/visualize.py --resume {AUTOENCODER} --img_path {BOOT} --output_dir {OUTPUT}",
    ),
    (
        "Draw the classifier's attention and the similarity of patches",
        f"tools/visualize.py --resume {CLASSIFIER} --img_path {BOOT} --show attention affinity "
        f"--output_dir {OUTPUT}",
    ),
    ("Report on the pretraining", f"tools/report.py {OUTPUT}/pretrain"),
    (
        "Report that compares the classifiers",
        f"tools/report.py {OUTPUT}/finetune {OUTPUT}/scratch {OUTPUT}/linprobe "
        f"--output {OUTPUT}/classifiers.html",
    ),
]


def run(title: str, command: str) -> str:
    """Run one step, show its output at once, and return it."""
    print(f"\n== {title}\n$ python {command}", flush=True)
    with subprocess.Popen(
        [sys.executable, *shlex.split(command)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        sys.exit(f"demo: the step above failed with exit code {process.returncode}")
    return "".join(lines)


def log_lines(name: str) -> list[dict[str, Any]]:
    """Read the log of a step's run."""
    return [
        json.loads(line) for line in Path(OUTPUT, name, "log.txt").read_text(encoding="utf-8").splitlines()
    ]


def summary(printed: Mapping[str, str], seconds: float) -> str:
    """Make the Markdown table of a finished demo.

    Args:
        printed: {command: its output}.
        seconds: duration of all steps.
    """
    pretrained = log_lines("pretrain")
    rows = [
        (
            "pretraining",
            f"loss {pretrained[0]['train_loss']:.3f} -> {pretrained[-1]['train_loss']:.3f}",
            pretrained,
            len(pretrained),
        )
    ]
    for title, name in (("from scratch", "scratch"), ("finetuned", "finetune"), ("linear probe", "linprobe")):
        lines = log_lines(name)
        rows.append((title, f"accuracy {lines[-1]['test_acc1']:.1f} %", lines, len(lines)))
    table = ["| | result | epochs | images/s |", "|---|---|---|---|"]
    for title, result, lines, epochs in rows:
        rate = statistics.median(line["train_images_per_s"] for line in lines)
        table.append(f"| {title} | {result} | {epochs} | {rate:.0f} |")
    for title, name in (("k-NN", "k-NN"), ("linear sweep", "linear")):
        accuracy = float(printed[FEATURES].split(f"* {name} Acc@1")[1].split()[0])
        table.append(f"| {title} | accuracy {accuracy:.1f} % | 0 | |")
    machine = json.loads(Path(OUTPUT, "pretrain", "environment.json").read_text(encoding="utf-8"))
    table += [
        "",
        f"Top-1 accuracy on the held-out images, {seconds / 60:.1f} minutes in all. "
        f"Paddle {machine['paddle']}, numpy {machine['numpy']}, Python {machine['python']}, "
        f"{machine['cores']} cores of {machine['cpu']}.",
    ]
    return "\n".join(table)


def main() -> None:
    """Run all steps and write summary.md."""
    missing = [path for path in ("data/fashion_mnist/train.tar.gz", BOOT) if not (ROOT / path).exists()]
    if missing or Path.cwd().resolve() != ROOT:
        sys.exit(
            f"demo: start it in the project's folder, {ROOT}"
            + (f"; missing there: {missing}" if missing else "")
        )
    start = time.monotonic()
    printed = {command: run(title, command) for title, command in STEPS}
    text = summary(printed, time.monotonic() - start)
    Path(OUTPUT, "summary.md").write_text(text + "\n", encoding="utf-8")
    print(f"\n{text}\n\nLeft in {OUTPUT}/:")
    for path, what in [
        ("summary.md", "this table"),
        ("pretrain/checkpoint-latest.pd", "the autoencoder"),
        ("features/*.npz", "features of all images"),
        ("finetune/checkpoint-best.pd", "the classifier; likewise in scratch/ and linprobe/"),
        ("pretrain/log.txt", "one line of JSON per epoch; likewise in the others"),
        ("pretrain/vdlrecords.*.log", "for: visualdl --logdir outputs/demo --language en"),
        ("pretrain/report.html", "report on the pretraining, for a browser"),
        ("classifiers.html", "report that compares the classifiers"),
        ("ankle-boot_reconstruction.png", "original, masked, reconstruction, error"),
        ("ankle-boot_attention.png", "attention of each head of the classifier"),
        ("ankle-boot_affinity.html", "similarity of patches: point at one"),
    ]:
        print(f"  {path:36} {what}")


if __name__ == "__main__":
    main()
