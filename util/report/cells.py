"""Tables of a report and the texts of their cells."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Cell = tuple[Any, str]  # a text and its CSS class; a number under "recall", a share that gets a bar
MISSING = "–"


@dataclass
class Table:
    """A head and rows of cells; the first cell of a row is its heading."""

    head: list[Cell]
    rows: list[list[Cell]] = field(default_factory=list)


def option_text(value: Any) -> str:
    """Write the value of an option as on a command line."""
    if value is None or value == "":
        return MISSING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(map(option_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}: {option_text(one)}" for name, one in value.items())
    return str(value)


def formatted(value: float | None, form: str) -> str:
    """Format a number; "" for None."""
    return "" if value is None else format(value, form)
