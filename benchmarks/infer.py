"""How fast a classifier answers, by each engine, in one precision and batch size; and how soon main_infer.py does.

    python benchmarks/infer.py --precision float32 --batch_size 1
    python benchmarks/infer.py --precision bfloat16 --batch_size 16 --against torch --torch_python PYTHON --json FILE
    python benchmarks/infer.py --startup --model vit_tiny_patch4

Weights and images are random: neither matters to the time. The side "paddle" has packed its weights, as main_infer.py
does for many batches. --startup measures from the start of a process to its first line, beside a process that imports
Paddle with the same settings and unpickles the weights, and does nothing else.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import sidebyside  # before cpu_runtime.prepare(), whose settings are not for the opponent
from util import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

import argparse
import pickle
import statistics
import subprocess
import tempfile
import time

import numpy as np
import paddle
from PIL import Image

import models_vit
from util import operations, static_model

ENGINES = ("paddle", "inference")
IMPORT_AND_READ = """
from util import cpu_runtime
cpu_runtime.prepare()
import pickle
with open({path!r}, "rb") as f:
    pickle.load(f)
print("done", flush=True)
"""


def timed(answer, images, repeats):
    """{"images_per_s", "ms"} of `answer(images)`, the median of some repeats."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        answer(images)
        seconds.append(time.perf_counter() - started)
    return {"images_per_s": len(images) / statistics.median(seconds), "ms": 1000 * statistics.median(seconds)}


def prepare(args, folder):
    """(round, about) of one of our engines, as sidebyside.serve takes them."""
    def make():
        paddle.seed(0)
        model = models_vit.MODELS[args.model](global_pool=True)
        model.eval()
        return model

    model = make()
    size = model.patch_embed
    images = np.random.default_rng(0).standard_normal([args.batch_size, size.in_chans, *size.img_size]).astype("float32")
    if args.serve == "inference":
        file = Path(folder, "weights")
        file.touch()
        answer = static_model.open_predictor(file, args.model, make, image_shape=images.shape[1:], device="cpu",
                                             dtype=None if args.precision == "float32" else args.precision)
    else:
        autocast = operations.packed(model, args.precision)

        def answer(images):
            with autocast():
                return model(paddle.to_tensor(images)).numpy()
    return lambda: timed(answer, images, args.repeats), sidebyside.versions("paddlepaddle")


def throughput(args):
    options = ["--model", args.model, "--batch_size", args.batch_size, "--repeats", args.repeats]
    # Each in a process of its own: two libraries of threads in one would wait for each other.
    sides = [sidebyside.OtherProcess(f"{name} {args.precision}", [
        sys.executable, __file__, "--serve", name, *options, "--precision", args.precision]) for name in args.engine]
    if args.against:
        # In bfloat16 it has two ways, and which is the faster one depends on the batch.
        for precision in ["float32"] if args.precision == "float32" else ["autocast", "bfloat16"]:
            sides.append(sidebyside.torch_side(f"torch {precision}", "torch_infer.py",
                                               [*options, "--precision", precision], args))
    results = sidebyside.alternate(sides, rounds=args.rounds, warmup=args.warmup)
    medians = sidebyside.medians(results)
    opponents = [name for name in medians if name.startswith("torch")] or list(medians)[-1:]
    fastest = max(opponents, key=lambda name: medians[name]["images_per_s"])
    sidebyside.report("infer", sides, results, measure="images_per_s", settings=vars(args),
                      against=fastest if len(sides) > 1 else None, json_path=args.json)


def first_line(command):
    """{"seconds": ...} from starting a process to the first line it prints."""
    started = time.perf_counter()
    with subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          cwd=sidebyside.ROOT, env=sidebyside.ENVIRONMENT) as process:
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
        _, said = process.communicate()
    if not line or process.returncode:
        raise ValueError(f"{command[1]} ended with code {process.returncode}: {said}")
    return {"seconds": seconds}


def startup(args, folder):
    weights, picture = Path(folder, "weights.pd"), Path(folder, "picture.jpg")
    paddle.seed(0)
    model = models_vit.MODELS[args.model](global_pool=True)
    with open(weights, "wb") as f:
        pickle.dump({"model": {name: value.numpy() for name, value in model.state_dict().items()},
                     "architecture": {"name": args.model, "global_pool": True}}, f, protocol=4)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, [375, 500, 3]).astype("uint8")).save(picture)
    about = sidebyside.versions("paddlepaddle")
    sides = [sidebyside.Side(f"main_infer {name}", lambda name=name: first_line(
        [sys.executable, "main_infer.py", "--resume", weights, "--img_path", picture, "--engine", name,
         "--amp", "off" if args.precision == "float32" else "bf16"]), about) for name in args.engine]
    sides.append(sidebyside.Side("import and read", lambda: first_line(
        [sys.executable, "-c", IMPORT_AND_READ.format(path=str(weights))]), about))
    results = sidebyside.alternate(sides, rounds=args.rounds, warmup=args.warmup)
    sidebyside.report("infer_startup", sides, results, measure="seconds", settings=vars(args), json_path=args.json)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", default="vit_base_patch16", choices=list(models_vit.MODELS))
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--engine", nargs="+", default=list(ENGINES), choices=ENGINES)
    parser.add_argument("--repeats", type=int, default=5, help="batches a round, of which the median counts")
    parser.add_argument("--startup", action="store_true", help="from the start of a process to its first answer instead")
    parser.add_argument("--serve", choices=ENGINES, help=argparse.SUPPRESS)  # what `throughput` starts
    sidebyside.add_arguments(parser, rounds=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.serve:
            sidebyside.serve(lambda: prepare(args, folder))
            return
        try:
            startup(args, folder) if args.startup else throughput(args)
        except ValueError as error:
            sys.exit(f"infer.py: error: {error}")


if __name__ == "__main__":
    main()
