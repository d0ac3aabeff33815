"""Charts: where a value lies is read off the picture itself, by the texts at its axes."""
import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from util.report import chart
from util.report.chart import Range, Series, Zone, legend, line_chart

NAMESPACE = "{http://www.w3.org/2000/svg}"


def parsed(*arguments, **options):
    text = line_chart(*arguments, **{"x_label": "epoch", "identity": "c", **options})
    return ElementTree.fromstring(text.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


def elements(svg, tag, kind=None):
    return [one for one in svg.iter(NAMESPACE + tag) if kind is None or one.get("class") == kind]


def scale(svg, axis, logarithmic=False):
    """Place in the picture -> value, by the first and the last text of an axis."""
    ticks = [(float(one.get(axis)) - (4 if axis == "y" else 0), float(one.text)) for one in elements(svg, "text", axis)]
    (first, low), (last, high) = ticks[0], ticks[-1]
    assert len(ticks) >= 3 and first != last
    if logarithmic:
        low, high = math.log10(low), math.log10(high)
    for place, value in ticks:  # the others lie between them as they should
        value = math.log10(value) if logarithmic else value
        assert value == pytest.approx(low + (place - first) / (last - first) * (high - low), abs=0.01 * abs(high - low))

    def value(place):
        found = low + (float(place) - first) / (last - first) * (high - low)
        return 10 ** found if logarithmic else found
    return value


def points(svg, logarithmic=False):
    x, y = scale(svg, "x"), scale(svg, "y", logarithmic)
    return [[(x(place.split(",")[0]), y(place.split(",")[1])) for place in line.get("points").split()]
            for line in elements(svg, "polyline")]


def near(found, expected):
    assert [x for x, _ in found] == pytest.approx([x for x, _ in expected], abs=0.02 * expected[-1][0])
    assert [y for _, y in found] == pytest.approx([y for _, y in expected], rel=0.01, abs=1e-6)


@pytest.mark.parametrize("values", [
    [0.8180, 0.7293, 0.7028, 0.6826, 0.6666, 0.6591], [52.25, 58.4, 57.0], [1.6e-3, 3.7e-4, 1e-4],
    [-5.0, -3.0, -4.0], [1e6, 2e6, 1.5e6]])
def test_lines_go_through_the_values(values):
    series = list(enumerate(values))
    found, = points(parsed("loss", [Series("a", series)]))
    near(found, series)


def test_values_that_differ_a_hundredfold_are_drawn_logarithmically():
    series = list(enumerate([1e4, 30.0, 0.5, 0.02]))
    found, = points(parsed("loss", [Series("a", series)]), logarithmic=True)
    near(found, series)


def test_several_lines_differ_in_more_than_colour_and_references_lie_beneath():
    lines = [Series(str(number), [(0, number), (2, number + 1)], number) for number in range(14)]
    svg = parsed("loss", [*lines, Series("healthy", [(0, 3.0), (2, 2.0)], None)])
    drawn = elements(svg, "polyline")
    assert drawn[0].get("class") == "ref"
    assert len({(one.get("class"), one.get("stroke-dasharray")) for one in drawn}) == 15
    assert len({one.get("stroke-dasharray") for one in drawn[1:5]}) == 4
    near(points(svg)[0], [(0, 3.0), (2, 2.0)])
    near(points(svg)[3], [(0, 2.0), (2, 3.0)])


def test_zones_and_ranges_lie_at_their_values():
    svg = parsed("accuracy", [Series("a", [(0, 20.0), (4, 80.0)])], zones=[Zone("chance", 10.0, above=False)],
                 ranges=[Range("others", 70.0, 75.0)])
    y = scale(svg, "y")
    zone, = elements(svg, "rect", "zone")
    assert y(zone.get("y")) == pytest.approx(10, abs=0.5)
    assert float(zone.get("y")) + float(zone.get("height")) == chart.HEIGHT - chart.BOTTOM
    others, = elements(svg, "rect", "range")
    assert y(others.get("y")) == pytest.approx(75, abs=0.5)
    assert y(float(others.get("y")) + float(others.get("height"))) == pytest.approx(70, abs=0.5)
    svg = parsed("loss", [Series("a", [(0, 0.9), (4, 0.5)])], zones=[Zone("nothing", 1.0)])
    zone, = elements(svg, "rect", "zone")
    assert float(zone.get("y")) == chart.TOP and float(zone.get("height")) > 10
    assert scale(svg, "y")(chart.TOP + float(zone.get("height"))) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("values", [[0.5], [0.0], [3.0, 3.0, 3.0], [0.0, 0.0], [1e-300, 1e29]])
def test_odd_values_have_a_picture(values):
    svg = parsed("loss", [Series("a", list(enumerate(values)))])
    assert all(math.isfinite(float(one.get("cx"))) and chart.TOP <= float(one.get("cy")) <= chart.HEIGHT
               for one in elements(svg, "circle")) and elements(svg, "circle")


def test_of_thousands_of_points_the_extremes_stay():
    values = [1 / (1 + epoch) for epoch in range(5000)]
    values[3333], values[1111] = 7.0, 1e-6
    found, = points(parsed("loss", [Series("a", list(enumerate(values)))]), logarithmic=True)
    assert len(found) <= chart.MOST_POINTS + 2 and not elements(parsed("x", [Series("a", list(enumerate(values)))]),
                                                                    "circle")
    assert max(y for _, y in found) == pytest.approx(7.0, rel=0.05)
    assert min(y for _, y in found) == pytest.approx(1e-6, rel=0.05) and found[-1][0] == pytest.approx(4999, abs=2)
    assert [x for x, _ in found] == sorted(x for x, _ in found)


def test_names_are_text():
    hostile = '<script>"&'
    svg = parsed(hostile, [Series(hostile, [(0, 1.0), (1, 2.0)])], x_label=hostile)
    assert elements(svg, "title")[0].text == hostile and not elements(svg, "script")
    assert elements(svg, "desc")[0].text == f"{hostile}: 1 (0) - 2 (1)."
    described = svg.get("aria-labelledby").split()
    assert described == [elements(svg, tag)[0].get("id") for tag in ("title", "desc")]
    assert "&lt;script&gt;" in legend([Series(hostile, [])], [Zone(hostile, 1.0)]) and "<script" not in legend(
        [Series(hostile, [])], [Zone(hostile, 1.0)])


def test_labels_have_room():
    """Long numbers move the axis to the right, and the last one of the other axis is not cut off."""
    drawn = line_chart("t", [Series("a", [(0, 1.05e-5), (10000, 1.25e-5)])], x_label="x", identity="i")
    for text, anchor, end in re.findall(r'<text class="\w" x="([\d.]+)"[^>]*text-anchor="(\w+)">([^<]*)<', drawn):
        width = 6 * len(end)
        left = float(text) - (width if anchor == "end" else width / 2)
        assert left >= 0 and left + width <= 400, end
