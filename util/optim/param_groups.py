"""Parameter groups: weight decay and layer-wise learning rates.

A group's `learning_rate` is a factor of the optimizer's: the schedule sets one number and every group
follows.
"""

from typing import Any

from paddle import nn


def weight_decay_groups(model: nn.Layer, weight_decay: float) -> list[dict[str, Any]]:
    """Make the groups of pretraining: decay everything but biases and norm scales.

    The class and mask tokens, which are 3-D, are decayed as in the official code.
    """
    decayed: list[Any] = []
    free: list[Any] = []
    for name, p in model.named_parameters():
        if not p.stop_gradient:
            (free if p.ndim <= 1 or name.endswith(".bias") else decayed).append(p)
    return [{"params": free, "weight_decay": 0.0}, {"params": decayed, "weight_decay": weight_decay}]


def layer_decay_groups(model: Any, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Make the groups of finetuning: layer i of n learns at layer_decay ** (n - i) of the rate (A.1).

    Layer 0 is the embedding, layer i + 1 is block i, and the last layer is the norm and the head.

    Args:
        model: has `blocks` and `no_weight_decay()`.
    """
    num_layers = len(model.blocks) + 1
    undecayed = model.no_weight_decay()
    groups: dict[tuple[int, float], dict[str, Any]] = {}
    for name, p in model.named_parameters():
        if p.stop_gradient:
            continue
        layer = layer_of(name, num_layers)
        decay = 0.0 if p.ndim <= 1 or name in undecayed else weight_decay
        group = groups.setdefault(
            (layer, decay),
            {"params": [], "weight_decay": decay, "learning_rate": layer_decay ** (num_layers - layer)},
        )
        group["params"].append(p)
    return list(groups.values())


def layer_of(name: str, num_layers: int) -> int:
    """Layer index of a classifier's parameter: 0 for the embedding ... `num_layers` for norm and head."""
    if name in ("cls_token", "pos_embed") or name.startswith("patch_embed."):
        return 0
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return num_layers
