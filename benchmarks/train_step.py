"""Images per second and peak memory of a training step, beside the PyTorch original.

    python benchmarks/train_step.py --model base        # MAE ViT-B/16 pretraining at 224 pixels, batch 8
    python benchmarks/train_step.py --model base --task finetune
    python benchmarks/train_step.py --model cifar       # 32 pixels, patch 4, width 192, batch 128
    python benchmarks/train_step.py --against torch --torch_python PYTHON --precision float32 bfloat16
    python benchmarks/train_step.py --profile           # time by kind of work

The opponent is the official model, made of timm's blocks, with the official code's attention
(--torch_attention official) or PyTorch's fused one. Every side runs in a process of its own. The input is
random, so that reading images takes no part (benchmarks/input_pipeline.py).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import sidebyside

# Sizes of the models: the paper's, one for CIFAR, and one to try this script.
# `batch` is images per step, `steps` is steps per round.
MODELS = {
    "base": dict(
        image=224,
        patch=16,
        width=768,
        depth=12,
        heads=12,
        decoder_width=512,
        decoder_depth=8,
        decoder_heads=16,
        batch=8,
        steps=2,
    ),
    "cifar": dict(
        image=32,
        patch=4,
        width=192,
        depth=12,
        heads=3,
        decoder_width=96,
        decoder_depth=4,
        decoder_heads=3,
        batch=128,
        steps=6,
    ),
    "tiny": dict(
        image=8,
        patch=4,
        width=8,
        depth=1,
        heads=2,
        decoder_width=8,
        decoder_depth=1,
        decoder_heads=2,
        batch=2,
        steps=1,
    ),
}
CLASSES = {"base": 1000, "cifar": 10, "tiny": 10}
MASK_RATIO = 0.75


def flops(model: str, task: str) -> int:
    """Count the floating-point operations of a step's matrix products in the official code.

    A multiplication and an addition count as two, and the backward pass as twice the forward pass. Patches
    that could be left out of the loss exactly are counted too, so that both sides have the same work.
    """
    m = MODELS[model]
    patches, pixels = (m["image"] // m["patch"]) ** 2, 3 * m["patch"] ** 2

    def block(tokens: int, width: int) -> int:
        return tokens * 12 * width**2 + 2 * tokens**2 * width

    forward = patches * pixels * m["width"]
    if task == "finetune":
        forward += m["depth"] * block(1 + patches, m["width"]) + m["width"] * CLASSES[model]
    else:
        kept = 1 + int(patches * (1 - MASK_RATIO))
        forward += m["depth"] * block(kept, m["width"]) + kept * m["width"] * m["decoder_width"]
        forward += m["decoder_depth"] * block(1 + patches, m["decoder_width"])
        forward += (1 + patches) * m["decoder_width"] * pixels
    return 2 * 3 * m["batch"] * forward


def get_args_parser() -> argparse.ArgumentParser:
    """Define the flags of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=["pretrain", "finetune"], default="pretrain")
    parser.add_argument("--model", choices=list(MODELS), default="base")
    parser.add_argument("--precision", nargs="+", choices=["float32", "bfloat16"], default=["float32"])
    parser.add_argument(
        "--operations",
        nargs="+",
        choices=["onednn", "paddle", "installed"],
        default=["onednn"],
        help="paddle: Paddle's own operations; installed: these with Paddle's own settings of "
        "threads and libraries (MAE_CPU_RUNTIME=off)",
    )
    parser.add_argument("--profile", action="store_true", help="print the time by kind of work, and stop")
    parser.add_argument("--torch_attention", choices=["official", "fused"], default="official")
    sidebyside.add_arguments(parser, rounds=9, warmup=2)
    return parser


def main(args: argparse.Namespace) -> None:
    """Measure all sides in turns, and report them."""
    common = ["--task", args.task, "--model", args.model]
    ours = Path(__file__).parent / "sides" / "paddle_train_step.py"
    sides: list[sidebyside.Side] = []
    for precision in args.precision:
        for operations in args.operations:
            if operations != "onednn" and precision == "bfloat16":
                continue  # Paddle has no bfloat16 on a CPU
            options = [*common, "--precision", precision, "--operations", operations]
            if args.profile:
                options.append("--profile")
            python = (
                [sys.executable]
                if operations != "installed"
                else ["env", "MAE_CPU_RUNTIME=off", sys.executable]
            )
            sides.append(sidebyside.OtherProcess(f"{operations} {precision}", [*python, ours, *options]))
        if args.against and not args.profile:
            sides.append(
                sidebyside.torch_side(
                    f"torch {precision}",
                    "torch_train_step.py",
                    [*common, "--precision", precision, "--attention", args.torch_attention],
                    args,
                )
            )
    settings = {
        "task": args.task,
        "model": args.model,
        **MODELS[args.model],
        "gflop_a_step": round(flops(args.model, args.task) / 1e9, 1),
    }
    if not sides:
        raise ValueError(f"--operations {' '.join(args.operations)}: no bfloat16 on a CPU; add onednn")
    if args.profile:
        results = sidebyside.alternate(sides, rounds=1, warmup=0)
        for name, (measured,) in results.items():
            print(f"{name}: {measured['step']:.3f} s a step")
            for kind, seconds in sorted(measured.items(), key=lambda item: -item[1])[1:]:
                print(f"  {seconds / measured['step']:6.1%}  {kind}")
        sidebyside.report(
            "train_step_profile",
            sides,
            results,
            measure="step",
            settings=settings,
            against=None,
            json_path=args.json,
        )
        return
    results = sidebyside.alternate(sides, rounds=args.rounds, warmup=args.warmup)
    work = flops(args.model, args.task) / MODELS[args.model]["batch"]
    for rounds in results.values():
        for each in rounds:
            each["gflops"] = each["images_per_s"] * work / 1e9
            if "matmul_gflops" in each:
                each["share_of_matmul"] = each["gflops"] / each["matmul_gflops"]
    settings |= {"torch_attention": args.torch_attention, "rounds": args.rounds, "warmup": args.warmup}
    for precision in args.precision:  # each precision is compared with itself
        chosen = [side for side in sides if side.name.endswith(precision)]
        path = args.json
        if path and len(args.precision) > 1:
            path = str(Path(path).with_name(f"{Path(path).stem}_{precision}.json"))
        sidebyside.report(
            "train_step",
            chosen,
            {side.name: results[side.name] for side in chosen},
            measure="images_per_s",
            json_path=path,
            settings={**settings, "precision": precision},
        )


if __name__ == "__main__":
    try:
        main(get_args_parser().parse_args())
    except ValueError as error:
        sys.exit(f"train_step.py: error: {error}")
