"""Export of a Vision Transformer as a static Paddle program.

Its files are model.json (Paddle 3) or model.pdmodel (Paddle 2), and model.pdiparams.

The program is the model's forward pass in float32, with one change: query, key and value are three products
instead of one, because oneDNN then reads each of them without a copy. On an AMD EPYC this saves a tenth of
the time of a batch of 16 images, and it avoids conversions from bfloat16 to float32 between the products.

Shape letters: N images, L tokens, D channels, H heads, C = D // H channels per head.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.base.layer_helper import LayerHelper

from util.look.encoder_features import extract_features
from util.system.console import silence

FORMATS = {"paddle": ("model.json", "model.pdiparams"), "paddle2": ("model.pdmodel", "model.pdiparams")}


def own_format() -> str:
    """Return the key of FORMATS that the installed Paddle writes by default."""
    return "paddle2" if paddle.__version__.startswith("2.") else "paddle"


def files(folder: Path) -> tuple[Path, Path]:
    """Return the paths (program, weights) of an export in `folder`. They may not exist."""
    program, weights = FORMATS["paddle" if (folder / FORMATS["paddle"][0]).is_file() else "paddle2"]
    return folder / program, folder / weights


def export(
    model: nn.Layer,
    folder: Path,
    *,
    batch: int | None = None,
    features: Sequence[str] = (),
    file_format: str | None = None,
) -> None:
    """Write the program of `model` into `folder`. The export consumes the model; do not use it afterwards.

    The input is "images"; the outputs are in the order of `features`.

    Args:
        model: a models_vit.VisionTransformer in eval mode.
        batch: number of images at once; None for any number.
        features: names from util.look.feature_file.KINDS; () for logits.
        file_format: key of FORMATS; None for `own_format`.
    """
    file_format = file_format or own_format()
    check_format(file_format)
    shape = [batch, model.patch_embed.in_chans, *model.patch_embed.img_size]
    by_old_program = file_format != own_format()
    for block in model.blocks:
        block.attn = SeparateAttention(block.attn)
        if by_old_program:
            block.mlp = OldProgramMlp(block.mlp)
    if isinstance(model.head, nn.Sequential):  # linear probe
        model.head = _without_norm(*model.head)
    if features:
        model = FeatureExtractor(model, features)
        model.eval()
    with silence(), paddle.pir_utils.OldIrGuard() if by_old_program else contextlib.nullcontext():
        program = paddle.jit.to_static(
            model, full_graph=True, input_spec=[paddle.static.InputSpec(shape, "float32", name="images")]
        )
        paddle.jit.save(program, str(folder / "model"))
    (folder / "model.pdiparams.info").unlink(missing_ok=True)  # needed for training only


def check_format(file_format: str) -> None:
    """Raise ValueError if the installed Paddle cannot write this format."""
    if file_format == "paddle" and own_format() == "paddle2":
        raise ValueError(
            f"--format paddle: Paddle {paddle.__version__} cannot write programs of Paddle 3; "
            "pass --format paddle2, which Paddle 3 reads too"
        )


class FeatureExtractor(nn.Layer):
    """Images [N, C, height, width] -> features `kinds` of a models_vit.VisionTransformer, in that order."""

    def __init__(self, model: nn.Layer, kinds: Sequence[str]) -> None:
        super().__init__()
        self.model, self.kinds = model, kinds

    def forward(self, images: paddle.Tensor) -> list[paddle.Tensor]:
        """Compute the features."""
        return list(extract_features(self.model, images, self.kinds).values())


class SeparateAttention(nn.Layer):
    """layer.Attention with separate products for query, key and value. The query includes the scale."""

    sdpa = False  # Paddle Inference fuses the written-out form

    def __init__(self, attention: nn.Layer) -> None:
        super().__init__()
        self.num_heads, self.proj = attention.num_heads, attention.proj
        weight, bias = attention.qkv.weight.numpy(), attention.qkv.bias.numpy()
        self.dim = len(weight)
        with paddle.LazyGuard():  # drawing initial values would take 0.3 s for a ViT-B
            self.query, self.key, self.value = (nn.Linear(self.dim, self.dim) for _ in range(3))
        scale = np.float32((self.dim // self.num_heads) ** -0.5)
        for place, (linear, factor) in enumerate(((self.query, scale), (self.key, 1), (self.value, 1))):
            third = slice(place * self.dim, (place + 1) * self.dim)
            linear.weight.set_value(np.ascontiguousarray(weight[:, third] * factor))
            linear.bias.set_value(bias[third] * factor)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Attend within x [N, L, D] -> [N, L, D]."""
        # The operator @, because paddle.matmul of Paddle 3 rejects variables of a program of Paddle 2.
        weights = F.softmax(self._heads(self.query(x)) @ self._heads(self.key(x), [0, 2, 3, 1]))
        mixed = weights @ self._heads(self.value(x))  # [N, H, L, C]
        return self.proj(mixed.transpose([0, 2, 1, 3]).reshape([0, 0, self.dim]))

    def _heads(self, x, order=(0, 2, 1, 3)):
        """[N, L, D] -> [N, L, H, C], with the axes in `order`."""
        return x.reshape([0, 0, self.num_heads, self.dim // self.num_heads]).transpose(order)


class OldProgramMlp(nn.Layer):
    """A layer.Mlp for programs of Paddle 2 written by Paddle 3, whose own gelu rejects their variables."""

    def __init__(self, mlp: nn.Layer) -> None:
        super().__init__()
        self.fc1, self.fc2 = mlp.fc1, mlp.fc2

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Compute fc2(gelu(fc1(x)))."""
        x = self.fc1(x)
        helper = LayerHelper("gelu")
        result = helper.create_variable_for_type_inference(x.dtype)
        helper.append_op(type="gelu", inputs={"X": x}, outputs={"Out": result}, attrs={"approximate": False})
        return self.fc2(result)


def _without_norm(norm, linear):
    """Merge BatchNorm1D into the next linear layer, because Paddle Inference crashes on BatchNorm1D."""
    mean, variance, weight, bias = (
        value.numpy().astype("float64") for value in (norm._mean, norm._variance, linear.weight, linear.bias)
    )
    weight = weight / np.sqrt(variance + norm._epsilon)[:, None]
    with paddle.LazyGuard():
        merged = nn.Linear(*weight.shape)
    merged.weight.set_value(weight.astype("float32"))
    merged.bias.set_value((bias - mean @ weight).astype("float32"))
    return merged
