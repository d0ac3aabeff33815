"""Answer HTTP requests with the classes of pictures, and show a page on which a picture can be dropped.

    python tools/serve.py --resume outputs/demo/finetune/checkpoint-best.pd
    python tools/serve.py --resume outputs/demo/finetune/checkpoint-best.pd \
        --mae outputs/demo/pretrain/checkpoint-latest.pd
    python tools/serve.py --resume classifier.onnx --port 8080 --batch_size 16

    curl -F image=@data/fashion_mnist/ankle-boot.png http://127.0.0.1:8000/predict

Needs aiohttp and prometheus_client. Only this machine can reach it, unless --host says otherwise.
"""
import asyncio
import contextlib
import functools
import ipaddress
import math
import os
import signal
import socket
import sys
import threading
import warnings
from pathlib import Path

import aiohttp
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from util.images import decode
from util.infer import classifier, predictors, service
from util.options import command_line, training_options


def get_args_parser():
    parser = command_line.Parser("A classifier as an HTTP service.")
    parser.add_argument("--resume", default="", metavar="FILE",
                        help="checkpoint, or what tools/export.py wrote: an .onnx file, or the folder of a program")
    parser.add_argument("--mae", default="", metavar="FILE",
                        help="checkpoint of a masked autoencoder, for /reconstruct and the page's slider")
    training_options.add_trust(parser)
    parser.add_argument("--engine", default=None, choices=predictors.ENGINES,
                        help="what computes (default: by what --resume is); attention needs paddle")
    training_options.add_device(parser)
    parser.add_argument("--topk", type=int, default=5, metavar="K",
                        help="classes of an answer, where ?topk= does not say")
    parser.add_argument("--class_names", default=None, metavar="FILE",
                        help="names in the order of the labels, one a line or as JSON")
    parser.add_argument("--temperature", type=float, default=None, metavar="T",
                        help="divide the logits by T: above 1 less certain, below 1 more")
    parser.add_argument("--tta", default=None, choices=classifier.TTA,
                        help="flip: mean of the probabilities of a picture and of its mirror image")
    training_options.add_described(parser)
    group = parser.add_argument_group("service")
    group.add_argument("--host", default="127.0.0.1",
                       help="address to listen at; 0.0.0.0: for every machine that gets here")
    group.add_argument("--port", type=int, default=8000, help="0: any that is free")
    group.add_argument("--batch_size", type=int, default=8, help="images computed together at most, of all requests")
    group.add_argument("--batch_wait_ms", type=float, default=5.0, metavar="MS",
                       help="how long an image waits for others")
    group.add_argument("--access_log", action="store_true", help="a line on standard error for each request")
    group = parser.add_argument_group("limits")
    usual = service.Limits()
    group.add_argument("--max_body_mb", type=float, default=usual.body / 2 ** 20, metavar="MB", help="of a request")
    group.add_argument("--max_images", type=int, default=usual.images, metavar="N", help="of a request")
    group.add_argument("--max_pixels", type=int, default=usual.pixels, metavar="N",
                       help="of a picture, width times height; looked up before it is decoded")
    group.add_argument("--queue", type=int, default=usual.queue, metavar="N",
                       help="images at work or waiting; a request for more is answered with 503")
    group.add_argument("--timeout", type=float, default=usual.timeout, metavar="SECONDS",
                       help="for a request to arrive, and for its answer")
    return parser


class Figure:
    """What util.infer.service.Service shows of a Paddle model. `prepare` is a util.images.preprocess.Preprocess."""

    def __init__(self, model, prepare):
        self.model, self.prepare = model, prepare

    def batch_and_picture(self, image):
        import paddle

        from util.look.figures import to_pixels
        return paddle.to_tensor(image[None]), to_pixels(image, mean=self.prepare.mean, std=self.prepare.std,
                                                         like=image)


class Attention(Figure):
    def rows(self, image):
        from util.look import encoder_figures
        note = "not what this model classifies: that is the mean patch token" if self.model.global_pool else ""
        return encoder_figures.attention_overview(self.model, *self.batch_and_picture(image), note=note)


class Reconstruction(Figure):
    def __init__(self, model, prepare, autocast):
        super().__init__(model, prepare)
        self.autocast = autocast

    def rows(self, image, *, name, mask_ratio, seed):
        from util.data import masking
        from util.look import reconstruction
        try:
            mask = masking.Mask("random", self.model.patch_embed.grid_size, mask_ratio)
        except ValueError as error:
            raise service.Refused(400, str(error).replace("--mask_ratio ", "?mask_ratio=")) from error
        noise = masking.noise_of_picture(mask, seed, name)
        with self.autocast():
            return reconstruction.rows(self.model, image, noise, mask.visible, "both", mean=self.prepare.mean,
                                       std=self.prepare.std)[0]


def open_classifier(args, engine):
    models = {}
    if engine != "onnxruntime":
        import models_vit
        models = models_vit.MODELS
    predictor, info = predictors.open_model(args.resume, models, engine=engine, device=args.device, amp=args.amp,
                                            batch_size=args.batch_size, trusted=args.trust_checkpoint,
                                            mean=args.mean, std=args.std, **training_options.described_sizes(args))
    check_channels(args.resume, info["input"]["shape"][1])
    return classifier.Classifier(predictor, info, topk=args.topk, batch_size=args.batch_size, tta=args.tta,
                                 temperature=args.temperature, class_names=args.class_names, mean=args.mean,
                                 std=args.std)


def check_channels(path, in_chans):
    if in_chans not in decode.AS_PICTURES:
        raise ValueError(f"{path}: its pictures have {in_chans} channels, and a browser sends pictures of 1, 3 or 4; "
                         "main_infer.py answers about files of others")


def open_reconstruction(args):
    import models_mae
    from util.compute import amp
    from util.images.preprocess import Preprocess
    from util.infer import trained_model
    from util.system import distributed
    autocast = amp.autocast(amp.resolve(args.amp, distributed.init(args.device)))
    model, state = trained_model.open_autoencoder(args.mae, models_mae.MODELS, trusted=args.trust_checkpoint)
    embed = model.patch_embed
    check_channels(args.mae, embed.in_chans)
    return Reconstruction(model, Preprocess(embed.img_size, embed.in_chans,
                                            **trained_model.normalization(state, embed.in_chans)), autocast)


def check(args):
    if not args.resume:
        raise ValueError("--resume FILE is needed")
    least = {"port": 0, "batch_size": 1, "batch_wait_ms": 0, "max_images": 1, "max_pixels": 1, "queue": args.max_images}
    for flag, value in least.items():
        if not value <= getattr(args, flag) < math.inf:
            raise ValueError(f"--{flag} must be at least {value}"
                             f"{', the images of one request' if flag == 'queue' else ''}, got {getattr(args, flag)}")
    for flag in ("max_body_mb", "timeout"):
        if not 0 < getattr(args, flag) < math.inf:
            raise ValueError(f"--{flag} must be a number above 0, got {getattr(args, flag)}")


def about(engine):
    """What /health tells beside the model."""
    packages = {"onnxruntime": ["onnxruntime"]}.get(engine, ["paddlepaddle", "paddlepaddle-gpu"])
    return {"engine": engine, "versions": service.versions(*packages, "aiohttp")}


def main(args):
    check(args)
    engine = predictors.engine_of(args.resume, args.engine)
    if engine != "onnxruntime" or args.mae:
        from util.compute import cpu_runtime
        cpu_runtime.prepare()  # before anything else imports Paddle
    listening = service.open_socket(args.host, args.port)  # before the model, which takes seconds
    with contextlib.closing(listening):
        model = open_classifier(args, engine)
        attention = Attention(model.predictor.model, model.prepare) if engine == "paddle" else None
        answering = service.Service(
            model, about=about(engine), topk=args.topk, batch_size=args.batch_size,
            batch_wait=args.batch_wait_ms / 1000,
            limits=service.Limits(body=int(args.max_body_mb * 2 ** 20), images=args.max_images, pixels=args.max_pixels,
                                  queue=args.queue, timeout=args.timeout),
            attention=attention, reconstruct=open_reconstruction(args) if args.mae else None,
            absent={"attention": f"--engine {engine} does not tell what the model attends to; start the service with a "
                                 "checkpoint and --engine paddle",
                    "reconstruct": "there is no autoencoder; start the service with --mae FILE"},
            names=(args.host, socket.gethostname()),
            log=functools.partial(print, file=sys.stderr, flush=True) if args.access_log else lambda line: None)
        Image.MAX_IMAGE_PIXELS = None  # --max_pixels is the limit
        for about_clients in (aiohttp.BadContentDispositionHeader, aiohttp.BadContentDispositionParam):
            warnings.filterwarnings("ignore", category=about_clients)
        asyncio.run(serve(args, answering, listening))
    # A thread that is still at work on what nobody waits for any more would be waited for.
    if any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
        sys.stdout.flush()
        os._exit(0)


async def serve(args, answering, listening):
    """Until SIGTERM or SIGINT; a second one ends it at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def stopped(number):
        print(f"{signal.Signals(number).name}: ends after the requests in work", file=sys.stderr, flush=True)
        stop.set()
        loop.remove_signal_handler(number)

    def ready():
        info = answering.classifier.info
        print(f"{service.url(listening)}  ({info['model']['name']}, {len(answering.classifier.names)} classes; Ctrl-C "
              "ends it)",
              flush=True)
        if not _is_loopback(args.host):
            print(f"--host {args.host}: everybody who reaches port {listening.getsockname()[1]} of this machine can "
                  "use this service; it asks for no password and encrypts nothing", flush=True)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped, number)
    await answering.run(listening, stop, ready=ready)


def _is_loopback(host):
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    command_line.run(main, get_args_parser())
