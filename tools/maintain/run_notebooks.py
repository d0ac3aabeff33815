"""Run the notebooks from top to bottom, and store their outputs in their files.

    pip install -r requirements.txt -r requirements/test.txt
    python tools/maintain/run_notebooks.py                                   # all: five minutes on two cores
    python tools/maintain/run_notebooks.py notebooks/1_quick_start.ipynb

They run in a copy of the project, so that no other file changes. Notebooks of one call share the copy.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import nbformat
from nbclient import NotebookClient

from util.compute import cpu_runtime
from util.system.atomic_file import atomic_write

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
PARAMETERS = "parameters"  # tag of the cell with the settings; papermill uses the same
INJECTED = "injected-parameters"


def copy_project(folder: Path) -> None:
    """Copy the project to a new folder, without the outputs of runs."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "output*", "log", "__pycache__"))


def set_parameters(notebook: nbformat.NotebookNode, settings: Mapping[str, Any]) -> None:
    """Insert a cell with {name: value} after the one with the settings, as papermill does.

    Raises ValueError for a name that is not among the settings.
    """
    place, cell = next(
        (place, cell)
        for place, cell in enumerate(notebook.cells)
        if PARAMETERS in cell.metadata.get("tags", [])
    )
    known = {line.split(" = ")[0] for line in cell.source.splitlines()}
    if unknown := settings.keys() - known:
        raise ValueError(
            f"the notebook has no settings {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}"
        )
    source = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
    injected = nbformat.v4.new_code_cell(source, id=INJECTED, metadata={"tags": [INJECTED]})
    notebook.cells.insert(place + 1, injected)


def execute(notebook: nbformat.NotebookNode, project: Path, *, minutes: float = 30, **environ: str) -> None:
    """Run a notebook in place, in the notebooks folder of a copy of the project, with this Python.

    Args:
        notebook: gets its outputs, up to a cell that fails.
        project: the copy of the project.
        minutes: limit for each cell.
        environ: environment variables that differ from those of this process.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    # Variables that Paddle and this project set, and the user's settings of IPython, are not passed on.
    inherited = {name: value for name, value in os.environ.items() if name not in cpu_runtime.VARIABLES}
    with tempfile.TemporaryDirectory() as settings:
        NotebookClient(
            notebook,
            timeout=60 * minutes,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,  # one output for lines that were flushed separately
            extra_arguments=["--log-level=40"],  # silences a warning about unencrypted loopback
            resources={"metadata": {"path": str(Path(project, "notebooks"))}},
        ).execute(env={**inherited, "IPYTHONDIR": settings, **environ})
    notebook.metadata["language_info"] = {"name": "python"}  # not the version of this machine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("notebooks", nargs="*", type=Path, default=NOTEBOOKS, help="(default: all)")
    paths = parser.parse_args().notebooks
    if missing := [str(path) for path in paths if not path.is_file()]:
        parser.error(
            f"there is no {', '.join(missing)}; there are "
            f"{', '.join(str(path.relative_to(ROOT)) for path in NOTEBOOKS)}"
        )
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder, "project")
        copy_project(project)
        for path in paths:
            notebook = nbformat.read(path, as_version=4)
            execute(notebook, project)
            with atomic_write(path, "w") as f:
                nbformat.write(notebook, f)
            print(f"wrote {path}: {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
