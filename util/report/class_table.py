"""What an evaluation took for what: the table of a report's classes, and its confusion matrix."""
import base64
import io
import math
from html import escape

import numpy as np
from PIL import Image

from util.report.tables import table

MOST_WRITTEN = 24       # classes of a confusion matrix with numbers; one of more is a picture
PICTURE_SIDE = 500      # dots of that picture
MOST_CLASSES = 60       # rows of the table of classes that are not folded up, and of a longer one:
WORST = 50


def classes(t, run, level):
    """The section about the classes of a run, "" where nothing is known of them.

    Args:
        t: t(key, **values) is a sentence of the report's language.
        level: of the heading.
    """
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
             table(head, shown)]
    if len(shown) < len(rows):
        more = t("other_classes", count=len(rows) - len(shown))
        parts.append(f"<details><summary>{escape(more)}</summary>{table(head, rows[len(shown):])}</details>\n")
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
    return (f'<div class="wide"><table class="matrix"><thead><tr><th scope="col">{escape(corner)}</th>{head}</tr>'
            f"</thead><tbody>{body}</tbody></table></div>\n")


def _cell(count, share, right):
    strength = math.sqrt(share)  # so that rare mistakes can be seen
    kinds = [kind for kind, fits in (("right", right), ("none", count == 0)) if fits]
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
