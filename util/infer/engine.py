"""Inference engines: Paddle, Paddle Inference and ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from util.infer.model_spec import is_exported, is_onnx

ENGINES = ("paddle", "inference", "onnxruntime")


class Predictor(Protocol):
    """Function from normalised images [N, C, height, width] to {output name: [N, ...]}, float32 arrays.

    It is thread-safe; calls are computed one after the other.
    """

    info: dict[str, Any]  # see util.infer.model_info
    precision: str  # dtype of matrix products

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]: ...


@dataclass(frozen=True)
class Engine:
    """Inference engine and its settings.

    Args:
        name: one of ENGINES.
        device: --device, "auto", "cpu", "gpu" or "cuda".
        precision: --amp, "auto", "off", "fp16" or "bf16".
        batch_size: largest batch that TensorRT accepts.
        tensorrt: run the program of "inference" by TensorRT, on a GPU.
        prepack: prepack the weights, which pays off from about 16 batches; only for "paddle" on a CPU.
    """

    name: str
    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 8
    tensorrt: bool = False
    prepack: bool = True

    def __post_init__(self) -> None:
        if self.tensorrt and self.name != "inference":
            raise ValueError("--trt: needs --engine inference; add it or remove --trt")


def choose_engine(path: Path | str, name: str | None = None) -> str:
    """Return engine `name`, by default the one that fits the file. Raises ValueError if it does not fit."""
    fitting: tuple[str, ...] = ("onnxruntime",)
    if is_onnx(path):
        what = "an ONNX file"
    elif is_exported(path):
        what, fitting = "an exported Paddle program", ("inference",)
    else:
        what, fitting = "a checkpoint", ("paddle", "inference")
    if name in (None, *fitting):
        return name or fitting[0]
    fix = "remove --engine"
    if name == "onnxruntime" and what == "a checkpoint":
        onnx = Path(path).with_suffix(".onnx").name
        fix = f"export it first: python tools/export.py --resume {path} --output {onnx}"
    raise ValueError(f"--engine {name}: {path} is {what} for {' or '.join(fitting)}; {fix}")
