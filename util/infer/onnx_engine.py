"""ONNX files: run by ONNX Runtime, which needs neither Paddle nor the package onnx, and converted from programs.

The metadata of a file holds its util.infer.model_info under INFO.
"""
from __future__ import annotations

import inspect
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from util.compute import cpu_runtime
from util.infer import model_info
from util.system.console import silence

INFO = "model_info"
OPSET = 17          # the least; its LayerNormalization is one operation
LARGEST = 2 ** 31   # bytes of an ONNX file, which is one protobuf message
ONLY_FATAL = 4      # of ONNX Runtime's levels of logging


class OnnxPredictor:
    """Predictor (util.infer.engine) of an ONNX file. A model for a fixed batch takes no other number of images.

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
            self._session = runtime.InferenceSession(str(path), options, providers=_providers(runtime, device))
        except _load_errors() as error:
            raise ValueError(f"{path}: this is no ONNX file that ONNX Runtime {runtime.__version__} can load "
                             f"({str(error).strip().splitlines()[-1][:300]}); copy or export it again") from error
        if device == "gpu" and self._session.get_providers()[0] != "CUDAExecutionProvider":
            raise ValueError("--device gpu: ONNX Runtime cannot use the GPU (onnxruntime-gpu needs a CUDA and a cuDNN that "
                             "fit it); pass --device cpu")
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
            return dict(zip(self._outputs, self._session.run(self._outputs, {self._input: images}), strict=True))


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


def convert(program, weights, path, *, outputs, opset=OPSET):
    """Write the ONNX file at `path` of a static program; its input becomes "images", its outputs `outputs`.

    Args:
        program, weights: files, see util.infer.program_export.
        outputs: names in the order of the program's.
        opset: version of ONNX's operators, at least OPSET.

    Returns the opset that it has, which is higher where an operation needs that.
    Raises ValueError if paddle2onnx or onnx is not installed.
    """
    converter, onnx = _converter()
    # 2.x would have its result changed by another package, which it installs by pip if that is missing.
    as_it_is = {"optimize_tool": None} if "optimize_tool" in inspect.signature(converter.export).parameters else {}
    with silence():
        content = converter.export(str(program), str(weights), opset_version=opset, enable_onnx_checker=True, **as_it_is)
    model = onnx.load_from_string(content)
    _rename(model.graph, outputs)
    _drop_unread(model.graph)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return next(used.version for used in model.opset_import if used.domain in ("", "ai.onnx"))


def converter_version():
    """The version of paddle2onnx; ValueError if it or onnx is not installed."""
    return _converter()[0].__version__


def write_info(path, text):
    """Put `text` into the metadata of the ONNX file at `path`."""
    _, onnx = _converter()
    model = onnx.load(str(path))
    del model.metadata_props[:]
    model.metadata_props.add(key=INFO, value=text)
    onnx.save(model, str(path))


def _rename(graph, outputs):
    """Give input and outputs their names, and the first axis of each that takes any number the name "batch"."""
    names = {graph.input[0].name: "images",
             **{value.name: name for value, name in zip(graph.output, outputs, strict=True)}}
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*graph.input, *graph.output):
        value.name = names[value.name]
        first = value.type.tensor_type.shape.dim[0]
        if not first.dim_value > 0:
            first.dim_param = "batch"
    del graph.value_info[:]  # under the old names


def _drop_unread(graph):
    """Drop operations and weights that no output needs: ONNX Runtime complains of them."""
    needed = {value.name for value in graph.output}
    for node in reversed(list(graph.node)):  # each stands behind those that it reads
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
        raise ValueError("ONNX files are run by ONNX Runtime, which cannot be imported: pip install onnxruntime "
                         f"({error})") from error
    return onnxruntime


def _converter():
    try:
        import onnx
        import paddle2onnx
    except ImportError as error:
        raise ValueError("--format onnx needs paddle2onnx and onnx, of versions that fit the Paddle at hand: "
                         f"pip install -r requirements/export.txt ({error})") from error
    return paddle2onnx, onnx


def _threads():
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(given) if given.isdigit() and int(given) else cpu_runtime.available_cores()


def _providers(runtime, device):
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" not in runtime.get_available_providers():
        raise ValueError("--device gpu: this ONNX Runtime is for CPUs; pip install onnxruntime-gpu in its place, or pass "
                         "--device cpu")
    # Its TF32 has 10 bits of mantissa and would answer differently.
    return [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]


def _load_errors():
    from onnxruntime.capi import onnxruntime_pybind11_state as state
    return (state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoModel, state.NoSuchFile,
            state.NotImplemented, state.RuntimeException)
