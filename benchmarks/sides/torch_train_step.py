"""PyTorch side of benchmarks/train_step.py: the official models, made of timm's blocks."""

import argparse
import os
import resource
import statistics
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import sidebyside
from benchmarks.train_step import CLASSES, MASK_RATIO, MODELS


def make_step(task, name, precision):
    import timm
    import torch
    from timm.models.vision_transformer import Block, PatchEmbed
    from torch import nn

    norm = partial(nn.LayerNorm, eps=1e-6)
    m = MODELS[name]
    patches, pixels = (m["image"] // m["patch"]) ** 2, 3 * m["patch"] ** 2

    class Autoencoder(nn.Module):
        def __init__(self):
            super().__init__()
            width, decoder_width = m["width"], m["decoder_width"]
            self.patch_embed = PatchEmbed(m["image"], m["patch"], 3, width)
            self.cls_token, self.mask_token = (
                nn.Parameter(torch.zeros(1, 1, width)),
                nn.Parameter(torch.zeros(1, 1, decoder_width)),
            )
            self.register_buffer("positions", torch.zeros(1, 1 + patches, width))
            self.register_buffer("decoder_positions", torch.zeros(1, 1 + patches, decoder_width))
            self.blocks = nn.Sequential(
                *[Block(width, m["heads"], 4.0, qkv_bias=True, norm_layer=norm) for _ in range(m["depth"])]
            )
            self.norm, self.decoder_embed = norm(width), nn.Linear(width, decoder_width)
            self.decoder_blocks = nn.Sequential(
                *[
                    Block(decoder_width, m["decoder_heads"], 4.0, qkv_bias=True, norm_layer=norm)
                    for _ in range(m["decoder_depth"])
                ]
            )
            self.decoder_norm, self.decoder_pred = norm(decoder_width), nn.Linear(decoder_width, pixels)

        def forward(self, images):
            n, side, p = len(images), m["image"] // m["patch"], m["patch"]
            keep = int(patches * (1 - MASK_RATIO))
            shuffle = torch.rand(n, patches).argsort(1)
            restore = shuffle.argsort(1)
            x = self.patch_embed(images) + self.positions[:, 1:]
            x = x.gather(1, shuffle[:, :keep, None].expand(-1, -1, x.shape[2]))
            mask = torch.ones(n, patches)
            mask[:, :keep] = 0
            mask = mask.gather(1, restore)
            x = torch.cat([(self.cls_token + self.positions[:, :1]).expand(n, -1, -1), x], 1)
            x = self.decoder_embed(self.norm(self.blocks(x)))
            y = torch.cat([x[:, 1:], self.mask_token.to(x.dtype).expand(n, patches - keep, -1)], 1)
            y = y.gather(1, restore[:, :, None].expand(-1, -1, y.shape[2]))
            x = torch.cat([x[:, :1], y], 1) + self.decoder_positions
            prediction = self.decoder_pred(self.decoder_norm(self.decoder_blocks(x)))[:, 1:]
            target = (
                images.reshape(n, 3, side, p, side, p).permute(0, 2, 4, 3, 5, 1).reshape(n, patches, pixels)
            )
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
            return (((prediction - target) ** 2).mean(-1) * mask).sum() / mask.sum()

    torch.manual_seed(0)
    images = torch.randn(m["batch"], 3, m["image"], m["image"])
    if task == "pretrain":
        model = Autoencoder()
        forward = partial(model, images)
    else:
        model = timm.models.vision_transformer.VisionTransformer(
            img_size=m["image"],
            patch_size=m["patch"],
            embed_dim=m["width"],
            depth=m["depth"],
            num_heads=m["heads"],
            num_classes=CLASSES[name],
            global_pool="avg",
            drop_path_rate=0.1,
            norm_layer=norm,
        )
        labels, loss_of = (
            torch.randint(0, CLASSES[name], [m["batch"]]),
            nn.CrossEntropyLoss(label_smoothing=0.1),
        )

        def forward():
            return loss_of(model(images), labels)

    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.05},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=1e-4,
        betas=(0.9, 0.95),
    )

    def step():
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = forward()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        return time.perf_counter() - start

    return step


def prepare():
    parser = argparse.ArgumentParser()
    parser.add_argument("--task")
    parser.add_argument("--model")
    parser.add_argument("--precision")
    parser.add_argument("--attention")
    parser.add_argument("--torch_path")
    parser.add_argument("--torch_import")
    args = parser.parse_args()
    sidebyside.import_torch(args)
    import timm.layers
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    timm.layers.set_fused_attn(args.attention == "fused")
    step = make_step(args.task, args.model, args.precision)

    def round():
        seconds = statistics.median(step() for _ in range(MODELS[args.model]["steps"]))
        return {
            "images_per_s": MODELS[args.model]["batch"] / seconds,
            "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }

    return round, {
        **sidebyside.versions("torch", "timm"),
        "threads": torch.get_num_threads(),
        "attention": args.attention,
    }


if __name__ == "__main__":
    sidebyside.serve(prepare)
