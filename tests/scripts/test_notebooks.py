"""The notebooks: what is kept in their files, and that they run from top to bottom."""

import ast
import re
import shutil
import tarfile

import nbformat
import numpy as np
import pytest
from scripts import read_log

from tools.maintain import run_notebooks
from tools.maintain.run_notebooks import NOTEBOOKS, ROOT

NAMES = [path.name for path in NOTEBOOKS]

# Of each notebook, what makes it short. data/small is made here.
SETTINGS = {
    "1_quick_start.ipynb": {"DATA": "data/small", "PRETRAIN_EPOCHS": 2},
    "2_see_your_picture.ipynb": {
        "DATA": "data/small",
        "EPOCHS": 1,
        "MASK_RATIOS": [0.5, 0.9],
        "INPUT_SIZE": 32,
    },
    "3_your_own_folder.ipynb": {
        "PER_CLASS": 15,
        "PRETRAIN_EPOCHS": 3,
        "STOP_AT": "Epoch: [1]",
        "FINETUNE_EPOCHS": 1,
        "NUM_WORKERS": 0,
    },
    "4_from_pytorch.ipynb": {"DATA": "data/small"},
}


@pytest.fixture(params=NOTEBOOKS, ids=NAMES)
def notebook(request):
    """A notebook as it is in its file."""
    return nbformat.read(request.param, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """What a cell shows: of "text" and "picture"."""
    pictures = {
        "picture" for output in cell.outputs for kind in output.get("data", {}) if kind.startswith("image/")
    }
    return pictures | {"text" for output in cell.outputs if output.output_type == "stream"}


def text(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def called(source):
    """Names of the functions and methods that are called in Python source."""
    return {
        node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
    }


def test_there_are_four():
    assert NAMES == sorted(SETTINGS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_files_are_small_and_without_this_machine(path):
    written = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 1_000_000
    written = re.sub(r'"image/png": "[^"]*"', "", written)
    # Absolute paths, of any system; times of day; warnings, which name the file they come from.
    assert not re.findall(
        r"(?<![\w.:/<])/(?:home|root|tmp|work|opt|usr|mnt|data|private|Users)\b|[A-Z]:\\\\", written
    )
    assert not re.findall(r"\[\d\d:\d\d:\d\d|\d\d\d\d-\d\d-\d\d|Warning", written)


def test_valid_and_run_once_from_top_to_bottom(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert not [output for cell in code(notebook) for output in cell.outputs if output.output_type == "error"]


def test_outputs_are_there(notebook):
    for cell in code(notebook):
        functions = called(cell.source)
        assert kinds(cell) == ({"text"} if functions & {"run", "print"} else set()) | (
            {"picture"} if functions & {"Image", "plot"} else set()
        ), cell.source


def test_nothing_is_defined(notebook):
    defining = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in code(notebook):
        assert not [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, defining)], (
            cell.source
        )


def test_text_is_chinese_under_english_headings(notebook):
    headings = [
        line
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
        if line.startswith("#")
    ]
    assert len(headings) >= 6 and headings[0].startswith("# ")
    for heading in headings:
        assert re.fullmatch(r"##? [A-Z][a-zA-Z ,]+ · .*[\u4e00-\u9fff].*", heading), heading
    for cell in notebook.cells:
        assert cell.cell_type == "code" or len(re.findall(r"[\u4e00-\u9fff]", cell.source)) > 10, cell.source


def test_the_settings_are_one_cell_and_explained(notebook):
    (cell,) = (cell for cell in notebook.cells if run_notebooks.PARAMETERS in cell.metadata.get("tags", []))
    assert all(isinstance(line, ast.Assign) for line in ast.parse(cell.source).body)
    table = "".join(cell.source for cell in notebook.cells if "## Settings" in cell.source)
    named = set(re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE))
    assert named <= {line.targets[0].id for line in ast.parse(cell.source).body}


def test_files_that_are_named_exist(notebook):
    for cell in notebook.cells:
        for path in re.findall(
            r"(?<!\w)(?:data|configs|tools|tests)/[\w./-]*\w\.\w+|\bmain_\w+\.py", cell.source
        ):
            assert (ROOT / path).is_file(), path
        for path in re.findall(r"\]\(([\w.]+\.ipynb)\)", cell.source):
            assert path in NAMES


def test_an_unknown_setting_is_refused(notebook):
    with pytest.raises(ValueError, match="no settings EPOCH;"):
        run_notebooks.set_parameters(notebook, {"EPOCH": 1})


def small_data(folder):
    """The first pictures of the embedded held-out ones, 12 of each class to train with and 3 to test."""
    with tarfile.open(ROOT / "data/fashion_mnist/val.tar.gz") as archive:
        seen = {}
        for member in archive:
            kind, _, name = member.name.rpartition("/")
            seen[kind] = number = seen.get(kind, 0) + 1
            if number <= 15:
                place = folder / ("val" if number % 5 == 0 else "train") / kind
                place.mkdir(parents=True, exist_ok=True)
                (place / name).write_bytes(archive.extractfile(member).read())


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_runs_from_top_to_bottom(path, tmp_path):
    """In a folder with a space in its name, and where no Python is on the PATH."""
    project, programs = tmp_path / "my project", tmp_path / "programs"
    programs.mkdir()
    for name in ("cat", "grep"):  # Paddle asks them about the processor
        (programs / name).symlink_to(shutil.which(name))
    run_notebooks.copy_project(project)
    small_data(project / "data" / "small")
    notebook = nbformat.read(path, as_version=4)
    shown = [kinds(cell) for cell in code(notebook)]
    run_notebooks.set_parameters(notebook, SETTINGS[path.name])
    run_notebooks.execute(notebook, project, minutes=5, PATH=str(programs))
    cells = [cell for cell in code(notebook) if cell.id != run_notebooks.INJECTED]
    assert [kinds(cell) for cell in cells] == shown
    CHECKS[path.name]([text(cell) for cell in cells], project / "outputs" / "notebooks")


def answers(said):
    """{picture: {class: probability}} of what main_infer.py printed."""
    found, picture = {}, ""
    for line in said.splitlines()[1:]:
        if line.startswith("  "):
            name, _, probability = line.strip().rpartition(": ")
            found[picture][name] = float(probability)
        else:
            found.setdefault(picture := line, {})
    return found


def check_quick_start(said, outputs):
    assert [line["epoch"] for line in read_log(outputs / "quick_start" / "pretrain")] == [0, 1]
    asked = said[-1].splitlines()
    assert "main_infer.py" in asked[0]
    kinds = {path.name for path in (outputs.parents[1] / "data" / "small" / "train").iterdir()}
    assert len(asked) == 6 and {line.split(":")[0] for line in asked[1:]} < kinds


def check_pictures(said, outputs):
    with np.load(outputs / "see" / "chelsea_reconstruction.npz") as arrays:
        assert arrays["mask"].mean(axis=(1, 2)).round(1).tolist() == [0.5, 0.9]
    *entropies, limit = map(float, re.findall(r"\d\.\d\d", said[-1]))
    assert len(entropies) == 6 and 0 < min(entropies) <= max(entropies) <= limit == 4.17  # ln(1 + 8 * 8)


def check_folder(said, outputs):
    stopped, resumed = (words for words in said if "main_pretrain.py" in words and "--dry_run" not in words)
    assert "stopped by SIGINT in epoch 1 after step" in stopped and "continuing with epoch 1 step" in resumed
    assert [line["epoch"] for line in read_log(outputs / "own_folder" / "pretrain")] == [0, 1, 2]
    trained, evaluated = (re.findall(r"\* Acc@1 ([\d.]+)", words) for words in said if "Acc@1" in words)
    assert trained == evaluated
    assert len(answers(said[-2])) == 3
    assert (outputs / "own_folder" / "finetune" / "report.html").is_file()


def check_from_pytorch(said, outputs):
    assert "True" in next(words for words in said if words.startswith("PyTorch"))
    dynamic, static = map(answers, said[-2:])
    assert len(dynamic) == 2 and dynamic.keys() == static.keys()
    for picture, classes in dynamic.items():
        assert len(classes) == 5 and static[picture] == pytest.approx(classes, abs=2e-4)


CHECKS = {
    "1_quick_start.ipynb": check_quick_start,
    "2_see_your_picture.ipynb": check_pictures,
    "3_your_own_folder.ipynb": check_folder,
    "4_from_pytorch.ipynb": check_from_pytorch,
}
