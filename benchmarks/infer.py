"""Images per second of a classifier by each engine, and the time to the first answer of main_infer.py.

    python benchmarks/infer.py --precision float32 --batch_size 1
    python benchmarks/infer.py --precision bfloat16 --against torch --torch_python PYTHON --json FILE
    python benchmarks/infer.py --startup --model vit_tiny_patch4

Weights and images are random, which does not change the time. The side "paddle" packs its weights, as
main_infer.py does for many batches. "onnxruntime" runs an export of tools/export.py. --against torch adds
PyTorch, and our ONNX Runtime with PyTorch's own export of timm's model.

--startup measures from the start of a process to its first line of output. Its sides are main_infer.py with a
checkpoint, with its cached program, with an exported Paddle program, and with an ONNX file; a process that
only imports Paddle and unpickles the weights; and torch_first_answer.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import sidebyside  # before cpu_runtime.prepare(), so that the opponent keeps its own settings
from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

import argparse
import json
import pickle
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import paddle
from PIL import Image

import models_vit
from util.compute import operations
from util.infer import static_engine

ENGINES = {"float32": ("paddle", "inference", "onnxruntime"), "bfloat16": ("paddle", "inference")}
IMPORT_AND_READ = """
from util.compute import cpu_runtime
cpu_runtime.prepare()
import pickle
with open({path!r}, "rb") as f:
    pickle.load(f)
print("done", flush=True)
"""


def timed(answer: Callable[[np.ndarray], Any], images: np.ndarray, repeats: int) -> dict[str, float]:
    """Measure `answer(images)`: {"images_per_s", "ms"}, the medians of some repeats."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        answer(images)
        seconds.append(time.perf_counter() - started)
    return {"images_per_s": len(images) / statistics.median(seconds), "ms": 1000 * statistics.median(seconds)}


def prepare(args: argparse.Namespace, folder: str) -> tuple[Callable[[], dict[str, float]], dict[str, Any]]:
    """Prepare one of our engines: (round, about) for sidebyside.serve."""

    def make() -> paddle.nn.Layer:
        paddle.seed(0)
        model = models_vit.MODELS[args.model](global_pool=True)
        model.eval()
        return model

    model = make()
    size = model.patch_embed
    answer: Callable[[np.ndarray], Any]
    images = (
        np.random.default_rng(0)
        .standard_normal([args.batch_size, size.in_chans, *size.img_size])
        .astype("float32")
    )
    if args.serve == "inference":
        file = Path(folder, "weights")
        file.touch()
        info = {
            "input": {"shape": [None, *images.shape[1:]]},
            "outputs": {"logits": [None, model.num_classes]},
        }
        answer = static_engine.open_cached(
            static_engine.ProgramKey(file, args.model),
            info,
            make,
            static_engine.Runtime("cpu", None if args.precision == "float32" else args.precision),
        )
    else:
        autocast = operations.packed(model, args.precision)

        def forward(images: np.ndarray) -> np.ndarray:
            with autocast():
                return model(paddle.to_tensor(images)).numpy()

        answer = forward
    return lambda: timed(answer, images, args.repeats), sidebyside.versions("paddlepaddle")


def throughput(args: argparse.Namespace, folder: str) -> None:
    """Measure images per second of all engines in turns."""
    options = ["--model", args.model, "--batch_size", args.batch_size, "--repeats", args.repeats]
    # Each in a process of its own, because two thread libraries in one process would block each other.
    sides = [
        sidebyside.OtherProcess(
            f"{name} {args.precision}",
            [sys.executable, __file__, "--serve", name, *options, "--precision", args.precision],
        )
        for name in args.engine
        if name != "onnxruntime"
    ]
    if "onnxruntime" in args.engine:
        sides.append(
            onnx_side(
                f"onnxruntime {args.precision}",
                export(write_checkpoint(args, folder), folder, "ours.onnx"),
                args,
            )
        )
    if args.against:
        # PyTorch has two ways to bfloat16, and the batch size decides which is faster.
        for precision in ["float32"] if args.precision == "float32" else ["autocast", "bfloat16"]:
            sides.append(
                sidebyside.torch_side(
                    f"torch {precision}", "torch_infer.py", [*options, "--precision", precision], args
                )
            )
        if "onnxruntime" in args.engine:
            theirs = Path(folder, "theirs.onnx")
            run_torch("torch_infer.py", ["--model", args.model, "--onnx", theirs], args)
            sides.append(onnx_side(f"onnxruntime {args.precision}, exported by torch", theirs, args))
    results = sidebyside.alternate(sides, rounds=args.rounds, warmup=args.warmup)
    medians = sidebyside.medians(results)
    opponents = [name for name in medians if name.startswith("torch")] or list(medians)[-1:]
    fastest = max(opponents, key=lambda name: medians[name]["images_per_s"])
    sidebyside.report(
        "infer",
        sides,
        results,
        measure="images_per_s",
        settings=vars(args),
        against=fastest if len(sides) > 1 else None,
        json_path=args.json,
    )


def onnx_side(name: str, file: Path, args: argparse.Namespace) -> sidebyside.OtherProcess:
    """Make a side that runs an ONNX file."""
    (size,) = {*models_vit.MODELS[args.model]().patch_embed.img_size}
    return sidebyside.OtherProcess(
        name,
        [
            sys.executable,
            Path(__file__).parent / "sides" / "onnx_infer.py",
            "--file",
            file,
            "--size",
            size,
            "--batch_size",
            args.batch_size,
            "--repeats",
            args.repeats,
        ],
    )


def write_checkpoint(args: argparse.Namespace, folder: str) -> Path:
    """Write a checkpoint with random weights; returns its path."""
    path = Path(folder, "weights.pd")
    paddle.seed(0)
    model = models_vit.MODELS[args.model](global_pool=True)
    with open(path, "wb") as f:
        pickle.dump(
            {
                "model": {name: value.numpy() for name, value in model.state_dict().items()},
                "architecture": {"name": args.model, "global_pool": True},
            },
            f,
            protocol=4,
        )
    return path


def export(checkpoint: Path, folder: str, name: str) -> Path:
    """Export a checkpoint for any number of images; returns the path of the export."""
    path = Path(folder, name)
    run(
        [
            sys.executable,
            sidebyside.ROOT / "tools" / "export.py",
            "--resume",
            checkpoint,
            "--output",
            path,
            "--dynamic_batch",
        ]
    )
    return path


def run_torch(script: str, options: Sequence[object], args: argparse.Namespace) -> str:
    """Run a script of benchmarks/sides in the environment with PyTorch; returns its output."""
    return run(
        [
            args.torch_python,
            Path(__file__).parent / "sides" / script,
            *options,
            "--torch_path",
            args.torch_path,
            "--torch_import",
            args.torch_import,
        ]
    )


def run(command: Sequence[object]) -> str:
    """Run a command; returns its output. Raises ValueError if it fails."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env=sidebyside.ENVIRONMENT
    )
    if done.returncode:
        raise ValueError(f"{command[1]} ended with code {done.returncode}: {done.stderr}")
    return done.stdout


def first_line(command: Sequence[object]) -> dict[str, float]:
    """Measure the time from the start of a process to its first line of output: {"seconds": ...}."""
    started = time.perf_counter()
    with subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=sidebyside.ROOT,
        env=sidebyside.ENVIRONMENT,
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - started
        _, said = process.communicate()
    if not line or process.returncode:
        raise ValueError(f"{command[1]} ended with code {process.returncode}: {said}")
    return {"seconds": seconds}


def startup(args: argparse.Namespace, folder: str) -> None:
    """Measure the time to the first answer of all engines in turns."""
    weights, picture = write_checkpoint(args, folder), Path(folder, "picture.jpg")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, [375, 500, 3]).astype("uint8")).save(picture)
    amp = ["--amp", "off" if args.precision == "float32" else "bf16"]
    sources: dict[str, dict[str, list[object]]] = {
        "paddle": {"checkpoint": [weights, *amp, "--engine", "paddle"]},
        "inference": {"program beside it": [weights, *amp, "--engine", "inference"]},
        "onnxruntime": {},
    }
    if "inference" in args.engine:
        sources["inference"]["exported program"] = [export(weights, folder, "exported"), *amp]
    if "onnxruntime" in args.engine:
        sources["onnxruntime"]["ONNX file"] = [export(weights, folder, "ours.onnx")]
    about = sidebyside.versions("paddlepaddle", "onnxruntime")
    sides = [
        sidebyside.Side(
            f"main_infer {name}, {source}",
            partial(
                first_line, [sys.executable, "main_infer.py", "--img_path", picture, "--resume", *options]
            ),
            about,
        )
        for name in args.engine
        for source, options in sources[name].items()
    ]
    sides.append(
        sidebyside.Side(
            "import and read",
            partial(first_line, [sys.executable, "-c", IMPORT_AND_READ.format(path=str(weights))]),
            about,
        )
    )
    if args.against:
        theirs = ["--model", args.model, "--weights", Path(folder, "theirs.pth")]
        versions = json.loads(run_torch("torch_first_answer.py", [*theirs, "--write"], args))
        sides.append(
            sidebyside.Side(
                "torch",
                partial(
                    first_line,
                    [
                        args.torch_python,
                        "benchmarks/sides/torch_first_answer.py",
                        *theirs,
                        "--img_path",
                        picture,
                        "--torch_path",
                        args.torch_path,
                        "--torch_import",
                        args.torch_import,
                    ],
                ),
                versions,
            )
        )
    results = sidebyside.alternate(sides, rounds=args.rounds, warmup=args.warmup)
    sidebyside.report(
        "infer_startup", sides, results, measure="seconds", settings=vars(args), json_path=args.json
    )


def get_args_parser() -> argparse.ArgumentParser:
    """Define the flags of this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", default="vit_base_patch16", choices=list(models_vit.MODELS))
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument(
        "--engine",
        nargs="+",
        default=None,
        choices=ENGINES["float32"],
        help="(default: all that support the precision)",
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="batches per round, of which the median counts"
    )
    parser.add_argument("--startup", action="store_true", help="measure the time to the first answer instead")
    parser.add_argument(
        "--serve", choices=ENGINES["bfloat16"], help=argparse.SUPPRESS
    )  # used by `throughput`
    sidebyside.add_arguments(parser, rounds=5)
    return parser


def main() -> None:
    """Measure what the flags ask for."""
    parser = get_args_parser()
    args = parser.parse_args()
    args.engine = args.engine or list(ENGINES[args.precision])
    if missing := {*args.engine} - {*ENGINES[args.precision]}:
        parser.error(f"--engine {' '.join(missing)}: float32 only")
    with tempfile.TemporaryDirectory() as folder:
        if args.serve:
            sidebyside.serve(lambda: prepare(args, folder))
            return
        try:
            (startup if args.startup else throughput)(args, folder)
        except ValueError as error:
            sys.exit(f"infer.py: error: {error}")


if __name__ == "__main__":
    main()
