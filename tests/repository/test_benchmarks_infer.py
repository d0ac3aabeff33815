"""benchmarks/infer.py: what it compares is the same, and what fails says so."""

import sys

import numpy as np
import pytest
from data_files import PHOTOS

from benchmarks import infer
from benchmarks.sides import torch_first_answer
from util.images.normalize import default_mean_std
from util.images.preprocess import Preprocess


def test_the_opponent_sees_the_same_pixels():
    path = PHOTOS[0]
    mean, std = default_mean_std(3)
    ours = Preprocess((224, 224), 3, mean=mean, std=std)(str(path))
    np.testing.assert_allclose(torch_first_answer.load_picture(path)[0], ours, atol=1e-5)


def test_the_first_line_is_timed_and_not_the_end():
    code = "import time; time.sleep({}); print('a', flush=True); time.sleep({}); print('b')"
    assert infer.first_line([sys.executable, "-c", code.format(0, 0.5)])["seconds"] < 0.4
    assert infer.first_line([sys.executable, "-c", code.format(0.5, 0)])["seconds"] > 0.5


@pytest.mark.parametrize("call", [infer.first_line, infer.run])
def test_a_side_that_fails_says_why(call):
    code = "import sys; print('a'); print('why', file=sys.stderr); sys.exit(3)"
    with pytest.raises(ValueError, match="ended with code 3: why"):
        call([sys.executable, "-c", code])


def test_onnx_runtime_has_no_bfloat16(monkeypatch, capsys):
    monkeypatch.setattr(
        "sys.argv", ["infer.py", "--precision", "bfloat16", "--engine", "paddle", "onnxruntime"]
    )
    with pytest.raises(SystemExit):
        infer.main()
    assert "--engine onnxruntime: float32 only" in capsys.readouterr().err
