"""Imports go one way: scripts, engines, models, layers, and util below all; only scripts know options."""
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path
           for path in [*ROOT.glob("*.py"), *ROOT.glob("util/**/*.py"), *ROOT.glob("tools/*.py")]
           if path.name != "__init__.py"}
SCRIPTS = sorted(name for name in MODULES if name.startswith(("main_", "tools.")))
PACKAGES = {"PIL": "pillow", "yaml": "pyyaml", "paddle": "paddlepaddle", "google": "protobuf"}  # where the two names differ


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
    return next((kind for kind in ("main_", "engine_", "models_", "util.", "tools.") if name.startswith(kind)), name)


BELOW = {"main_": {"engine_", "models_", "util."}, "tools.": {"engine_", "models_", "util."}, "engine_": {"util."},
         "models_": {"layer", "util."}, "layer": {"util."}, "util.": {"util."}}


def test_every_module_has_a_place():
    assert {kind(name) for name in MODULES} == BELOW.keys()


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name):
    assert {kind(other) for other in OWN[name]} <= BELOW[kind(name)]


@pytest.mark.parametrize("name", [name for name in MODULES if kind(name) == "models_"])
def test_models_know_layers_and_positions_only(name):
    assert OWN[name] <= {"layer", "util.weights.pos_embed"}


def test_layers_know_operations_only():
    assert OWN["layer"] == {"util.compute.operations"}


def test_util_has_no_circles():
    left = {name: others for name, others in OWN.items() if kind(name) == "util."}
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    assert not left


COMMAND_LINE = {"util.options.training_options.command_line", "util.options.training_options"}


def test_only_scripts_know_the_command_line():
    knowing = {name for name, found in GRAPH.items() if found & {"argparse", *COMMAND_LINE}}
    assert knowing <= {*SCRIPTS, *COMMAND_LINE}
    assert not OWN["util.options.training_options.command_line"] & COMMAND_LINE and not OWN["util.options.training_options"] & COMMAND_LINE  # neither needs the other


@pytest.mark.parametrize("name", [name for name in MODULES if name not in {*SCRIPTS, *COMMAND_LINE}])
def test_a_namespace_is_not_taken_apart_below_scripts(name):
    # Where something is called `args` there, it is a dict or a tuple.
    read = {node.attr for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "args"}
    assert read <= set(dir(dict))


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in ("main_infer", "tools.serve") and any(
    "paddle" in GRAPH[other] for other in {name, *OWN[name]})])
def test_scripts_prepare_the_cpu_before_anything_imports_paddle(name):
    for statement in ast.parse(MODULES[name].read_text(encoding="utf-8")).body:
        if ast.unparse(statement) == "cpu_runtime.prepare()":
            break
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            first = statement.module if isinstance(statement, ast.ImportFrom) else statement.names[0].name
            assert ast.unparse(statement) == "from util import cpu_runtime" or first in sys.stdlib_module_names
    else:
        pytest.fail("cpu_runtime.prepare() is not called")
    assert not {found for found in GRAPH["util.compute.cpu_runtime"] if found.split(".")[0] not in sys.stdlib_module_names}


def test_main_infer_prepares_the_cpu_too_but_imports_paddle_only_where_it_is_needed():
    """An ONNX file is to run with numpy, Pillow, PyYAML, tqdm and onnxruntime alone."""
    others = ("paddle", "visualdl", "matplotlib", "safetensors", "google", "cykooz", "paddle2onnx", "onnx")
    code = (f"import sys; sys.modules.update(dict.fromkeys({others}))\n"
            "import main_infer; assert 'util.compute.cpu_runtime' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    source = MODULES["main_infer"].read_text(encoding="utf-8")
    assert source.index("cpu_runtime.prepare()") < source.index("import models_mae")


def test_everything_imported_is_in_the_requirements():
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in
                     ("requirements-common.txt", "requirements.txt", "requirements-serve.txt",
                      "requirements-export.txt"))
    required = set(re.findall(r"^([a-z]\w*)", text, flags=re.MULTILINE))
    # Tools may need more; each says what.
    foreign = {found.split(".")[0] for name in MODULES if kind(name) != "tools."
               for found in GRAPH[name] - MODULES.keys()}
    foreign -= {*sys.stdlib_module_names, "util"}
    assert {PACKAGES.get(package, package) for package in foreign} <= required


def test_nothing_imports_tests_or_tools():
    assert not [(name, found) for name in MODULES for found in GRAPH[name]
                if found.split(".")[0] in ("tests", "tools", "conftest", "numpy_transformer", "scripts")]
