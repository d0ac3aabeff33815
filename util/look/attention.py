"""What a Transformer attends to: the attention of each block, its rollout, its entropy.

Shape letters: N images, H heads, L tokens, the class token first; h x w patches, L = 1 + h * w.
"""
import numpy as np
import paddle


@paddle.no_grad()
def attention_maps(model, images):
    """Yield, for each block of the encoder, how much each token takes of each: float32 numpy [N, H, L, L], rows sum to 1.

    Args:
        model: a classifier, or an autoencoder, whose encoder then sees every patch.
        images: [N, C, height, width]. For ViT-B at 224 pixels each has 1.9 MB a block.
    """
    x = model.embed(images)
    for block in model.blocks:
        yield block.attn.weights(block.norm1(x)).astype("float32").numpy()
        x = block(x)


def rollout(maps):
    """Attention over all blocks together (arXiv 2005.00928, section 3): maps as above -> [N, L, L], rows sum to 1.

    The mean over the heads, half of it replaced by the residual connection, multiplied from block to block.
    """
    total = None
    for weights in maps:
        mixed = weights.mean(axis=1)
        mixed = (mixed + np.eye(mixed.shape[-1], dtype=mixed.dtype)) / 2
        total = mixed if total is None else mixed @ total
    return total


def entropy(weights):
    """Of rows that sum to 1, [..., L]: in nats, [...]; from 0 (all from one token) to ln(L) (the same from each)."""
    return -(weights * np.log(np.maximum(weights, np.finfo("float32").tiny))).sum(axis=-1)
