"""What checkpoints cost: how long training waits for one, written at once or beside it, and reading one.

    python benchmarks/checkpoints.py --json FILE                # a masked autoencoder, ViT-B, about 2 minutes on 2 cores

Ours against ours. Written is the whole state with optimizer moments, to a temporary folder (--folder: on the file
system to measure).
"""
import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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


def seconds(work):
    """What `work` returns, and how long it took."""
    started = time.perf_counter()
    result = work()
    return result, time.perf_counter() - started


def measure(model, optimizer, folder, step):
    """One round: {what: seconds}; "step beside writing" has the median of the steps that were made meanwhile."""
    _, checking = seconds(lambda: all(np.isfinite(p.numpy()).all() for p in model.parameters()))
    state, packing = seconds(lambda: checkpoint.pack(model, optimizer, amp.grad_scaler(None), 0, {}))
    _, writing = seconds(lambda: checkpoints.save(folder, state))
    alone = statistics.median(seconds(step)[1] for _ in range(3))
    state, beside = checkpoint.pack(model, optimizer, amp.grad_scaler(None), 0, {}), []
    with ThreadPoolExecutor(1) as pool:
        saving = pool.submit(checkpoints.save, folder, state)
        while not saving.done() or not beside:
            beside.append(seconds(step)[1])
    path = os.path.join(folder, checkpoints.LATEST)
    _, reading = seconds(lambda: checkpoint.read_checkpoint(path))
    return {"waiting, written at once": checking + packing + writing, "waiting, --save_async": checking + packing,
            "step": alone, "step beside writing": statistics.median(beside), "reading": reading,
            "bytes": os.path.getsize(path)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", default="mae_vit_base_patch16", choices=list(models_mae.MODELS))
    parser.add_argument("--batch_size", type=int, default=2, help="of the steps that are made beside the writing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to write; default: TMPDIR")
    parser.add_argument("--json", metavar="FILE", default="", help="write the record there")
    args = parser.parse_args()

    model = models_mae.MODELS[args.model](norm_pix_loss=True)
    optimizer = paddle.optimizer.AdamW(1e-4, parameters=weight_decay_groups(model, 0.05))
    images = paddle.randn([args.batch_size, 3, *model.patch_embed.img_size])

    def step():
        model(images, 0.75, only_loss=True).backward()
        optimizer.step()
        optimizer.clear_grad(set_to_zero=False)

    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        measure(model, optimizer, folder, step)  # warm-up; it also makes the moments
        rounds = [measure(model, optimizer, folder, step) for _ in range(args.rounds)]
    medians = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    for name, value in medians.items():
        print(f"{name:<30}{value / 1e9:.3g} GB" if name == "bytes" else f"{name:<30}{value:.3g} s")
    if args.json:
        with atomic_write(args.json, "w") as f:
            json.dump({"benchmark": Path(__file__).stem, "command": sys.argv[1:], "revision": sidebyside.revision(),
                       "machine": sidebyside.machine(), "versions": sidebyside.versions("paddlepaddle", "numpy"),
                       "medians": medians, "rounds": rounds}, f, indent=2)


if __name__ == "__main__":
    main()
