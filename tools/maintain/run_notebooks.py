"""Run the notebooks from top to bottom, each as it stands, and put what they print and draw into their files.

    pip install -r requirements.txt -r requirements/test.txt
    python tools/maintain/run_notebooks.py                                   # all, in their order: five minutes on two cores
    python tools/maintain/run_notebooks.py notebooks/1_quick_start.ipynb

They run in a copy of the project, so that nothing else of it changes; notebooks that are run together share the copy.
"""
import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import nbformat
from nbclient import NotebookClient

from util.compute import cpu_runtime
from util.system.atomic_file import atomic_write

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(ROOT.glob("notebooks/*.ipynb"))
PARAMETERS = "parameters"   # tag of the cell with the settings; papermill knows it, too
INJECTED = "injected-parameters"


def copy_project(folder):
    """Copy what belongs to the project, but not what runs have left in it, to a new folder."""
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".*", "output*", "log", "__pycache__"))


def set_parameters(notebook, settings):
    """Put a cell with {name: value} behind the one with the settings, as papermill does.

    ValueError for a name that is not among the settings.
    """
    place, cell = next((place, cell) for place, cell in enumerate(notebook.cells)
                       if PARAMETERS in cell.metadata.get("tags", []))
    known = {line.split(" = ")[0] for line in cell.source.splitlines()}
    if unknown := settings.keys() - known:
        raise ValueError(f"the notebook has no settings {', '.join(sorted(unknown))}; it has "
                         f"{', '.join(sorted(known))}")
    source = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
    injected = nbformat.v4.new_code_cell(source, id=INJECTED, metadata={"tags": [INJECTED]})
    notebook.cells.insert(place + 1, injected)


def execute(notebook, project, *, minutes=30, **environ):
    """Run a notebook in place, in the notebooks folder of a copy of the project, with this Python.

    Args:
        minutes: that a cell may take; environ: variables of the environment that differ from this process's.
    Raises nbclient.exceptions.CellExecutionError for a cell that fails; the notebook then has the outputs until there.
    """
    # What Paddle and this project have set for this process is not meant for others; nor are the user's settings of
    # IPython.
    inherited = {name: value for name, value in os.environ.items() if name not in cpu_runtime.VARIABLES}
    with tempfile.TemporaryDirectory() as settings:
        NotebookClient(notebook, timeout=60 * minutes, kernel_name="python3", record_timing=False,
                       coalesce_streams=True,  # what was flushed line by line is one text
                       extra_arguments=["--log-level=40"],  # no warning that it talks to us unencrypted, on loopback
                       resources={"metadata": {"path": str(Path(project, "notebooks"))}}).execute(
                           env={**inherited, "IPYTHONDIR": settings, **environ})
    notebook.metadata["language_info"] = {"name": "python"}  # not the version of this machine


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("notebooks", nargs="*", type=Path, default=NOTEBOOKS, help="(default: all)")
    paths = parser.parse_args().notebooks
    if missing := [str(path) for path in paths if not path.is_file()]:
        parser.error(f"there is no {', '.join(missing)}; there are "
                     f"{', '.join(str(path.relative_to(ROOT)) for path in NOTEBOOKS)}")
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
