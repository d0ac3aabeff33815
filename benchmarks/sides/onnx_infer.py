"""ONNX Runtime side of benchmarks/infer.py: an ONNX file on random images. Needs onnxruntime."""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks import sidebyside
from util.infer import onnx_engine


def prepare(args):
    predictor = onnx_engine.OnnxPredictor(args.file)
    images = (
        np.random.default_rng(0).standard_normal([args.batch_size, 3, args.size, args.size]).astype("float32")
    )

    def round():
        seconds = []
        for _ in range(args.repeats):
            started = time.perf_counter()
            predictor(images)
            seconds.append(time.perf_counter() - started)
        return {
            "images_per_s": args.batch_size / statistics.median(seconds),
            "ms": 1000 * statistics.median(seconds),
        }

    return round, sidebyside.versions("onnxruntime")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--file", required=True)
    parser.add_argument("--size", type=int, required=True, help="pixels a side")
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    args = parser.parse_args()
    sidebyside.serve(lambda: prepare(args))


if __name__ == "__main__":
    main()
