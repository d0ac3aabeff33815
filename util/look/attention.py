"""Attention maps of a Transformer, their rollout and their entropy.

Shape letters: N images, H heads, L tokens, the class token first; h x w patches, L = 1 + h * w.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import paddle


@paddle.no_grad()
def attention_maps(model: paddle.nn.Layer, images: paddle.Tensor) -> Iterator[np.ndarray]:
    """Yield the attention of each encoder block: float32 [N, H, L, L], rows are queries and sum to 1.

    Args:
        model: a classifier or an autoencoder; its encoder sees every patch.
        images: [N, C, height, width]. A map of one image takes 1.9 MB for ViT-B at 224 pixels.
    """
    x = model.embed(images)
    for block in model.blocks:
        yield block.attn.weights(block.norm1(x)).astype("float32").numpy()
        x = block(x)


def rollout(maps: Iterable[np.ndarray]) -> np.ndarray:
    """Combine the attention of all blocks: maps as above -> [N, L, L], rows sum to 1.

    Attention rollout (arXiv 2005.00928, section 3) averages over the heads, replaces half by the residual
    connection, and multiplies from block to block.
    """
    total = None
    for weights in maps:
        mixed = weights.mean(axis=1)
        mixed = (mixed + np.eye(mixed.shape[-1], dtype=mixed.dtype)) / 2
        total = mixed if total is None else mixed @ total
    assert total is not None, "a Transformer has at least one block"
    return total


def entropy(weights: np.ndarray) -> np.ndarray:
    """Compute the entropy of rows that sum to 1: [..., L] -> [...], 0 (one token) to ln(L) nats (uniform)."""
    return -(weights * np.log(np.maximum(weights, np.finfo("float32").tiny))).sum(axis=-1)
