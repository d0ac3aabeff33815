"""ONNX files: inference with ONNX Runtime (without Paddle or onnx), and conversion of Paddle programs.

The metadata of a file holds its util.infer.model_info under INFO.
"""

from __future__ import annotations

import inspect
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from util.compute import cpu_runtime
from util.infer import model_info
from util.system.console import silence

INFO = "model_info"
OPSET = 17  # lowest version with LayerNormalization as one operation
LARGEST = 2**31  # bytes of an ONNX file, which is one protobuf message
ONLY_FATAL = 4  # log level of ONNX Runtime


class OnnxPredictor:
    """Predictor (util.infer.engine) of an ONNX file.

    A model exported for a fixed batch size accepts only that number of images.

    Args:
        path: ONNX file.
        threads: number of threads; None for the number that Paddle would use, see util.compute.cpu_runtime.
        device: "cpu" or "gpu".

    Raises ValueError if ONNX Runtime is not installed, or cannot load the file.
    """

    precision = "float32"

    def __init__(self, path: Path | str, threads: int | None = None, *, device: str = "cpu") -> None:
        self.info: dict[str, Any] = {}
        runtime = _onnxruntime()
        if not Path(path).is_file():
            raise ValueError(f"{path}: there is no such file")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or _threads()
        options.log_severity_level = ONLY_FATAL
        try:
            self._session = runtime.InferenceSession(
                str(path), options, providers=_providers(runtime, device)
            )
        except _load_errors() as error:
            raise ValueError(
                f"{path}: ONNX Runtime {runtime.__version__} cannot load this file "
                f"({str(error).strip().splitlines()[-1][:300]}); "
                "copy or export it again"
            ) from error
        if device == "gpu" and self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise ValueError(
                "--device gpu: ONNX Runtime cannot use the GPU; install the CUDA and cuDNN that "
                "onnxruntime-gpu needs, or pass --device cpu"
            )
        self._input = self._session.get_inputs()[0].name
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._lock = threading.Lock()

    @property
    def metadata(self) -> dict[str, str]:
        """Metadata of the file, {name: text}."""
        return self._session.get_modelmeta().custom_metadata_map

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Compute all outputs."""
        images = np.ascontiguousarray(images, "float32")
        with self._lock:  # parallel calls would share the same cores, and each would need its own memory
            return dict(
                zip(self._outputs, self._session.run(self._outputs, {self._input: images}), strict=True)
            )


def open_exported(path: Path | str, device: str = "auto") -> OnnxPredictor:
    """Open an ONNX file of tools/export.py.

    Args:
        device: "auto" (a GPU if ONNX Runtime was built for one), "gpu", "cuda" or "cpu".

    Raises ValueError for other files.
    """
    if device == "auto":
        device = "gpu" if "CUDAExecutionProvider" in _onnxruntime().get_available_providers() else "cpu"
    predictor = OnnxPredictor(path, device={"cuda": "gpu"}.get(device, device))
    text = predictor.metadata.get(INFO)
    if text is None:
        raise ValueError(f"{path}: this ONNX file has no model info; use a file of tools/export.py")
    predictor.info = model_info.parse_info(text, path)
    return predictor


def convert(program: Path, weights: Path, path: Path, *, outputs: Sequence[str], opset: int = OPSET) -> int:
    """Convert a static program to an ONNX file at `path`. Its input is named "images".

    Args:
        program, weights: files, see util.infer.program_export.
        outputs: names of the outputs, in the order of the program.
        opset: version of ONNX's operators, at least OPSET.

    Returns the opset of the file, which is higher than asked if an operation needs it.
    Raises ValueError if paddle2onnx or onnx is not installed.
    """
    converter, onnx = _converter()
    # By default, paddle2onnx 2.x lets another package optimise the file, and installs that package by pip.
    accepted = inspect.signature(converter.export).parameters
    unchanged = {"optimize_tool": None} if "optimize_tool" in accepted else {}
    with silence():
        content = converter.export(
            str(program), str(weights), opset_version=opset, enable_onnx_checker=True, **unchanged
        )
    model = onnx.load_from_string(content)
    _rename(model.graph, outputs)
    _drop_unread(model.graph)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return next(used.version for used in model.opset_import if used.domain in ("", "ai.onnx"))


def converter_version() -> str:
    """Return the version of paddle2onnx. Raises ValueError if paddle2onnx or onnx is not installed."""
    return _converter()[0].__version__


def write_metadata(path: Path, text: str) -> None:
    """Write `text` under INFO into the metadata of an ONNX file."""
    _, onnx = _converter()
    model = onnx.load(str(path))
    del model.metadata_props[:]
    model.metadata_props.add(key=INFO, value=text)
    onnx.save(model, str(path))


def _rename(graph, outputs):
    """Name the input and the outputs, and name the first axis "batch" if its size is free."""
    names = {
        graph.input[0].name: "images",
        **{value.name: name for value, name in zip(graph.output, outputs, strict=True)},
    }
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output):
        value.name = names[value.name]
        first = value.type.tensor_type.shape.dim[0]
        if not first.dim_value > 0:
            first.dim_param = "batch"
    del graph.value_info[:]  # uses the old names


def _drop_unread(graph):
    """Remove operations and weights that no output needs, because ONNX Runtime warns about them."""
    needed = {value.name for value in graph.output}
    for node in reversed(list(graph.node)):  # in topological order
        if needed.isdisjoint(node.output):
            graph.node.remove(node)
        else:
            needed.update(node.input)
    for weight in list(graph.initializer):
        if weight.name not in needed:
            graph.initializer.remove(weight)


def _onnxruntime():
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(
            f"an ONNX file needs ONNX Runtime, which cannot be imported ({error}); pip install onnxruntime"
        ) from error
    return onnxruntime


def _converter():
    try:
        import onnx
        import paddle2onnx
    except ImportError as error:
        raise ValueError(
            "--format onnx: needs paddle2onnx and onnx in versions that fit the installed "
            f"Paddle ({error}); pip install -r requirements/export.txt"
        ) from error
    return paddle2onnx, onnx


def _threads():
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(given) if given.isdigit() and int(given) else cpu_runtime.available_cores()


def _providers(runtime, device):
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        raise ValueError(
            "--device gpu: this ONNX Runtime is for CPUs; pip install onnxruntime-gpu instead, "
            "or pass --device cpu"
        )
    # TF32 would change the answers, because its mantissa has 10 bits.
    return [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]


def _load_errors():
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NoModel,
        state.NoSuchFile,
        state.NotImplemented,
        state.RuntimeException,
    )
