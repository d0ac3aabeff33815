"""Time that monitoring takes in a run: the gradient norm of each update, and the figures of --vis_every.

    python benchmarks/looking.py --json FILE    # the demo's model and ViT-S, about a minute on 2 cores

Measures the norm and a step without it in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

import contextlib

import numpy as np
import paddle
from PIL import Image

import models_mae
from benchmarks import sidebyside
from util.data.masking import Mask
from util.images.normalize import default_mean_std
from util.images.transforms import EvalTransform
from util.optim.clip_grad import grad_norm
from util.optim.param_groups import weight_decay_groups
from util.run.monitor import Monitor
from util.system.atomic_file import atomic_write

SIZES = {
    "demo": ("mae_vit_tiny_patch4", {"img_size": 28, "in_chans": 1}, 64),
    "ViT-S": ("mae_vit_small_patch16", {}, 8),
}


class Pictures:
    """A source of noise images."""

    def __init__(self, in_chans: int) -> None:
        shape = [256, 256] if in_chans == 1 else [256, 256, in_chans]
        self.pictures = [
            Image.fromarray(np.random.default_rng(number).integers(0, 256, shape).astype("uint8"))
            for number in range(8)
        ]

    def __len__(self) -> int:
        return len(self.pictures)

    def open(self, index: int) -> Image.Image:
        """Open image `index`."""
        return self.pictures[index]


def measure(name: str, rounds: int) -> dict[str, float]:
    """Measure a model of SIZES: {name: median seconds}."""
    model_name, sizes, batch_size = SIZES[name]
    model = models_mae.MODELS[model_name](norm_pix_loss=True, **sizes)
    groups: Any = weight_decay_groups(model, 0.05)
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=groups)
    in_chans, parameters = model.patch_embed.in_chans, model.parameters()
    images = paddle.randn([batch_size, in_chans, *model.patch_embed.img_size])
    mean, std = default_mean_std(in_chans)
    source: Any = Pictures(in_chans)
    transform = EvalTransform(model.patch_embed.img_size, mean=mean, std=std)
    monitor = Monitor(
        model,
        source,
        transform,
        epochs={0},
        mask=Mask("random", model.patch_embed.grid_size, 0.75),
        seed=0,
        autocast=contextlib.nullcontext,
    )
    found: dict[str, list[float]] = {"step without": [], "norm": [], "look": []}
    for number in range(rounds + 2):
        started = time.perf_counter()
        model(images, 0.75, only_loss=True).backward()
        backward = time.perf_counter()
        grad_norm(parameters).item()
        measured = time.perf_counter()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)
        ended = time.perf_counter()
        if number >= 2:  # the first steps create moments and caches
            found["step without"].append(ended - measured + backward - started)
            found["norm"].append(measured - backward)
    for _ in range(5):
        started = time.perf_counter()
        monitor.look(0)
        found["look"].append(time.perf_counter() - started)
    return {what: statistics.median(seconds) for what, seconds in found.items()}


def main() -> None:
    """Print the medians, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--rounds", type=int, default=15, help="number of measured steps")
    parser.add_argument("--json", metavar="FILE", default="", help="write the record there")
    args = parser.parse_args()
    medians = {name: measure(name, args.rounds) for name in SIZES}
    for name, found in medians.items():
        print(
            f"{name}: the norm takes {found['norm'] / found['step without']:.2%} of a step "
            f"({1e3 * found['norm']:.2f} of {1e3 * found['step without']:.0f} ms), "
            f"a look {found['look']:.2f} s"
        )
    if args.json:
        with atomic_write(args.json, "w") as f:
            json.dump(
                {
                    "benchmark": Path(__file__).stem,
                    "command": sys.argv[1:],
                    "revision": sidebyside.revision(),
                    "machine": sidebyside.machine(),
                    "versions": sidebyside.versions("paddlepaddle", "numpy"),
                    "medians": medians,
                },
                f,
                indent=2,
            )


if __name__ == "__main__":
    main()
