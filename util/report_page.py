"""The sections of a report as HTML that needs nothing else: no network, no script for reading.

Everything that comes from a run (names, messages, options) passes through `escape`.
"""
import base64
import io
import math
import statistics
from functools import partial
from html import escape

import numpy as np
from PIL import Image

from util import report_text, run_health
from util.svg_chart import COLOURS, Series, legend, line_chart

CURVES = ("train_loss", "test_loss", "test_acc1", "train_lr", "train_grad_norm", "train_attention_entropy")
# Options in the order in which one wants to know them; the others follow, folded up.
FIRST_OPTIONS = ("model", "data_path", "dataset", "input_size", "patch_size", "in_chans", "nb_classes", "finetune",
                 "epochs", "warmup_epochs", "batch_size", "accum_iter", "blr", "lr", "min_lr", "weight_decay",
                 "layer_decay", "mask_ratio", "norm_pix_loss", "global_pool", "drop_path", "mixup", "cutmix", "smoothing",
                 "aa", "reprob", "clip_grad", "seed", "amp", "device", "output_dir")
MOST_WRITTEN = 24       # classes of a confusion matrix with numbers; one of more is a picture
PICTURE_SIDE = 500      # dots of that picture
MOST_CLASSES = 60       # rows of the table of classes that are not folded up, and of a longer one:
WORST = 50
MOST_VALUES = 100       # rows of the table of log.txt
MOST_PICTURES = 16      # reconstructions of a run
PICTURE_BYTES = 3_000_000   # of all reconstructions of a report

HEAD = """<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="{generator}">
<title>{title}</title>
<style>
{style}</style>
</head>
"""

# Okabe and Ito's colours, which also differ for the colour-blind; lighter ones on dark. heat: right, miss: wrong.
STYLE = """:root { --page: #fff; --card: #f6f7f9; --text: #1a1d21; --soft: #59616b; --line: #d8dce1; --grid: #e6e9ed;
  --s0: #0072b2; --s1: #d55e00; --s2: #009e73; --s3: #a8477f; --s4: #8a6d00; --s5: #2f2f2f;
  --heat: 0 114 178; --miss: 213 94 0; --on-heat: #fff; --zone: 120 128 138; --bad: #b3261e; --warn: #8a5a00 }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1d2125; --text: #e8eaed; --soft: #a2abb5;
  --line: #3a4148; --grid: #2a2f35; --s0: #56b4e9; --s1: #ff8a3d; --s2: #2fd0a0; --s3: #e79ac6; --s4: #f0e442;
  --s5: #d0d0d0; --heat: 86 180 233; --miss: 255 138 61; --on-heat: #10141a; --zone: 150 160 172; --bad: #ff8a80;
  --warn: #ffc766 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 16px; max-width: 1240px; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei",
  "Noto Sans CJK SC", sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .2em 0 .6em }
h2 { font-size: 1.2rem; margin: 2em 0 .6em; padding-top: .6em; border-top: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.4em 0 .4em }
p { margin: .4em 0 }
.soft, caption, .legend, figcaption { color: var(--soft); font-size: .875rem }
.facts { display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); margin: 0 0 1em; padding: 0 }
.facts div { background: var(--card); border-radius: 8px; padding: 10px 12px }
.facts dt { color: var(--soft); font-size: .8125rem }
.facts dd { margin: 0; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums }
ul.said { list-style: none; padding: 0; margin: .5em 0 }
ul.said > li { padding: 6px 12px; margin: 6px 0; border-left: 4px solid var(--s0); background: var(--card); border-radius: 0 6px 6px 0 }
ul.said > li.bad { border-left-color: var(--bad) }
ul.said > li.bad::before { content: "\\25B2\\00A0"; color: var(--bad) }
ul.said > li.warn { border-left-color: var(--warn) }
ul.said > li.warn::before { content: "!\\00A0"; color: var(--warn); font-weight: 700 }
.charts { display: grid; gap: 22px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)) }
figure { margin: 0; min-width: 0 }
figure > h3 { margin: 0 0 .2em }
figure > svg { display: block; width: 100%; height: auto }
svg text { font-size: 12px; fill: var(--soft) }
svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round }
svg line { stroke-width: 2 }
svg .grid { stroke: var(--grid); stroke-width: 1 } svg .axis { stroke: var(--line); stroke-width: 1 }
svg .zone { fill: rgb(var(--miss) / .13) } svg .zone-edge { stroke: rgb(var(--miss) / .8); stroke-width: 1; stroke-dasharray: 4 3 }
svg .range { fill: rgb(var(--zone) / .6) }
polyline.ref, line.ref { stroke: rgb(var(--zone) / .4); stroke-width: 7; stroke-linecap: round } circle.ref { fill: none }
COLOURS
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; padding: 0 0 0 8px; margin: 4px 0 0 }
.legend li { display: flex; gap: 6px; align-items: baseline } .legend svg { flex: none; position: relative; top: 1px }
.columns { display: grid; gap: 0 48px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); align-items: start }
.columns > * { min-width: 0 }
.wide { overflow-x: auto; max-width: 100% }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; overflow-wrap: normal }
caption { text-align: left; padding-bottom: 4px }
th, td { padding: 4px 10px 4px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--grid) }
td.n, th.n { text-align: right } td.n { white-space: nowrap }
th { font-weight: 600 } tbody th { font-weight: 400 }
td.long { overflow-wrap: anywhere; min-width: 8em }
.bar { display: inline-block; width: 56px; height: 8px; margin-left: 8px; background: var(--grid); border-radius: 4px }
.bar i { display: block; height: 100%; background: var(--s0); border-radius: 4px }
.matrix td, .matrix th { border: 1px solid var(--page); padding: 3px 5px; text-align: center; font-size: .75rem; min-width: 30px }
.matrix td { background: rgb(var(--miss) / var(--v)) } .matrix td.right { background: rgb(var(--heat) / var(--v)) }
.matrix td.full.right { color: var(--on-heat) } .matrix tbody th { text-align: right; max-width: 9em }
.matrix thead th { vertical-align: bottom; max-width: 8em } .matrix thead th span { writing-mode: vertical-rl; transform: rotate(180deg) }
.matrix td.none { color: var(--soft) }
@media (prefers-color-scheme: dark) { .matrix td.strong { color: var(--on-heat) } }
img { max-width: 100%; height: auto } img.matrix { image-rendering: pixelated; width: 500px; border: 1px solid var(--line) }
.frames { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)) }
.slider { display: flex; gap: 12px; align-items: center; margin: 8px 0 } .slider input { flex: 1; max-width: 420px; accent-color: var(--s0) }
.frames.one { display: block } .frames.one > figure { display: none } .frames.one > figure.on { display: block }
details { margin: .6em 0 } summary { cursor: pointer; color: var(--s0) }
@media (max-width: 500px) { .bar { display: none } th, td { padding-right: 8px } }
@media print { .slider { display: none } .frames.one > figure { display: block; break-inside: avoid }
  figure, tr, li { break-inside: avoid } body { max-width: none } .wide { overflow: visible } }
"""

# The pictures one above the other become one at a time. Whoever has no scripts sees all of them.
SCRIPT = """<script>
for (const slider of document.querySelectorAll(".slider")) {
  const frames = slider.nextElementSibling, input = slider.querySelector("input"), name = slider.querySelector("output");
  const show = () => { [...frames.children].forEach((figure, at) => figure.classList.toggle("on", at == input.value));
    name.textContent = frames.children[input.value].querySelector("figcaption").textContent; };
  slider.hidden = false; frames.classList.add("one"); input.addEventListener("input", show); show();
}
</script>
"""


def page(runs, *, language, records, generator):
    """The whole page about some runs (util.run_record.RunRecord).

    Args:
        records: for each run a RunRecord with the same settings, or None.
        generator: what `is_report` looks for.
    """
    t = partial(report_text.text, language)
    title = t("report", names=", ".join(run.name for run in runs))
    style = STYLE.replace("COLOURS", "".join(
        f"polyline.s{number}, line.s{number} {{ stroke: var(--s{number}) }} circle.s{number} {{ fill: var(--s{number}) }}\n"
        for number in range(COLOURS)))
    several = len(runs) > 1
    parts = [HEAD.format(language={"zh": "zh-CN"}.get(language, language), title=escape(title), style=style,
                         generator=escape(generator)), f"<body>\n<h1>{escape(title)}</h1>\n"]
    if several:
        parts += [_results(t, runs), _said(t, runs, records)]
    else:
        parts += [_facts(t, runs[0]), _said(t, runs, records)]
    parts.append(_curves(t, runs, records))
    if several:
        parts.append(_differences(t, runs))
    budget = PICTURE_BYTES // len(runs)
    for number, run in enumerate(runs):
        level = 3 if several else 2
        sections = [_reconstructions(t, run, number, budget, level), _classes(t, run, level)]
        sections += ['<div class="columns">\n', _settings(t, run, folded=several),
                     _environment(t, run, folded=several), "</div>\n", _values(t, run)]
        if several:
            parts.append(f'<h2 id="run-{number}">{escape(run.name)}</h2>\n')
        parts += sections
    scripts = SCRIPT if any(len(run.reconstructions) > 1 for run in runs) else ""
    return "".join(parts) + scripts + "</body>\n</html>\n"


# ---- summary

def _facts(t, run):
    facts = [(t(key), value) for key, value in _outcome(t, run) if value]
    return '<dl class="facts">' + "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts) + "</dl>\n"


def _outcome(t, run):
    """[(key, text)] of what a run has come to."""
    best, wanted, done = run.best(), run.option("epochs", int), len(run.lines)
    rates = [rate for _, rate in run.points("train_images_per_s")]
    return [("epochs_done", t("of_epochs", done=done, epochs=wanted) if wanted else str(done)),
            ("last_train_loss", _short(run.last("train_loss"))),
            ("best_acc1", f"{best[1]:.2f}" if best else ""), ("best_epoch", str(best[0]) if best else ""),
            ("last_acc1", _fixed(run.last("test_acc1"))), ("last_acc5", _fixed(run.last("test_acc5"))),
            ("last_test_loss", _short(run.last("test_loss"))),
            ("median_rate", f"{statistics.median(rates):.0f}" if rates else ""),
            ("parameters", f"{run.last('n_parameters'):,.0f}" if run.last("n_parameters") else "")]


def _results(t, runs):
    outcomes = [_outcome(t, run) for run in runs]
    kept = [key for number, (key, _) in enumerate(outcomes[0]) if any(one[number][1] for one in outcomes)]
    rows = [[(run.name, ""), *((dict(outcome)[key] or "–", "n") for key in kept)]
            for run, outcome in zip(runs, outcomes)]
    return f"<h2>{escape(t('results'))}</h2>\n" + _table([(t("run"), ""), *((t(key), "n") for key in kept)], rows)


def _said(t, runs, records):
    """Verdicts and warnings."""
    parts = []
    for run, record in zip(runs, records):
        if len(runs) > 1:
            parts.append(f"<h3>{escape(run.name)}</h3>\n")
        items = [(t(key, **values), "bad" if bad else "good", []) for key, values, bad in run_health.verdicts(run, record)]
        items += [(t(key, **values), "warn", lines) for key, values, lines in run_health.warnings(run)]
        parts.append('<ul class="said">' + "".join(
            f'<li class="{kind}">{escape(sentence)}{_folded_lines(t, lines)}</li>' for sentence, kind, lines in items)
            + "</ul>\n")
    return "".join(parts)


def _folded_lines(t, lines):
    if not lines:
        return ""
    return (f"<details><summary>{escape(t('details'))}</summary>" + "<br>".join(map(escape, lines)) + "</details>")


# ---- curves

def _curves(t, runs, records):
    figures = []
    for name in CURVES:
        series = [Series(run.name if len(runs) > 1 else t(name), run.points(name), number)
                  for number, run in enumerate(runs)]
        if any(one.points for one in series):
            figures.append(_figure(t, name, [one for one in series if one.points], runs, records))
    if not figures:
        return ""
    known = any(run_health.expected(runs, name, records) for name in CURVES)
    note = "" if known or any(records) else f'<p class="soft">{escape(t("no_reference"))}</p>\n'
    return f"<h2>{escape(t('curves'))}</h2>\n" + '<div class="charts">\n' + "".join(figures) + "</div>\n" + note


def _figure(t, name, series, runs, records):
    zones = []
    for key, values, zone in run_health.zones(runs, name):
        zone.label = t(key, **values)
        zones.append(zone)
    references = []
    for key, values, reference in run_health.expected(runs, name, records):
        reference.label = t(key, **values)
        references.append(reference)
    lines = [*series, *(one for one in references if isinstance(one, Series))]
    ranges = [one for one in references if not isinstance(one, Series)]
    chart = line_chart(t(name), lines, x_label=t("epoch"), identity=name, zones=zones, ranges=ranges)
    shown = lines if len(lines) > 1 else []
    return (f"<figure><h3>{escape(t(name))}</h3>{chart}"
            + (legend(shown, zones, ranges) if shown or zones or ranges else "") + "</figure>\n")


# ---- reconstructions

def _reconstructions(t, run, number, budget, level):
    if not run.reconstructions:
        return ""
    shown, damaged = _chosen(run.reconstructions, budget)
    figures = "".join(
        f'<figure><img src="data:image/png;base64,{base64.b64encode(content).decode()}" '
        f'alt="{escape(t("after_epoch", name=name))}"><figcaption>{escape(t("after_epoch", name=name))}</figcaption>'
        "</figure>\n" for name, content in shown)
    count = len(run.reconstructions)
    note = ""
    if len(shown) < count:
        note = t("pictures_left_out", shown=len(shown), count=count, damaged=damaged)
        note = f'<p class="soft">{escape(note)}</p>\n'
    slider = ""
    if len(shown) > 1:
        slider = (f'<div class="slider" hidden><label for="slider-{number}">{escape(t("choose"))}</label>'
                  f'<input type="range" id="slider-{number}" min="0" max="{len(shown) - 1}" '
                  f'value="{len(shown) - 1}"><output></output></div>\n')
    return f'<h{level}>{escape(t("reconstructions"))}</h{level}>\n{note}{slider}<div class="frames">\n{figures}</div>\n'


def _chosen(paths, budget):
    """([(name, bytes)], how many are damaged): pictures evenly chosen over time, the first and the last among them."""
    whole, damaged = [], 0
    for path in paths:
        try:
            content = path.read_bytes()
        except OSError:
            content = b""
        if content.startswith(b"\x89PNG\r\n\x1a\n") and b"IEND" in content[-12:]:
            whole.append((path.stem.replace("_", " "), content))
        else:
            damaged += 1
    for count in range(min(MOST_PICTURES, len(whole)), 0, -1):
        chosen = [whole[index] for index in _evenly(len(whole), count)]
        if sum(len(content) for _, content in chosen) * 4 / 3 <= budget:
            return chosen, damaged
    return [], damaged


def _evenly(total, count):
    """`count` of the numbers below `total`, the last among them, and the first if there are two."""
    return range(total) if count >= total else sorted(
        {round(total - 1 - place * (total - 1) / max(1, count - 1)) for place in range(count)})


# ---- classes

def _classes(t, run, level):
    if run.confusion is None:
        return ""
    counts, names, epoch = run.confusion
    taking_part = (counts.sum(axis=0) + counts.sum(axis=1)) > 0
    if not taking_part.any():
        return ""
    counts, names = counts[taking_part][:, taking_part], [name for name, part in zip(names, taking_part) if part]
    images, guesses, right = counts.sum(axis=1), counts.sum(axis=0), counts.diagonal()
    recall = np.divide(right, images, out=np.full(len(names), np.nan), where=images > 0)
    wrong = counts - np.diag(right)
    rows = []
    for index in np.argsort(np.nan_to_num(recall, nan=2.0), kind="stable"):
        other = int(wrong[index].argmax())
        taken_for = f"{names[other]} ({wrong[index, other]})" if wrong[index, other] else "–"
        precision = f"{100 * right[index] / guesses[index]:.1f}" if guesses[index] else "–"
        rows.append([(names[index], ""), (str(images[index]), "n"), (recall[index], "recall"), (precision, "n"),
                     (taken_for, "")])
    head = [(t("class"), ""), (t("images"), "n"), (t("recall"), "n"), (t("precision"), "n"), (t("confused_with"), "")]
    shown = rows if len(rows) <= MOST_CLASSES else rows[:WORST]
    parts = [f"<h{level}>{escape(t('classes'))}</h{level}>\n",
             '<div class="columns">\n<section>'
             f'<p class="soft">{escape(t("worst_first", images=int(images.sum()), epoch=epoch))}</p>\n',
             _table(head, shown)]
    if len(shown) < len(rows):
        more = t("other_classes", count=len(rows) - len(shown))
        parts.append(f"<details><summary>{escape(more)}</summary>{_table(head, rows[len(shown):])}</details>\n")
    parts.append("</section>\n<section>"
                 f'<p class="soft">{escape(t("confusion"))}. {escape(t("confusion_caption"))}</p>\n')
    parts.append(_matrix(t, counts, names) if len(names) <= MOST_WRITTEN else _matrix_picture(t, counts))
    return "".join(parts) + "</section></div>\n"


def _matrix(t, counts, names):
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(_cell(counts[row, column], share[row, column], row == column) for column in range(len(names)))
        + "</tr>" for row, name in enumerate(names))
    corner = f"{t('true_class')} \\ {t('predicted')}"
    return (f'<div class="wide"><table class="matrix"><thead><tr><th scope="col">{escape(corner)}</th>{head}</tr></thead><tbody>{body}</tbody></table></div>\n')


def _cell(count, share, right):
    strength = math.sqrt(share)  # so that rare mistakes can be seen
    kinds = [kind for kind, fits in (("right", right), ("strong", strength > 0.6), ("full", strength > 0.88),
                                    ("none", count == 0)) if fits]
    marked = f' class="{" ".join(kinds)}"' if kinds else ""
    return f'<td{marked} style="--v:{strength:.2f}">{count}</td>'


def _matrix_picture(t, counts):
    """A dot a class, or for several: a picture whose empty places are transparent, for light pages and dark ones."""
    each = -(-len(counts) // PICTURE_SIDE)
    side = -(-len(counts) // each)
    padded = np.zeros([side * each] * 2)
    padded[:len(counts), :len(counts)] = counts
    share = padded / np.maximum(padded.sum(axis=1, keepdims=True), 1)
    right = np.diag(share.diagonal())
    blocks = [part.reshape(side, each, side, each).max(axis=(1, 3)) for part in (right, share - right)]
    dots = np.zeros([side, side, 4], "uint8")
    for colour, block in (((230, 110, 20), blocks[1]), ((40, 140, 210), blocks[0])):
        strength = np.sqrt(block)
        dots[block > 0, :3] = colour
        dots[block > 0, 3] = np.round(255 * (0.15 + 0.85 * strength[block > 0]))
    file = io.BytesIO()
    Image.fromarray(dots).save(file, "png", optimize=True)
    caption = t("confusion_picture", classes=len(counts), each=each)
    return (f'<figure><img class="matrix" alt="{escape(t("confusion"))}" '
            f'src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>\n")


# ---- settings, environment, values

def _settings(t, run, folded):
    if not run.options:
        return ""
    names = [name for name in FIRST_OPTIONS if name in run.options]
    others = sorted(run.options.keys() - set(names))
    head = [(t("name"), ""), (t("value"), "")]
    table = _table(head, [[(name, ""), (_plain(run.options[name]), "long")] for name in names])
    if others:
        rest = _table(head, [[(name, ""), (_plain(run.options[name]), "long")] for name in others])
        table += f"<details><summary>{escape(t('more_settings'))}</summary>{rest}</details>\n"
    return _section(t("settings"), table, folded)


def _environment(t, run, folded):
    if not run.environment:
        return ""
    rows = [[(name, ""), (_plain(value), "long")] for name, value in run.environment.items()]
    return _section(t("environment"), _table([(t("name"), ""), (t("value"), "")], rows), folded)


def _section(title, content, folded):
    if folded:
        return f"<details><summary>{escape(title)}</summary>{content}</details>\n"
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>\n"


def _differences(t, runs):
    parts = [f"<h2>{escape(t('differences'))}</h2>\n"]
    head = [(t("name"), ""), *((run.name, "") for run in runs)]
    for title, same, dicts in (("settings", "same", [run.options for run in runs]),
                               ("environment", "same_environment", [run.environment for run in runs])):
        names = dict.fromkeys([*(FIRST_OPTIONS if title == "settings" else ()), *(name for one in dicts for name in one)])
        rows = [[(name, ""), *((_plain(one[name]) if name in one else "–", "long") for one in dicts)] for name in names
                if len({_plain(one[name]) if name in one else None for one in dicts}) > 1]
        parts.append(f"<h3>{escape(t(title))}</h3>\n")
        parts.append(_table(head, rows) if rows else f"<p>{escape(t(same))}</p>\n")
    return "".join(parts)


def _values(t, run):
    if not run.lines:
        return ""
    names = list(dict.fromkeys(name for line in run.lines for name in line if name not in ("epoch", "n_parameters")))
    known = report_text.TEXT["en"]
    head = [(t("epoch_number"), "n"), *((t(name) if name in known else name, "n") for name in names)]
    shown = [run.lines[index] for index in _evenly(len(run.lines), MOST_VALUES)]
    rows = [[(str(line["epoch"]), "n"), *((_number(line.get(name)) or "–", "n") for name in names)] for line in shown]
    note = ""
    if len(shown) < len(run.lines):
        note = f'<p class="soft">{escape(t("values_left_out", shown=len(shown), count=len(run.lines)))}</p>\n'
    return f"<details><summary>{escape(t('values'))}</summary>{note}{_table(head, rows)}</details>\n"


def _table(head, rows):
    """[(text, class)] of the head and of each row -> a table that scrolls on its own; a number as "recall" has a bar."""
    def cell(text, kind):
        if kind == "recall":
            known = not np.isnan(text)
            bar = f'<span class="bar"><i style="width:{100 * text:.0f}%"></i></span>' if known else ""
            return f'<td class="n">{f"{100 * text:.1f}" if known else "–"}{bar}</td>'
        return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"

    titles = "".join(f'<th scope="col"{" class=" + chr(34) + kind + chr(34) if kind else ""}>{escape(text)}</th>'
                     for text, kind in head)
    body = "".join(f'<tr><th scope="row"{" class=n" if kind else ""}>{escape(text)}</th>'
                   + "".join(cell(*one) for one in row) + "</tr>\n" for (text, kind), *row in rows)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'


def _plain(value):
    """An option as a person would write it."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(map(_plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_plain(one)}" for name, one in value.items())
    return str(value)


def _number(value):
    return "" if value is None else f"{value:.6g}"


def _short(value):
    return "" if value is None else f"{value:.4g}"


def _fixed(value):
    return "" if value is None else f"{value:.2f}"
