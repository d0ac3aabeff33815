"""Features of images from an encoder that sees every patch.

Shape letters: N images, L patches, D channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import paddle


@paddle.no_grad()
def extract_features(
    model: paddle.nn.Layer, images: paddle.Tensor, kinds: Sequence[str], *, block: int | None = None
) -> dict[str, paddle.Tensor]:
    """Extract float32 features of images [N, C, height, width]; kinds: from util.look.feature_file.KINDS.

    "cls" [N, D] is the class token, "tokens" [N, L, D] are the patch tokens, "mean" [N, D] is their mean. All
    have passed the final norm; see `norm_of` for classifiers that normalise the mean only.

    Args:
        model: a models_vit.VisionTransformer in eval mode.
        block: take the output of this block instead, without the final norm; the first is 1.

    Raises:
        ValueError: the model has no such block.
    """
    norm, x = norm_of(model, block), model.embed(images)
    for number in range(block or len(model.blocks)):
        x = model.blocks[number](x)
    if norm == "norm":
        x = model.norm(x)
    x = x.astype("float32")
    take = {"cls": lambda: x[:, 0], "mean": lambda: x[:, 1:].mean(axis=1), "tokens": lambda: x[:, 1:]}
    found = {kind: take[kind]() for kind in kinds}
    if norm == "fc_norm" and "mean" in found:
        found["mean"] = model.fc_norm(found["mean"])
    return found


def norm_of(model: paddle.nn.Layer, block: int | None = None) -> str:
    """Name the norm that was applied to the features.

    "norm" normalises every token, "fc_norm" only the mean, and "none" stands for the plain output of a block.
    fc_norm belongs to classifiers of the mean patch token (global_pool). Their single tokens are the last
    block's output, and their class token was not trained for an output of its own.

    Raises:
        ValueError: the model has no such block.
    """
    if block is not None and not 1 <= block <= len(model.blocks):
        raise ValueError(f"--block {block}: the model has blocks 1 to {len(model.blocks)}")
    return "none" if block is not None else "fc_norm" if model.global_pool else "norm"


def shapes(model: paddle.nn.Layer, kinds: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Shape of one image's features of each kind."""
    length, dim = model.patch_embed.num_patches, model.cls_token.shape[-1]
    return {kind: (length, dim) if kind == "tokens" else (dim,) for kind in kinds}
