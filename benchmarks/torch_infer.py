"""The PyTorch side of benchmarks/infer.py: timm's ViT answering batches of random images. Needs torch and timm."""
import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import sidebyside

# Our name of a model -> timm's.
MODELS = {"vit_small_patch16": "vit_small_patch16_224", "vit_base_patch16": "vit_base_patch16_224",
          "vit_large_patch16": "vit_large_patch16_224"}


def prepare(args):
    sidebyside.import_torch(args)
    import timm
    import torch

    if args.model not in MODELS:
        raise ValueError(f"--model {args.model}: timm has {', '.join(MODELS)} of ours")
    torch.manual_seed(0)
    model = timm.create_model(MODELS[args.model], global_pool="avg").eval()
    images = torch.randn([args.batch_size, 3, 224, 224])
    if args.precision == "bfloat16":
        model, images = model.bfloat16(), images.bfloat16()

    def round():
        seconds = []
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "autocast"):
            for _ in range(args.repeats):
                started = time.perf_counter()
                model(images).float().numpy()
                seconds.append(time.perf_counter() - started)
        return {"images_per_s": args.batch_size / statistics.median(seconds),
                "ms": 1000 * statistics.median(seconds)}

    return round, {**sidebyside.versions("torch", "timm"), "threads": torch.get_num_threads()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch_size", type=int, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--precision", choices=["float32", "autocast", "bfloat16"], required=True,
                        help="autocast: float32 weights, products in bfloat16; bfloat16: all of the model")
    parser.add_argument("--torch_path", default="")
    parser.add_argument("--torch_import", default="")
    args = parser.parse_args()
    sidebyside.serve(lambda: prepare(args))


if __name__ == "__main__":
    main()
