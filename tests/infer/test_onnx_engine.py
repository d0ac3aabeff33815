"""ONNX engine: answers without Paddle, conversion, and errors for files that are not ours."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from util.infer import onnx_engine, program_export

ROOT = Path(__file__).resolve().parents[2]
INFO = {
    "format_version": 1,
    "task": "features",
    "outputs": {"mean": [None, 1]},
    "input": {"shape": [None, 1, 2, 2], "mean": [0.5], "std": [0.5]},
}


@pytest.fixture
def twice(tmp_path):
    """ONNX file, written by hand, that doubles [N, 1, 2, 2]."""
    shape = ["n", 1, 2, 2]
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "two"], ["y"])],
        "twice",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.float32([2]), "two")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(tmp_path / "twice.onnx"))
    return tmp_path / "twice.onnx"


@pytest.fixture
def converted(tmp_path, make_vit, scramble, images):
    """(ONNX file of the features of a small model, features of `images` by the model)."""
    from util.look.encoder_features import extract_features

    model = scramble(make_vit())
    model.eval()
    expected = {
        kind: values.numpy() for kind, values in extract_features(model, images, ("cls", "mean")).items()
    }
    program_export.export(model, tmp_path, features=("cls", "mean"))
    onnx_engine.convert(*program_export.files(tmp_path), tmp_path / "m.onnx", outputs=["cls", "mean"])
    return tmp_path / "m.onnx", expected


def numbers(count):
    return np.arange(count * 4, dtype="float32").reshape(count, 1, 2, 2)


def test_answers_have_the_names_of_the_file(twice):
    predictor = onnx_engine.OnnxPredictor(twice)
    answer = predictor(numbers(3))
    assert list(answer) == ["y"] and predictor.precision == "float32"
    np.testing.assert_array_equal(answer["y"], 2 * numbers(3))
    np.testing.assert_array_equal(predictor(numbers(4)[::2].astype("float64"))["y"], 2 * numbers(4)[::2])


def test_threads_get_their_own_answers(converted, images):
    predictor = onnx_engine.OnnxPredictor(converted[0])
    mine = [images.numpy() + number for number in range(8)]
    alone = [predictor(image)["cls"] for image in mine]
    assert len(np.unique(np.concatenate(alone), axis=0)) == 16
    with ThreadPoolExecutor(8) as pool:
        for answers, expected in zip(
            pool.map(lambda image: [predictor(image)["cls"] for _ in range(20)], mine), alone, strict=True
        ):
            for answer in answers:
                np.testing.assert_array_equal(answer, expected)


def test_threads_within_a_predictor(twice, monkeypatch):
    def of(threads=None):
        return onnx_engine.OnnxPredictor(twice, threads)._session.get_session_options().intra_op_num_threads

    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert [of(), of(5)] == [3, 5]
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(onnx_engine.cpu_runtime, "available_cores", lambda: 7)
    assert of() == 7


def test_a_conversion_has_our_names_and_no_unused_weights(converted, images):
    path, expected = converted
    model = onnx.load(str(path))
    assert [value.name for value in model.graph.input] == ["images"]
    assert [value.name for value in model.graph.output] == ["cls", "mean"]
    dims = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    ]
    assert dims == [["batch", 3, 12, 8], ["batch", 8], ["batch", 8]]
    read = {name for node in model.graph.node for name in node.input}
    assert {weight.name for weight in model.graph.initializer} <= read
    assert [used.version >= 17 for used in model.opset_import] == [True]
    found = onnx_engine.OnnxPredictor(path)(images.numpy())
    for kind in ("cls", "mean"):
        np.testing.assert_allclose(found[kind], expected[kind], atol=1e-5)


def test_neither_conversion_nor_use_prints(converted, images, capfd):
    """ONNX Runtime would warn about unused operations."""
    onnx_engine.OnnxPredictor(converted[0])(images.numpy())
    onnxruntime.InferenceSession(str(converted[0]), providers=["CPUExecutionProvider"])
    assert capfd.readouterr() == ("", "")


def test_the_metadata_hold_the_model_info(twice):
    onnx_engine.write_metadata(twice, "old")
    onnx_engine.write_metadata(twice, json.dumps(INFO))
    predictor = onnx_engine.open_exported(twice)
    assert predictor.info == INFO and len(onnx.load(str(twice)).metadata_props) == 1
    np.testing.assert_array_equal(predictor(numbers(1))["y"], 2 * numbers(1))


def test_files_that_are_not_ours(tmp_path, twice):
    with pytest.raises(ValueError, match="twice.onnx.*export.py"):
        onnx_engine.open_exported(twice)
    onnx_engine.write_metadata(twice, "[]")
    with pytest.raises(ValueError, match="twice.onnx: not a model info"):
        onnx_engine.open_exported(twice)
    with pytest.raises(ValueError, match="x.onnx"):
        onnx_engine.open_exported(tmp_path / "x.onnx")


def test_damaged_files(twice):
    content = twice.read_bytes()
    for damaged in (b"", b"no model at all", content[:-40], content.replace(b"Mul", b"Mux")):
        twice.write_bytes(damaged)
        with pytest.raises(ValueError, match="twice.onnx: "):
            onnx_engine.OnnxPredictor(twice)


def test_missing_packages_are_named(twice, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    for open_it in (onnx_engine.OnnxPredictor, onnx_engine.open_exported):
        with pytest.raises(ValueError, match="pip install onnxruntime"):
            open_it(twice)
    monkeypatch.setitem(sys.modules, "paddle2onnx", None)
    with pytest.raises(ValueError, match="--format onnx: .*requirements/export.txt"):
        onnx_engine.converter_version()


def test_a_gpu_that_is_not_there(twice):
    with pytest.raises(ValueError, match="--device gpu: .*pip install onnxruntime-gpu"):
        onnx_engine.open_exported(twice, "gpu")


def test_it_runs_without_paddle_and_onnx(twice):
    onnx_engine.write_metadata(twice, json.dumps(INFO))
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('paddle', 'onnx', 'paddle2onnx')))\n"
        "import numpy as np; from util.infer import onnx_engine\n"
        f"predictor = onnx_engine.open_exported({str(twice)!r})\n"
        "print(predictor.info['task'], predictor(np.ones([1, 1, 2, 2]))['y'].sum())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout == "features 8.0\n"
