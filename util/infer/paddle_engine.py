"""Predictors of checkpoints: the model as it was trained, or a static program kept beside the file."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
from paddle import nn

from util.compute import amp, operations
from util.infer import model_info, trained_model
from util.infer.model_spec import ModelSpec
from util.look import encoder_features
from util.system import distributed
from util.weights import checkpoint, formats

if TYPE_CHECKING:
    from util.infer.engine import Engine, Predictor
    from util.infer.static_engine import Runtime


class ModelPredictor:
    """Predictor (util.infer.engine) of a models_vit.VisionTransformer in eval mode.

    Args:
        device: "cpu" or "gpu".
        dtype: of matrix products; None for float32.
        prepack: prepack the weights for many calls; only on a CPU.
    """

    def __init__(
        self,
        model: nn.Layer,
        info: dict[str, Any],
        *,
        device: str,
        dtype: str | None = None,
        prepack: bool = True,
    ) -> None:
        self.model, self.info, self.precision = model, info, dtype or "float32"
        self.context = (
            operations.packed(model, dtype or "float32")
            if device == "cpu" and prepack
            else amp.autocast(dtype)
        )
        self.lock = threading.Lock()

    @paddle.no_grad()
    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Compute the outputs of `info`."""
        with self.lock, self.context():
            inputs = paddle.to_tensor(images)
            found = (
                encoder_features.extract_features(self.model, inputs, self.info["outputs"])
                if self.info["task"] == "features"
                else {"logits": self.model(inputs)}
            )
            return {name: value.astype("float32").numpy() for name, value in found.items()}


def open_checkpoint(spec: ModelSpec, engine: Engine) -> Predictor:
    """Open the predictor of a checkpoint; see util.infer.predictors.open_predictor."""
    if spec.is_autoencoder:
        raise ValueError(
            f"{spec.path}: this is {checkpoint.ROLES['mae'].description}, which gives no "
            "classes; main_infer.py writes reconstructions, or features with --features"
        )
    if engine.name == "inference":
        return _open_program(spec, engine)
    device = distributed.init(engine.device)
    dtype = amp.resolve(engine.precision, device)
    model = trained_model.load_model(spec)
    return ModelPredictor(
        model, describe_model(spec, model), device=device, dtype=dtype, prepack=engine.prepack
    )


def _open_program(spec, engine):
    if spec.features is not None:
        raise ValueError(
            "--features: --engine inference exports classifiers only; use --engine paddle, or "
            "export the encoder: tools/export.py --encoder"
        )
    from util.infer import static_engine  # needed by this engine alone

    model = trained_model.build_model(spec)
    return static_engine.open_cached(
        static_engine.ProgramKey(spec.path, {"name": spec.name, **spec.sizes}, spec.status),
        describe_model(spec, model),
        lambda: trained_model.load_weights(spec, model),
        runtime_of(engine),
    )


def describe_model(spec: ModelSpec, model: nn.Layer) -> dict[str, Any]:
    """Return the util.infer.model_info of the model of a checkpoint, for any number of images."""
    if spec.features is None:
        return model_info.info_of(model, spec, {"logits": (model.num_classes,)})
    info = model_info.info_of(
        model, spec, encoder_features.shapes(model, spec.features), norm=encoder_features.norm_of(model)
    )
    source = {"file": os.path.basename(spec.path), "weights_sha256": formats.checksum(spec.state["model"])}
    return {**info, "source": source}


def runtime_of(engine: Engine) -> Runtime:
    """Resolve --device and --amp for util.infer.static_engine."""
    from util.infer.static_engine import Runtime

    device = distributed.init(engine.device)
    # On a CPU, bfloat16 of Paddle Inference depends on the processor alone. Runtime checks that.
    bfloat16 = device == "cpu" and engine.precision == "bf16"
    dtype = "bfloat16" if bfloat16 else amp.resolve(engine.precision, device)
    return Runtime(device, dtype, engine.batch_size if engine.tensorrt else 0)
