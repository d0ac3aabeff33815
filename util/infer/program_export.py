"""A Vision Transformer as a static Paddle program: model.json (of Paddle 3) or model.pdmodel, and model.pdiparams.

The program is the model's own forward pass in float32, with one change of form: query, key and value are three products
instead of one, which lets oneDNN read each of them where it lies. On an AMD EPYC that takes a tenth off a batch of 16,
and it keeps bfloat16 from going back to float32 between the products.

Shape letters: N images, L tokens, D channels, H heads, C = D // H channels per head.
"""
import contextlib

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.base.layer_helper import LayerHelper

from util.look.encoder_features import extract_features
from util.system.console import silence

FORMATS = {"paddle": ("model.json", "model.pdiparams"), "paddle2": ("model.pdmodel", "model.pdiparams")}


def own_format():
    """Of FORMATS, the one that the Paddle at hand writes of itself."""
    return "paddle2" if paddle.__version__.startswith("2.") else "paddle"


def files(folder):
    """(program, weights) of an export in `folder`, whether they are there or not."""
    program, weights = FORMATS["paddle" if (folder / FORMATS["paddle"][0]).is_file() else "paddle2"]
    return folder / program, folder / weights


def export(model, folder, *, batch=None, features=(), file_format=None):
    """Write the program of `model` into `folder`. Its input is "images", its outputs are in the order of `features`.

    Args:
        model: a models_vit.VisionTransformer in eval mode. It is not usable afterwards.
        batch: how many images the program takes; None for any number.
        features: of util.look.feature_file.KINDS; none of them for the logits.
        file_format: of FORMATS; None for the Paddle's own.
    """
    file_format = file_format or own_format()
    check_format(file_format)
    shape = [batch, model.patch_embed.in_chans, *model.patch_embed.img_size]
    by_old_program = file_format != own_format()
    for block in model.blocks:
        block.attn = SeparateAttention(block.attn)
        if by_old_program:
            block.mlp = OldProgramMlp(block.mlp)
    if isinstance(model.head, nn.Sequential):  # of a linear probe
        model.head = _without_norm(*model.head)
    if features:
        model = FeatureExtractor(model, features)
        model.eval()
    with silence(), paddle.pir_utils.OldIrGuard() if by_old_program else contextlib.nullcontext():
        program = paddle.jit.to_static(model, full_graph=True, input_spec=[
            paddle.static.InputSpec(shape, "float32", name="images")])
        paddle.jit.save(program, str(folder / "model"))
    (folder / "model.pdiparams.info").unlink(missing_ok=True)  # for training it further


def check_format(file_format):
    """ValueError if the Paddle at hand cannot write programs of `file_format`."""
    if file_format == "paddle" and own_format() == "paddle2":
        raise ValueError(f"--format paddle: the program of Paddle 3 cannot be written by Paddle {paddle.__version__}; "
                         "pass --format paddle2, which Paddle 3 reads too")


class FeatureExtractor(nn.Layer):
    """Images [N, C, height, width] -> the features `kinds` of a models_vit.VisionTransformer, in that order."""

    def __init__(self, model, kinds):
        super().__init__()
        self.model, self.kinds = model, kinds

    def forward(self, images):
        return list(extract_features(self.model, images, self.kinds).values())


class SeparateAttention(nn.Layer):
    """The layer.Attention given, with products of their own for query, key and value, and the scale in the query's."""

    sdpa = False  # Paddle Inference fuses the written-out form

    def __init__(self, attention):
        super().__init__()
        self.num_heads, self.proj = attention.num_heads, attention.proj
        weight, bias = attention.qkv.weight.numpy(), attention.qkv.bias.numpy()
        self.dim = len(weight)
        with paddle.LazyGuard():  # no initial values, which take a third of a second in ViT-B
            self.query, self.key, self.value = (nn.Linear(self.dim, self.dim) for _ in range(3))
        scale = np.float32((self.dim // self.num_heads) ** -0.5)
        for place, (linear, factor) in enumerate(((self.query, scale), (self.key, 1), (self.value, 1))):
            third = slice(place * self.dim, (place + 1) * self.dim)
            linear.weight.set_value(np.ascontiguousarray(weight[:, third] * factor))
            linear.bias.set_value(bias[third] * factor)

    def forward(self, x):
        # By the operator: paddle.matmul of Paddle 3 takes no variables of an old program.
        weights = F.softmax(self._heads(self.query(x)) @ self._heads(self.key(x), [0, 2, 3, 1]))
        mixed = weights @ self._heads(self.value(x))  # [N, H, L, C]
        return self.proj(mixed.transpose([0, 2, 1, 3]).reshape([0, 0, self.dim]))

    def _heads(self, x, order=(0, 2, 1, 3)):
        """[N, L, D] -> [N, L, H, C], its axes in that order."""
        return x.reshape([0, 0, self.num_heads, self.dim // self.num_heads]).transpose(order)


class OldProgramMlp(nn.Layer):
    """The layer.Mlp given, for the old programs of Paddle 3, whose own gelu takes no variables of those."""

    def __init__(self, mlp):
        super().__init__()
        self.fc1, self.fc2 = mlp.fc1, mlp.fc2

    def forward(self, x):
        x = self.fc1(x)
        helper = LayerHelper("gelu")
        result = helper.create_variable_for_type_inference(x.dtype)
        helper.append_op(type="gelu", inputs={"X": x}, outputs={"Out": result}, attrs={"approximate": False})
        return self.fc2(result)


def _without_norm(norm, linear):
    """One linear map that does what BatchNorm1D and the linear map behind it do: Paddle Inference crashes on the first."""
    mean, variance, weight, bias = (value.numpy().astype("float64") for value in
                                    (norm._mean, norm._variance, linear.weight, linear.bias))
    weight = weight / np.sqrt(variance + norm._epsilon)[:, None]
    with paddle.LazyGuard():
        merged = nn.Linear(*weight.shape)
    merged.weight.set_value(weight.astype("float32"))
    merged.bias.set_value((bias - mean @ weight).astype("float32"))
    return merged
