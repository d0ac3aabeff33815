"""Comparisons with the recorded references in tests/golden, and the rows of the table that tells how close they are.

Every comparison names a row of ROWS, which has its tolerance. With MAE_PARITY_RECORD=FILE each also adds a line of JSON
to that file; tools/maintain/golden_table.py makes docs/en/parity.md of it.
"""

import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import paddle
import PIL

GOLDEN = Path(__file__).resolve().parents[1] / "golden"

FORWARD, GRADIENT, EQUAL = 1e-5, 1e-4, 0.0


class Row(NamedTuple):
    """What is compared, in English and in Chinese; with what ("timm {timm}": its version comes from the file)."""

    file: str | None
    measure: str
    tolerance: float
    reference: str
    what: str
    what_zh: str


# The ways to measure a difference: of one number each, "equal" may not differ at all.
MEASURES = {
    "equal": ("largest difference of any value; none is allowed", "任一数值的最大差；不允许有差"),
    "relative": (
        "largest difference of an array, over the largest magnitude in the reference's",
        "数组中的最大差，除以参考数组的最大绝对值",
    ),
    "each": ("largest difference of a single number, over that number", "单个数的差除以该数，取最大"),
    "moved": (
        "largest difference of a parameter, over how far training moved that parameter",
        "参数的最大差，除以训练使该参数移动的最大距离",
    ),
    "absolute": ("largest difference of any value", "任一数值的最大差"),
}

MAE_REFERENCE = "transformers {transformers} ViTMAEForPreTraining, PyTorch {torch}, float64"
VIT_REFERENCE = "timm {timm} VisionTransformer, PyTorch {torch}, float64"
SCHEDULE = "timm {timm} CosineLRScheduler"
MIXUP = "timm {timm} Mixup with 0.3.2's boxes"

ROWS = {
    "sincos": Row(
        "positions",
        "relative",
        1e-6,
        "transformers {transformers} build_2d_sinusoidal_position_embedding",
        "Sine-cosine position tables, 5 grids, square and rectangular",
        "正弦余弦位置编码表，5 种网格（正方形与矩形）",
    ),
    "interpolated": Row(
        "positions",
        "relative",
        FORWARD,
        "PyTorch {torch} interpolate, bicubic",
        "Interpolated position embeddings: 14 to 24, 6 and 16 patches a side; 8 x 8 to 5 x 11",
        "位置编码插值：每边 14 块到 24、6、16 块；8 x 8 到 5 x 11",
    ),
    "patchify": Row(
        "mae",
        "equal",
        EQUAL,
        "transformers {transformers} ViTMAEForPreTraining",
        "patchify and unpatchify, square and rectangular",
        "patchify 与 unpatchify（正方形与矩形）",
    ),
    "masking": Row(
        "mae",
        "equal",
        EQUAL,
        "transformers {transformers} ViTMAEForPreTraining",
        "Masking for given noise: kept tokens, mask, ids_restore; 4 lengths and ratios",
        "给定噪声的随机掩码：保留的 token、mask、ids_restore；4 种长度与比例",
    ),
    "mae-mask": Row("mae", "equal", EQUAL, MAE_REFERENCE, "MAE: mask", "MAE：mask"),
    "mae-latent": Row(
        "mae", "relative", FORWARD, MAE_REFERENCE, "MAE: latent of the encoder", "MAE：编码器输出 latent"
    ),
    "mae-pred": Row("mae", "relative", FORWARD, MAE_REFERENCE, "MAE: predicted patches", "MAE：预测的图像块"),
    "mae-loss": Row(
        "mae",
        "each",
        FORWARD,
        MAE_REFERENCE,
        "MAE: loss, with and without norm_pix_loss",
        "MAE：损失（有无 norm_pix_loss）",
    ),
    "mae-gradients": Row(
        "mae",
        "relative",
        GRADIENT,
        MAE_REFERENCE,
        "MAE: gradient of every parameter, with and without norm_pix_loss",
        "MAE：每个参数的梯度（有无 norm_pix_loss）",
    ),
    "vit-features": Row(
        "vit",
        "relative",
        FORWARD,
        VIT_REFERENCE,
        "ViT: features, mean of the patches and class token",
        "ViT：特征（图像块均值与 class token）",
    ),
    "vit-logits": Row(
        "vit",
        "relative",
        FORWARD,
        VIT_REFERENCE,
        "ViT: logits, mean of the patches and class token",
        "ViT：logits（图像块均值与 class token）",
    ),
    "trained-vit": Row(
        None,
        "absolute",
        1e-4,
        "logits recorded beside the checkpoint, PyTorch",
        "ViT trained on Fashion-MNIST: logits of 4,443 images, all predictions equal",
        "在 Fashion-MNIST 上训练的 ViT：4,443 幅图的 logits，预测全部相同",
    ),
    "pretrain-lrs": Row(
        "pretrain",
        "absolute",
        1e-12,
        SCHEDULE,
        "Pretraining, 10 updates of 2 micro-batches: learning rates",
        "预训练 10 次更新（每次累积 2 个小批）：学习率",
    ),
    "pretrain-losses": Row(
        "pretrain",
        "each",
        FORWARD,
        MAE_REFERENCE + "; AdamW, timm {timm} param_groups_weight_decay",
        "Pretraining: the 20 losses",
        "预训练：20 个损失",
    ),
    "pretrain-final": Row(
        "pretrain",
        "moved",
        1e-3,
        MAE_REFERENCE + "; AdamW, timm {timm} param_groups_weight_decay",
        "Pretraining: final weights",
        "预训练：最终权重",
    ),
    "pretrain-moments": Row(
        "pretrain",
        "relative",
        GRADIENT,
        MAE_REFERENCE + "; AdamW",
        "Pretraining: Adam's final first moment of 3 parameters",
        "预训练：3 个参数的 Adam 一阶矩终值",
    ),
    "finetune-lrs": Row(
        "finetune",
        "absolute",
        1e-12,
        SCHEDULE,
        "Finetuning, 10 updates: learning rates",
        "微调 10 次更新：学习率",
    ),
    "finetune-losses": Row(
        "finetune",
        "each",
        FORWARD,
        VIT_REFERENCE + "; AdamW, param_groups_layer_decay, Mixup, losses",
        "Finetuning: 5 losses with label smoothing, 5 with Mixup, CutMix and a clipped gradient",
        "微调：5 个标签平滑损失，5 个 Mixup/CutMix 加梯度裁剪的损失",
    ),
    "finetune-final": Row(
        "finetune",
        "moved",
        1e-3,
        VIT_REFERENCE + "; AdamW, param_groups_layer_decay, Mixup, losses",
        "Finetuning: final weights",
        "微调：最终权重",
    ),
    "linprobe-lrs": Row(
        "linprobe",
        "absolute",
        1e-12,
        SCHEDULE,
        "Linear probe, 10 updates of 2 micro-batches: learning rates",
        "线性探测 10 次更新（每次累积 2 个小批）：学习率",
    ),
    "linprobe-losses": Row(
        "linprobe",
        "each",
        FORWARD,
        VIT_REFERENCE + "; BatchNorm1d; Lars, with decay written out",
        "Linear probe: the 20 losses, without weight decay and with it",
        "线性探测：20 个损失（有无权重衰减）",
    ),
    "linprobe-final": Row(
        "linprobe",
        "moved",
        GRADIENT,
        VIT_REFERENCE + "; BatchNorm1d; Lars, with decay written out",
        "Linear probe: final weights",
        "线性探测：最终权重",
    ),
    "linprobe-statistics": Row(
        "linprobe",
        "relative",
        FORWARD,
        "PyTorch {torch} BatchNorm1d, float64",
        "Linear probe: running mean, and running variance once made biased",
        "线性探测：滑动均值，以及换算为有偏估计的滑动方差",
    ),
    "crop-boxes": Row(
        "transforms",
        "equal",
        EQUAL,
        "torchvision {torchvision}, timm {timm}",
        "RandomResizedCrop: 72 boxes for given draws",
        "RandomResizedCrop：给定随机数的 72 个裁剪框",
    ),
    "crop-pixels": Row(
        "transforms",
        "equal",
        EQUAL,
        "torchvision {torchvision}, Pillow {pillow}",
        "RandomResizedCrop: pixels of 5 boxes",
        "RandomResizedCrop：5 个裁剪框的像素",
    ),
    "pretrain-transform": Row(
        "transforms",
        "equal",
        EQUAL,
        "torchvision {torchvision}, Pillow {pillow}",
        "Whole pretraining transform for given draws, 4 images",
        "完整的预训练变换，给定随机数，4 幅图",
    ),
    "finetune-transform": Row(
        "transforms",
        "equal",
        EQUAL,
        "timm {timm} create_transform, Pillow {pillow}",
        "Whole finetuning transform for given draws, 12 images",
        "完整的微调变换，给定随机数，12 幅图",
    ),
    "evaluation": Row(
        "evaluation",
        "equal",
        EQUAL,
        "timm {timm} create_transform, Pillow {pillow}",
        "Evaluation resize and crop of 4 images to 32, 96, 224 and 448 pixels",
        "评估时的缩放与裁剪：4 幅图，32、96、224、448 像素",
    ),
    "randaug": Row(
        "randaug",
        "equal",
        EQUAL,
        "timm {timm} AugmentOp, Pillow {pillow}",
        "RandAugment: 15 operations, up to 9 signed levels, colour and grey",
        "RandAugment：15 种操作，至多 9 个带符号强度，彩色与灰度",
    ),
    "erasing": Row(
        "erasing",
        "equal",
        EQUAL,
        "timm {timm} RandomErasing",
        "RandomErasing for given draws: 3 modes, 1 and up to 3 boxes",
        "RandomErasing，给定随机数：3 种模式，1 个及至多 3 个框",
    ),
    "mixup-boxes": Row(
        "mixup",
        "equal",
        EQUAL,
        MIXUP,
        "CutMix boxes for given draws: batch, pair and elem; drawn by area or by minmax",
        "CutMix 框，给定随机数：batch、pair、elem；按面积或 minmax",
    ),
    "mixup-shares": Row(
        "mixup", "absolute", 1e-7, MIXUP, "Mixup and CutMix lambdas", "Mixup 与 CutMix 的 lambda"
    ),
    "mixup-images": Row("mixup", "relative", 1e-6, MIXUP, "Mixed images", "混合后的图像"),
    "mixup-targets": Row("mixup", "absolute", 1e-6, MIXUP, "Soft targets", "软标签"),
}


class Mismatch(AssertionError):
    """A value that is further from its reference than the row's tolerance."""


_recording = True


def load(file):
    """tests/golden/FILE.npz as ({name: array}, meta)."""
    with np.load(GOLDEN / f"{file}.npz") as arrays:
        values = {name: arrays[name] for name in arrays.files}
    return values, json.loads(str(values.pop("meta")))


def under(arrays, prefix):
    """The entries below `prefix`/, without it."""
    return {name[len(prefix) + 1 :]: value for name, value in arrays.items() if name.startswith(prefix + "/")}


def check(row, got, expected, what="", *, start=None):
    """Raise Mismatch if `got` is further from `expected` than ROWS[row] allows.

    Args:
        what: which of the row's values this is, for the message.
        start: for rows measured by "moved", the value before training.
    """
    measure, tolerance = ROWS[row].measure, ROWS[row].tolerance
    got, expected = np.asarray(got), np.asarray(expected)
    if got.shape != expected.shape:
        raise Mismatch(f"{row} {what}: shape {got.shape}, the reference has {expected.shape}")
    difference = np.abs(got.astype(np.float64) - expected)
    if measure == "each":
        difference = difference / np.abs(expected)
    largest = float(difference.max())
    if measure == "relative":
        largest /= float(np.abs(expected).max())
    elif measure == "moved":
        largest /= float(np.abs(expected.astype(np.float64) - start).max())
    if _recording and os.environ.get("MAE_PARITY_RECORD"):
        with open(os.environ["MAE_PARITY_RECORD"], "a", encoding="utf-8") as f:
            f.write(
                json.dumps(
                    {
                        "row": row,
                        "difference": largest,
                        "paddle": paddle.__version__,
                        "numpy": np.__version__,
                        "pillow": PIL.__version__,
                    }
                )
                + "\n"
            )
    if not largest <= tolerance:
        worst = np.unravel_index(difference.argmax(), difference.shape)
        raise Mismatch(
            f"{row} {what}: off by {largest:.3g} ({measure}), {tolerance:g} is allowed; "
            f"at {[int(i) for i in worst]} {got[worst]}, the reference has {expected[worst]}"
        )


@contextmanager
def must_mismatch(broken=""):
    """Pass only if a comparison inside the block fails, as it must when something was broken on purpose."""
    global _recording
    _recording = False
    try:
        yield
    except Mismatch:
        return
    finally:
        _recording = True
    raise AssertionError(f"no comparison noticed the broken piece {broken}")


def load_pytorch(model, weights):
    """Give `model` all its weights from a state dict in PyTorch's layout; linear maps are [out, in] there."""
    linear = _linear_weights(model)
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    weights = {name: value.T if name in linear else value for name, value in weights.items()}
    assert own == {name: value.shape for name, value in weights.items()}
    model.set_state_dict(
        {name: paddle.to_tensor(np.ascontiguousarray(value)) for name, value in weights.items()}
    )


def pytorch_layout(model, values):
    """{parameter name: array} of `model` with its linear maps transposed to [out, in]."""
    linear = _linear_weights(model)
    return {name: value.T if name in linear else value for name, value in values.items()}


def _linear_weights(model):
    return {
        f"{name}.weight" for name, layer in model.named_sublayers() if isinstance(layer, paddle.nn.Linear)
    }
