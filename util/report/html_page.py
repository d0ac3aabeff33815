"""The sections of a report as HTML that needs nothing else: no network, no script for reading.

Everything that comes from a run (names, messages, options) passes through `escape`.
"""
import base64
import io
import statistics
from functools import partial
from html import escape

from PIL import Image

from util.report import health, wording
from util.report.chart import Series, legend, line_chart
from util.report.class_table import classes
from util.report.style import HEAD, SCRIPT, STYLE
from util.report.tables import fixed, number, plain, short, table

CURVES = ("train_loss", "test_loss", "test_ema_loss", "test_acc1", "test_ema_acc1", "train_lr", "train_grad_norm",
          "train_attention_entropy")
# Options in the order in which one wants to know them; the others follow, folded up.
FIRST_OPTIONS = ("model", "data_path", "dataset", "input_size", "patch_size", "in_chans", "nb_classes", "finetune",
                 "epochs", "warmup_epochs", "batch_size", "accum_iter", "blr", "lr", "min_lr", "weight_decay",
                 "layer_decay", "embed_dim", "depth", "mask_ratio", "mask_mode", "encoder_mask_tokens", "decoder_depth",
                 "decoder_embed_dim", "norm_pix_loss", "pca_target", "global_pool", "drop_path", "mixup", "cutmix",
                 "smoothing", "aa", "reprob", "clip_grad", "seed", "amp", "device", "output_dir")
MOST_VALUES = 100       # rows of the table of log.txt
MOST_PICTURES = 16      # reconstructions of a run
PICTURE_BYTES = 8_000_000   # of all reconstructions of a report, as they are in it
PICTURE_WIDTH = 1000        # pixels; wider ones, and those of more than SMALL_PICTURE bytes, are made smaller
SMALL_PICTURE = 60_000
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)   # what Pillow raises for damaged ones


def page(runs, *, language, records, generator):
    """The whole page about some runs (util.report.run_record.RunRecord).

    Args:
        records: for each run a RunRecord with the same settings, or None.
        generator: name of the program, by which it knows its own pages again.
    """
    t = partial(wording.text, language)
    title = t("report", names=", ".join(run.name for run in runs))
    several = len(runs) > 1
    parts = [HEAD.format(language={"zh": "zh-CN"}.get(language, language), title=escape(title), style=STYLE,
                         generator=escape(generator)), f"<body>\n<h1>{escape(title)}</h1>\n"]
    if several:
        parts += [_results(t, runs), _said(t, runs, records)]
    else:
        parts += [_facts(t, runs[0]), _said(t, runs, records)]
    parts.append(_curves(t, runs, records))
    if several:
        parts.append(_differences(t, runs))
    budget = PICTURE_BYTES // len(runs)
    for place, run in enumerate(runs):
        level = 3 if several else 2
        sections = [_reconstructions(t, run, place, budget, level), classes(t, run, level)]
        sections += ['<div class="columns">\n', _settings(t, run, folded=several),
                     _environment(t, run, folded=several), "</div>\n", _values(t, run)]
        if several:
            parts.append(f'<h2 id="run-{place}">{escape(run.name)}</h2>\n')
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
            ("last_train_loss", short(run.last("train_loss"))),
            ("best_acc1", f"{best[1]:.2f}" if best else ""), ("best_epoch", str(best[0]) if best else ""),
            ("last_acc1", fixed(run.last("test_acc1"))), ("last_acc5", fixed(run.last("test_acc5"))),
            ("last_test_loss", short(run.last("test_loss"))),
            ("median_rate", f"{statistics.median(rates):.0f}" if rates else ""),
            ("parameters", f"{run.last('n_parameters'):,.0f}" if run.last("n_parameters") else "")]


def _results(t, runs):
    outcomes = [_outcome(t, run) for run in runs]
    kept = [key for column, (key, _) in enumerate(outcomes[0]) if any(one[column][1] for one in outcomes)]
    rows = [[(run.name, ""), *((dict(outcome)[key] or "–", "n") for key in kept)]
            for run, outcome in zip(runs, outcomes)]
    return f"<h2>{escape(t('results'))}</h2>\n" + table([(t("run"), ""), *((t(key), "n") for key in kept)], rows)


def _said(t, runs, records):
    """Verdicts and warnings."""
    parts = []
    for run, record in zip(runs, records):
        if len(runs) > 1:
            parts.append(f"<h3>{escape(run.name)}</h3>\n")
        items = [(t(key, **values), "bad" if bad else "good", [])
                 for key, values, bad in health.verdicts(run, record)]
        items += [(t(key, **values), "warn", lines) for key, values, lines in health.warnings(run)]
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
        # The losses of the two kinds of runs are no two values of one thing.
        for kind in sorted({run.pretraining for run in runs}) if name == "train_loss" else [None]:
            part = [(style, run, record) for style, (run, record) in enumerate(zip(runs, records))
                    if kind in (None, run.pretraining) and run.points(name)]
            if part:
                series = [Series(run.name if len(runs) > 1 else t(name), run.points(name), style)
                          for style, run, _ in part]
                figures.append(_figure(t, name, series, [run for _, run, _ in part], [record for *_, record in part],
                                       identity=name if kind is None else f"{name}-{kind}"))
    if not figures:
        return ""
    known = any(health.expected(runs, name, records) for name in CURVES)
    note = ""
    if not known:
        note = t("many_references", most=health.MOST_RECORDS) if any(records) else t("no_reference")
        note = f'<p class="soft">{escape(note)}</p>\n'
    return f"<h2>{escape(t('curves'))}</h2>\n" + '<div class="charts">\n' + "".join(figures) + "</div>\n" + note


def _figure(t, name, series, runs, records, identity):
    zones = []
    for key, values, zone in health.zones(runs, name):
        zone.label = t(key, **values)
        zones.append(zone)
    references = []
    for key, values, reference in health.expected(runs, name, records):
        reference.label = t(key, **values)
        references.append(reference)
    lines = [*series, *(one for one in references if isinstance(one, Series))]
    ranges = [one for one in references if not isinstance(one, Series)]
    chart = line_chart(t(name), lines, x_label=t("epoch"), identity=identity, zones=zones, ranges=ranges)
    shown = lines if len(lines) > 1 else []
    return (f"<figure><h3>{escape(t(name))}</h3>{chart}"
            + (legend(shown, zones, ranges) if shown or zones or ranges else "") + "</figure>\n")


# ---- reconstructions

def _reconstructions(t, run, place, budget, level):
    if not run.reconstructions:
        return ""
    shown, damaged, no_space = _chosen(run.reconstructions, budget)
    figures = "".join(
        f'<figure><img src="data:image/{_kind(content)};base64,{base64.b64encode(content).decode()}" '
        f'alt="{escape(t("after_epoch", name=name))}"><figcaption>{escape(t("after_epoch", name=name))}</figcaption>'
        "</figure>\n" for name, content in shown)
    count = len(run.reconstructions)
    notes = [t("pictures_left_out", shown=len(shown), count=count)] if len(shown) < count else []
    notes += [t("pictures_no_space", megabytes=f"{budget / 1e6:.3g}")] if no_space else []
    notes += [t("pictures_damaged", damaged=damaged)] if damaged else []
    notes += [t("pictures_smaller")] if any(_kind(content) == "webp" for _, content in shown) else []
    note = f'<p class="soft">{escape(" ".join(notes))}</p>\n' if notes else ""
    slider = ""
    if len(shown) > 1:
        slider = (f'<div class="slider" hidden><label for="slider-{place}">{escape(t("choose"))}</label>'
                  f'<input type="range" id="slider-{place}" min="0" max="{len(shown) - 1}" '
                  f'value="{len(shown) - 1}"><output></output></div>\n')
    return f'<h{level}>{escape(t("reconstructions"))}</h{level}>\n{note}{slider}<div class="frames">\n{figures}</div>\n'


def _chosen(paths, budget):
    """([(name, bytes)], how many are damaged, whether `budget` was too small for MOST_PICTURES).

    The pictures are evenly chosen over time, the first and the last among them.
    """
    whole = []
    for path in paths:
        try:
            with Image.open(path) as picture:
                picture.verify()
            whole.append(path)
        except UNREADABLE:
            pass
    shrunk = {}
    while True:
        chosen = [whole[index] for index in _evenly(len(whole), MOST_PICTURES)]
        shrunk |= {path: _shrunk(path) for path in chosen if path not in shrunk}
        if all(shrunk[path] for path in chosen):
            break
        whole = [path for path in whole if shrunk.get(path, b"?")]  # the next ones take their places
    found, damaged = [(path.stem.replace("_", " "), shrunk[path]) for path in chosen], len(paths) - len(whole)
    for count in range(len(found), 0, -1):
        kept = [found[index] for index in _evenly(len(found), count)]
        if sum(len(content) for _, content in kept) * 4 / 3 <= budget:
            return kept, damaged, count < len(found)
    return [], damaged, bool(found)


def _shrunk(path):
    """The bytes of a picture for the page: as they are if they are few, else narrower, as WebP; none if damaged."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as picture:
            picture.load()
            if len(content) <= SMALL_PICTURE and picture.width <= PICTURE_WIDTH:
                return content
            picture = picture.convert("RGB")
    except UNREADABLE:
        return b""
    picture.thumbnail((PICTURE_WIDTH, 10 * PICTURE_WIDTH))
    smaller = io.BytesIO()
    picture.save(smaller, format="WEBP", quality=80)
    return smaller.getvalue()


def _kind(content):
    return "webp" if content.startswith(b"RIFF") else "png"


def _evenly(total, count):
    """`count` of the numbers below `total`, the last among them, and the first if there are two."""
    return range(total) if count >= total else sorted(
        {round(total - 1 - place * (total - 1) / max(1, count - 1)) for place in range(count)})


# ---- settings, environment, values

def _settings(t, run, folded):
    if not run.options:
        return ""
    names = [name for name in FIRST_OPTIONS if name in run.options]
    others = sorted(run.options.keys() - set(names))
    head = [(t("name"), ""), (t("value"), "")]
    content = table(head, [[(name, ""), (plain(run.options[name]), "long")] for name in names])
    if others:
        rest = table(head, [[(name, ""), (plain(run.options[name]), "long")] for name in others])
        content += f"<details><summary>{escape(t('more_settings'))}</summary>{rest}</details>\n"
    return _section(t("settings"), content, folded)


def _environment(t, run, folded):
    if not run.environment:
        return ""
    rows = [[(name, ""), (plain(value), "long")] for name, value in run.environment.items()]
    return _section(t("environment"), table([(t("name"), ""), (t("value"), "")], rows), folded)


def _section(title, content, folded):
    if folded:
        return f"<details><summary>{escape(title)}</summary>{content}</details>\n"
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>\n"


def _differences(t, runs):
    parts = [f"<h2>{escape(t('differences'))}</h2>\n"]
    head = [(t("name"), ""), *((run.name, "") for run in runs)]
    for title, same, dicts in (("settings", "same", [run.options for run in runs]),
                               ("environment", "same_environment", [run.environment for run in runs])):
        first = FIRST_OPTIONS if title == "settings" else ()
        names = dict.fromkeys([*first, *(name for one in dicts for name in one)])
        rows = [[(name, ""), *((plain(one[name]) if name in one else "–", "long") for one in dicts)] for name in names
                if len({plain(one[name]) if name in one else None for one in dicts}) > 1]
        parts.append(f"<h3>{escape(t(title))}</h3>\n")
        parts.append(table(head, rows) if rows else f"<p>{escape(t(same))}</p>\n")
    return "".join(parts)


def _values(t, run):
    if not run.lines:
        return ""
    names = list(dict.fromkeys(name for line in run.lines for name in line if name not in ("epoch", "n_parameters")))
    known = wording.TEXT["en"]
    head = [(t("epoch_number"), "n"), *((t(name) if name in known else name, "n") for name in names)]
    shown = [run.lines[index] for index in _evenly(len(run.lines), MOST_VALUES)]
    rows = [[(str(line["epoch"]), "n"), *((number(line.get(name)) or "–", "n") for name in names)] for line in shown]
    note = ""
    if len(shown) < len(run.lines):
        note = f'<p class="soft">{escape(t("values_left_out", shown=len(shown), count=len(run.lines)))}</p>\n'
    return f"<details><summary>{escape(t('values'))}</summary>{note}{table(head, rows)}</details>\n"
