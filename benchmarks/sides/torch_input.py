"""Opponent of benchmarks/input_pipeline.py, which starts it in an environment with torchvision."""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import sidebyside

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")


def get_args_parser():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True)
    for name in ("input_size", "batch_size", "batches", "num_workers"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--torch_path", default="")
    parser.add_argument("--torch_import", default="")
    return parser


def prepare():
    args = get_args_parser().parse_args()
    sidebyside.import_torch(args)
    import torch
    from PIL import Image
    from torchvision import transforms

    files = sorted(path for path in Path(args.images).rglob("*") if path.suffix.lower() in SUFFIXES)
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(
                args.input_size, scale=(0.2, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
            ),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return args.batch_size * args.batches

        def __getitem__(self, index):
            with open(files[index % len(files)], "rb") as file:
                return transform(Image.open(file).convert("RGB"))

    loader = torch.utils.data.DataLoader(
        Images(), args.batch_size, shuffle=True, num_workers=args.num_workers
    )

    def round():
        batches = iter(loader)
        next(batches)
        start = time.perf_counter()
        rest = sum(len(batch) for batch in batches)
        return {"images_per_s": rest / (time.perf_counter() - start)}

    return round, {"images": len(files), **sidebyside.versions("torch", "torchvision", "pillow", "numpy")}


if __name__ == "__main__":
    sidebyside.serve(prepare)
