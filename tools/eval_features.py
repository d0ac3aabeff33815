"""How good the features of a pretrained encoder are: nearest neighbours, and linear classifiers, of cached features.

    python tools/extract_features.py --resume mae.pd --data_path my_data --split train --output train.npz
    python tools/extract_features.py --resume mae.pd --data_path my_data --split val --output val.npz
    python tools/eval_features.py train.npz val.npz
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

from functools import partial

import numpy as np
from tqdm import tqdm

from util.look import feature_file, knn, linear_sweep
from util.options import command_line
from util.system import console
from util.system.console import progress, say
from util.system.keyed_random import EPOCH_ORDER, keyed_generator

HELD_OUT = 5                # one of so many training features chooses the weight decay
STEPS_BETWEEN_LINES = 50


def get_args_parser():
    parser = command_line.Parser("k-NN and linear accuracy of features that tools/extract_features.py has written.")
    parser.add_argument("train", nargs="?", default="", metavar="TRAIN.npz", help="labelled features to learn from")
    parser.add_argument("val", nargs="?", default="", metavar="VAL.npz", help="those to be classified")
    parser.add_argument("--features", nargs="+", default=None, choices=["mean", "cls"],
                        help="which of them (default: those that both files hold)")
    parser.add_argument("--k", type=int, nargs="+", default=[10, 20, 100, 200], help="numbers of neighbours")
    parser.add_argument("--temperature", type=float, default=0.07, help="of the votes of neighbours")
    parser.add_argument("--weight_decay", type=float, nargs="+",
                        default=[1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0],
                        help="of the linear classifiers; a fifth of TRAIN chooses among them")
    parser.add_argument("--seed", type=int, default=0, help="which fifth")
    return parser


def read(args):
    """Both files as dicts, and the kinds of features that both hold; ValueError unless they fit together."""
    train, val = (feature_file.read(path, args.features) for path in (args.train, args.val))
    feature_file.check_same_origin(args.train, train, args.val, val)
    for path, file in ((args.train, train), (args.val, val)):
        if "labels" not in file:
            raise ValueError(f"{path}: it has no labels; extract it with --data_path and --split")
    if not np.array_equal(train["classes"], val["classes"]):
        raise ValueError(f"{args.train} and {args.val} are of other classes: only in one "
                         f"{', '.join(sorted(set(train['classes']) ^ set(val['classes']))) or 'the order'}")
    kinds = args.features or [kind for kind in ("mean", "cls") if kind in train and kind in val]
    if not kinds:
        raise ValueError(f"{args.train} and {args.val} have no features in common; extract both with --features mean")
    for path, file in ((args.train, train), (args.val, val)):
        for kind in kinds:
            if not np.isfinite(file[kind]).all():
                raise ValueError(f"{path}: not all of {kind} is finite: the checkpoint is damaged, or --amp too coarse")
    return train, val, kinds


def sweep(features, labels, title, **options):
    """A linear_sweep.Sweep, with a bar on a terminal and a line now and then elsewhere."""
    bar = tqdm(desc=title, unit=" steps", leave=False) if console.shows_bars() else None

    def on_step(step, left):
        if bar is not None:
            bar.update()
        elif step % STEPS_BETWEEN_LINES == 0:
            say(f"{title}: {step} steps, {left} classifiers go on")
    try:
        return linear_sweep.Sweep(features, labels, on_step=on_step, **options)
    finally:
        if bar is not None:
            bar.close()


def linear(train, val, kind, weight_decays, num_classes, seed):
    """Say what each weight decay gives on the held-out part of `train`, and what the best of them gives on `val`."""
    order = keyed_generator(seed, EPOCH_ORDER, 0, 0).permutation(len(train["labels"]))
    held_out, kept = np.split(order, [len(order) // HELD_OUT])
    if not len(held_out):
        raise ValueError(f"{len(order)} training features are too few to hold out a fifth of them")
    tried = sweep(train[kind][kept], train["labels"][kept], f"linear classifiers of {kind}", num_classes=num_classes,
                  weight_decays=weight_decays)
    accuracy = tried.accuracy(train[kind][held_out], train["labels"][held_out])
    say(f"linear classifiers of {kind}, of {len(kept)} training features, on the {len(held_out)} others:")
    for decay, value, steps, gradient in zip(weight_decays, accuracy, tried.steps, tried.gradient):
        unfinished = "" if gradient <= linear_sweep.TOLERANCE else f", not done: gradient {gradient:.1e}"
        say(f"  weight decay {decay:.1e}  Acc@1 {value:6.3f}  ({steps} steps{unfinished})")
    best = int(np.argmax(accuracy))
    if weight_decays[best] in (min(weight_decays), max(weight_decays)) and len(weight_decays) > 1:
        say(f"the best is the {'least' if weight_decays[best] == min(weight_decays) else 'largest'} that was tried: "
            "give more to --weight_decay")
    chosen = sweep(train[kind], train["labels"], f"linear classifier of {kind}", num_classes=num_classes,
                   weight_decays=[weight_decays[best]])
    say(f"* linear Acc@1 {chosen.accuracy(val[kind], val['labels'])[0]:.3f} weight decay {weight_decays[best]:.1e} "
        f"({kind}, all {len(order)} training features)")


def main(args):
    if not args.train or not args.val:
        raise ValueError("two files are needed: TRAIN.npz VAL.npz")
    train, val, kinds = read(args)
    say(f"{len(train['labels'])} training and {len(val['labels'])} val features of {len(train['classes'])} classes, "
        f"norm: {train['norm']}, block {train['block']}, weights {str(train['weights_sha256'])[:12]}")
    for kind in kinds:
        found = knn.accuracy(train[kind], train["labels"], val[kind], val["labels"], k=args.k,
                             temperature=args.temperature, progress=partial(progress, title=f"k-NN of {kind}"))
        for k, accuracy in found.items():
            say(f"* k-NN Acc@1 {accuracy:.3f} k {k} ({kind})")
        linear(train, val, kind, args.weight_decay, len(train["classes"]), args.seed)


if __name__ == "__main__":
    command_line.run(main, get_args_parser())
