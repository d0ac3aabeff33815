"""Models of checkpoints, with their weights and in eval mode."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import paddle
from paddle import nn

from util.infer.model_spec import Models, ModelSpec, checkpoint_spec
from util.weights import checkpoint, loading


def build_model(spec: ModelSpec) -> nn.Layer:
    """Build the model in eval mode; `load_weights` gives it its weights.

    A classifier has no initial weights, because drawing them takes seconds for a ViT-B.
    """
    assert spec.constructor is not None
    lazy = not spec.is_autoencoder  # an autoencoder reads its weights while it is built
    with paddle.LazyGuard() if lazy else contextlib.nullcontext():
        model = spec.constructor(**spec.sizes)
        if spec.role == "linear_probe" and lazy:
            model.make_linear_probe()
    model.eval()
    return model


def load_weights(spec: ModelSpec, model: nn.Layer) -> nn.Layer:
    """Load the weights into the model of `build_model`, and return it. On a CPU they share memory."""
    loading.load_weights(spec.path, spec.weights, model, origin=spec.state, share_memory=True)
    return model


def load_model(spec: ModelSpec) -> nn.Layer:
    """Build the model in eval mode, with its weights."""
    return load_weights(spec, build_model(spec))


def read_autoencoder_spec(
    path: Path | str, models: Models, overrides: Mapping[str, Any] | None = None, *, trusted: bool = False
) -> ModelSpec:
    """Read the description of a masked autoencoder; arguments as for `read_model_spec`.

    Raises CheckpointError for a file without a decoder.
    """
    state = checkpoint.read_checkpoint(path, trusted=trusted)
    check_decoder(path, state)
    return checkpoint_spec(path, state, models, overrides)


def check_decoder(path: Path | str, state: Mapping[str, Any]) -> None:
    """Raise CheckpointError for a checkpoint without a decoder."""
    if checkpoint.role(state["model"]) != "mae":
        raise checkpoint.no_decoder(path, state)
