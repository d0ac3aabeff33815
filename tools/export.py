"""A trained model as something that runs without its code: a static Paddle program, or an ONNX file.

    python tools/export.py --resume output_dir/checkpoint-best.pd --output classifier.onnx --dynamic_batch
    python tools/export.py --resume output_dir/checkpoint-best.pd --output classifier_paddle --dynamic_batch
    python tools/export.py --resume output_dir/checkpoint-latest.pd --output encoder.onnx --encoder --features mean cls

What is written takes normalised float32 images [N, channels, height, width], says itself how a picture becomes one, see
util/infer/model_info.py, and has given the answers of the model: one that differs from them is not written.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

import contextlib
import json
import os
import shlex
import shutil
import tempfile

import numpy as np
import paddle

import models_vit
from util.infer import (
    class_names,
    model_info,
    onnx_engine,
    predictors,
    program_export,
    static_engine,
    trained_model,
)
from util.look.encoder_features import extract_features, norm_of, shapes
from util.look.feature_file import KINDS
from util.options import command_line, training_options
from util.run.checkpoints import in_words
from util.system import distributed, provenance
from util.system.atomic_file import sync_folder
from util.system.console import say
from util.weights import checkpoint, formats

FORMATS = (*program_export.FORMATS, "onnx")
LIMIT = 1e-4                # of the difference between an answer of the model and of what was exported
PARITY_BATCHES = (1, 3, 4)  # of images, one after the other
WRITTEN = {"model.json", "model.pdmodel", "model.pdiparams", static_engine.INFO}


def get_args_parser():
    parser = command_line.Parser("A trained model as a static Paddle program or an ONNX file.")
    parser.add_argument("--resume", default="", metavar="FILE", help="checkpoint: classifier, or any with --encoder")
    training_options.add_trust(parser)
    parser.add_argument("--output", default="", metavar="PATH", help="an .onnx file, or a folder for a Paddle program")
    parser.add_argument("--format", default=None, choices=FORMATS,
                        help="paddle: the program of Paddle 3; paddle2: that of Paddle 2.6, which Paddle 3 reads too; onnx "
                             "(default: onnx for a name that ends in .onnx, else what this Paddle writes of itself)")
    parser.add_argument("--opset", type=int, default=None, metavar="N",
                        help=f"version of ONNX's operators (default: {onnx_engine.OPSET}, the least)")
    parser.add_argument("--dynamic_batch", action="store_true", help="let it take any number of images at once")
    parser.add_argument("--batch_size", type=int, default=None, metavar="N",
                        help="how many images it takes at once, if not any number (default: 1)")
    parser.add_argument("--encoder", action="store_true",
                        help="export the encoder, which gives features of whole pictures")
    parser.add_argument("--features", nargs="+", default=None, choices=KINDS,
                        help="--encoder: mean patch token, class token, all patch tokens (default: mean cls)")
    parser.add_argument("--input_size", type=int, nargs="+", default=None, metavar="PIXELS",
                        help="pixels a side, or height and width (default: the checkpoint's)")
    parser.add_argument("--mean", type=float, nargs="+", default=None, help="one a channel (default: the checkpoint's)")
    parser.add_argument("--std", type=float, nargs="+", default=None, help="one a channel (default: the checkpoint's)")
    parser.add_argument("--class_names", default=None, metavar="FILE",
                        help="names of the classes, one a line or as JSON (default: the checkpoint's, or ImageNet's)")
    parser.add_argument("--temperature", type=float, default=None, metavar="T",
                        help="what the logits are to be divided by before the softmax (default: 1); the program itself "
                             "gives them undivided")
    return parser


def check(args):
    """The format to write; ValueError for what is missing, cannot be, or would be ignored."""
    for flag, what in (("resume", "FILE"), ("output", "PATH")):
        if not getattr(args, flag):
            raise ValueError(f"--{flag} {what} is needed")
    is_onnx_name = Path(args.output).suffix.lower() == ".onnx"
    file_format = args.format or ("onnx" if is_onnx_name else program_export.own_format())
    if (file_format == "onnx") != is_onnx_name:
        raise ValueError(f"--output {args.output}: for --format {file_format} give the name of "
                         f"{'a file that ends in .onnx' if file_format == 'onnx' else 'a folder, not of an .onnx file'}")
    if file_format == "onnx":
        onnx_engine.converter_version()
    else:
        program_export.check_format(file_format)
    if args.opset is not None and file_format != "onnx":
        raise ValueError("--opset is for ONNX; leave it out")
    if args.opset is not None and args.opset < onnx_engine.OPSET:
        raise ValueError(f"--opset must be at least {onnx_engine.OPSET}, got {args.opset}")
    if args.batch_size is not None and args.dynamic_batch:
        raise ValueError("--dynamic_batch takes any number of images; leave --batch_size out")
    if args.batch_size is not None and args.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {args.batch_size}")
    if args.features and not args.encoder:
        raise ValueError("--features is for --encoder; add that or leave it out")
    for name in ("class_names", "temperature"):
        if args.encoder and getattr(args, name) is not None:
            raise ValueError(f"--{name} is for a classifier; with --encoder leave it out")
    if args.temperature is not None and not 0 < args.temperature < float("inf"):
        raise ValueError(f"--temperature must be a number above 0, got {args.temperature}")
    check_target(Path(args.output), file_format, args.resume)
    return file_format


def check_target(output, file_format, resume):
    """ValueError if something stands at `output` that is not an earlier export."""
    if not output.exists():
        return
    if os.path.exists(resume) and output.samefile(resume):
        raise ValueError(f"--output {output}: this is the checkpoint itself; name another place")
    if file_format == "onnx":
        if not output.is_file():
            raise ValueError(f"--output {output}: this is a folder, and an ONNX file is to be written; name a file")
        return
    if not output.is_dir():
        raise ValueError(f"--output {output}: this is a file, and a Paddle program is a folder; name another place")
    foreign = sorted(entry.name for entry in output.iterdir() if entry.name not in WRITTEN)
    if foreign or (any(output.iterdir()) and not (output / static_engine.INFO).is_file()):
        what = f"it holds {', '.join(foreign[:3])}" if foreign else f"it has no {static_engine.INFO}"
        raise ValueError(f"--output {output}: this folder is not an earlier export alone ({what}), and would be replaced; "
                         "name another place")


def open_model(args):
    """(models_vit.VisionTransformer in eval mode, its info) of the checkpoint."""
    state = checkpoint.read(args.resume, trusted=args.trust_checkpoint)
    kind = checkpoint.kind(state["model"])
    if args.encoder:
        model = trained_model.encoder(args.resume, state, models_vit.MODELS, img_size=args.input_size)
        kinds = sorted(set(args.features or ("mean", "cls")), key=KINDS.index)
        about = {"name": trained_model.name_of(model, models_vit.MODELS), "task": "features",
                 "outputs": shapes(model, kinds), "norm": norm_of(model)}
    elif kind in ("mae", "encoder"):
        raise ValueError(f"{args.resume}: this is {checkpoint.KINDS[kind][0]}, which gives no classes; add --encoder to "
                         "export its encoder, which gives features")
    else:
        name, described = trained_model.describe(args.resume, state, models_vit.MODELS, img_size=args.input_size)
        model = trained_model.load(args.resume, state, trained_model.build(name, described, state, models_vit.MODELS))
        names = (class_names.of_checkpoint(state, model.num_classes) if args.class_names is None
                 else class_names.read(args.class_names, model.num_classes))
        about = {"name": name, "task": "classification", "outputs": {"logits": (model.num_classes,)}, "classes": names,
                 "temperature": 1.0 if args.temperature is None else args.temperature}
    normalization = trained_model.normalization(state, model.patch_embed.in_chans, mean=args.mean, std=args.std)
    info = model_info.of_model(model, normalization=normalization,
                               batch=None if args.dynamic_batch else args.batch_size or 1, **about)
    return model, {**info,
                   "source": {"file": Path(args.resume).name, "weights_sha256": formats.checksum(state["model"])},
                   "versions": {"paddlepaddle": paddle.__version__, "git_revision": provenance.git_state()[0]}}


def check_size(output, model, file_format):
    """ValueError if the model is too large for an ONNX file, or for the disk."""
    size = sum(4 * p.size for p in model.parameters())
    if file_format == "onnx" and size >= onnx_engine.LARGEST:
        raise ValueError(f"--format onnx: this model has {in_words(size)} of weights, and an ONNX file at most "
                         f"{in_words(onnx_engine.LARGEST)}; pass --format {program_export.own_format()}, with a folder as "
                         "--output")
    free, needed = shutil.disk_usage(output.parent).free, (3 if file_format == "onnx" else 1) * size
    if needed > free:
        raise ValueError(f"--output {output}: {in_words(free)} are free, and about {in_words(needed)} are needed while it "
                         "is written; make room, or name another place")


def parity_images(info):
    """Batches of normalised images, float32 arrays: noise, and even black, grey and white."""
    _, channels, height, width = info["input"]["shape"]
    mean, std = (np.reshape(info["input"][key], [1, channels, 1, 1]) for key in ("mean", "std"))
    images = np.random.default_rng(0).standard_normal([sum(PARITY_BATCHES), channels, height, width])
    images[1:4] = (np.reshape([0.0, 0.5, 1.0], [3, 1, 1, 1]) - mean) / std
    return np.split(images.astype("float32"), np.cumsum(PARITY_BATCHES)[:-1])


@paddle.no_grad()
def answers_of(model, images, info):
    """{name of output: array} of the model as it was trained."""
    images = paddle.to_tensor(images)
    found = {"logits": model(images)} if info["task"] == "classification" else extract_features(model, images, info["outputs"])
    return {name: value.numpy() for name, value in found.items()}


def compare(predictor, batches, expected):
    """(what `parity` in the info is, a sentence of it) of the answers to `batches` and those that are expected.

    ValueError if one of them differs by more than LIMIT.
    """
    found = [predictor(images) for images in batches]
    parts, largest = [], 0.0
    for name in expected[0]:
        wanted, got = (np.concatenate([answer[name] for answer in answers]) for answers in (expected, found))
        with np.errstate(invalid="ignore"):  # of what is not finite
            difference = float(np.abs(got - wanted).max())
        parts.append(f"{difference:.1e} of {name} up to {np.abs(wanted).max():.2g}")
        largest = max(largest, difference) if difference == difference else difference
    count = sum(map(len, batches))
    sentence = f"largest difference {', '.join(parts)}, {count} images (limit {LIMIT:.0e})"
    if not largest <= LIMIT:
        raise ValueError(f"parity: {sentence}: the exported model does not compute what the model does; nothing was "
                         "written")
    return {"largest_difference": largest, "limit": LIMIT, "images": count}, sentence


class Program:
    """A folder with a Paddle program and its info."""

    def __init__(self, part, model, info, args, file_format):
        self.path, self.aside, self.info = part / "made", part / "earlier", info
        self.path.mkdir()
        program_export.export(model, self.path, batch=info["input"]["shape"][0], features=_kinds(info),
                              file_format=file_format)
        info["files"] = {file.name: static_engine.checksum(file) for file in program_export.files(self.path)}

    def write_info(self):
        model_info.write(self.path / static_engine.INFO, self.info)

    def publish(self, output):
        """Take the name `output`, in place of an earlier export; the names of what has been written."""
        for file in self.path.iterdir():  # the name must not reach the disk before what it stands for
            _sync(file)
        replaces = output.exists()
        if replaces:
            output.rename(self.aside)
        try:
            self.path.rename(output)
        except OSError:
            if replaces:
                self.aside.rename(output)
            raise
        return sorted(output.iterdir())


class OnnxFile:
    """An ONNX file, and its info in a file beside it as well."""

    def __init__(self, part, model, info, args, file_format):
        self.path, self.info = part / "made.onnx", info
        program_export.export(model, part, batch=info["input"]["shape"][0], features=_kinds(info))
        opset = onnx_engine.convert(*program_export.files(part), self.path, outputs=list(info["outputs"]),
                                   opset=args.opset or onnx_engine.OPSET)
        info["versions"] |= {"paddle2onnx": onnx_engine.converter_version(), "opset": opset}

    def write_info(self):
        onnx_engine.write_info(self.path, json.dumps(self.info, ensure_ascii=False))
        model_info.write(_beside(self.path), self.info)

    def publish(self, output):
        for source, target in ((self.path, output), (_beside(self.path), _beside(output))):
            _sync(source)
            os.replace(source, target)
        return [output, _beside(output)]


def _kinds(info):
    return tuple(info["outputs"]) if info["task"] == "features" else ()


def _beside(path):
    return path.with_name(f"{path.name}.json")


def _sync(path):
    with open(path, "rb") as f:
        os.fsync(f.fileno())


@contextlib.contextmanager
def temporary_folder(output):
    """A folder beside `output` that is gone afterwards."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".part", dir=output.parent))
    except OSError as error:
        raise ValueError(f"--output {output}: nothing can be written there ({error.strerror})") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def main(args):
    file_format = check(args)
    distributed.init("cpu")  # the program is the same for every device; a GPU would compare with less precision
    model, info = open_model(args)
    output = Path(args.output).resolve()  # a link stays one
    with temporary_folder(output) as part:
        check_size(output, model, file_format)
        batches = parity_images(info)
        expected = [answers_of(model, images, info) for images in batches]
        made = (OnnxFile if file_format == "onnx" else Program)(part, model, info, args, file_format)
        made.write_info()
        predictor, _ = predictors.open_model(made.path, None, device="cpu", amp="off")  # as main_infer.py does
        info["parity"], sentence = compare(predictor, batches, expected)
        made.write_info()
        written = made.publish(output)
        sync_folder(output.parent)
    say(f"parity: {sentence}")
    tell(args, info, written)


def tell(args, info, written):
    """What was written, what it takes and gives, and how to use it."""
    files = ", ".join(f"{path.name} ({in_words(path.stat().st_size)})" for path in written)
    say(f"wrote {args.output}: {files}")
    described = ["x".join(str(side or "N") for side in shape) for shape in (info["input"]["shape"],
                                                                          *info["outputs"].values())]
    say(f"  images float32 {described[0]} -> "
        f"{', '.join(f'{name} {shape}' for name, shape in zip(info['outputs'], described[1:], strict=True))}")
    features = f" --features {' '.join(info['outputs'])} --save_to features.npz" if info["task"] == "features" else ""
    say(f"  python main_infer.py --resume {shlex.quote(args.output)} --img_path PICTURES{features}")


if __name__ == "__main__":
    command_line.run(main, get_args_parser())
