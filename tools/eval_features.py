"""Evaluate features of a pretrained encoder by k-NN and by linear classifiers.

python tools/extract_features.py --resume mae.pd --data_path my_data --split train --output train.npz
python tools/extract_features.py --resume mae.pd --data_path my_data --split val --output val.npz
python tools/eval_features.py train.npz val.npz
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

from collections.abc import Sequence
from functools import partial

import numpy as np
from tqdm import tqdm

from util.look import feature_file, knn
from util.look.linear_sweep import Sweep
from util.look.logistic_regression import LogisticRegressions
from util.options import command_line
from util.system import console
from util.system.console import progress, say
from util.system.keyed_random import EPOCH_ORDER, keyed_generator

HELD_OUT = 5  # the weight decay is chosen on one fifth of the training features
STEPS_BETWEEN_LINES = 50
MOST_FOR_SCIKIT_LEARN = 100_000  # features; above this our own solver is several times faster


def get_args_parser() -> command_line.Parser:
    """Define the flags of this script."""
    parser = command_line.Parser(
        "k-NN and linear accuracy of features that tools/extract_features.py has written."
    )
    parser.add_argument(
        "train", nargs="?", default="", metavar="TRAIN.npz", help="labelled features for training"
    )
    parser.add_argument("val", nargs="?", default="", metavar="VAL.npz", help="labelled features to classify")
    parser.add_argument(
        "--features",
        nargs="+",
        default=None,
        choices=["mean", "cls"],
        help="kinds of features (default: those in both files)",
    )
    parser.add_argument("--k", type=int, nargs="+", default=[10, 20, 100, 200], help="numbers of neighbours")
    parser.add_argument(
        "--temperature", type=float, default=0.07, help="temperature of the neighbours' votes"
    )
    parser.add_argument(
        "--weight_decay",
        type=float,
        nargs="+",
        default=[1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0],
        help="candidates for the linear classifiers; the best is chosen on one fifth of TRAIN.npz",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for drawing that fifth")
    return parser


def read(args: argparse.Namespace) -> tuple[dict, dict, list[str]]:
    """Read both files: (train, val, kinds of features in both). Raises ValueError if they do not match."""
    train, val = (feature_file.read(path, args.features) for path in (args.train, args.val))
    feature_file.check_same_origin(args.train, train, args.val, val)
    for path, file in ((args.train, train), (args.val, val)):
        if "labels" not in file:
            raise ValueError(f"{path}: has no labels; extract it with --data_path and --split")
    if not np.array_equal(train["classes"], val["classes"]):
        raise ValueError(
            f"{args.train} and {args.val}: different classes; only in one: "
            f"{', '.join(sorted(set(train['classes']) ^ set(val['classes']))) or 'none, the order differs'}"
        )
    kinds = args.features or [kind for kind in ("mean", "cls") if kind in train and kind in val]
    if not kinds:
        raise ValueError(
            f"{args.train} and {args.val}: no features in common; extract both with --features mean"
        )
    for path, file in ((args.train, train), (args.val, val)):
        for kind in kinds:
            if not np.isfinite(file[kind]).all():
                raise ValueError(
                    f"{path}: NaN or Inf in {kind}; the checkpoint is damaged or --amp is too coarse"
                )
    return train, val, kinds


def fit(
    features: np.ndarray, labels: np.ndarray, weight_decays: Sequence[float], num_classes: int, title: str
) -> Sweep | LogisticRegressions:
    """Train one linear classifier per weight decay and show the progress."""
    if len(features) <= MOST_FOR_SCIKIT_LEARN:
        return LogisticRegressions(features, labels, progress(weight_decays, title))
    bar = tqdm(desc=title, unit=" steps", leave=False) if console.shows_bars() else None

    def on_step(step: int, left: int) -> None:
        if bar is not None:
            bar.update()
        elif step % STEPS_BETWEEN_LINES == 0:
            say(f"{title}: {step} steps, {left} classifiers still in training")

    try:
        return Sweep(features, labels, num_classes=num_classes, weight_decays=weight_decays, on_step=on_step)
    finally:
        if bar is not None:
            bar.close()


def linear(train: dict, val: dict, kind: str, weight_decays: Sequence[float], seed: int) -> None:
    """Choose the weight decay on a fifth of `train`, train on all of it, and print the accuracy on `val`."""
    labels, num_classes = train["labels"], len(train["classes"])
    order = keyed_generator(seed, EPOCH_ORDER, 0, 0).permutation(len(labels))
    held_out, kept = np.split(order, [len(order) // HELD_OUT])
    if not len(held_out):
        raise ValueError(f"TRAIN.npz: {len(order)} training features are too few to hold out a fifth of them")
    tried = fit(train[kind][kept], labels[kept], weight_decays, num_classes, f"linear classifiers of {kind}")
    accuracy = tried.accuracy(train[kind][held_out], labels[held_out])
    say(f"linear classifiers of {kind}, of {len(kept)} training features, on the {len(held_out)} others:")
    for decay, value, steps, converged in zip(
        weight_decays, accuracy, tried.steps, tried.converged, strict=True
    ):
        state = "" if converged else ", not converged"
        say(f"  weight decay {decay:.1e}  Acc@1 {value:6.3f}  ({steps} steps{state})")
    best = weight_decays[int(np.argmax(accuracy))]
    if best in (min(weight_decays), max(weight_decays)) and len(weight_decays) > 1:
        say(
            f"the best is the {'least' if best == min(weight_decays) else 'largest'} that was tried: "
            "give more to --weight_decay"
        )
    chosen = fit(train[kind], labels, [best], num_classes, f"linear classifier of {kind}")
    say(
        f"* linear Acc@1 {chosen.accuracy(val[kind], val['labels'])[0]:.3f} weight decay {best:.1e} "
        f"({kind}, all {len(order)} training features)"
    )


def main(args: argparse.Namespace) -> None:
    """Print the k-NN and the linear accuracy of each kind of features."""
    if not args.train or not args.val:
        raise ValueError("two files are needed: TRAIN.npz VAL.npz")
    train, val, kinds = read(args)
    say(
        f"{len(train['labels'])} training and {len(val['labels'])} val features of "
        f"{len(train['classes'])} classes, norm: {train['norm']}, block {train['block']}, "
        f"weights {str(train['weights_sha256'])[:12]}"
    )
    for kind in kinds:
        found = knn.accuracy(
            train[kind],
            train["labels"],
            val[kind],
            val["labels"],
            k=args.k,
            temperature=args.temperature,
            progress=partial(progress, title=f"k-NN of {kind}"),
        )
        for k, accuracy in found.items():
            say(f"* k-NN Acc@1 {accuracy:.3f} k {k} ({kind})")
        linear(train, val, kind, args.weight_decay, args.seed)


if __name__ == "__main__":
    command_line.run(main, get_args_parser())
