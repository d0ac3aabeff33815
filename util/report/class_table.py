"""The classes of a run: recall and precision of each, and the confusion matrix."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from util.report.cells import MISSING, Cell, Table
from util.report.pictures import data_url
from util.report.run_record import RunRecord

MOST_WRITTEN = 24  # classes of a confusion matrix with numbers; a larger matrix is drawn as a picture
PICTURE_SIDE = 500  # pixels a side of that picture
MOST_CLASSES = 60  # rows of a table shown in full; a longer one shows the WORST and folds the others
WORST = 50
RIGHT, WRONG = (40, 140, 210), (230, 110, 20)  # colours of the picture


@dataclass
class Classes:
    """The section of a report about the classes.

    Attributes:
        images: number of evaluated images; epoch: that of the evaluation.
        first: table of the classes, the worst first; rest: those that are folded.
        matrix: [(class, [(count, strength of the colour), ...]), ...]; None if `picture` stands for it.
        picture: address of the confusion matrix as a picture, with `classes_per_dot` classes in each dot.
    """

    images: int
    epoch: int
    classes: int
    first: Table
    rest: Table
    matrix: list[tuple[str, list[tuple[int, float]]]] | None = None
    picture: str = ""
    classes_per_dot: int = 1


def classes(run: RunRecord, t: Callable[..., str]) -> Classes | None:
    """Describe the classes of a run; None without a confusion matrix.

    Args:
        t: t(key) gives a text in the language of the report.
    """
    if run.confusion is None:
        return None
    counts, names, epoch = run.confusion
    taking_part = (counts.sum(axis=0) + counts.sum(axis=1)) > 0
    if not taking_part.any():
        return None
    counts, names = (
        counts[taking_part][:, taking_part],
        [name for name, part in zip(names, taking_part, strict=True) if part],
    )
    rows = _rows(counts, names)
    head: list[Cell] = [
        (t("class"), ""),
        (t("images"), "n"),
        (t("recall"), "n"),
        (t("precision"), "n"),
        (t("confused_with"), ""),
    ]
    shown = len(rows) if len(rows) <= MOST_CLASSES else WORST
    found = Classes(
        int(counts.sum()), epoch, len(names), Table(head, rows[:shown]), Table(head, rows[shown:])
    )
    if len(names) <= MOST_WRITTEN:
        strength = np.sqrt(_shares(counts))  # the square root keeps rare mistakes visible
        found.matrix = [
            (name, list(zip(counts[row].tolist(), strength[row].tolist(), strict=True)))
            for row, name in enumerate(names)
        ]
    else:
        found.picture, found.classes_per_dot = _matrix_picture(counts)
    return found


def _rows(counts: np.ndarray, names: Sequence[str]) -> list[list[Cell]]:
    """Return the rows of the table, the worst recall first; classes without images last."""
    images, guesses, right = counts.sum(axis=1), counts.sum(axis=0), counts.diagonal()
    recall = np.divide(right, images, out=np.full(len(names), np.nan), where=images > 0)
    wrong = counts - np.diag(right)
    rows: list[list[Cell]] = []
    for index in np.argsort(np.nan_to_num(recall, nan=2.0), kind="stable"):
        other = int(wrong[index].argmax())
        confused_with = f"{names[other]} ({wrong[index, other]})" if wrong[index, other] else MISSING
        precision = f"{100 * right[index] / guesses[index]:.1f}" if guesses[index] else MISSING
        rows.append(
            [
                (names[index], ""),
                (str(images[index]), "n"),
                (float(recall[index]), "recall"),
                (precision, "n"),
                (confused_with, ""),
            ]
        )
    return rows


def _shares(counts: np.ndarray) -> np.ndarray:
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def _matrix_picture(counts: np.ndarray) -> tuple[str, int]:
    """Draw the matrix, transparent where it is 0; returns its data URL and the classes per pixel."""
    each = -(-len(counts) // PICTURE_SIDE)
    side = -(-len(counts) // each)
    padded = np.zeros([side * each] * 2)
    padded[: len(counts), : len(counts)] = counts
    share = _shares(padded)
    right = np.diag(share.diagonal())
    dots = np.zeros([side, side, 4], "uint8")
    for colour, part in ((WRONG, share - right), (RIGHT, right)):
        block = part.reshape(side, each, side, each).max(axis=(1, 3))
        dots[block > 0, :3] = colour
        dots[block > 0, 3] = np.round(255 * (0.15 + 0.85 * np.sqrt(block[block > 0])))
    file = io.BytesIO()
    Image.fromarray(dots).save(file, "png", optimize=True)
    return data_url(file.getvalue()), each
