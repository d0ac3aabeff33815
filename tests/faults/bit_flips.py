"""Damage checkpoints at random places: every load gives the written values or is refused.

    python tests/faults/bit_flips.py --tries 1000
    python tests/faults/bit_flips.py --seed 0 --first 417 --tries 1     the 418th of them alone

A load is right if every array and value is as written, bit for bit. Anything else (another value, another error than
CheckpointError, seconds of work, much memory) ends the program with the number of the try. Prints a JSON record.
"""

import argparse
import io
import json
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [
    str(Path(__file__).resolve().parents[2]),
    str(Path(__file__).resolve().parents[1] / "helpers"),
]

from util.compute import cpu_runtime

cpu_runtime.prepare()  # before Paddle is imported

import numpy as np
import paddle

from models_mae import MaskedAutoencoderViT
from models_vit import VisionTransformer
from util.compute import amp
from util.system import provenance
from util.weights import checkpoint, sealed_pickle

SIZES = {"img_size": (12, 8), "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
DECODER = {"decoder_embed_dim": 12, "decoder_depth": 1, "decoder_num_heads": 3}
MOST_SECONDS, MOST_MEGABYTES = 3, 300


def checkpoints():
    """{kind: bytes of a file} of a pretraining run and of a classifier after one update by AdamW."""
    paddle.seed(0)
    models = {
        "mae": MaskedAutoencoderViT(**SIZES, **DECODER),
        "classifier": VisionTransformer(**SIZES, num_classes=5),
    }
    rng, files = np.random.default_rng(0), {}
    for kind, model in models.items():
        images = paddle.to_tensor(rng.standard_normal([4, 3, 12, 8]).astype("float32"))
        optimizer = paddle.optimizer.AdamW(0.01, parameters=model.parameters())
        if kind == "mae":
            loss = model(images, 0.5, paddle.to_tensor(rng.random([4, 6]).astype("float32")))[0]
        else:
            loss = model(images).square().mean()
        loss.backward()
        optimizer.step()
        state = checkpoint.pack(
            model,
            optimizer,
            amp.grad_scaler(None),
            3,
            {"lr": None, "blr": 1.5e-4, "seed": 0, "input_size": [12, 8]},
            architecture={"name": kind, "img_size": [12, 8], "in_chans": 3},
            classes=["猫", "dog"],
            max_accuracy=62.5,
            normalization={"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        )
        stream = io.BytesIO()
        sealed_pickle.dump(state, stream)
        files[kind] = stream.getvalue()
    return files


def flip(content, rng):
    for place in rng.integers(0, len(content), rng.integers(1, 4)):
        content[place] ^= 1 << rng.integers(8)


def overwrite(content, rng):
    place = rng.integers(len(content))
    length = min(int(rng.integers(1, 65)), len(content) - place)
    content[place : place + length] = rng.bytes(length)


def zeros(content, rng):
    place = rng.integers(len(content)) // 512 * 512  # a sector that was never written
    content[place : place + 512] = bytes(len(content[place : place + 512]))


def truncate(content, rng):
    del content[rng.integers(len(content)) :]


def insert(content, rng):
    place = rng.integers(len(content) + 1)
    content[place:place] = rng.bytes(int(rng.integers(1, 65)))


def duplicate(content, rng):
    start = rng.integers(len(content))
    length = int(rng.integers(1, 4097))
    place = rng.integers(len(content) + 1)
    content[place:place] = content[start : start + length]


def cut_out(content, rng):
    start = rng.integers(len(content))
    del content[start : start + int(rng.integers(1, 65))]


def structure(content, rng):
    """Flips a bit where names, shapes and instructions are: among the arrays that would be rare."""
    place = rng.choice([*range(400), *range(len(content) - 400, len(content))])
    content[place] ^= 1 << rng.integers(8)


DAMAGES = (flip, overwrite, zeros, truncate, insert, duplicate, cut_out, structure)


def same(a, b):
    """Compare nested containers, arrays and plain values by types and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[name], b[name]) for name in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, np.ndarray):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    return repr(a) == repr(b)


def run(tries, *, seed=0, first=0):
    """Load `tries` damaged files; returns the record as plain values. Raises AssertionError at a wrong load."""
    files = checkpoints()
    counts, slowest = {damage.__name__: Counter() for damage in DAMAGES}, 0.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "checkpoint.pd")
        whole = {}
        for kind, content in files.items():
            path.write_bytes(content)
            whole[kind] = checkpoint.read_checkpoint(path)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number in range(first, first + tries):
            kind = sorted(files)[number % 2]
            damage = DAMAGES[number // 2 % len(DAMAGES)]
            content = bytearray(files[kind])
            damage(content, np.random.default_rng([seed, number]))
            path.write_bytes(content)
            outcome, start = None, time.perf_counter()
            try:
                found = checkpoint.read_checkpoint(path)
                outcome = "right" if same(found, whole[kind]) else "wrong"
            except checkpoint.CheckpointError as error:
                outcome = "refused" if str(error).startswith(f"{path}: ") else "refused without its name"
            finally:
                if outcome is None:
                    print(
                        f"--seed {seed} --first {number} --tries 1: {kind}, {damage.__name__}",
                        file=sys.stderr,
                    )
            seconds = time.perf_counter() - start
            megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            assert (
                outcome in ("right", "refused") and seconds < MOST_SECONDS and megabytes < MOST_MEGABYTES
            ), (
                f"--seed {seed} --first {number} --tries 1: {kind}, {damage.__name__}: {outcome}, "
                f"{seconds:.1f} s, "
                f"{megabytes:.0f} MB more"
            )
            counts[damage.__name__][outcome] += 1
            slowest = max(slowest, seconds)
    return {
        "tries": tries,
        "seed": seed,
        "first": first,
        "bytes": {kind: len(content) for kind, content in files.items()},
        "refused": sum(count["refused"] for count in counts.values()),
        "right": sum(count["right"] for count in counts.values()),
        "wrong": 0,
        "by_damage": {name: dict(count) for name, count in counts.items()},
        "slowest_seconds": round(slowest, 3),
        "more_megabytes": round(megabytes, 1),
        "git_revision": provenance.git_state()[0],
        "versions": provenance.versions(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tries", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first try")
    args = parser.parse_args()
    print(json.dumps(run(args.tries, seed=args.seed, first=args.first), indent=2))
