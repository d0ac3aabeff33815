"""Write the tables of docs/*/parity.md: differences to other implementations.

    python tools/maintain/golden_table.py
    python tools/maintain/golden_table.py --python .venv/bin/python .venv-paddle26/bin/python

Runs the tests that compare with tests/golden, with each of the given Pythons, and collects the differences
that they measured. With MAE_FMNIST_CKPT set, the comparison on trained weights is included.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

import parity

from tools.maintain.page_marks import between_marks
from util.system.atomic_file import atomic_write

TESTS = [
    "tests/golden/test_golden_models.py",
    "tests/golden/test_golden_training.py",
    "tests/golden/test_golden_data.py",
]
MARKS = "<!-- tools/maintain/golden_table.py writes from here on -->\n", "<!-- to here -->\n"
# Page: names of the columns, the cell of a row that was not run, and the line before the kinds of measures.
TEXTS: dict[str, dict[str, Any]] = {
    "en/parity.md": dict(
        columns=["compared", "reference", "measured as", "allowed", "largest difference"],
        nothing="not run",
        measures='The column "measured as":',
    ),
    "zh/parity.md": dict(
        columns=["比较内容", "参考实现", "度量", "允许", "最大差异"],
        nothing="未运行",
        measures="“度量”一栏：",
    ),
}
Measured = Sequence[tuple[str, Mapping[str, float]]]


def measure(python: str) -> tuple[str, dict[str, float]]:
    """Run the tests with an interpreter. Returns its versions and {row: largest difference}."""
    with tempfile.TemporaryDirectory() as folder:
        record = Path(folder, "record.jsonl")
        tests = subprocess.run(
            [python, "-m", "pytest", "-q", *TESTS],
            cwd=ROOT,
            env={**os.environ, "MAE_PARITY_RECORD": str(record)},
        )
        if tests.returncode:
            raise SystemExit(f"{python}: the comparisons fail, see above; nothing was written")
        lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    largest: dict[str, float] = {}
    for line in lines:
        largest[line["row"]] = max(largest.get(line["row"], 0.0), line["difference"])
    return "Paddle {paddle}, numpy {numpy}, Pillow {pillow}".format(**lines[0]), largest


def table(columns: Sequence[str], nothing: str, measured: Measured, chinese: bool) -> list[str]:
    """Make the lines of the table, with one column for each result of `measure`."""
    columns = [*columns[:-1], *(f"{columns[-1]}<br>{versions}" for versions, _ in measured)]
    lines = [columns, ["---"] * len(columns)]
    for name, row in parity.ROWS.items():
        lines.append(
            [
                row.what_zh if chinese else row.what,
                reference(row),
                row.measure,
                number(row.tolerance),
                *(number(largest[name]) if name in largest else nothing for _, largest in measured),
            ]
        )
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def reference(row: parity.Row) -> str:
    return row.reference.format(**parity.load(row.file)[1]["versions"]) if row.file else row.reference


def number(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0], allow_abbrev=False)
    parser.add_argument(
        "--python",
        nargs="+",
        default=[sys.executable],
        help="interpreters to run the tests with, a column each",
    )
    measured = [measure(python) for python in parser.parse_args().python]
    for name, texts in TEXTS.items():
        chinese, path = "zh" in name, ROOT / "docs" / name
        lines = [
            *table(texts["columns"], texts["nothing"], measured, chinese),
            "",
            texts["measures"],
            "",
            *(f"- {measure}: {meaning[chinese]}" for measure, meaning in parity.MEASURES.items()),
        ]
        content = between_marks(path.read_text(encoding="utf-8"), "\n".join(lines) + "\n", path, MARKS)
        with atomic_write(path, "w") as f:
            f.write(content)


if __name__ == "__main__":
    main()
