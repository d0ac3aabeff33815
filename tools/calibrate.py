"""Fit the temperature that calibrates a classifier: 80 % of its answers with probability 0.8 are right.

    python tools/calibrate.py --resume output_dir/checkpoint-best.pd --data_path my_data
    python tools/calibrate.py --resume checkpoint-best.pd --data_path cifar-10-python.tar.gz --dataset cifar10

The pictures need labels, and must not come from the training data. The output is a flag for main_infer.py and
tools/export.py. A temperature does not change the accuracy. See util/infer/calibration.py.
"""

import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

import numpy as np

import models_vit
from util.data.bad_images import BadImages
from util.data.loaders import eval_loader
from util.data.sources import open_source
from util.images.transforms import EvalTransform
from util.infer import calibration
from util.infer.classifier import finite
from util.infer.engine import Engine
from util.infer.model_spec import checkpoint_spec
from util.infer.predictors import open_predictor
from util.options import command_line, flags
from util.system.console import progress, say
from util.weights import checkpoint, loading

FEW = 100  # pictures; with fewer, the temperature is uncertain


def get_args_parser():
    parser = command_line.Parser("Fit the temperature of a classifier on labelled pictures.")
    parser.add_argument("--resume", default="", metavar="FILE", help="checkpoint of a classifier")
    flags.add_trust(parser)
    flags.add_data(parser)
    parser.set_defaults(data_path="")
    parser.add_argument(
        "--split",
        default="val",
        choices=["train", "val"],
        help="part of --data_path, which must not be the training data",
    )
    flags.add_device(parser)
    parser.add_argument(
        "--batch_size", type=int, default=64, help="pictures at once; it does not change the result"
    )
    return parser


def check(args):
    """Raise ValueError for missing or invalid values."""
    for flag, what in (("resume", "FILE"), ("data_path", "FOLDER")):
        # Data sets other than folders are downloaded.
        if not getattr(args, flag) and (flag == "resume" or args.dataset == "folder"):
            raise ValueError(f"--{flag} {what} is needed")
    for name, least in (("batch_size", 1), ("num_workers", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} must be at least {least}, got {getattr(args, name)}")


def read_classifier_spec(path, trusted):
    """Read a classifier's checkpoint. Raises ValueError for other checkpoints."""
    state = checkpoint.read_checkpoint(path, trusted=trusted)
    role = checkpoint.role(state["model"])
    if role in ("mae", "encoder"):
        raise ValueError(
            f"--resume {path}: this is {checkpoint.ROLES[role].description}, which gives no "
            "classes; name a classifier's checkpoint, such as checkpoint-best.pd of "
            "main_finetune.py"
        )
    return checkpoint_spec(path, state, models_vit.MODELS)


def check_classes(data_path, spec, classes):
    """Raise ValueError unless the data and the classifier of `spec` have the same classes."""
    loading.check_classes(spec.path, spec.state, classes)
    outputs = len(spec.classes)
    if len(classes) > outputs or (spec.state.get("classes") is None and len(classes) != outputs):
        raise ValueError(
            f"--data_path {data_path}: has {len(classes)} classes, and {spec.path} has "
            f"{outputs}; their labels must mean the same"
        )


def compute_logits(predictor, loader):
    """Compute (logits [N, K] float32, labels [N] int64) of all readable pictures."""
    found, labels = [], []
    for images, batch in progress(loader, "pictures"):
        found.append(predictor(images.numpy())["logits"])
        labels.append(batch.numpy().reshape(-1))
    return finite(np.concatenate(found)), np.concatenate(labels)


def main(args):
    check(args)
    spec = read_classifier_spec(args.resume, args.trust_checkpoint)
    predictor = open_predictor(spec, Engine("paddle", args.device, args.amp))
    _, in_chans, *size = predictor.info["input"]["shape"]
    source = open_source(
        args.data_path, args.split, dataset=args.dataset, in_chans=in_chans, image_root=args.image_root
    )
    check_classes(args.data_path, spec, source.classes)
    transform = EvalTransform(size, **spec.normalization, image_backend=args.image_backend)
    bad_images = BadImages(args.bad_images, args.split, len(source))
    loader = eval_loader(
        source, transform, args.batch_size, args.num_workers, shared=False, bad_images=bad_images
    )
    logits, labels = compute_logits(predictor, loader)
    say(bad_images.listing())
    if len(labels) < FEW:
        say(
            f"only {len(labels)} pictures: the temperature is uncertain; use at least {FEW}, better thousands"
        )
    # Rounded as it is printed, so that the figures below hold for the printed value.
    temperature = float(f"{calibration.fit_temperature(logits, labels):.4g}")
    say(
        f"{args.resume}: {len(labels)} {args.split} pictures, accuracy "
        f"{calibration.accuracy(logits, labels):.2%}, with and without a temperature"
    )
    for value in (1.0, temperature):
        say(
            f"temperature {value:<6g}  NLL {calibration.nll(logits, labels, value):.4f}  expected "
            f"calibration error {calibration.ece(logits, labels, value):.4f}"
        )
    for script in ("main_infer.py", "tools/export.py"):
        print(
            f"python {script} --resume {shlex.quote(args.resume)} --temperature {temperature:g} ...",
            flush=True,
        )


if __name__ == "__main__":
    command_line.run(main, get_args_parser())
