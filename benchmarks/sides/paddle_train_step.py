"""Our side of benchmarks/train_step.py, in a process of its own."""

import argparse
import contextlib
import resource
import statistics
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import sidebyside
from benchmarks.train_step import CLASSES, MASK_RATIO, MODELS
from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

import paddle
import paddle.nn.functional as F

from models_mae import MaskedAutoencoderViT
from models_vit import VisionTransformer
from util.compute import amp, onednn, operations
from util.optim.param_groups import layer_decay_groups, weight_decay_groups


def make_step(task, name, precision):
    """Make a function that trains on one batch, as the engines do, and returns its duration in seconds."""
    m = MODELS[name]
    paddle.seed(0)
    encoder = dict(
        img_size=m["image"],
        patch_size=m["patch"],
        embed_dim=m["width"],
        depth=m["depth"],
        num_heads=m["heads"],
    )
    images = paddle.randn([m["batch"], 3, m["image"], m["image"]])
    if task == "pretrain":
        model = MaskedAutoencoderViT(
            **encoder,
            decoder_embed_dim=m["decoder_width"],
            norm_pix_loss=True,
            decoder_depth=m["decoder_depth"],
            decoder_num_heads=m["decoder_heads"],
        )
        groups = weight_decay_groups(model, 0.05)
        forward = partial(model, images, MASK_RATIO, only_loss=True)
    else:
        model = VisionTransformer(**encoder, num_classes=CLASSES[name], global_pool=True, drop_path_rate=0.1)
        groups = layer_decay_groups(model, 0.05, 0.65)
        labels = paddle.randint(0, CLASSES[name], [m["batch"]])

        def forward():
            return F.cross_entropy(model(images).astype("float32"), labels, label_smoothing=0.1)

    optimizer = paddle.optimizer.AdamW(1e-4, beta1=0.9, beta2=0.95, parameters=groups)
    autocast = amp.autocast(amp.resolve("bf16" if precision == "bfloat16" else "off", "cpu"))

    def step():
        start = time.perf_counter()
        with autocast():
            loss = forward()
        loss.backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
        loss.item()
        return time.perf_counter() - start

    return step


def matmul_gflops(precision):
    """Measure the machine's rate on a large matrix product, the median of a few."""
    dtype, size = (onednn.BF16 if precision == "bfloat16" else onednn.F32), 1536
    a, b, c = (paddle.ones([size, size]).astype(precision) for _ in range(3))
    product = onednn.matmul(*[onednn.dense((size, size), dtype)] * 3)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        product(a.data_ptr(), b.data_ptr(), c.data_ptr())
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(seconds) / 1e9


def profile(step):
    """Measure a step by kind of work: {primitive, AdamW, or the rest of Paddle and Python: seconds}."""
    spent = {}

    def timed(kind, function):
        def run(*args, **kwargs):
            start = time.perf_counter()
            result = function(*args, **kwargs)
            spent[kind] = spent.get(kind, 0.0) + time.perf_counter() - start
            return result

        return run

    def timed_primitive(name, build):
        kind = "matrix products" if name == "matmul" else name.replace("_backward", "")
        return lambda *args: timed(kind, build(*args))

    for name in (
        "matmul",
        "reorder",
        "add",
        "multiply",
        "gelu",
        "gelu_backward",
        "softmax",
        "softmax_backward",
        "layer_norm",
        "layer_norm_backward",
    ):
        setattr(onednn, name, timed_primitive(name, getattr(onednn, name)))
    paddle.optimizer.AdamW.step = timed("AdamW", paddle.optimizer.AdamW.step)
    for _ in range(2):
        step()
    spent.clear()
    seconds = [step() for _ in range(5)]
    found = {kind: total / len(seconds) for kind, total in spent.items()}
    whole = statistics.fmean(seconds)
    return {**found, "all else, by Paddle and Python": whole - sum(found.values()), "step": whole}


def prepare():
    parser = argparse.ArgumentParser()
    parser.add_argument("--task")
    parser.add_argument("--model")
    parser.add_argument("--precision")
    parser.add_argument("--operations")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    step = make_step(args.task, args.model, args.precision)
    chosen = operations.by_paddle if args.operations != "onednn" else contextlib.nullcontext

    def round():
        with chosen():
            if args.profile:
                return profile(step)
            seconds = statistics.median(step() for _ in range(MODELS[args.model]["steps"]))
        return {
            "images_per_s": MODELS[args.model]["batch"] / seconds,
            "matmul_gflops": matmul_gflops(args.precision),
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }

    return round, {
        **sidebyside.versions("paddlepaddle", "numpy"),
        "cpu_runtime": cpu_runtime.describe(),
        "library": operations.describe() if args.operations == "onednn" else "Paddle's own operations",
    }


if __name__ == "__main__":
    sidebyside.serve(prepare)
