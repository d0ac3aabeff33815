"""Predictors of model files.

    spec = read_model_spec("checkpoint-best.pd", models_vit.MODELS)
    predictor = open_predictor(spec, Engine("paddle"))
    predictor(images)["logits"]

Paddle is imported by the engines that need it: an ONNX file needs no Paddle.
"""

from __future__ import annotations

import numpy as np

from util.infer.engine import Engine, Predictor
from util.infer.model_spec import ModelSpec, check_channels


def open_predictor(spec: ModelSpec, engine: Engine) -> Predictor:
    """Open the predictor of a checkpoint, an exported Paddle program or an ONNX file."""
    if spec.is_exported:
        return _open_exported(spec, engine)
    from util.infer import paddle_engine

    return paddle_engine.open_checkpoint(spec, engine)


def _open_exported(spec, engine):
    predictor = _open_by_engine(spec.path, engine)
    info = predictor.info
    if missing := [kind for kind in spec.features or () if kind not in info["outputs"]]:
        raise ValueError(
            f"--features {' '.join(missing)}: {spec.path} has {', '.join(info['outputs'])}; "
            "export its checkpoint with tools/export.py --encoder"
        )
    batch, channels, *_ = info["input"]["shape"]
    check_channels(spec.normalization, channels)
    info["input"] |= {name: list(values) for name, values in spec.normalization.items()}
    return predictor if batch is None else FixedBatch(predictor, batch)


def _open_by_engine(path, engine):
    if engine.name == "onnxruntime":
        from util.infer import onnx_engine

        if engine.precision not in ("auto", "off"):
            raise ValueError(f"--amp {engine.precision}: an ONNX file computes in float32; remove the flag")
        return onnx_engine.open_exported(path, engine.device)
    from util.infer import paddle_engine, static_engine

    return static_engine.open_exported(path, paddle_engine.runtime_of(engine))


class FixedBatch:
    """Wrapper of a predictor for batches of `batch` images: splits and pads the input."""

    def __init__(self, predictor: Predictor, batch: int) -> None:
        self.predictor, self.batch = predictor, batch
        self.info, self.precision = predictor.info, predictor.precision

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Compute all outputs; see `Predictor`."""
        parts = [
            self._padded(images[start : start + self.batch]) for start in range(0, len(images), self.batch)
        ]
        return {name: np.concatenate([part[name] for part in parts])[: len(images)] for name in parts[0]}

    def _padded(self, images):
        missing = self.batch - len(images)
        return self.predictor(np.pad(images, [(0, missing), (0, 0), (0, 0), (0, 0)]) if missing else images)
