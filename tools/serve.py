"""Serve a classifier by HTTP, with a web page that takes a picture.

    python tools/serve.py --resume outputs/demo/finetune/checkpoint-best.pd
    python tools/serve.py --resume outputs/demo/finetune/checkpoint-best.pd \
        --mae outputs/demo/pretrain/checkpoint-latest.pd
    python tools/serve.py --resume classifier.onnx --port 8080 --batch_size 16

    curl -F image=@data/fashion_mnist/ankle-boot.png http://127.0.0.1:8000/predict

Needs aiohttp and prometheus_client. By default only this machine can reach the service; see --host.
"""

import asyncio
import contextlib
import functools
import importlib.metadata
import math
import os
import platform
import signal
import socket
import sys
import threading
import warnings
from pathlib import Path

import aiohttp
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.infer.classifier import TTA, ImageClassifier
from util.infer.engine import ENGINES, Engine, choose_engine
from util.infer.model_spec import read_model_spec
from util.infer.predictors import open_predictor
from util.infer.serve import figures, sockets
from util.infer.serve.service import Limits, Service, Settings
from util.options import command_line, flags, settings


def get_args_parser():
    parser = command_line.Parser("Serve a classifier by HTTP.")
    parser.add_argument(
        "--resume",
        default="",
        metavar="FILE",
        help="checkpoint, or a model of tools/export.py: an .onnx file, or the folder of a program",
    )
    parser.add_argument(
        "--mae",
        default="",
        metavar="FILE",
        help="checkpoint of a masked autoencoder, for /reconstruct and the page's slider",
    )
    flags.add_trust(parser)
    parser.add_argument(
        "--engine",
        default=None,
        choices=ENGINES,
        help="inference engine (default: the one that fits --resume); attention needs paddle",
    )
    flags.add_device(parser)
    parser.add_argument(
        "--topk", type=int, default=5, metavar="K", help="classes in an answer, unless the request has ?topk="
    )
    parser.add_argument(
        "--class_names",
        default=None,
        metavar="FILE",
        help="class names in the order of the labels, one per line or as JSON",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=None,
        metavar="T",
        help="divide the logits by T; above 1 lowers the top probabilities",
    )
    parser.add_argument(
        "--tta",
        default=None,
        choices=TTA,
        help="flip: mean of the probabilities of a picture and of its mirror image",
    )
    flags.add_model_description(parser)
    group = parser.add_argument_group("service")
    group.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: reachable by other machines"
    )
    group.add_argument("--port", type=int, default=8000, help="0: any free port")
    group.add_argument(
        "--batch_size",
        type=int,
        default=8,
        help="largest number of pictures, from all requests, computed together",
    )
    group.add_argument(
        "--batch_wait_ms", type=float, default=5.0, metavar="MS", help="time that a picture waits for others"
    )
    group.add_argument(
        "--access_log", action="store_true", help="print a line on standard error for each request"
    )
    group = parser.add_argument_group("limits")
    default = Limits()
    group.add_argument(
        "--max_body_mb",
        type=float,
        default=default.body / 2**20,
        metavar="MB",
        help="largest size of a request",
    )
    group.add_argument(
        "--max_images",
        type=int,
        default=default.images,
        metavar="N",
        help="largest number of pictures in a request",
    )
    group.add_argument(
        "--max_pixels",
        type=int,
        default=default.pixels,
        metavar="N",
        help="largest number of pixels of a picture (width times height), checked before decoding",
    )
    group.add_argument(
        "--queue",
        type=int,
        default=default.queue,
        metavar="N",
        help="pictures being computed or waiting; further requests get status 503",
    )
    group.add_argument(
        "--timeout",
        type=float,
        default=default.timeout,
        metavar="SECONDS",
        help="time limit for receiving a request, and again for computing its answer",
    )
    return parser


def limits_of(args):
    """Return the limits that the flags set."""
    return Limits(
        body=int(args.max_body_mb * 2**20),
        images=args.max_images,
        pixels=args.max_pixels,
        queue=args.queue,
        timeout=args.timeout,
    )


def check(args):
    """Raise ValueError for missing or invalid values."""
    if not args.resume:
        raise ValueError("--resume FILE is needed")
    least = {
        "port": 0,
        "batch_size": 1,
        "batch_wait_ms": 0,
        "max_images": 1,
        "max_pixels": 1,
        "queue": args.max_images,
    }
    for flag, value in least.items():
        if not value <= getattr(args, flag) < math.inf:
            least_what = " (--max_images)" if flag == "queue" else ""
            raise ValueError(f"--{flag} must be at least {value}{least_what}, got {getattr(args, flag)}")
    for flag in ("max_body_mb", "timeout"):
        if not 0 < getattr(args, flag) < math.inf:
            raise ValueError(f"--{flag} must be a number above 0, got {getattr(args, flag)}")


def installed_versions(*packages):
    """Return {"python": version, package: version, ...} of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def load_models(engine, needed):
    """Return the table of all models, if Paddle is needed."""
    if engine == "onnxruntime" and not needed:
        return {}
    from util.compute import cpu_runtime

    cpu_runtime.prepare()  # before anything else imports Paddle
    import models_mae
    import models_vit

    return {**models_vit.MODELS, **models_mae.MODELS}


def open_figures(predictor, classifier, autoencoder, device, precision):
    """Return the figures that the models can draw.

    Args:
        predictor: of the classifier; only a Paddle model shows its attention.
        autoencoder: ModelSpec, or None.
        device, precision: --device and --amp.
    """
    opened: dict[str, figures.Figure] = {}
    if hasattr(predictor, "model"):
        opened["attention"] = figures.AttentionFigure(predictor.model, classifier.prepare)
    if autoencoder:
        opened["reconstruct"] = figures.open_reconstruction(autoencoder, device=device, precision=precision)
    return opened


def main(args):
    check(args)
    engine = choose_engine(args.resume, args.engine)
    # The socket comes first, because loading takes seconds.
    with contextlib.closing(sockets.open_socket(args.host, args.port)) as listening:
        models = load_models(engine, args.mae)
        predictor = open_predictor(
            read_model_spec(
                args.resume,
                models,
                {**settings.model_description(args), "mean": args.mean, "std": args.std},
                trusted=args.trust_checkpoint,
            ),
            Engine(engine, args.device, args.amp, args.batch_size),
        )
        figures.check_browser_channels(args.resume, predictor.info["input"]["shape"][1])
        classifier = ImageClassifier(
            predictor,
            topk=args.topk,
            batch_size=args.batch_size,
            tta=args.tta,
            temperature=args.temperature,
            class_names=args.class_names,
        )
        autoencoder = None
        if args.mae:
            from util.infer.trained_model import read_autoencoder_spec

            autoencoder = read_autoencoder_spec(args.mae, models, trusted=args.trust_checkpoint)
        packages = ["onnxruntime"] if engine == "onnxruntime" else ["paddlepaddle", "paddlepaddle-gpu"]
        log = functools.partial(print, file=sys.stderr, flush=True) if args.access_log else lambda line: None
        service = Service(
            classifier,
            Settings(
                args.topk,
                args.batch_size,
                args.batch_wait_ms / 1000,
                limits_of(args),
                (args.host, socket.gethostname()),
            ),
            about={"engine": engine, "versions": installed_versions(*packages, "aiohttp")},
            figures=open_figures(predictor, classifier, autoencoder, args.device, args.amp),
            absent={
                "attention": f"--engine {engine} does not return attention; start the service with a "
                "checkpoint and --engine paddle",
                "reconstruct": "there is no autoencoder; start the service with --mae FILE",
            },
            log=log,
        )
        Image.MAX_IMAGE_PIXELS = None  # --max_pixels is the limit
        for category in (aiohttp.BadContentDispositionHeader, aiohttp.BadContentDispositionParam):
            warnings.filterwarnings("ignore", category=category)
        asyncio.run(serve(service, listening, args.host))
    # Without this, the process would wait for a thread that still computes an abandoned answer.
    if any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(0)


async def serve(service, listening, host):
    """Run the service until SIGTERM or SIGINT; a second signal ends it at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def stopped(number):
        print(f"{signal.Signals(number).name}: stops after the running requests", file=sys.stderr, flush=True)
        stop.set()
        loop.remove_signal_handler(number)

    def ready():
        print(
            f"{sockets.url_of(listening)}  ({service.classifier.info['model']['name']}, "
            f"{len(service.classifier.names)} classes; Ctrl-C stops it)",
            flush=True,
        )
        if not sockets.is_loopback(host):
            print(
                f"--host {host}: everybody who reaches port {listening.getsockname()[1]} of this machine "
                "can use this service; it has no password and no encryption",
                flush=True,
            )

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped, number)
    await service.run(listening, stop, ready=ready)


if __name__ == "__main__":
    command_line.run(main, get_args_parser())
