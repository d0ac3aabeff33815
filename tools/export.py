"""Export a trained model as a static Paddle program or an ONNX file, which run without the model's code.

    python tools/export.py --resume output_dir/checkpoint-best.pd --output classifier.onnx --dynamic_batch
    python tools/export.py --resume output_dir/checkpoint-best.pd --output classifier_paddle --dynamic_batch
    python tools/export.py --resume output_dir/checkpoint-latest.pd --output encoder.onnx --encoder

The exported model takes normalised float32 images [N, channels, height, width]. Its model info describes the
preprocessing, see util/infer/model_info.py. Before it is written, its outputs are compared with those of the
model.
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
from util.infer import model_info, onnx_engine, program_export, static_engine, trained_model
from util.infer.class_names import read_class_names
from util.infer.engine import Engine, choose_engine
from util.infer.model_spec import checkpoint_spec, read_model_spec
from util.infer.paddle_engine import describe_model
from util.infer.predictors import open_predictor
from util.look.encoder_features import extract_features
from util.look.feature_file import KINDS
from util.options import command_line, flags
from util.run.checkpoints import in_words
from util.system import distributed, provenance
from util.system.atomic_file import sync_folder
from util.system.console import say
from util.weights import checkpoint, formats

FORMATS = (*program_export.FORMATS, "onnx")
LIMIT = 1e-4  # largest allowed difference between outputs of the model and of the exported model
PARITY_BATCHES = (1, 3, 4)  # numbers of images
EXPORTED_FILES = {"model.json", "model.pdmodel", "model.pdiparams", static_engine.INFO}


def get_args_parser():
    parser = command_line.Parser("Export a trained model as a static Paddle program or an ONNX file.")
    parser.add_argument(
        "--resume",
        default="",
        metavar="FILE",
        help="checkpoint of a classifier; with --encoder, of any model",
    )
    flags.add_trust(parser)
    parser.add_argument(
        "--output", default="", metavar="PATH", help="an .onnx file, or a folder for a Paddle program"
    )
    parser.add_argument(
        "--format",
        default=None,
        choices=FORMATS,
        help="paddle: program of Paddle 3; paddle2: program of Paddle 2.6, which Paddle 3 "
        "reads too; onnx (default: onnx if --output ends in .onnx, else the format of "
        "the installed Paddle)",
    )
    parser.add_argument(
        "--opset",
        type=int,
        default=None,
        metavar="N",
        help=f"version of ONNX's operators (default: {onnx_engine.OPSET}, the lowest allowed)",
    )
    parser.add_argument("--dynamic_batch", action="store_true", help="accept any number of images at once")
    parser.add_argument(
        "--batch_size",
        type=int,
        default=None,
        metavar="N",
        help="number of images at once, without --dynamic_batch (default: 1)",
    )
    parser.add_argument(
        "--encoder", action="store_true", help="export the encoder, which computes features of whole pictures"
    )
    parser.add_argument(
        "--features",
        nargs="+",
        default=None,
        choices=KINDS,
        help="--encoder: mean patch token, class token, all patch tokens (default: mean cls)",
    )
    flags.add_input_override(parser)
    parser.add_argument(
        "--class_names",
        default=None,
        metavar="FILE",
        help="class names, one per line or as JSON (default: the checkpoint's, or ImageNet's)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=None,
        metavar="T",
        help="divisor of the logits before the softmax, stored in the model info (default: "
        "1); the program itself returns the undivided logits",
    )
    return parser


def check(args):
    """Return the format to write. Raises ValueError for missing, invalid or ignored values."""
    for flag, what in (("resume", "FILE"), ("output", "PATH")):
        if not getattr(args, flag):
            raise ValueError(f"--{flag} {what} is needed")
    is_onnx_name = Path(args.output).suffix.lower() == ".onnx"
    file_format = args.format or ("onnx" if is_onnx_name else program_export.own_format())
    if (file_format == "onnx") != is_onnx_name:
        raise ValueError(
            f"--output {args.output}: does not fit --format {file_format}; name "
            + ("a file that ends in .onnx" if file_format == "onnx" else "a folder, not an .onnx file")
        )
    if file_format == "onnx":
        onnx_engine.converter_version()
    else:
        program_export.check_format(file_format)
    if args.opset is not None and file_format != "onnx":
        raise ValueError("--opset: is for --format onnx; remove it")
    if args.opset is not None and args.opset < onnx_engine.OPSET:
        raise ValueError(f"--opset must be at least {onnx_engine.OPSET}, got {args.opset}")
    if args.batch_size is not None and args.dynamic_batch:
        raise ValueError("--batch_size: has no meaning with --dynamic_batch; remove one of them")
    if args.batch_size is not None and args.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {args.batch_size}")
    if args.features and not args.encoder:
        raise ValueError("--features: needs --encoder; add it, or remove --features")
    for name in ("class_names", "temperature"):
        if args.encoder and getattr(args, name) is not None:
            raise ValueError(f"--{name}: is for a classifier; remove it, or remove --encoder")
    if args.temperature is not None and not 0 < args.temperature < float("inf"):
        raise ValueError(f"--temperature must be a number above 0, got {args.temperature}")
    check_target(Path(args.output), file_format, args.resume)
    return file_format


def check_target(output, file_format, resume):
    """Raise ValueError if `output` exists and is not an earlier export."""
    if not output.exists():
        return
    if os.path.exists(resume) and output.samefile(resume):
        raise ValueError(f"--output {output}: is the checkpoint itself; name another path")
    if file_format == "onnx":
        if not output.is_file():
            raise ValueError(f"--output {output}: is a folder; name a file for --format onnx")
        return
    if not output.is_dir():
        raise ValueError(f"--output {output}: is a file; name a folder for a Paddle program")
    foreign = sorted(entry.name for entry in output.iterdir() if entry.name not in EXPORTED_FILES)
    if foreign or (any(output.iterdir()) and not (output / static_engine.INFO).is_file()):
        what = f"it holds {', '.join(foreign[:3])}" if foreign else f"it has no {static_engine.INFO}"
        raise ValueError(
            f"--output {output}: the folder would be replaced, and is not just an earlier "
            f"export ({what}); name another folder"
        )


def read_exportable(path, overrides, features, trusted):
    """Read the spec of a checkpoint. Raises ValueError if it has no classes and no features are asked for."""
    state = checkpoint.read_checkpoint(path, trusted=trusted)
    role = checkpoint.role(state["model"])
    if features is None and role in ("mae", "encoder"):
        raise ValueError(
            f"--resume {path}: this is {checkpoint.ROLES[role].description}, which gives no "
            "classes; add --encoder to export features"
        )
    return checkpoint_spec(path, state, models_vit.MODELS, overrides, features=features)


def describe_export(spec, model, *, batch, temperature=None, names=None):
    """Return the model info of the exported model.

    Args:
        batch: number of images at once, None for any.
        temperature, names: replace those of the checkpoint; `names` is a file of class names.
    """
    info = model_info.for_batch(describe_model(spec, model), batch)
    info |= {
        "source": {"file": Path(spec.path).name, "weights_sha256": formats.checksum(spec.state["model"])},
        "versions": {"paddlepaddle": paddle.__version__, "git_revision": provenance.git_state()[0]},
    }
    if temperature is not None:
        info["temperature"] = temperature
    if names is not None:
        info["classes"] = read_class_names(names, model.num_classes)
    return info


def check_size(output, model, file_format):
    """Raise ValueError if the model is too large for an ONNX file, or for the disk."""
    size = sum(4 * p.size for p in model.parameters())
    if file_format == "onnx" and size >= onnx_engine.LARGEST:
        raise ValueError(
            f"--format onnx: the weights have {in_words(size)}, and an ONNX file at most "
            f"{in_words(onnx_engine.LARGEST)}; pass --format {program_export.own_format()} and "
            "a folder as --output"
        )
    free, needed = shutil.disk_usage(output.parent).free, (3 if file_format == "onnx" else 1) * size
    if needed > free:
        raise ValueError(
            f"--output {output}: {in_words(free)} are free, and about {in_words(needed)} are "
            "needed during the export; make room, or name another path"
        )


def parity_images(info):
    """Return batches of normalised images, float32 arrays: noise, and uniform black, grey and white."""
    _, channels, height, width = info["input"]["shape"]
    mean, std = (np.reshape(info["input"][key], [1, channels, 1, 1]) for key in ("mean", "std"))
    images = np.random.default_rng(0).standard_normal([sum(PARITY_BATCHES), channels, height, width])
    images[1:4] = (np.reshape([0.0, 0.5, 1.0], [3, 1, 1, 1]) - mean) / std
    return np.split(images.astype("float32"), np.cumsum(PARITY_BATCHES)[:-1])


@paddle.no_grad()
def answers_of(model, images, info):
    """Compute {output name: array} by the model as it was trained."""
    images = paddle.to_tensor(images)
    found = (
        extract_features(model, images, info["outputs"])
        if info["task"] == "features"
        else {"logits": model(images)}
    )
    return {name: value.numpy() for name, value in found.items()}


def compare(predictor, batches, expected):
    """Compare the outputs for `batches` with the expected ones.

    Returns ("parity" of the model info, the same as a sentence). Raises ValueError if a difference exceeds
    LIMIT.
    """
    found = [predictor(images) for images in batches]
    parts, largest = [], 0.0
    for name in expected[0]:
        wanted, got = (np.concatenate([answer[name] for answer in answers]) for answers in (expected, found))
        with np.errstate(invalid="ignore"):  # NaN and Inf
            difference = float(np.abs(got - wanted).max())
        parts.append(f"{difference:.1e} of {name} up to {np.abs(wanted).max():.2g}")
        largest = max(largest, difference) if difference == difference else difference
    count = sum(map(len, batches))
    sentence = f"largest difference {', '.join(parts)}, {count} images (limit {LIMIT:.0e})"
    if not largest <= LIMIT:
        raise ValueError(
            f"parity: {sentence}: the exported model does not compute the same as the model; "
            "nothing was written"
        )
    return {"largest_difference": largest, "limit": LIMIT, "images": count}, sentence


class ProgramWriter:
    """Writer of a folder with a Paddle program and its model info."""

    def __init__(self, part, model, info, file_format):
        self.path, self.replaced, self.info = part / "made", part / "earlier", info
        self.path.mkdir()
        program_export.export(
            model, self.path, batch=info["input"]["shape"][0], features=_kinds(info), file_format=file_format
        )
        info["files"] = {file.name: static_engine.sha256_of(file) for file in program_export.files(self.path)}

    def write_info(self):
        """Write the model info beside the program."""
        model_info.write_info(self.path / static_engine.INFO, self.info)

    def publish(self, output):
        """Rename the folder to `output`, which replaces an earlier export, and return its files."""
        for file in self.path.iterdir():  # the content must reach the disk before the name
            _sync(file)
        replaces = output.exists()
        if replaces:
            output.rename(self.replaced)
        try:
            self.path.rename(output)
        except OSError:
            if replaces:
                self.replaced.rename(output)
            raise
        return sorted(output.iterdir())


class OnnxWriter:
    """Writer of an ONNX file with its model info, and of a JSON file beside it with the same info."""

    def __init__(self, part, model, info, opset=None):
        self.path, self.info = part / "made.onnx", info
        program_export.export(model, part, batch=info["input"]["shape"][0], features=_kinds(info))
        opset = onnx_engine.convert(
            *program_export.files(part),
            self.path,
            outputs=list(info["outputs"]),
            opset=opset or onnx_engine.OPSET,
        )
        info["versions"] |= {"paddle2onnx": onnx_engine.converter_version(), "opset": opset}

    def write_info(self):
        """Write the model info into the ONNX file, and beside it."""
        onnx_engine.write_metadata(self.path, json.dumps(self.info, ensure_ascii=False))
        model_info.write_info(_beside(self.path), self.info)

    def publish(self, output):
        """Rename the files to `output` and <output>.json, and return both."""
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
    """Make a folder beside `output`, and remove it afterwards."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".part", dir=output.parent))
    except OSError as error:
        raise ValueError(f"--output {output}: cannot be written ({error.strerror})") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def main(args):
    file_format = check(args)
    # Programs are the same for every device, and a GPU would compare with less precision.
    distributed.init("cpu")
    kinds = sorted(set(args.features or ()), key=KINDS.index) if args.encoder else None
    spec = read_exportable(
        args.resume,
        {"img_size": args.input_size, "mean": args.mean, "std": args.std},
        kinds,
        args.trust_checkpoint,
    )
    model = trained_model.load_model(spec)
    info = describe_export(
        spec,
        model,
        batch=None if args.dynamic_batch else args.batch_size or 1,
        temperature=args.temperature,
        names=args.class_names,
    )
    output = Path(args.output).resolve()  # a link stays a link
    with temporary_folder(output) as part:
        check_size(output, model, file_format)
        batches = parity_images(info)
        expected = [answers_of(model, images, info) for images in batches]
        writer = (
            OnnxWriter(part, model, info, args.opset)
            if file_format == "onnx"
            else ProgramWriter(part, model, info, file_format)
        )
        writer.write_info()
        predictor = open_predictor(
            read_model_spec(writer.path, {}),  # as main_infer.py does
            Engine(choose_engine(writer.path), "cpu", "off"),
        )
        info["parity"], sentence = compare(predictor, batches, expected)
        writer.write_info()
        written = writer.publish(output)
        sync_folder(output.parent)
    say(f"parity: {sentence}")
    report(args.output, info, written)


def report(output, info, written):
    """Print which files were written, their input and outputs, and how to use them."""
    files = ", ".join(f"{path.name} ({in_words(path.stat().st_size)})" for path in written)
    say(f"wrote {output}: {files}")
    described = [
        "x".join(str(side or "N") for side in shape)
        for shape in (info["input"]["shape"], *info["outputs"].values())
    ]
    say(
        f"  images float32 {described[0]} -> "
        f"{', '.join(f'{name} {shape}' for name, shape in zip(info['outputs'], described[1:], strict=True))}"
    )
    more = f" --features {' '.join(info['outputs'])} --save_to features.npz" if _kinds(info) else ""
    say(f"  python main_infer.py --resume {shlex.quote(output)} --img_path PICTURES{more}")


if __name__ == "__main__":
    command_line.run(main, get_args_parser())
