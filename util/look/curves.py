"""Curves over epochs, drawn by matplotlib: a run's log as one PNG, and SVG charts for a web page."""

from __future__ import annotations

import io
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ACROSS = 3  # curves in a row of the sheet
WIDTH, HEIGHT = 400, 220  # of an SVG chart, in its own units; a page scales it
FONT_SIZE = 12  # so that labels stay readable on a screen of 340 pixels
COLOURS = 6  # CSS variables --s0 to --s5, one per series
DASHES = ((), (7, 3), (2, 3), (9, 3, 2, 3))
MOST_MARKED = 40  # points; a longer line has no markers
ZONE_SHARE = 0.12  # smallest share of the y range that a zone covers, so that it stays visible
# matplotlib draws with these stand-in colours. They become CSS variables of the page, which change in
# dark mode.
VARIABLES = {
    **{f"#0000{number + 1:02x}": f"var(--s{number})" for number in range(COLOURS)},
    "#000101": "var(--soft)",
    "#000102": "var(--line)",
    "#000103": "var(--grid)",
    "#000104": "var(--zone)",
    "#000105": "var(--reference)",
}
SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_COLOUR = {variable: stand_in for stand_in, variable in VARIABLES.items()}


@dataclass
class Series:
    """A line of a chart.

    Attributes:
        points: [(x, y), ...] in the order of x.
        style: number of its colour and dashes; None for a reference, a broad grey line beneath the others.
    """

    label: str
    points: Sequence[tuple[float, float]] = ()
    style: int | None = 0

    @property
    def colour(self) -> str:
        """CSS colour of the line."""
        return "var(--reference)" if self.style is None else f"var(--s{self.style % COLOURS})"

    @property
    def dashes(self) -> tuple[int, ...]:
        """Lengths of dashes and gaps; empty for a solid line. They distinguish series of the same colour."""
        return () if self.style is None else DASHES[(self.style // COLOURS + self.style) % len(DASHES)]


@dataclass
class Zone:
    """Shaded region of a chart: the values above `value`, or those below it."""

    label: str
    value: float
    above: bool = True


@dataclass
class Range:
    """Shaded band of values that other runs have reached."""

    label: str
    low: float
    high: float


# ---- the sheet of a run


def sheet(lines: Sequence[dict[str, float]]) -> Image.Image:
    """Draw one curve over the epochs for each number in log.txt.

    Args:
        lines: of log.txt, one dict per epoch. NaN and Inf leave a gap; epochs that lack a number are bridged.
    """
    names = [
        name
        for name in dict.fromkeys(name for line in lines for name in line)
        if name not in ("epoch", "n_parameters")
    ]
    first, last = lines[0]["epoch"], lines[-1]["epoch"]
    margin = max(0.5, (last - first) / 20)
    rows = -(-len(names) // ACROSS)
    figure = _figure(4 * ACROSS, 2.6 * rows, dpi=100)
    axes = figure.subplots(rows, ACROSS, squeeze=False)
    for name, axis in zip(names, axes.flat, strict=False):
        points = [(line["epoch"], line[name]) for line in lines if name in line]
        axis.plot(*zip(*points, strict=True), marker=".")
        axis.set_title(name)
        _epoch_axis(axis, first - margin, last + margin)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


# ---- a chart of a page


def svg(
    title: str,
    series: Sequence[Series],
    *,
    identity: str,
    zones: Sequence[Zone] = (),
    ranges: Sequence[Range] = (),
) -> str:
    """Draw lines over the epochs as an <svg> element for an HTML page.

    The y axis is logarithmic if the values are positive and differ a hundredfold. Colours are CSS variables
    of the page: --s0 to --s5, --soft, --line, --grid, --zone and --reference.

    Args:
        title: for screen readers, followed by the first and last value of each line.
        identity: suffix of the element's ids, unique in the page.
    """
    import matplotlib

    grey = _COLOUR["var(--soft)"]
    with matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": identity,
            "lines.scale_dashes": False,
            "font.size": FONT_SIZE,
            "xtick.color": grey,
            "ytick.color": grey,
        }
    ):
        figure = _figure(WIDTH / 72, HEIGHT / 72, dpi=72)
        axis = figure.subplots()
        axis.spines[["top", "left", "right"]].set_visible(False)
        axis.spines.bottom.set_color(_COLOUR["var(--line)"])
        axis.tick_params(length=0, which="both")
        for number, one in enumerate(series):
            _draw_series(axis, one, gid=f"line-{number}")
        _value_axis(axis, [y for one in series for _, y in one.points], zones, ranges)
        _draw_areas(axis, zones, ranges)
        _epoch_axis(axis, 0, max(1, *(x for one in series for x, _ in one.points)))
        axis.grid(axis="y", color=_COLOUR["var(--grid)"], linewidth=1)
        axis.set_axisbelow(True)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return _for_a_page(file.getvalue(), title, series, identity)


def _figure(width: float, height: float, dpi: int) -> Figure:
    from matplotlib.figure import Figure  # a third of a second, for runs that draw only

    return Figure(figsize=(width, height), dpi=dpi, layout="constrained")


def _epoch_axis(axis: Axes, first: float, last: float) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_xlim(first, last)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_series(axis: Axes, series: Series, gid: str) -> None:
    colour, reference = _COLOUR[series.colour], series.style is None
    axis.plot(
        [x for x, _ in series.points],
        [y for _, y in series.points],
        gid=gid,
        color=colour,
        clip_on=False,
        linestyle=(0, series.dashes) if series.dashes else "-",
        zorder=1.5 if reference else 2,
        linewidth=7 if reference else 2,
        alpha=0.4 if reference else 1,
        solid_capstyle="round",
        marker="o" if len(series.points) <= MOST_MARKED and not reference else None,
        markersize=5,
        markeredgewidth=0,
    )


def _value_axis(axis: Axes, values: Sequence[float], zones: Sequence[Zone], ranges: Sequence[Range]) -> None:
    """Choose scale, limits and ticks of the y axis so that values, zones and ranges are all visible."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    shown = [
        *values,
        *(zone.value for zone in zones),
        *(value for one in ranges for value in (one.low, one.high)),
    ]
    part = ZONE_SHARE * (max(shown) - min(shown))
    shown += [zone.value + part if zone.above else max(0, zone.value - part) for zone in zones]
    low, high = min(shown), max(shown)
    if low > 0 and high > 100 * low:
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(numticks=6))
        axis.yaxis.set_minor_locator(NullLocator())
        margin = 10 ** (0.05 * (math.log10(high) - math.log10(low)))
        axis.set_ylim(low / margin, high * margin)
    else:
        axis.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        spread = 0.05 * (high - low) or 0.05 * abs(high) or 1
        axis.set_ylim(low - spread if low < 0 else max(0, low - spread), high + spread)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.6g}"))


def _draw_areas(axis: Axes, zones: Sequence[Zone], ranges: Sequence[Range]) -> None:
    low, high = axis.get_ylim()
    for zone in zones:
        axis.axhspan(
            *((zone.value, high) if zone.above else (low, zone.value)),
            color=_COLOUR["var(--zone)"],
            alpha=0.13,
            linewidth=0,
            zorder=0,
            clip_on=False,
            gid="zone",
        )
        axis.axhline(
            zone.value, color=_COLOUR["var(--zone)"], linewidth=1, linestyle=(0, (4, 3)), clip_on=False
        )
    for one in ranges:
        middle, least = (one.low + one.high) / 2, 0.005 * (high - low)  # visible even for a single value
        axis.axhspan(
            min(one.low, middle - least),
            max(one.high, middle + least),
            color=_COLOUR["var(--reference)"],
            alpha=0.6,
            linewidth=0,
            zorder=0.5,
            clip_on=False,
            gid="range",
        )


def _for_a_page(drawn: str, title: str, series: Sequence[Series], identity: str) -> str:
    """Turn matplotlib's SVG file into an element of an HTML page, with CSS variables and unique ids."""
    root = ElementTree.fromstring(drawn)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style", "}clipPath")):  # a style would apply to all charts
                parent.remove(child)
    markers = {element.get(f"{{{XLINK}}}href", "")[1:] for element in root.iter()}
    for element in root.iter():
        element.tag, element.text, element.tail = _local(element.tag), (element.text or "").strip(), None
        element.attrib = {
            _local(name): _tidy(_local(name), text)
            for name, text in element.attrib.items()
            if name not in ("clip-path", "transform")
        }
        name = element.get("id")
        if name is not None and name not in markers:
            del element.attrib["id"]
            if name.partition("-")[0] in ("line", "zone", "range"):
                element.set("class", name)
        if name is not None and name.startswith("line-"):
            _name_points(element, series[int(name[5:])])
    root.attrib = {
        "viewBox": f"0 0 {WIDTH} {HEIGHT}",
        "role": "img",
        "aria-labelledby": f"title-{identity} description-{identity}",
    }
    described = " ".join(map(_summary, series))
    for place, (tag, text) in enumerate((("title", title), ("desc", described))):
        child = ElementTree.Element(tag, id=f"{'title' if tag == 'title' else 'description'}-{identity}")
        child.text = text
        root.insert(place, child)
    return ElementTree.tostring(root, encoding="unicode", short_empty_elements=True)


def _local(name: str) -> str:
    """Name of a tag or attribute without its namespace, which HTML does not need."""
    return name.rpartition("}")[2]


def _tidy(name: str, text: str) -> str:
    """Value of an attribute: stand-in colours replaced, coordinates rounded, the font left to the page."""
    if name == "style":
        text = re.sub(r"#0000\d\d|#00010\d", lambda found: VARIABLES[found[0]], text)
        return re.sub(r"font-family:[^;]*;? ?", "", text)
    if name in ("d", "x", "y"):
        return re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.2f}", text.replace("\n", ""))
    return text


def _name_points(group: ElementTree.Element, series: Series) -> None:
    """Give each marker of a line a title, which browsers show as a tooltip."""
    for use, (x, y) in zip(group.iter(f"{{{SVG}}}use"), series.points, strict=False):
        ElementTree.SubElement(use, f"{{{SVG}}}title").text = f"{series.label} · {x:g}: {y:.6g}"


def _summary(series: Series) -> str:
    if not series.points:
        return f"{series.label}: -."
    (first_x, first), (last_x, last) = series.points[0], series.points[-1]
    return f"{series.label}: {first:.4g} ({first_x}) - {last:.4g} ({last_x})."
