"""Draw the curves of one or more runs from their log.txt into a PNG.

    python tools/plot_log.py output_dir --output output_dir/curves.png
"""
import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from util.atomic_file import atomic_write


def read_log(folder):
    """The lines of a run's log.txt as dicts, one an epoch."""
    log = Path(folder) / "log.txt"
    if not log.is_file():
        raise SystemExit(f"{folder}: there is no log.txt in it; give the --output_dir of a training run")
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def draw(runs):
    """{title: lines of log.txt} -> a matplotlib figure with the training loss and, if there is one, the accuracy."""
    tested = any("test_acc1" in line for lines in runs.values() for line in lines)
    figure, axes = plt.subplots(1, 1 + tested, figsize=(6 * (1 + tested), 4), squeeze=False, layout="constrained")
    for axis, key, label in zip(axes[0], ("train_loss", "test_acc1"), ("training loss", "top-1 accuracy (%)")):
        for title, lines in runs.items():
            points = [(line["epoch"], line[key]) for line in lines if key in line]
            if points:
                axis.plot(*zip(*points), marker="o", markersize=3, label=title)
        axis.set(xlabel="epoch", ylabel=label)
        axis.grid(alpha=0.3)
        axis.legend()
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("folders", nargs="+", help="output folders of training runs")
    parser.add_argument("--output", default="curves.png", help="the PNG to write")
    args = parser.parse_args()
    with atomic_write(args.output) as f:
        draw({Path(folder).name: read_log(folder) for folder in args.folders}).savefig(f, format="png", dpi=120)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
