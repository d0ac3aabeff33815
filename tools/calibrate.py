"""The temperature that makes a classifier's probabilities mean what they say: of answers with 0.8, 80 % are right.

    python tools/calibrate.py --resume output_dir/checkpoint-best.pd --data_path my_data
    python tools/calibrate.py --resume output_dir/checkpoint-best.pd --data_path cifar-10-python.tar.gz --dataset cifar10

It takes labelled pictures that the classifier was not trained on, and prints the flag that main_infer.py and
tools/export.py take. The order of the classes, and so the accuracy, stays as it is. See util/infer/calibration.py.
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
from util.infer import calibration, paddle_engine
from util.options import command_line, training_options
from util.system.console import progress, say
from util.weights import checkpoint

FEW = 100  # pictures


def get_args_parser():
    parser = command_line.Parser("The temperature that calibrates a classifier, from labelled pictures.")
    parser.add_argument("--resume", default="", metavar="FILE", help="checkpoint of a classifier")
    training_options.add_trust(parser)
    training_options.add_data(parser)
    parser.set_defaults(data_path="")
    parser.add_argument("--split", default="val", choices=["train", "val"],
                        help="which part of --data_path: one that the classifier was not trained on")
    training_options.add_device(parser)
    parser.add_argument("--batch_size", type=int, default=64, help="pictures at once; the answer does not depend on it")
    return parser


def check(args):
    """ValueError for what is missing or cannot be."""
    for flag, what in (("resume", "FILE"), ("data_path", "FOLDER")):
        if not getattr(args, flag) and (flag == "resume" or args.dataset == "folder"):  # others are downloaded
            raise ValueError(f"--{flag} {what} is needed")
    for name, least in (("batch_size", 1), ("num_workers", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} must be at least {least}, got {getattr(args, name)}")


def open_classifier(args):
    """(predictor, info, what the checkpoint holds); see util.infer.predictors.open_model."""
    file = paddle_engine.Checkpoint.read(args.resume, trusted=args.trust_checkpoint)
    kind = checkpoint.kind(file.state["model"])
    if kind in ("mae", "encoder"):
        raise ValueError(f"{args.resume}: this is {checkpoint.KINDS[kind][0]}, which gives no classes; name a classifier's "
                         "checkpoint, such as main_finetune.py's checkpoint-best.pd")
    predictor, info = paddle_engine.open_model(file, models_vit.MODELS, engine="paddle", device=args.device,
                                                      amp=args.amp)
    return predictor, info, file.state


def check_classes(args, state, outputs, classes):
    """ValueError unless the labels of the data are those of the classifier."""
    checkpoint.check_classes(args.resume, state, classes)
    if len(classes) > outputs or (state.get("classes") is None and len(classes) != outputs):
        raise ValueError(f"--data_path {args.data_path} holds {len(classes)} classes, and {args.resume} answers with "
                         f"{outputs}: they must be the same ones, or labels would be wrong")


def logits_of(predictor, loader):
    """(float32 [N, K], int64 [N]) of the pictures that can be read, and of their labels."""
    found, labels = [], []
    for images, batch in progress(loader, "answering"):
        found.append(predictor(images.numpy())["logits"])
        labels.append(batch.numpy().reshape(-1))
    logits = np.concatenate(found)
    if not np.isfinite(logits).all():
        raise FloatingPointError("the model's answer is not finite: its weights are damaged, or too large for this --amp; "
                                 "try --amp off")
    return logits, np.concatenate(labels)


def main(args):
    check(args)
    predictor, info, state = open_classifier(args)
    _, in_chans, *size = info["input"]["shape"]
    images = open_source(args.data_path, args.split, dataset=args.dataset, in_chans=in_chans,
                         image_root=args.image_root)
    check_classes(args, state, info["outputs"]["logits"][1], images.classes)
    transform = EvalTransform(size, mean=info["input"]["mean"], std=info["input"]["std"], image_backend=args.image_backend)
    bad_images = BadImages(args.bad_images, args.split, len(images))
    loader = eval_loader(images, transform, args.batch_size, args.num_workers, shared=False, bad_images=bad_images)
    logits, labels = logits_of(predictor, loader)
    say(bad_images.listing())
    if len(labels) < FEW:
        say(f"only {len(labels)} pictures: the temperature is uncertain; give it {FEW} at least, better thousands")
    # As it is printed, so that what is said about it holds.
    temperature = float(f"{calibration.fit_temperature(logits, labels):.4g}")
    say(f"{args.resume}: {len(labels)} {args.split} pictures, accuracy {calibration.accuracy(logits, labels):.2%}, with and "
        "without a temperature")
    for value in (1.0, temperature):
        say(f"temperature {value:<6g}  NLL {calibration.nll(logits, labels, value):.4f}  expected calibration error "
            f"{calibration.ece(logits, labels, value):.4f}")
    for script in ("main_infer.py", "tools/export.py"):
        print(f"python {script} --resume {shlex.quote(args.resume)} --temperature {temperature:g} ...", flush=True)


if __name__ == "__main__":
    command_line.run(main, get_args_parser())
