"""Ask a trained model about pictures: the top-5 classes of a classifier, features, or what an autoencoder reconstructs.

    python main_infer.py --resume output_dir/checkpoint-best.pd --img_path data/photos/chelsea.jpg
    python main_infer.py --model vit_base_patch16 --resume outputs/finetune_vit-b_v2/checkpoint-best.pd \
        --img_path demo/ILSVRC2012_val_00009508.JPEG
    python main_infer.py --resume output_dir/checkpoint-best.pd --img_path photos more/x.png --save_to answers.csv
    find . -name '*.jpg' | python main_infer.py --resume classifier.onnx --img_path - --output jsonl
    python main_infer.py --resume output_dir/checkpoint-latest.pd --img_path data/photos/chelsea.jpg --output_dir .

    from main_infer import Classifier
    Classifier("output_dir/checkpoint-best.pd")("data/photos/chelsea.jpg")

Paddle is imported once a checkpoint or a Paddle program is to be run: an ONNX file needs none.
"""
import contextlib
import io
import os
import sys
from pathlib import Path

import numpy as np

from util.data import masking
from util.data.picture_paths import Batches, Pictures, answered
from util.images import decode
from util.images.preprocess import Preprocess
from util.infer import answers, classifier, predictors
from util.look import feature_file
from util.options import command_line, training_options
from util.system import console
from util.system.atomic_file import atomic_write

MANY_BATCHES = 16  # from here on it pays to prepare the weights for them

# Which flags each kind of answer has that not all have.
FLAGS = {"classes": ("topk", "output", "class_names", "temperature", "tta", "save_to", "trt", "nb_classes",
                     "global_pool"),
         "features": ("features", "save_to", "trt", "global_pool"),
         "reconstructions": ("mask_ratio", "mask_mode", "norm_pix_loss", "seed", "output_dir", "show_channels")}


def get_args_parser():
    parser = command_line.Parser("Classes of pictures, their features, or their reconstruction by a masked autoencoder.")
    parser.add_argument("--resume", default="", metavar="FILE",
                        help="checkpoint, or of tools/export.py an .onnx file or the folder of a Paddle program")
    training_options.add_trust(parser)
    parser.add_argument("--img_path", nargs="+", default=[], metavar="PATH",
                        help="pictures; folders, whose pictures, at any depth, are taken in sorted order; patterns "
                             "such as 'photos/*.jpg'; lists of names (.txt); - for such a list on standard input")
    parser.add_argument("--batch_size", type=int, default=8, help="pictures at once; the answers do not depend on it")
    parser.add_argument("--engine", default=None, choices=predictors.ENGINES,
                        help="paddle: the model as it was trained; inference: Paddle Inference runs a static program, "
                             "of tools/export.py, or for a classifier's checkpoint one that is kept beside it; "
                             "onnxruntime: for an .onnx file (default: by what --resume is)")
    parser.add_argument("--trt", action="store_true", default=None, help="--engine inference on a GPU: with TensorRT")
    parser.add_argument("--save_to", default="", metavar="FILE",
                        help="write the answers, or an .npz of --features, there instead of printing them")
    training_options.add_device(parser)
    training_options.add_described(parser)
    group = parser.add_argument_group("classes")
    group.add_argument("--topk", type=int, default=None, metavar="K", help="how many classes to name (default: 5)")
    group.add_argument("--output", default=None, choices=list(answers.FORMATS),
                       help="form of the answers (default: by the suffix of --save_to, else text)")
    group.add_argument("--class_names", default=None, metavar="FILE",
                       help="names in the order of the labels, one a line or as JSON (default: the checkpoint's, "
                            "ImageNet's for 1000 classes)")
    group.add_argument("--temperature", type=float, default=None, metavar="T",
                       help="divide the logits by T: above 1 less certain, below 1 more (default: an exported model's "
                            "own, else 1)")
    group.add_argument("--tta", default=None, choices=classifier.TTA,
                       help="flip: mean of the probabilities of a picture and of its mirror image")
    group = parser.add_argument_group("features")
    group.add_argument("--features", nargs="*", default=None, choices=feature_file.KINDS,
                       help="write these features into the .npz file --save_to instead of naming classes (without a "
                            "word: mean and cls)")
    group = parser.add_argument_group("reconstruction")
    group.add_argument("--mask_ratio", type=float, default=None,
                       help="part of the patches that is hidden (default: 0.75)")
    training_options.add_mask_mode(group, default=None)
    group.add_argument("--norm_pix_loss", action="store_true", default=None,
                       help="the weights predict normalised patches (a checkpoint of this project says so itself)")
    group.add_argument("--seed", type=int, default=None, help="of the masks (default: 0)")
    training_options.add_show_channels(group)
    group.add_argument("--output_dir", default=None,
                       help="where <picture>_reconstruction.png goes (default: the current folder)")
    return parser


class Classifier(classifier.Classifier):
    """A finetuned checkpoint or an exported classifier: Classifier("checkpoint-best.pd")("x.JPEG").

    Call it with a picture (a path, bytes, a PIL image, a uint8 array) for [(class name, probability), ...], best first,
    or with a list of pictures for a list of those. Several threads may use it at once.

    Args:
        path: as --resume.
        engine, device, amp, trust_checkpoint, input_size: as the flags.
        options: topk, batch_size, temperature, tta, class_names, mean and std, see util.infer.classifier.Classifier.
    """

    def __init__(self, path, *, engine=None, device="auto", amp="auto", trust_checkpoint=False, input_size=None,
                 **options):
        engine = predictors.engine_of(path, engine)
        super().__init__(*predictors.open_model(
            path, load_models(engine)[0], engine=engine, device=device, amp=amp, trusted=trust_checkpoint,
            img_size=input_size, mean=options.get("mean"), std=options.get("std")), **options)


def load_models(engine):
    """Two tables of models, of classifiers and of autoencoders; ({}, {}) where ONNX Runtime does without Paddle."""
    if engine == "onnxruntime":
        return {}, {}
    from util.compute import cpu_runtime
    try:
        cpu_runtime.prepare()  # before anything else imports Paddle
        import models_mae
        import models_vit
    except ModuleNotFoundError as error:
        if error.name != "paddle":
            raise
        raise ValueError("a checkpoint or a Paddle program needs Paddle, which is not installed: pip install -r "
                         "requirements.txt; or export the model to ONNX where it is (tools/export.py)") from error
    return models_vit.MODELS, models_mae.MODELS


def check(args):
    """ValueError for what is missing or cannot be."""
    for flag, what in (("resume", "FILE"), ("img_path", "PATH")):
        if not getattr(args, flag):
            raise ValueError(f"--{flag} {what} is needed")
    if args.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {args.batch_size}")
    if args.trust_checkpoint and predictors.is_exported(args.resume):
        raise ValueError("--trust_checkpoint is about checkpoints; an exported model brings no code: leave it out")
    if args.features is not None and Path(args.save_to).suffix != ".npz":
        raise ValueError(f"--features: --save_to FILE.npz is needed, got {args.save_to!r}")


def check_flags(args, wanted):
    """ValueError if a flag was given that answers of the kind `wanted` do not have."""
    for flag in sorted({flag for flags in FLAGS.values() for flag in flags} - {*FLAGS[wanted]}):
        if getattr(args, flag) not in (None, ""):
            kinds = " and ".join(kind for kind, flags in FLAGS.items() if flag in flags)
            raise ValueError(f"--{flag} is about {kinds}; this gives {wanted}: leave it out")


def open_pictures(args):
    pictures = Pictures(args.img_path)
    if pictures.alone and not Path(pictures[0]).is_file() and form_of(args) == "text":
        raise ValueError(f"--img_path {pictures[0]}: there is no such file")
    if args.save_to:
        check_target(args, pictures)
    return pictures


def check_target(args, pictures):
    """ValueError if the answers cannot be written to --save_to, or would overwrite what is read."""
    target = Path(args.save_to)
    resolved = Path(os.path.realpath(target))
    own = {os.path.realpath(path) for path in [args.resume, args.class_names or args.resume, *args.img_path, *pictures]}
    if str(resolved) in own or os.path.realpath(args.resume) == str(resolved.parent):
        raise ValueError(f"--save_to {target}: is one of the files that are read; name another")
    if target.is_dir() or not resolved.parent.is_dir():
        raise ValueError(f"--save_to {target}: expected the name of a file in a folder that exists")
    if args.features is not None and target.exists() and not target.is_file():
        raise ValueError(f"--save_to {target}: features need a file; this is a device or a pipe")
    if args.features is None and target.suffix.lower() == ".npz":
        raise ValueError(f"--save_to {target}: .npz files hold --features; name a .txt, .csv, .json or .jsonl file")


def form_of(args):
    """Of answers.FORMATS, the one that --output or the name of the file says."""
    return args.output or answers.SUFFIXES.get(Path(args.save_to).suffix.lower(), "text")


def answers_of(args, pictures, preprocess, compute):
    """util.data.picture_paths.answered for the options, behind a progress bar unless answers go to the same terminal."""
    batches = Batches(pictures, preprocess, batch_size=args.batch_size)
    if args.save_to or not sys.stdout.isatty():
        batches = console.track(batches, "pictures", complain, bar=sys.stderr.isatty())
    return answered(batches, compute)


def complain(line):
    print(line, file=sys.stderr, flush=True)


def write_all(pictures, found, write, unreadable=lambda name, reason: None, *, alone):
    """Call write(place, answer) for each of `answers_of`; name the pictures that cannot be read, and count them.

    Args:
        unreadable: is told their names and reasons, too.
        alone: whether the picture is the only one, and such a one therefore an error.
    """
    count = 0
    for place, answer in found:
        if not isinstance(answer, decode.UnreadableImage):
            write(place, answer)
        elif alone:
            raise answer
        else:
            count += 1
            unreadable(pictures[place], answer.reason)
            complain(f"main_infer.py: error: {answer}")
    return count


def write_classes(args, pictures, model):
    """Classes as --output says, printed or in --save_to; returns how many pictures could not be read."""
    form = form_of(args)

    def compute(places, images):
        probabilities = model.probabilities(images)
        return [[(int(label), model.names[label], float(row[label])) for label in labels]
                for row, labels in zip(probabilities, model.labels(probabilities), strict=True)]

    with _opened(args.save_to) as stream:
        alone = pictures.alone and form == "text"  # other forms have an entry for each picture
        written = answers.Text(stream, alone=alone) if form == "text" else answers.FORMATS[form](stream)

        def write(place, classes):
            written.answer(pictures[place], classes)
            stream.flush()

        count = write_all(pictures, answers_of(args, pictures, model.prepare, compute), write, written.unreadable,
                          alone=alone)
        written.end()
    return count


@contextlib.contextmanager
def _opened(path):
    """A text stream: standard output if `path` is empty, a device or a pipe, or a file that appears once it is whole."""
    if not path or (os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(1))):  # /dev/stdout
        yield sys.stdout
        sys.stdout.flush()
        return
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "w", encoding="utf-8", errors="surrogateescape") as text:
            yield text
        return
    with atomic_write(os.path.realpath(path)) as f:  # a link stays one
        # A file name that is not UTF-8 is written as it is.
        text = io.TextIOWrapper(f, encoding="utf-8", errors="surrogateescape", newline="\n", write_through=True)
        try:
            yield text
            text.flush()
        finally:
            text.detach()


def write_features(args, pictures, predictor, info):
    """The .npz --save_to, as tools/extract_features.py writes it; returns how many pictures could not be read."""
    if info["task"] != "features":
        raise ValueError(f"--features: {args.resume} gives {', '.join(info['outputs'])}; export its checkpoint with "
                         "tools/export.py --encoder")
    preprocess = classifier.preprocess_of(info, mean=args.mean, std=args.std)
    kinds = [kind for kind in feature_file.KINDS if kind in (args.features or info["outputs"])]
    kept = []

    def compute(places, images):
        found = predictor(images)
        return [{kind: found[kind][number:number + 1] for kind in kinds} for number in range(len(places))]

    with feature_file.Rows(os.path.realpath(args.save_to), {kind: info["outputs"][kind][1:] for kind in kinds}) as rows:
        def write(place, found):
            rows.append(found)
            kept.append(place)

        count = write_all(pictures, answers_of(args, pictures, preprocess, compute), write, alone=pictures.alone)
        if not kept:
            raise ValueError(f"none of the {len(pictures)} pictures can be read; nothing was written")
        rows.write({
            "names": [pictures[place] for place in kept], "block": info["block"], "norm": info["norm"],
            "checkpoint": args.resume, "weights_sha256": info["source"]["weights_sha256"],
            "model": info["model"]["name"], "img_size": preprocess.img_size,
            "image_mean": preprocess.mean, "image_std": preprocess.std, "image_backend": "pillow",
            "precision": predictor.precision,
            "git_revision": info.get("versions", {}).get("git_revision", "")})
    print(f"wrote {args.save_to}: {', '.join(kinds)} of {len(kept)} pictures")
    return count


def write_reconstructions(args, pictures, file, models):
    """<picture>_reconstruction.png in --output_dir; those of a folder keep their place in it.

    Returns how many pictures could not be read.
    """
    import paddle

    from util.compute import amp
    from util.infer import trained_model
    from util.look import reconstruction
    from util.system import distributed
    autocast = amp.autocast(amp.resolve(args.amp, distributed.init(args.device)))
    name, described = trained_model.describe(file.path, file.state, models, **training_options.described_sizes(args),
                                             norm_pix_loss=args.norm_pix_loss)
    model = trained_model.load(file.path, file.state, trained_model.build(name, described, file.state, models))
    embed = model.patch_embed
    normalization = trained_model.normalization(file.state, embed.in_chans, mean=args.mean, std=args.std)
    mask_ratio, seed = 0.75 if args.mask_ratio is None else args.mask_ratio, args.seed or 0
    mask = masking.Mask(args.mask_mode or "random", embed.grid_size, mask_ratio)
    channels = training_options.channels_shown(args, embed.in_chans)
    files = pictures.outputs(args.output_dir or ".", "_reconstruction.png")

    def compute(places, images):
        noise = np.stack([masking.noise_of_picture(mask, seed, pictures[place]) for place in places])
        with autocast():
            drawn = reconstruction.reconstruct(model, paddle.to_tensor(images), paddle.to_tensor(noise), mask.visible)
        return [reconstruction.panel(image, {name: values[number] for name, values in drawn.items()},
                                     **normalization, norm_pix_loss=model.norm_pix_loss, channels=channels)
                for number, image in enumerate(images)]

    def write(place, panel):
        files[place].parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(files[place]) as f:
            panel.save(f, format="PNG")
        print(f"wrote {files[place]}", flush=True)

    preprocess = Preprocess(embed.img_size, embed.in_chans, **normalization)
    return write_all(pictures, answers_of(args, pictures, preprocess, compute), write, alone=pictures.alone)


def main(args):
    check(args)
    engine = predictors.engine_of(args.resume, args.engine)
    pictures = open_pictures(args)
    classifiers, autoencoders = load_models(engine)
    command_line.renew_signal_handlers()
    file = None
    if not predictors.is_exported(args.resume):
        from util.infer import paddle_engine, trained_model
        file = paddle_engine.Checkpoint.read(args.resume, trusted=args.trust_checkpoint)
        name, _ = trained_model.describe(args.resume, file.state, {**classifiers, **autoencoders}, name=args.model)
        if args.features is None and trained_model.is_autoencoder(name):
            check_flags(args, "reconstructions")
            if engine == "inference":
                raise ValueError("--engine inference answers with classes; this model is an autoencoder: "
                                 "use --engine paddle")
            return finish(pictures, write_reconstructions(args, pictures, file, autoencoders))
    check_flags(args, "classes" if args.features is None else "features")
    kinds = args.features or (("mean", "cls") if file and args.features is not None else ())
    many = bool(kinds) or -(-len(pictures) // args.batch_size) >= MANY_BATCHES
    predictor, info = predictors.open_model(
        args.resume, classifiers, engine=engine, device=args.device, amp=args.amp, batch_size=args.batch_size,
        many=many, tensorrt=bool(args.trt), features=kinds, file=file, mean=args.mean, std=args.std,
        **training_options.described_sizes(args))
    if args.features is not None:
        return finish(pictures, write_features(args, pictures, predictor, info))
    finish(pictures, write_classes(args, pictures, classifier.Classifier(
        predictor, info, topk=5 if args.topk is None else args.topk, batch_size=args.batch_size,
        temperature=args.temperature, tta=args.tta, class_names=args.class_names, mean=args.mean, std=args.std)))


def finish(pictures, unreadable):
    """Exit with code 1 if pictures could not be read."""
    if unreadable:
        complain(f"main_infer.py: {unreadable} of {len(pictures)} pictures could not be read")
        sys.exit(1)


if __name__ == "__main__":
    command_line.run(main, get_args_parser(), cleans_up=True)
