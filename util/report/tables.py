"""Tables and numbers of a report, as HTML."""
import math
from html import escape


def table(head, rows):
    """[(text, class)] of the head and of each row -> a table that scrolls on its own; the kind "recall" has a bar."""
    def cell(text, kind):
        if kind == "recall":
            known = not math.isnan(text)
            bar = f'<span class="bar"><i style="width:{100 * text:.0f}%"></i></span>' if known else ""
            return f'<td class="n">{f"{100 * text:.1f}" if known else "–"}{bar}</td>'
        return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"

    titles = "".join(f'<th scope="col"{" class=" + chr(34) + kind + chr(34) if kind else ""}>{escape(text)}</th>'
                     for text, kind in head)
    body = "".join(f'<tr><th scope="row"{" class=n" if kind else ""}>{escape(text)}</th>'
                   + "".join(cell(*one) for one in row) + "</tr>\n" for (text, kind), *row in rows)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead>\n<tbody>{body}</tbody></table></div>\n'


def plain(value):
    """An option as a person would write it."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return " ".join(map(plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}: {plain(one)}" for name, one in value.items())
    return str(value)


def number(value):
    return "" if value is None else f"{value:.6g}"


def short(value):
    return "" if value is None else f"{value:.4g}"


def fixed(value):
    return "" if value is None else f"{value:.2f}"
