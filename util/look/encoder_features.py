"""Features of images: what an encoder that sees the whole image makes of it.

Shape letters: N images, L patches, D channels.
"""
import paddle


@paddle.no_grad()
def features(model, images, kinds, *, block=None):
    """Images [N, C, height, width] -> {kind: float32 Tensor} for `kinds` of util.look.feature_file.KINDS.

    "cls" [N, D] is the class token, "tokens" [N, L, D] are the patch tokens, "mean" [N, D] is their mean. They are what
    the final norm gives; see `norm_of` for a classifier that has none for single tokens.

    Args:
        model: a models_vit.VisionTransformer in eval mode.
        block: whose output to take instead, without the final norm; 1 is the first.
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


def norm_of(model, block=None):
    """Which norm the features have passed: "norm", each token; "fc_norm", the mean only; "none", they are a block's.

    fc_norm is that of a classifier of the mean patch token. Its single tokens are what the last block gives, and its
    class token was trained for nothing: attention to it is all that it is there for.

    ValueError for a block that the model does not have.
    """
    if block is not None and not 1 <= block <= len(model.blocks):
        raise ValueError(f"--block {block}: the model has blocks 1 to {len(model.blocks)}")
    return "none" if block is not None else "fc_norm" if model.global_pool else "norm"


def shapes(model, kinds):
    """{kind: shape of an image's features}."""
    length, dim = model.patch_embed.num_patches, model.cls_token.shape[-1]
    return {kind: (length, dim) if kind == "tokens" else (dim,) for kind in kinds}
