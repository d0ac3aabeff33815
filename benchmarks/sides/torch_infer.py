"""PyTorch side of benchmarks/infer.py: timm's ViT on random images. Needs torch and timm.

With --onnx FILE it is written there instead, as PyTorch exports it, for any number of images; that needs onnx
and onnxscript.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import sidebyside

# Our name of a model -> timm's.
MODELS = {
    "vit_small_patch16": "vit_small_patch16_224",
    "vit_base_patch16": "vit_base_patch16_224",
    "vit_large_patch16": "vit_large_patch16_224",
}


def make(args):
    """Make timm's model in eval mode, with random weights."""
    sidebyside.import_torch(args)
    import timm
    import torch

    if args.model not in MODELS:
        raise ValueError(f"--model {args.model}: timm has {', '.join(MODELS)} of ours")
    torch.manual_seed(0)
    return timm.create_model(MODELS[args.model], global_pool="avg").eval()


def export(args):
    model = make(args)
    import torch

    torch.onnx.export(
        model,
        (torch.randn([2, 3, 224, 224]),),
        args.onnx,
        dynamo=True,
        opset_version=18,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )


def prepare(args):
    model = make(args)
    import torch

    images = torch.randn([args.batch_size, 3, 224, 224])
    if args.precision == "bfloat16":
        model, images = model.bfloat16(), images.bfloat16()

    def round():
        seconds = []
        with (
            torch.inference_mode(),
            torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "autocast"),
        ):
            for _ in range(args.repeats):
                started = time.perf_counter()
                model(images).float().numpy()
                seconds.append(time.perf_counter() - started)
        return {
            "images_per_s": args.batch_size / statistics.median(seconds),
            "ms": 1000 * statistics.median(seconds),
        }

    return round, {**sidebyside.versions("torch", "timm"), "threads": torch.get_num_threads()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--precision",
        choices=["float32", "autocast", "bfloat16"],
        default="float32",
        help="autocast: float32 weights, products in bfloat16; bfloat16: all of the model",
    )
    parser.add_argument("--onnx", default="", metavar="FILE", help="write the model there, and stop")
    parser.add_argument("--torch_path", default="")
    parser.add_argument("--torch_import", default="")
    args = parser.parse_args()
    if args.onnx:
        export(args)
        return
    sidebyside.serve(lambda: prepare(args))


if __name__ == "__main__":
    main()
