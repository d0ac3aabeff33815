"""The values of a report, from which page.html.j2 makes one HTML file without network or scripts."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from util.look import curves
from util.look.curves import Range, Series
from util.report import class_table, health, pictures, references, wording
from util.report.cells import MISSING, Cell, Table, formatted, option_text
from util.report.run_record import RunRecord
from util.run import flag_facts

Translate = Callable[..., str]  # t(key, **values): a text in the language of the report

CURVES = (
    "train_loss",
    "test_loss",
    "test_ema_loss",
    "test_acc1",
    "test_ema_acc1",
    "train_lr",
    "train_grad_norm",
    "train_attention_entropy",
)
MOST_VALUES = 100  # rows of the table of log.txt

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(
    runs: Sequence[RunRecord], *, language: str, records: Sequence[RunRecord | None], generator: str
) -> str:
    """Write the report page of one or several runs.

    Args:
        language: one of wording.LANGUAGES.
        records: for each run a record with the same settings, or None.
        generator: name of the program, by which it recognises its own pages.
    """
    t = partial(wording.text, language)
    several = len(runs) > 1
    budget = pictures.REPORT_BYTES // len(runs)
    charts = _charts(t, runs, records)
    return _TEMPLATES.get_template("page.html.j2").render(
        t=t,
        html_language={"zh": "zh-CN"}.get(language, language),
        generator=generator,
        title=t("report", names=", ".join(run.name for run in runs)),
        charts=charts,
        charts_note=_charts_note(t, runs, records),
        results=_results(t, runs) if several else None,
        differences=_differences(t, runs) if several else [],
        runs=[
            {
                "name": run.name,
                "facts": [(t(key), value) for key, value in _outcome(t, run) if value],
                "sentences": _sentences(t, run, record),
                "pictures": _pictures(t, run, budget),
                "classes": class_table.classes(run, t),
                "settings": _settings(t, run),
                "environment": _environment(t, run),
                "log": _log(t, run),
            }
            for run, record in zip(runs, records, strict=True)
        ],
        slides=any(len(run.reconstructions) > 1 for run in runs),
    )


# ---- summary


def _outcome(t: Translate, run: RunRecord) -> list[tuple[str, str]]:
    """Return the results of a run, [(key, text), ...]; the text of an unknown result is empty."""
    best, wanted, done = run.best(), run.option("epochs", int), len(run.lines)
    rates = [rate for _, rate in run.points("train_images_per_s")]
    return [
        ("epochs_done", t("of_epochs", done=done, epochs=wanted) if wanted else str(done)),
        ("last_train_loss", formatted(run.last("train_loss"), ".4g")),
        ("best_acc1", f"{best[1]:.2f}" if best else ""),
        ("best_epoch", str(best[0]) if best else ""),
        ("last_acc1", formatted(run.last("test_acc1"), ".2f")),
        ("last_acc5", formatted(run.last("test_acc5"), ".2f")),
        ("last_test_loss", formatted(run.last("test_loss"), ".4g")),
        ("median_rate", f"{statistics.median(rates):.0f}" if rates else ""),
        ("parameters", formatted(run.last("n_parameters"), ",.0f")),
    ]


def _results(t: Translate, runs: Sequence[RunRecord]) -> Table:
    outcomes = [dict(_outcome(t, run)) for run in runs]
    kept = [key for key in outcomes[0] if any(outcome[key] for outcome in outcomes)]
    return Table(
        [(t("run"), ""), *((t(key), "n") for key in kept)],
        [
            [(run.name, ""), *((outcome[key] or MISSING, "n") for key in kept)]
            for run, outcome in zip(runs, outcomes, strict=True)
        ],
    )


def _sentences(t: Translate, run: RunRecord, record: RunRecord | None) -> list[dict[str, Any]]:
    """Verdicts, then warnings; details are folded."""
    said: list[dict[str, Any]] = [
        {"text": t(key, **values), "kind": "bad" if bad else "good", "details": []}
        for key, values, bad in health.verdicts(run, record)
    ]
    return said + [
        {"text": t(key, **values), "kind": "warn", "details": details}
        for key, values, details in health.warnings(run)
    ]


# ---- curves


def _charts(
    t: Translate, runs: Sequence[RunRecord], records: Sequence[RunRecord | None]
) -> list[dict[str, Any]]:
    charts = []
    for name in CURVES:
        # Losses of pretraining and of classification cannot be compared, so each gets its own chart.
        for kind in sorted({run.pretraining for run in runs}) if name == "train_loss" else [None]:
            part = [
                (style, run, record)
                for style, (run, record) in enumerate(zip(runs, records, strict=True))
                if kind in (None, run.pretraining) and run.points(name)
            ]
            if part:
                series = [
                    Series(run.name if len(runs) > 1 else t(name), run.points(name), style)
                    for style, run, _ in part
                ]
                charts.append(
                    _chart(
                        t,
                        name,
                        series,
                        [run for _, run, _ in part],
                        [record for *_, record in part],
                        identity=name if kind is None else f"{name}-{kind}",
                    )
                )
    return charts


def _chart(
    t: Translate,
    name: str,
    series: list[Series],
    runs: Sequence[RunRecord],
    records: Sequence[RunRecord | None],
    identity: str,
) -> dict[str, Any]:
    zones = []
    for key, values, zone in references.zones(runs, name):
        zone.label = t(key, **values)
        zones.append(zone)
    lines, ranges = [*series], []
    for key, values, reference in references.expected(runs, name, records):
        reference.label = t(key, **values)
        if isinstance(reference, Range):
            ranges.append(reference)
        else:
            lines.append(reference)
    drawn = curves.svg(t(name), lines, identity=identity, zones=zones, ranges=ranges)
    return {
        "title": t(name),
        "svg": drawn,
        "legend": lines if len(lines) > 1 else [],
        "zones": zones,
        "ranges": ranges,
    }


def _charts_note(t: Translate, runs: Sequence[RunRecord], records: Sequence[RunRecord | None]) -> str:
    """Return the reason why no reference is drawn; "" if one is drawn."""
    if any(references.expected(runs, name, records) for name in CURVES):
        return ""
    return t("many_references", most=references.MOST_RECORDS) if any(records) else t("no_reference")


# ---- reconstructions


def _pictures(t: Translate, run: RunRecord, budget: int) -> dict[str, Any] | None:
    if not run.reconstructions:
        return None
    chosen, count = pictures.choose(run.reconstructions, budget), len(run.reconstructions)
    shown = chosen.shown
    notes = [t("pictures_left_out", shown=len(shown), count=count)] if len(shown) < count else []
    notes += [t("pictures_no_space", megabytes=f"{budget / 1e6:.3g}")] if chosen.no_space else []
    notes += [t("pictures_damaged", damaged=chosen.damaged)] if chosen.damaged else []
    notes += [t("pictures_smaller")] if any(pictures.is_shrunk(content) for _, content in shown) else []
    return {"note": " ".join(notes), "shown": [(name, pictures.data_url(content)) for name, content in shown]}


# ---- settings, environment, log


def _settings(t: Translate, run: RunRecord) -> dict[str, Table] | None:
    if not run.options:
        return None
    first = [name for name in flag_facts.FIRST if name in run.options]
    others = sorted(run.options.keys() - set(first))
    return {
        "first": _mapping(t, {name: run.options[name] for name in first}),
        "others": _mapping(t, {name: run.options[name] for name in others}),
    }


def _environment(t: Translate, run: RunRecord) -> Table | None:
    return _mapping(t, run.environment) if run.environment else None


def _mapping(t: Translate, values: Mapping[str, Any]) -> Table:
    return Table(
        [(t("name"), ""), (t("value"), "")],
        [[(name, ""), (option_text(value), "long")] for name, value in values.items()],
    )


def _differences(t: Translate, runs: Sequence[RunRecord]) -> list[tuple[str, Table, str]]:
    """Return [(title, table of differences, sentence for an empty table), ...]."""
    found = []
    head: list[Cell] = [(t("name"), ""), *((run.name, "") for run in runs)]
    for title, same, dicts in (
        ("settings", "same", [run.options for run in runs]),
        ("environment", "same_environment", [run.environment for run in runs]),
    ):
        first = flag_facts.FIRST if title == "settings" else ()
        names = dict.fromkeys([*first, *(name for one in dicts for name in one)])
        texts = {name: [option_text(one[name]) if name in one else None for one in dicts] for name in names}
        rows: list[list[Cell]] = [
            [(name, ""), *((text or MISSING, "long") for text in row)]
            for name, row in texts.items()
            if len(set(row)) > 1
        ]
        found.append((t(title), Table(head, rows), t(same)))
    return found


def _log(t: Translate, run: RunRecord) -> dict[str, Any] | None:
    """The table of log.txt, at most MOST_VALUES of its epochs."""
    if not run.lines:
        return None
    names = list(
        dict.fromkeys(name for line in run.lines for name in line if name not in ("epoch", "n_parameters"))
    )
    known = wording.TEXT["en"]
    shown = [run.lines[index] for index in pictures.evenly(len(run.lines), MOST_VALUES)]
    return {
        "shown": len(shown),
        "count": len(run.lines),
        "table": Table(
            [(t("epoch_number"), "n"), *((t(name) if name in known else name, "n") for name in names)],
            [
                [
                    (str(line["epoch"]), "n"),
                    *((formatted(line.get(name), ".6g") or MISSING, "n") for name in names),
                ]
                for line in shown
            ],
        ),
    }
