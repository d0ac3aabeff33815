"""Imports go one way: scripts, engines, models, layers, and util below all; only scripts know options."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for path in [*ROOT.glob("*.py"), *ROOT.glob("util/**/*.py"), *ROOT.glob("tools/**/*.py")]
    if path.name != "__init__.py"
}
SCRIPTS = sorted(name for name in MODULES if name.startswith(("main_", "tools.")) and name.count(".") < 2)
# What each room of util may import; util/README.md has the same table in words.
ALLOWED = {
    "system": set(),
    "images": set(),
    "compute": set(),
    "optim": set(),
    "weights": {"system"},
    "data": {"system", "images"},
    "look": {"system", "images"},
    "run": {"system", "images", "data", "compute", "optim", "weights", "look"},
    "infer": {"system", "images", "data", "compute", "weights", "look"},
    "report": {"run", "look"},
    "options": {"system", "images", "data", "weights", "run"},
}
# An ONNX file is answered without Paddle: these do not import it before they need it.
WITHOUT_PADDLE = (
    "util.system.",
    "util.images.",
    "util.infer.model_spec",
    "util.infer.engine",
    "util.infer.predictors",
    "util.infer.onnx_engine",
    "util.infer.classifier",
    "util.infer.answers",
    "util.infer.picture_answers",
    "util.infer.model_info",
    "util.infer.serve.",
)
PACKAGES = {
    "PIL": "pillow",
    "yaml": "pyyaml",
    "paddle": "paddlepaddle",
    "google": "protobuf",
    "sklearn": "scikit-learn",
}  # where the two names differ


def imports(name):
    """Full names of the modules that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inside & MODULES.keys() or {node.module}
    return found


GRAPH = {name: imports(name) for name in MODULES}
OWN = {name: found & MODULES.keys() for name, found in GRAPH.items()}


def kind(name):
    return next(
        (kind for kind in ("main_", "engine_", "models_", "util.", "tools.") if name.startswith(kind)), name
    )


BELOW = {
    "main_": {"engine_", "models_", "util."},
    "tools.": {"engine_", "models_", "util.", "tools."},
    "engine_": {"util."},
    "models_": {"layer", "util."},
    "layer": {"util."},
    "util.": {"util."},
}


def room(name):
    return name.split(".")[1]


def test_every_module_has_a_place():
    assert {kind(name) for name in MODULES} == BELOW.keys()
    assert {room(name) for name in MODULES if kind(name) == "util."} == ALLOWED.keys()


def test_imports_go_down():
    assert not [
        (name, other) for name in MODULES for other in OWN[name] if kind(other) not in BELOW[kind(name)]
    ]


def test_rooms_import_what_the_table_allows():
    wrong = [
        (name, other)
        for name in MODULES
        if kind(name) == "util."
        for other in OWN[name]
        if room(other) not in ALLOWED[room(name)] | {room(name)}
    ]
    assert not wrong


def test_the_table_has_no_circle_and_no_room_too_many():
    left = dict(ALLOWED)
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    assert not left
    used = {(room(name), room(other)) for name in MODULES if kind(name) == "util." for other in OWN[name]}
    assert {(name, other) for name, others in ALLOWED.items() for other in others} <= used


def test_rooms_that_need_no_paddle_do_not_import_it():
    wrong = [
        name
        for name in MODULES
        if name.startswith(WITHOUT_PADDLE)
        for node in ast.parse(MODULES[name].read_text(encoding="utf-8")).body
        if isinstance(node, (ast.Import, ast.ImportFrom)) and "paddle" in ast.unparse(node).split()
    ]
    assert not wrong


def test_models_know_layers_only():
    assert {other for name in MODULES if kind(name) == "models_" for other in OWN[name]} == {"layer"}


def test_layers_know_operations_only():
    assert OWN["layer"] == {"util.compute.operations"}


def test_util_has_no_circles():
    left = {name: others for name, others in OWN.items() if kind(name) == "util."}
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    assert not left


COMMAND_LINE = {name for name in MODULES if name.startswith("util.options.")}


def test_only_scripts_know_the_command_line():
    knowing = {name for name, found in GRAPH.items() if found & {"argparse", *COMMAND_LINE}}
    assert {name for name in knowing if kind(name) not in ("main_", "tools.")} <= COMMAND_LINE


def test_a_namespace_is_not_taken_apart_below_scripts():
    below = [name for name in MODULES if name not in COMMAND_LINE and kind(name) not in ("main_", "tools.")]
    read = {
        (name, node.attr)
        for name in below
        for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "args"
    }
    # Where something is called `args` there, it is a dict or a tuple.
    assert not {(name, attribute) for name, attribute in read if attribute not in dir(dict)}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in SCRIPTS
        if name not in ("main_infer", "tools.serve")
        and any("paddle" in GRAPH[other] for other in {name, *OWN[name]})
    ],
)
def test_scripts_prepare_the_cpu_before_anything_imports_paddle(name):
    for statement in ast.parse(MODULES[name].read_text(encoding="utf-8")).body:
        if ast.unparse(statement) == "cpu_runtime.prepare()":
            break
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            first = statement.module if isinstance(statement, ast.ImportFrom) else statement.names[0].name
            assert (
                ast.unparse(statement) == "from util.compute import cpu_runtime"
                or first.split(".")[0] in sys.stdlib_module_names
            )
    else:
        pytest.fail("cpu_runtime.prepare() is not called")
    assert not {
        found
        for found in GRAPH["util.compute.cpu_runtime"]
        if found.split(".")[0] not in sys.stdlib_module_names
    }


def test_main_infer_prepares_the_cpu_too_but_imports_paddle_only_where_it_is_needed():
    """An ONNX file is to run with numpy, Pillow, PyYAML, tqdm and onnxruntime alone."""
    others = ("paddle", "visualdl", "matplotlib", "safetensors", "google", "cykooz", "paddle2onnx", "onnx")
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({others}))\n"
        "import main_infer; assert 'util.compute.cpu_runtime' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    source = MODULES["main_infer"].read_text(encoding="utf-8")
    assert source.index("cpu_runtime.prepare()") < source.index("import models_mae")


def test_everything_imported_is_in_the_requirements():
    text = "\n".join(
        (ROOT / name).read_text(encoding="utf-8")
        for name in (
            "requirements/common.txt",
            "requirements.txt",
            "requirements/serve.txt",
            "requirements/export.txt",
        )
    )
    required = set(re.findall(r"^([a-z][\w-]*)", text, flags=re.MULTILINE))
    # Tools may need more; each says what.
    foreign = {
        found.split(".")[0]
        for name in MODULES
        if kind(name) != "tools."
        for found in GRAPH[name] - MODULES.keys()
    }
    foreign -= {*sys.stdlib_module_names, "util"}
    assert {PACKAGES.get(package, package) for package in foreign} <= required


def test_nothing_imports_tests_or_tools():
    assert not [
        (name, found)
        for name in MODULES
        for found in GRAPH[name]
        if not name.startswith("tools.maintain.")
        and found.split(".")[0] in ("tests", "tools", "conftest", "numpy_transformer", "scripts")
    ]
