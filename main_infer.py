"""Classify pictures with a trained model, extract their features, or reconstruct them with an autoencoder.

    python main_infer.py --resume output_dir/checkpoint-best.pd --img_path data/photos/chelsea.jpg
    python main_infer.py --model vit_base_patch16 --resume outputs/finetune_vit-b_v2/checkpoint-best.pd \
        --img_path demo/ILSVRC2012_val_00009508.JPEG
    python main_infer.py --resume output_dir/checkpoint-best.pd --img_path photos x.png --save_to answers.csv
    find . -name '*.jpg' | python main_infer.py --resume classifier.onnx --img_path - --output jsonl
    python main_infer.py --resume output_dir/checkpoint-latest.pd --img_path chelsea.jpg --output_dir .

    from main_infer import Classifier
    Classifier("output_dir/checkpoint-best.pd")("data/photos/chelsea.jpg")

Paddle is imported for a checkpoint or a Paddle program only: an ONNX file needs none.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from util.data.masking import Mask
from util.data.picture_paths import Pictures
from util.infer import answers, picture_answers
from util.infer.classifier import TTA, ImageClassifier
from util.infer.engine import ENGINES, Engine, choose_engine
from util.infer.model_spec import Models, is_exported, read_model_spec
from util.infer.predictors import open_predictor
from util.look import feature_file
from util.options import command_line, flags, settings

MANY_BATCHES = 16  # number of batches from which prepacking the weights pays off

# Flags that apply only to some kinds of answer.
FLAGS = {
    "classes": (
        "topk",
        "output",
        "class_names",
        "temperature",
        "tta",
        "save_to",
        "trt",
        "nb_classes",
        "global_pool",
    ),
    "features": ("features", "save_to", "trt", "global_pool"),
    "reconstructions": ("mask_ratio", "mask_mode", "norm_pix_loss", "seed", "output_dir", "show_channels"),
}


def get_args_parser():
    parser = command_line.Parser("Classify pictures, extract their features, or reconstruct them.")
    parser.add_argument(
        "--resume",
        default="",
        metavar="FILE",
        help="checkpoint, or an exported model: an .onnx file, or the folder of a Paddle program",
    )
    flags.add_trust(parser)
    parser.add_argument(
        "--img_path",
        nargs="+",
        default=[],
        metavar="PATH",
        help="pictures; folders, searched at any depth in sorted order; patterns such as "
        "'photos/*.jpg'; lists of names (.txt); - for a list on standard input",
    )
    parser.add_argument(
        "--batch_size", type=int, default=8, help="pictures computed at once; it does not change the answers"
    )
    parser.add_argument(
        "--engine",
        default=None,
        choices=ENGINES,
        help="paddle: the model as it was trained; inference: Paddle Inference runs a static "
        "program, exported or kept beside a classifier's checkpoint; onnxruntime: runs "
        "an .onnx file (default: the one that fits --resume)",
    )
    parser.add_argument(
        "--trt", action="store_true", default=None, help="run --engine inference by TensorRT, on a GPU"
    )
    parser.add_argument(
        "--save_to",
        default="",
        metavar="FILE",
        help="file for the answers, which are printed otherwise; an .npz file for --features",
    )
    flags.add_device(parser)
    flags.add_model_description(parser)
    group = parser.add_argument_group("classes")
    group.add_argument(
        "--topk", type=int, default=None, metavar="K", help="number of classes in an answer (default: 5)"
    )
    group.add_argument(
        "--output",
        default=None,
        choices=list(answers.FORMATS),
        help="format of the answers (default: by the suffix of --save_to, else text)",
    )
    group.add_argument(
        "--class_names",
        default=None,
        metavar="FILE",
        help="class names in the order of the labels, one per line or as JSON (default: the "
        "checkpoint's, or ImageNet's for 1000 classes)",
    )
    group.add_argument(
        "--temperature",
        type=float,
        default=None,
        metavar="T",
        help="divide the logits by T; above 1 lowers the top probabilities (default: that of "
        "an exported model, else 1)",
    )
    group.add_argument(
        "--tta",
        default=None,
        choices=TTA,
        help="flip: average the probabilities of a picture and of its mirror image",
    )
    group = parser.add_argument_group("features")
    group.add_argument(
        "--features",
        nargs="*",
        default=None,
        choices=feature_file.KINDS,
        help="write these features to the .npz file --save_to instead of classes (without a "
        "value: mean and cls)",
    )
    group = parser.add_argument_group("reconstruction")
    group.add_argument(
        "--mask_ratio", type=float, default=None, help="share of hidden patches (default: 0.75)"
    )
    flags.add_mask_mode(group, default=None)
    group.add_argument(
        "--norm_pix_loss",
        action="store_true",
        default=None,
        help="the weights predict normalised patches (checkpoints of this project store this)",
    )
    group.add_argument("--seed", type=int, default=None, help="seed of the masks (default: 0)")
    flags.add_show_channels(group)
    group.add_argument(
        "--output_dir", default=None, help="folder of <picture>_reconstruction.png (default: the current one)"
    )
    return parser


class Classifier(ImageClassifier):
    """Finetuned checkpoint or exported classifier: Classifier("checkpoint-best.pd")("x.JPEG").

    Call it with a picture (a path, bytes, a PIL image, a uint8 array) for [(class name, probability), ...],
    best first, or with a list of pictures for a list of those. Several threads may use it at once.

    Args:
        path: as --resume.
        engine, device, amp, trust_checkpoint, input_size, mean, std: as the flags.
        options: topk, batch_size, temperature, tta and class_names, see
            util.infer.classifier.ImageClassifier.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        engine: str | None = None,
        device: str = "auto",
        amp: str = "auto",
        trust_checkpoint: bool = False,
        input_size: Sequence[int] | int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        engine = choose_engine(path, engine)
        spec = read_model_spec(
            path,
            load_models(engine),
            {"img_size": input_size, "mean": mean, "std": std},
            trusted=trust_checkpoint,
        )
        super().__init__(open_predictor(spec, Engine(engine, device, amp)), **options)


def load_models(engine: str) -> Models:
    """Return the table of all models; an empty one for ONNX Runtime, which needs no Paddle."""
    if engine == "onnxruntime":
        return {}
    from util.compute import cpu_runtime

    try:
        cpu_runtime.prepare()  # before anything else imports Paddle
        import models_mae
        import models_vit
    except ModuleNotFoundError as error:
        if error.name != "paddle":
            raise
        raise ValueError(
            "a checkpoint or a Paddle program needs Paddle: pip install -r requirements.txt, or "
            "export the model to ONNX on a machine that has it (tools/export.py)"
        ) from error
    return {**models_vit.MODELS, **models_mae.MODELS}


def check(args):
    """Raise ValueError for missing or invalid values."""
    for flag, what in (("resume", "FILE"), ("img_path", "PATH")):
        if not getattr(args, flag):
            raise ValueError(f"--{flag} {what} is needed")
    if args.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {args.batch_size}")
    if args.trust_checkpoint and is_exported(args.resume):
        raise ValueError("--trust_checkpoint: an exported model contains no code; remove the flag")
    if args.features is not None and Path(args.save_to).suffix != ".npz":
        raise ValueError(f"--features: needs --save_to FILE.npz, got {args.save_to!r}")


def check_flags(args, kind):
    """Raise ValueError if a given flag does not apply to this kind of answer."""
    for flag in sorted({flag for names in FLAGS.values() for flag in names} - {*FLAGS[kind]}):
        if getattr(args, flag) not in (None, ""):
            kinds = " and ".join(kind for kind, names in FLAGS.items() if flag in names)
            raise ValueError(f"--{flag}: is for {kinds}, but the answers are {kind}; remove the flag")


def open_pictures(args) -> Pictures:
    """List the pictures of --img_path."""
    pictures = Pictures(args.img_path)
    if pictures.alone and not Path(pictures[0]).is_file() and form_of(args) == "text":
        raise ValueError(f"--img_path {pictures[0]}: there is no such file")
    if args.save_to:
        picture_answers.check_target(
            args.save_to,
            features=args.features is not None,
            reads=[args.resume, args.class_names or args.resume, *args.img_path, *pictures],
        )  # type: ignore[misc]
    return pictures


def form_of(args) -> str:
    """Return the key of answers.FORMATS that --output or --save_to names."""
    return args.output or answers.SUFFIXES.get(Path(args.save_to).suffix.lower(), "text")


def open_autoencoder(args, spec) -> picture_answers.Reconstructor:
    """Load the autoencoder of a checkpoint, with the masks of its inputs."""
    from util.compute import amp
    from util.infer import trained_model
    from util.system import distributed

    autocast = amp.autocast(amp.resolve(args.amp, distributed.init(args.device)))
    model = trained_model.load_model(spec)
    mask = Mask(
        args.mask_mode or "random",
        model.patch_embed.grid_size,
        0.75 if args.mask_ratio is None else args.mask_ratio,
    )
    return picture_answers.Reconstructor(
        spec, model, autocast, mask, args.seed or 0, settings.channels_shown(args, model.patch_embed.in_chans)
    )


def main(args):
    check(args)
    engine = choose_engine(args.resume, args.engine)
    pictures = open_pictures(args)
    models = load_models(engine)
    command_line.renew_signal_handlers()
    spec = read_model_spec(
        args.resume,
        models,
        {
            **settings.model_description(args),
            "norm_pix_loss": args.norm_pix_loss,
            "mean": args.mean,
            "std": args.std,
        },
        features=args.features,
        trusted=args.trust_checkpoint,
    )
    kind = (
        "features" if args.features is not None else "reconstructions" if spec.is_autoencoder else "classes"
    )
    check_flags(args, kind)
    if kind == "reconstructions":
        if engine == "inference":
            raise ValueError(
                "--engine inference: runs only classifiers, but this model is an autoencoder; "
                "use --engine paddle"
            )
        return finish(
            pictures,
            picture_answers.write_reconstructions(
                pictures, open_autoencoder(args, spec), args.output_dir or ".", batch_size=args.batch_size
            ),
        )
    predictor = open_predictor(
        spec,
        Engine(
            engine,
            args.device,
            args.amp,
            args.batch_size,
            bool(args.trt),
            prepack=kind == "features" or -(-len(pictures) // args.batch_size) >= MANY_BATCHES,
        ),
    )
    if kind == "features":
        return finish(
            pictures,
            picture_answers.write_features(
                pictures,
                predictor,
                args.save_to,
                checkpoint=args.resume,
                kinds=args.features,
                batch_size=args.batch_size,
            ),
        )
    classifier = ImageClassifier(
        predictor,
        topk=5 if args.topk is None else args.topk,
        batch_size=args.batch_size,
        temperature=args.temperature,
        tta=args.tta,
        class_names=args.class_names,
    )
    return finish(
        pictures, picture_answers.write_classes(pictures, classifier, form=form_of(args), target=args.save_to)
    )


def finish(pictures, unreadable):
    """Exit with code 1 if pictures could not be read."""
    if unreadable:
        picture_answers.report(f"main_infer.py: {unreadable} of {len(pictures)} pictures could not be read")
        sys.exit(1)


if __name__ == "__main__":
    command_line.run(main, get_args_parser(), cleans_up=True)
