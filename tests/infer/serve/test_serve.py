"""tools/serve.py as a process, its flags, and benchmarks/serve_load.py."""

import contextlib
import http.client
import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from running_service import Greys, Running, picture

import models_mae
import models_vit
from benchmarks import serve_load
from tools import serve
from util.compute import cpu_runtime
from util.infer.serve.sockets import open_socket
from util.infer.serve.uploads import Limits

CLASSIFIER = {"name": "vit_tiny_patch4", "img_size": 8, "in_chans": 1, "num_classes": 3, "global_pool": True}
AUTOENCODER = {"name": "mae_vit_tiny_patch4", "img_size": 8, "in_chans": 3, "norm_pix_loss": True}


def save(path, models, architecture, change=lambda model: None, **more):
    model = models[architecture["name"]](
        **{key: value for key, value in architecture.items() if key != "name"}
    )
    change(model)
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    path.write_bytes(pickle.dumps({"model": weights, "architecture": architecture, **more}))
    return path


def always(model):
    """Set the head so that every picture has the probabilities 1/8, 5/8 and 2/8."""
    model.head.weight.set_value(np.zeros(model.head.weight.shape, "float32"))
    model.head.bias.set_value(np.log(np.array([1, 5, 2], "float32")))


def test_from_its_start_to_its_end(tmp_path):
    resume = save(
        tmp_path / "classifier.pd", models_vit.MODELS, CLASSIFIER, always, classes=["猫", "dog", "eel"]
    )
    mae = save(tmp_path / "autoencoder.pd", models_mae.MODELS, AUTOENCODER)
    # The context ends it, and looks at its exit code.
    with serve_load.started(str(resume), ["--mae", str(mae), "--topk", "2"]) as address:
        host = address.removeprefix("http://").strip("/")

        def ask(method, path, body=None):
            with contextlib.closing(http.client.HTTPConnection(host, timeout=30)) as connection:
                connection.request(method, path, body, {"Content-Type": "image/png"})
                answer = connection.getresponse()
                return answer.status, answer.read()

        status, content = ask("POST", "/predict", picture(100, size=(20, 30)))
        (result,) = json.loads(content)["results"]
        assert status == 200
        assert [(found["class"], found["label"]) for found in result["classes"]] == [("dog", 1), ("eel", 2)]
        assert [found["probability"] for found in result["classes"]] == pytest.approx([0.625, 0.25])
        health = json.loads(ask("GET", "/health")[1])
        assert (health["model"], health["engine"], health["attention"], health["reconstruct"]) == (
            "vit_tiny_patch4",
            "paddle",
            True,
            True,
        ) and {"paddlepaddle", "aiohttp"} < health["versions"].keys()
        for path in ("/attention", "/reconstruct?mask_ratio=0.5&seed=3"):
            status, png = ask("POST", path, picture(100))
            assert status == 200 and Image.open(io.BytesIO(png)).format == "PNG"
        status, content = ask("POST", "/reconstruct?mask_ratio=0.9", picture(100))
        assert status == 400 and "?mask_ratio=0.9: leaves 0 of 4 patches visible" in content.decode()


def test_impossible_flags(call_script):
    for flag, words in (
        ("--resume", []),
        ("--queue", ["--resume", "x.pd", "--queue", "31"]),
        ("--batch_size", ["--resume", "x.pd", "--batch_size", "0"]),
        ("got inf", ["--resume", "x.pd", "--timeout", "inf"]),
        ("--engine onnxruntime", ["--resume", "x.pd", "--engine", "onnxruntime"]),
        ("--host no.such.host", ["--resume", "x.pd", "--host", "no.such.host.invalid"]),
        ("no_such_file.pd", ["--resume", "no_such_file.pd", "--port", 0]),
    ):
        assert flag in call_script(serve, *words, code=2)[1]


def test_a_port_in_use_is_reported_before_the_model_is_read(call_script):
    with contextlib.closing(open_socket("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        said = call_script(serve, "--resume", "no_such_file.pd", "--port", port, code=2)[1]
    assert f"--port {port}: " in said and "no_such_file" not in said


@pytest.mark.parametrize("engine", ["paddle", "inference"])
def test_bfloat16_is_refused_where_the_processor_has_none(call_script, tmp_path, monkeypatch, engine):
    resume = save(tmp_path / "classifier.pd", models_vit.MODELS, CLASSIFIER)
    monkeypatch.setattr(cpu_runtime, "features", lambda: frozenset({"avx2"}))
    monkeypatch.delattr(serve, "serve")  # it would wait for requests
    assert (
        "--amp bf16: this CPU has neither avx512_bf16 nor amx_bf16"
        in call_script(serve, "--resume", resume, "--port", 0, "--amp", "bf16", "--engine", engine, code=2)[1]
    )


def test_paddle_is_not_needed_to_import_it():
    code = "import sys; sys.modules.update(paddle=None); import tools.serve"
    subprocess.run([sys.executable, "-c", code], cwd=serve_load.ROOT, check=True)


class Moody(Greys):
    """Greys with a wrong answer from time to time."""

    def probabilities(self, images):
        found = super().probabilities(images)
        return np.roll(found * 0.9, 1, axis=1) if len(self.batches) % 10 == 9 else found


@pytest.mark.parametrize(
    "classifier, limits, problem",
    [
        (Greys, {}, None),
        (Moody, {}, "another answer than without load"),
        (Greys, {"queue": 1, "images": 1}, "ClientResponseError 503"),
    ],
)
def test_load(tmp_path, monkeypatch, capsys, classifier, limits, problem):
    for value in (3, 9):
        (tmp_path / f"{value}.png").write_bytes(picture(value))
    with Running(classifier=classifier(), about={"engine": "none"}, limits=Limits(**limits)) as running:

        @contextlib.contextmanager
        def started(resume, flags):
            yield f"http://127.0.0.1:{running.port}/"

        monkeypatch.setattr(serve_load, "started", started)
        code = serve_load.main(
            serve_load.get_args_parser().parse_args(
                [
                    "--resume",
                    "some/where/x.pd",
                    "--img_path",
                    *map(str, sorted(tmp_path.glob("*.png"))),
                    "--requests",
                    "60",
                    "--connections",
                    "4",
                    "--json",
                    str(tmp_path / "record.json"),
                ]
            )
        )
        asked = running.metric("mae_requests_total")
    record = json.loads((tmp_path / "record.json").read_text())
    assert sum(count for labels, count in asked.items() if "/predict" in labels) == 60 + 2
    assert [done for done, _ in record["resident_mb"]] == [*range(0, 61, 6)] and record["resident_mb"][0][
        1
    ] > 10
    found = record["found"]
    assert 0 < found["p50_ms"] <= found["p99_ms"] <= found["slowest_ms"] and found["requests_per_s"] > 1
    assert record["about"]["model"] == "greys" and record["settings"]["resume"] == "x.pd"
    assert str(tmp_path) not in json.dumps(record)
    if problem is None:
        assert code == 0 and found["errors"] == 0 and record["problems"] == {}
    else:
        assert code == 1 and record["problems"].keys() == {problem}
        assert found["errors"] == record["problems"][problem] > 0
        assert problem in capsys.readouterr().out
