"""The notebooks: what is kept in their files, and that they run from top to bottom."""
import ast
import re
import shutil
import tarfile

import nbformat
import pytest

from tools import run_notebooks
from tools.run_notebooks import NOTEBOOKS, ROOT

NAMES = [path.name for path in NOTEBOOKS]

# Of each notebook, what makes it short. data/small is made here.
SETTINGS = {
    "1_quick_start.ipynb": {"DATA": "data/small", "PRETRAIN_EPOCHS": 2},
    "2_see_your_picture.ipynb": {"DATA": "data/small", "EPOCHS": 1, "MASK_RATIOS": [0.5, 0.9], "INPUT_SIZE": 32},
    "3_your_own_folder.ipynb": {"PER_CLASS": 15, "PRETRAIN_EPOCHS": 3, "STOP_AT": "Epoch: [1]", "FINETUNE_EPOCHS": 1,
                                "NUM_WORKERS": 0},
    "4_from_pytorch.ipynb": {"DATA": "data/small"},
}


@pytest.fixture(params=NOTEBOOKS, ids=NAMES)
def notebook(request):
    """A notebook as it is in its file."""
    return nbformat.read(request.param, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """What a cell shows: a set of "text" and types of pictures."""
    shown = {kind for output in cell.outputs for kind in output.get("data", {}) if kind.startswith("image/")}
    return shown | {"text" for output in cell.outputs if output.output_type == "stream"}


def text(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


def called(source):
    """Names of the functions that are called in Python source."""
    return {node.func.id for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}


def test_there_are_four():
    assert NAMES == sorted(SETTINGS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_files_are_small_and_without_this_machine(path):
    written = path.read_text(encoding="utf-8")
    assert path.stat().st_size < 1_000_000
    written = re.sub(r'"image/png": "[^"]*"', "", written)
    # Absolute paths, of any system; times of day; warnings, which name the file they come from.
    assert not re.findall(r"(?<![\w.:/<])/(?:home|root|tmp|work|opt|usr|mnt|data|private|Users)\b|[A-Z]:\\\\", written)
    assert not re.findall(r"\[\d\d:\d\d:\d\d|\d\d\d\d-\d\d-\d\d|Warning", written)


def test_valid_and_run_once_from_top_to_bottom(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert not [output for cell in code(notebook) for output in cell.outputs if output.output_type == "error"]


def test_outputs_are_there(notebook):
    for cell in code(notebook):
        promised = set()
        if called(cell.source) & {"run", "print"}:
            promised.add("text")
        if "Image" in called(cell.source):
            promised.add("image/png")
        # Pictures in the form of the file that was shown; a cell without a promise is silent.
        assert kinds(cell) == promised, cell.source


def test_nothing_is_defined(notebook):
    defining = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for cell in code(notebook):
        assert not [node for node in ast.walk(ast.parse(cell.source)) if isinstance(node, defining)], cell.source


def test_text_is_chinese_under_english_headings(notebook):
    headings = [line for cell in notebook.cells if cell.cell_type == "markdown"
                for line in cell.source.splitlines() if line.startswith("#")]
    assert len(headings) >= 6 and headings[0].startswith("# ")
    for heading in headings:
        assert re.fullmatch(r"##? [A-Z][a-zA-Z ,]+ · .*[\u4e00-\u9fff].*", heading), heading
    for cell in notebook.cells:
        assert cell.cell_type == "code" or len(re.findall(r"[\u4e00-\u9fff]", cell.source)) > 10, cell.source


def test_the_settings_are_one_cell_and_explained(notebook):
    cell, = (cell for cell in notebook.cells if run_notebooks.PARAMETERS in cell.metadata.get("tags", []))
    assert all(isinstance(line, ast.Assign) for line in ast.parse(cell.source).body)
    table = "".join(cell.source for cell in notebook.cells if "## Settings" in cell.source)
    named = set(re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE))
    assert named <= {line.targets[0].id for line in ast.parse(cell.source).body}


def test_files_that_are_named_exist(notebook):
    for cell in notebook.cells:
        for path in re.findall(r"(?:data|configs|tools|tests)/[\w./-]*\w\.\w+|\bmain_\w+\.py", cell.source):
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
    project, empty = tmp_path / "my project", tmp_path / "empty"
    empty.mkdir()
    run_notebooks.copy_project(project)
    small_data(project / "data" / "small")
    notebook = nbformat.read(path, as_version=4)
    shown = [kinds(cell) for cell in code(notebook)]
    run_notebooks.set_parameters(notebook, SETTINGS[path.name])
    run_notebooks.execute(notebook, project, minutes=5, PATH=str(empty))
    cells = [cell for cell in code(notebook) if cell.id != run_notebooks.INJECTED]
    assert [kinds(cell) for cell in cells] == shown
    CHECKS[path.name]({cell.source.splitlines()[0]: text(cell) for cell in cells}, project / "outputs/notebooks")


def quick_start(printed, outputs):
    accuracy, = (found for said in printed.values() for found in re.findall(r"\* Acc@1 ([\d.]+)", said))
    assert float(accuracy) >= 0
    names = {path.name for path in (ROOT / "data/photos").iterdir()}
    assert names
    asked = next(said for said in printed.values() if "main_infer.py" in said)
    assert re.search(r"(ankle-boot|bag|coat|dress|pullover|sandal|shirt|sneaker|t-shirt|trouser): 0\.\d{4}", asked)


CHECKS = {"1_quick_start.ipynb": quick_start}
