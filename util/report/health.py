"""Verdicts on a run by fixed rules, and warnings about its folder.

Texts are given as (key of util.report.wording, {name: value}).
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from util.report import references, run_record
from util.report.run_record import Point, RunRecord

NOTHING = 0.97  # no progress: the loss stays above this share of the loss of a model that learns nothing
ENOUGH = 3  # epochs needed for a verdict
RISEN = 0.05  # share above its lowest level from which a loss counts as risen
DIVERGED = 2  # factor above the largest earlier loss that counts as divergence in a single epoch
TREND = 0.01  # fall within the newest epochs that counts as progress
WAITING = 10.0  # per cent of an epoch spent waiting for data, as in util.run.epoch_log.advice

Verdict = tuple[str, dict[str, Any], bool]
Warning = tuple[str, dict[str, Any], list[str]]


# ---- verdicts


def verdicts(run: RunRecord, record: RunRecord | None = None) -> list[Verdict]:
    """Judge a run: [(key, values, is bad), ...], the bad ones first, then the main numbers.

    Args:
        record: a run with the same settings, or None.
    """
    train, test = run.points("train_loss"), run.points("test_loss")
    found: list[Verdict] = [
        (key, {"epoch": epoch}, True)
        for key, name in (("train_lost", "train_loss"), ("test_lost", "test_loss"))
        if (epoch := _not_finite_since(run, name)) is not None
    ]
    if not train:
        return found or [("no_epochs", {}, False)]
    found += _bad_training(run, train, test) + _bad_test(train, test)
    if len(train) == 1:
        found.append(("one_epoch", {"loss": f"{train[0][1]:.4g}"}, False))
    else:
        found.append(
            (
                "went",
                {"first": f"{train[0][1]:.4g}", "last": f"{train[-1][1]:.4g}", "epochs": len(train)},
                False,
            )
        )
    if best := run.best():
        found.append(("best_accuracy", {"accuracy": f"{best[1]:.2f}", "epoch": best[0]}, False))
    then = dict(record.points("train_loss")).get(train[-1][0]) if record is not None else None
    if then is not None:
        found.append(
            (
                "beside_record",
                {"epoch": train[-1][0], "loss": f"{train[-1][1]:.4g}", "then": f"{then:.4g}"},
                False,
            )
        )
    if len(train) < ENOUGH:
        found.append(("too_few", {"epochs": ENOUGH}, False))
    return found


def _bad_training(run: RunRecord, train: Sequence[Point], test: Sequence[Point]) -> list[Verdict]:
    if len(train) < ENOUGH:
        return []
    if nothing := _nothing_learned(run, train, test):
        return [(*nothing, True)]
    rising = _rises_since(train)
    if rising is not None:
        return [("train_rises", _rise(train, rising), True)]
    if min(y for _, y in train) > 0.99 * train[0][1]:
        return [("train_flat", {"first": f"{train[0][1]:.4g}", "last": f"{train[-1][1]:.4g}"}, True)]
    return []


def _bad_test(train: Sequence[Point], test: Sequence[Point]) -> list[Verdict]:
    worse = _rises_since(test)
    if worse is None:
        return []
    falls = _rises_since(train) is None and train[-1][1] < dict(train).get(worse, math.inf)
    return [("overfits" if falls else "test_rises", _rise(test, worse), True)]


def _rise(points: Sequence[Point], epoch: int) -> dict[str, Any]:
    return {"epoch": epoch, "least": f"{dict(points)[epoch]:.4g}", "last": f"{points[-1][1]:.4g}"}


def _nothing_learned(
    run: RunRecord, train: Sequence[Point], test: Sequence[Point]
) -> tuple[str, dict[str, Any]] | None:
    """Detect a pretraining loss that stays at 1.0 after warm-up, or an accuracy that stays at chance."""
    if run.pretraining:
        least, newest = min(y for _, y in train), train[-max(ENOUGH, len(train) // 10) :]
        warm = newest[0][0] + 1 >= (run.option("warmup_epochs", (int, float)) or 0)
        stays = (
            run.option("norm_pix_loss", bool)
            and warm
            and all(NOTHING < y < 2 - NOTHING for _, y in newest)
            and newest[0][1] - newest[-1][1] < TREND
        )
        return ("stays_at_one", {"least": f"{least:.4g}"}) if stays and least > NOTHING else None
    best, chance, loss = run.best(), references.chance(run), references.prior_loss(run)
    if best is None or chance is None or best[1] > 1.1 * chance:
        return None
    if loss is not None and test and min(y for _, y in test) < NOTHING * loss:
        return None
    return "stays_at_chance", {"best": f"{best[1]:.3g}", "chance": f"{chance:.3g}"}


def _not_finite_since(run: RunRecord, name: str) -> int | None:
    """Return the start of the last stretch of epochs with NaN or Inf; None if the newest value is finite."""
    epochs = [(line["epoch"], abs(line[name]) < run_record.ENDLESS) for line in run.lines if name in line]
    lost = list(itertools.takewhile(lambda one: not one[1], reversed(epochs)))
    return lost[-1][0] if lost else None


def _rises_since(points: Sequence[Point]) -> int | None:
    """Return the epoch of the lowest loss if the newest losses are all clearly above it, else None.

    The level is the lowest mean of as many successive epochs. A loss that leaps at the very end has risen,
    too.
    """
    count, values = len(points), [y for _, y in points]
    if count < ENOUGH:
        return None
    if any(
        min(values[-new:]) > DIVERGED * max(values[:-new]) > 0 for new in range(1, min(ENOUGH, count - 1) + 1)
    ):
        return _lowest(points)
    width = max(min(ENOUGH, count // 2), count // 10)
    if count < 2 * width or count == ENOUGH:
        return None
    start = min(
        range(count - 2 * width + 1), key=lambda first: statistics.fmean(values[first : first + width])
    )
    level = statistics.fmean(values[start : start + width])
    if min(values[-width:]) <= level + RISEN * abs(level):
        return None
    return _lowest(points[start:])


def _lowest(points: Sequence[Point]) -> int:
    """Return the last epoch with the lowest value."""
    return min(points, key=lambda point: (point[1], -point[0]))[0]


# ---- warnings


def warnings(run: RunRecord) -> list[Warning]:
    """Warn about a run's folder, log and evaluation: [(key, values, lines of details), ...]."""
    return [*_of_files(run), *_of_epochs(run), *_of_images(run), *_of_environment(run), *_of_confusion(run)]


def _of_files(run: RunRecord) -> Iterable[Warning]:
    for name, lines in run.damaged:
        yield (
            ("damaged_lines", {"lines": lines, "file": name}, [])
            if lines
            else ("damaged_file", {"file": name}, [])
        )
    for name in run_record.PARTS:
        if not (run.folder / name).exists():
            yield "missing_file", {"file": name}, []
    if run.earlier:
        yield "earlier", {"folders": ", ".join(run.earlier[:5]), "count": len(run.earlier)}, []


def _of_epochs(run: RunRecord) -> Iterable[Warning]:
    wanted = run.option("epochs", int)
    if wanted and run.lines and run.lines[-1]["epoch"] + 1 < wanted:
        yield "ends_early", {"done": len(run.lines), "epochs": wanted}, []
    before_first = (run.option("start_epoch", int) or 0) - 1
    gaps = [
        epoch
        for before, line in zip(
            [before_first, *(line["epoch"] for line in run.lines)], run.lines, strict=False
        )
        for epoch in range(before + 1, min(line["epoch"], before + 100))
    ]
    if gaps:
        yield "gaps", {"epochs": _few(gaps)}, []
    endless = sorted(
        {name for line in run.lines for name, value in line.items() if not abs(value) < run_record.ENDLESS}
    )
    if endless:
        yield "not_finite_values", {"names": ", ".join(endless)}, []
    if run.not_finite:
        yield (
            "not_finite",
            {"reports": len(run.not_finite)},
            [str(one.get("message", one)) for one in run.not_finite[:20]],
        )
    skipped = [(epoch, count) for epoch, count in run.points("train_skipped_updates") if count]
    if skipped:
        yield (
            "skipped_updates",
            {
                "updates": f"{sum(count for _, count in skipped):g}",
                "epochs": _few([epoch for epoch, _ in skipped]),
            },
            [],
        )
    waited = [share for _, share in run.points("train_data_wait") if share > WAITING]
    if waited:
        yield (
            "data_wait",
            {
                "epochs": len(waited),
                "of": len(run.points("train_data_wait")),
                "share": f"{statistics.median(waited):.0f}",
            },
            [],
        )


def _of_images(run: RunRecord) -> Iterable[Warning]:
    left_out = run.points("test_left_out")
    if left_out:
        yield "left_out", {"images": f"{max(count for _, count in left_out):g}"}, []
    for split, rows in run.bad_images.items():
        yield (
            "bad_images",
            {"images": len(rows), "split": split},
            [f"{name}: {reason}" for name, reason in rows[:20]]
            + ([f"... {len(rows) - 20}"] if len(rows) > 20 else []),
        )


def _of_environment(run: RunRecord) -> Iterable[Warning]:
    operations = run.environment.get("operations")
    if isinstance(operations, str) and operations.startswith("Paddle's own"):
        yield "slow_operations", {"operations": operations}, []
    if run.environment.get("git_dirty") is True:
        yield "git_dirty", {"revision": str(run.environment.get("git_revision"))[:12]}, []


def _of_confusion(run: RunRecord) -> Iterable[Warning]:
    """Warn if the confusion matrix does not belong to the best epoch of this run."""
    if not run.confusion:
        return
    counts, _, epoch = run.confusion
    best, outputs = run.best(), run.option("nb_classes", int)
    if outputs is not None and len(counts) != outputs:
        yield "other_outputs", {"classes": len(counts), "outputs": outputs}, []
    elif best and epoch != best[0]:
        yield "other_epoch", {"epoch": epoch, "best": best[0]}, []
    elif best and counts.sum():
        accuracy = 100 * float(counts.trace() / counts.sum())
        if abs(accuracy - best[1]) > 0.01:
            yield "other_confusion", {"accuracy": f"{accuracy:.2f}", "best": f"{best[1]:.2f}"}, []


def _few(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers[:10]) + (", ..." if len(numbers) > 10 else "")
