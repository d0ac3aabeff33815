"""Line charts as SVG text: no script, no colours of their own (a style sheet has them), readable at 340 pixels.

A page needs styles for the classes s0 ... s5 (series), ref (reference), zone, grid, axis; texts are ordinary texts.
"""
import html
import math
from dataclasses import dataclass

WIDTH, HEIGHT = 400, 236
LEFT, RIGHT, TOP, BOTTOM = 50, 10, 10, 38
CHARACTER = 6.8         # width of one in a label of an axis, at least
COLOURS = 6
DASHES = ("", "7 3", "2 3", "9 3 2 3")
MOST_POINTS = 400   # of a line; of more, the lowest and the highest of each stretch are drawn
ZONE = 0.12         # part of the picture's height that a zone has at least
MARKED = 40         # points of a line that are few enough for marks


@dataclass
class Series:
    """A line: points [(x, y)] in the order of x, and which style it has; style None: a reference, dashed and grey."""

    label: str
    points: list
    style: int | None = 0


@dataclass
class Zone:
    """What lies above (or, not `above`, below) a value means something: it is shaded from there on."""

    label: str
    value: float
    above: bool = True


@dataclass
class Range:
    """Values from `low` to `high` that others have reached."""

    label: str
    low: float
    high: float


def line_chart(title, series, *, x_label, identity, zones=(), ranges=()):
    """An <svg> of lines over a common x axis, which begins at 0; logarithmic upwards if values differ a hundredfold.

    Args:
        title: read out in place of the picture, with the first and last value of each line.
        identity: an id that no other chart of the page has.
    """
    points = [point for one in series for point in one.points]
    values = [y for _, y in points] + [value for one in ranges for value in (one.low, one.high)]
    values += [zone.value for zone in zones]
    # A zone is to be seen even if no line comes near it.
    part = ZONE * (max(values) - min(values))
    values += [zone.value + part if zone.above else max(0, zone.value - part) for zone in zones]
    logarithmic = min(values) > 0 and max(values) > 100 * min(values)
    y_axis = (_LogAxis if logarithmic else _Axis)(min(values), max(values), HEIGHT - BOTTOM, TOP)
    left = max(LEFT, 10 + CHARACTER * max(len(text) for _, text in y_axis.ticks()))
    last = max(1, *(x for x, _ in points))
    right = max(RIGHT, CHARACTER * len(f"{last:g}") / 2)
    x_axis = _Axis(0, last, left, WIDTH - right, whole=True)
    lines = [_summary(one) for one in series]
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{identity}-t {identity}-d">'
             f'<title id="{identity}-t">{html.escape(title)}</title>'
             f'<desc id="{identity}-d">{html.escape(" ".join(lines))}</desc>']
    for zone in zones:
        at = y_axis(zone.value)
        top, bottom = (TOP, at) if zone.above else (at, HEIGHT - BOTTOM)
        parts.append(f'<rect class="zone" x="{left:.2f}" y="{top:.2f}" width="{WIDTH - left - right:.2f}" '
                     f'height="{bottom - top:.2f}"/><line class="zone-edge" x1="{left:.2f}" x2="{WIDTH - right:.2f}" '
                     f'y1="{at:.2f}" y2="{at:.2f}"/>')
    for one in ranges:
        top, bottom = y_axis(one.high), y_axis(one.low)
        middle = (top + bottom) / 2  # at least two pixels high
        top, bottom = min(top, middle - 1), max(bottom, middle + 1)
        parts.append(f'<rect class="range" x="{left:.2f}" y="{top:.2f}" width="{WIDTH - left - right:.2f}" '
                     f'height="{bottom - top:.2f}"/>')
    for value, text in y_axis.ticks():
        at = y_axis(value)
        parts.append(f'<line class="grid" x1="{left:.2f}" x2="{WIDTH - right:.2f}" y1="{at:.2f}" y2="{at:.2f}"/>'
                     f'<text class="y" x="{left - 6:.2f}" y="{at + 4:.2f}" text-anchor="end">{text}</text>')
    for value, text in x_axis.ticks():
        parts.append(f'<text class="x" x="{x_axis(value):.2f}" y="{HEIGHT - BOTTOM + 16}" '
                     f'text-anchor="middle">{text}</text>')
    parts.append(f'<line class="axis" x1="{left:.2f}" x2="{WIDTH - right:.2f}" y1="{HEIGHT - BOTTOM}" '
                 f'y2="{HEIGHT - BOTTOM}"/><text x="{(left + WIDTH - right) / 2}" y="{HEIGHT - 4}" '
                 f'text-anchor="middle">{html.escape(x_label)}</text>')
    for one in sorted(series, key=lambda one: one.style is not None):  # references beneath
        parts.append(_line(one, x_axis, y_axis))
    return "".join(parts) + "</svg>"


def legend(series, zones=(), ranges=()):
    """What the lines of a chart are, as an HTML list: outside the picture, where it can wrap."""
    entries = [(f'<line {_style(one)} x1="1" x2="29" y1="6" y2="6"/>', one.label) for one in series]
    entries += [('<rect class="range" x="1" y="2" width="28" height="8"/>', one.label) for one in ranges]
    entries += [('<rect class="zone" x="1" y="1" width="28" height="10"/><line class="zone-edge" x1="1" x2="29" y1="6" '
                 'y2="6"/>', zone.label) for zone in zones]
    return '<ul class="legend">' + "".join(
        f'<li><svg viewBox="0 0 30 12" width="30" height="12" aria-hidden="true">{sample}</svg> '
        f'{html.escape(label)}</li>' for sample, label in entries) + "</ul>"


def _style(series):
    if series.style is None:
        return 'class="ref"'
    dash = DASHES[(series.style // COLOURS + series.style) % len(DASHES)]
    return f'class="s{series.style % COLOURS}"' + (f' stroke-dasharray="{dash}"' if dash else "")


def _summary(series):
    if not series.points:
        return f"{series.label}: -."
    (first_x, first), (last_x, last) = series.points[0], series.points[-1]
    return f"{series.label}: {first:.4g} ({first_x}) - {last:.4g} ({last_x})."


def _line(series, x_axis, y_axis):
    points = _thinned(series.points)
    places = [(x_axis(x), y_axis(y)) for x, y in points]
    text = " ".join(f"{x:.2f},{y:.2f}" for x, y in places)
    parts = [f'<polyline {_style(series)} points="{text}"/>'] if len(points) > 1 else []
    if len(points) <= MARKED:
        shape = "ref" if series.style is None else f"s{series.style % COLOURS}"
        parts += [f'<circle class="{shape}" cx="{x:.2f}" cy="{y:.2f}" r="{2 if series.style is None else 2.6}"><title>'
                  f'{html.escape(series.label)} · {epoch:g}: {value:.6g}</title></circle>'
                  for (x, y), (epoch, value) in zip(places, points)]
    return "".join(parts)


def _thinned(points):
    """At most MOST_POINTS of them, spikes included."""
    if len(points) <= MOST_POINTS:
        return points
    stretch = math.ceil(2 * len(points) / MOST_POINTS)
    kept = {points[0], points[-1]}
    for start in range(0, len(points), stretch):
        part = points[start:start + stretch]
        kept |= {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
    return sorted(kept)


class _Axis:
    """Values -> places in the picture, from `start` (least value) to `end`."""

    def __init__(self, low, high, start, end, whole=False):
        margin = 0 if whole else 0.05 * (high - low) or 0.05 * abs(high) or 1
        self.whole = whole
        self.low, self.high, self.start, self.end = low - margin, high + margin, start, end
        if not whole and low >= 0 > self.low:
            self.low = 0.0

    def __call__(self, value):
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self):
        """[(value, text)] at about six round values."""
        rough = (self.high - self.low) / 6
        power = 10 ** math.floor(math.log10(rough))
        step = power * next(factor for factor in (1, 2, 5, 10) if rough <= factor * power * 1.0001)
        if self.whole:
            step = max(1, round(step))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(count * step, f"{round(count * step, 12):.6g}") for count in range(first, last + 1)]


class _LogAxis:
    def __init__(self, low, high, start, end):
        self.inner = _Axis(math.log10(low), math.log10(high), start, end)

    def __call__(self, value):
        return self.inner(math.log10(value))

    def ticks(self):
        first, last = math.ceil(self.inner.low), math.floor(self.inner.high)
        every = max(1, -(-(last - first + 1) // 6))
        return [(10.0 ** power, f"1e{power}" if abs(power) > 3 else f"{10.0 ** power:g}")
                for power in range(first, last + 1, every)]
