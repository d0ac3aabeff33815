"""Time to write a checkpoint, while training waits or in the background, and to read one.

    python benchmarks/checkpoints.py --json FILE        # an MAE, ViT-B, about 2 minutes on 2 cores

Compares our two ways with each other. A checkpoint holds the whole state with optimizer moments. It is
written to a temporary folder, on the file system of --folder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from util.compute import cpu_runtime

cpu_runtime.prepare()  # before anything else imports Paddle

import numpy as np
import paddle

import models_mae
from benchmarks import sidebyside
from util.compute import amp
from util.optim.param_groups import weight_decay_groups
from util.run import checkpoints
from util.system.atomic_file import atomic_write
from util.weights import checkpoint


def seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """Call `work`; returns its result and its duration."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def measure(
    model: paddle.nn.Layer, optimizer: Any, folder: str, step: Callable[[], None]
) -> dict[str, float]:
    """Measure one round: {name: seconds}; "step beside writing" is the median step during the writing."""
    _, checking = seconds(lambda: all(np.isfinite(p.numpy()).all() for p in model.parameters()))
    state, packing = seconds(lambda: checkpoint.pack(model, optimizer, amp.grad_scaler(None), 0, {}))
    _, writing = seconds(lambda: checkpoints.save(folder, state))
    alone = statistics.median(seconds(step)[1] for _ in range(3))
    state = checkpoint.pack(model, optimizer, amp.grad_scaler(None), 0, {})
    beside: list[float] = []
    with ThreadPoolExecutor(1) as pool:
        saving = pool.submit(checkpoints.save, folder, state)
        while not saving.done() or not beside:
            beside.append(seconds(step)[1])
    path = os.path.join(folder, checkpoints.LATEST)
    _, reading = seconds(lambda: checkpoint.read_checkpoint(path))
    return {
        "waiting, written at once": checking + packing + writing,
        "waiting, --save_async": checking + packing,
        "step": alone,
        "step beside writing": statistics.median(beside),
        "reading": reading,
        "bytes": os.path.getsize(path),
    }


def main() -> None:
    """Print the medians, and write them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", default="mae_vit_base_patch16", choices=list(models_mae.MODELS))
    parser.add_argument("--batch_size", type=int, default=2, help="of the training steps during the writing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="folder for the checkpoints (default: TMPDIR)")
    parser.add_argument("--json", metavar="FILE", default="", help="write the record there")
    args = parser.parse_args()

    model = models_mae.MODELS[args.model](norm_pix_loss=True)
    groups: Any = weight_decay_groups(model, 0.05)
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=groups)
    images = paddle.randn([args.batch_size, 3, *model.patch_embed.img_size])

    def step() -> None:
        model(images, 0.75, only_loss=True).backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        measure(model, optimizer, folder, step)  # warm-up, which also creates the moments
        rounds = [measure(model, optimizer, folder, step) for _ in range(args.rounds)]
    medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    for name, value in medians.items():
        print(f"{name:<30}{value / 1e9:.3g} GB" if name == "bytes" else f"{name:<30}{value:.3g} s")
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
                    "rounds": rounds,
                },
                f,
                indent=2,
            )


if __name__ == "__main__":
    main()
