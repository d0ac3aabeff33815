"""PyTorch side of `benchmarks/infer.py --startup`: prints the top-5 classes of a picture.

It does what main_infer.py does, with timm's ViT and as little else as that takes: no weights are drawn before
those of the file are read. Needs torch, timm and Pillow.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from PIL import Image

from benchmarks import sidebyside
from benchmarks.sides.torch_infer import MODELS


def load_picture(path):
    """Preprocess for ImageNet: short side 256, centre crop, normalisation; float32 [1, 3, 224, 224]."""
    picture = Image.open(path).convert("RGB")
    short = min(picture.size)
    picture = picture.resize([256 * side // short for side in picture.size], Image.BICUBIC)
    left, top = (round((side - 224) / 2) for side in picture.size)
    pixels = np.asarray(picture.crop((left, top, left + 224, top + 224)), dtype="float32") / 255
    pixels = (pixels - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--model", required=True, choices=list(MODELS))
    parser.add_argument("--weights", required=True)
    parser.add_argument(
        "--write", action="store_true", help="write random weights there, print versions, and stop"
    )
    parser.add_argument("--img_path", default="")
    parser.add_argument("--torch_path", default="")
    parser.add_argument("--torch_import", default="")
    args = parser.parse_args()
    sidebyside.import_torch(args)
    import timm
    import torch

    if args.write:
        torch.save(
            {"model": timm.create_model(MODELS[args.model], global_pool="avg").state_dict()}, args.weights
        )
        print(json.dumps(sidebyside.versions("torch", "timm")))
        return
    with torch.device("meta"):
        model = timm.create_model(MODELS[args.model], global_pool="avg")
    model.load_state_dict(torch.load(args.weights, mmap=True)["model"], assign=True)
    model.eval()
    with torch.inference_mode():
        probabilities, labels = (
            model(torch.from_numpy(load_picture(args.img_path))).softmax(dim=-1)[0].topk(5)
        )
    for probability, label in zip(probabilities.tolist(), labels.tolist(), strict=True):
        print(f"class {label}: {probability:.4f}", flush=True)


if __name__ == "__main__":
    main()
