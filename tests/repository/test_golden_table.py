"""docs/*/parity.md have the comparisons of the golden tests."""

from pathlib import Path

import parity
import pytest

from tools.maintain import golden_table

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["en/parity.md", "zh/parity.md"])
def test_table_has_the_rows_of_the_tests(name):
    lines = (ROOT / "docs" / name).read_text(encoding="utf-8").splitlines()
    written = [line.split(" | ")[:4] for line in lines if line.startswith("| ")]
    texts = golden_table.TEXTS[name]
    expected = golden_table.table(texts["columns"], texts["nothing"], [], "zh" in name)
    assert written[2:] == [line.removesuffix(" |").split(" | ")[:4] for line in expected[2:]], (
        "run python tools/maintain/golden_table.py"
    )


@pytest.mark.parametrize("name", ["en/parity.md", "zh/parity.md"])
def test_table_tells_differences_within_the_tolerances(name):
    lines = (ROOT / "docs" / name).read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")][2:]
    assert len(rows) == len(parity.ROWS)
    for row in rows:
        for observed in row[4:]:
            assert observed == golden_table.TEXTS[name]["nothing"] or float(observed) <= float(row[3]), row
