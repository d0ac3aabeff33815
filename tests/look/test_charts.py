"""Curves as pictures: positions are read off the drawing itself."""

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from util.look import curves
from util.look.curves import Range, Series, Zone
from util.look.curves import sheet as draw

BLUE = (31, 119, 180)  # matplotlib's first colour


def blue(image, left, right, top=0.0, bottom=1.0):
    """Rows of the blue pixels in a part of the picture, whose sides are given as shares of it."""
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    part = pixels[int(top * height) : int(bottom * height), int(left * width) : int(right * width)]
    return np.argwhere((part == BLUE).all(axis=2))


def test_a_curve_for_each_number():
    lines = [
        {
            "epoch": epoch,
            "train_loss": 1 - epoch / 10,
            "train_lr": 1e-3 * epoch,
            "n_parameters": 7,
            "same": 5.0,
        }
        for epoch in range(5)
    ]
    image = draw(lines)
    falls, rises, stays = (blue(image, start, start + 1 / 3) for start in (0, 1 / 3, 2 / 3))
    for points, direction in ((falls, 1), (rises, -1)):
        left, right = points[points[:, 1].argmin(), 0], points[points[:, 1].argmax(), 0]
        assert direction * (right - left) > 0.4 * image.height  # rows count from the top
    assert np.ptp(stays[:, 0]) < 10 and np.ptp(stays[:, 1]) > 0.2 * image.width


def test_what_is_not_finite_leaves_a_gap_and_what_is_missing_does_not():
    values = [1.0, 2.0, float("nan"), 2.0, 1.0]
    lines = [{"epoch": epoch, "loss": value} for epoch, value in enumerate(values)]
    columns = np.unique(blue(draw(lines), 0, 1 / 3)[:, 1])
    assert np.diff(columns).max() > 40  # between the second and the fourth epoch
    lines[2].pop("loss")
    columns = np.unique(blue(draw(lines), 0, 1 / 3)[:, 1])
    assert np.diff(columns).max() == 1  # no look was due in that epoch


def test_every_curve_has_the_same_epochs():
    lines = [
        {"epoch": epoch, "loss": 1.0, **({"entropy": 1.0} if epoch in (2, 3) else {})} for epoch in range(5)
    ]
    image = draw(lines)
    loss, entropy = (np.ptp(blue(image, start, start + 1 / 3)[:, 1]) for start in (0, 1 / 3))
    assert 3 < loss / entropy < 5  # four epochs, and one


def test_more_curves_take_more_rows():
    line = {"epoch": 0, **{f"number_{number}": float(number) for number in range(7)}}
    assert draw([line]).height == 3 * draw([{"epoch": 0, "loss": 1.0}]).height


# ---- charts of a page


def chart(*series, **options):
    return ElementTree.fromstring(curves.svg("loss", series, identity="c", **options))


def group(svg, name):
    return next(one for one in svg.iter("g") if one.get("class") == name)


def corners(element):
    """[(x, y), ...] of all paths in an element."""
    return [
        (float(x), float(y))
        for path in element.iter("path")
        for x, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path.get("d"))
    ]


def scales(svg, logarithmic=False):
    """Two functions from a place in the drawing to its value, by axis labels and grid."""
    labels = {
        anchor: [one for one in svg.iter("text") if f"text-anchor: {anchor}" in one.get("style")]
        for anchor in ("middle", "end")
    }
    grid = [
        float(re.search(r"M [\d.]+ ([\d.]+)", path.get("d"))[1])
        for path in svg.iter("path")
        if "var(--grid)" in path.get("style", "")
    ]
    found = []
    for places, texts, log in (
        ([float(one.get("x")) for one in labels["middle"]], labels["middle"], False),
        (grid, labels["end"], logarithmic),
    ):
        values = [float(one.text) for one in texts]
        assert len(values) == len(places) >= 2
        slope, start = np.polyfit(places, np.log10(values) if log else values, 1)
        found.append(
            lambda place, slope=slope, start=start, log=log: (
                10 ** (start + slope * place) if log else start + slope * place
            )
        )
    return found


def points(svg, name, logarithmic=False):
    x_at, y_at = scales(svg, logarithmic)
    line = next(path for path in group(svg, name).iter("path") if "fill: none" in path.get("style"))
    return [
        (x_at(float(x)), y_at(float(y))) for x, y in re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", line.get("d"))
    ]


@pytest.mark.parametrize(
    "values",
    [
        [0.8180, 0.7293, 0.7028, 0.6826, 0.6666, 0.6591],
        [1.6e-3, 3.7e-4, 1e-4],
        [-5.0, -3.0, -4.0],
        [1e6, 2e6, 1.5e6],
        [1e4, 30.0, 0.5, 0.02],
    ],
)
def test_lines_go_through_the_values(values):
    found = points(
        chart(Series("a", list(enumerate(values)))), "line-0", logarithmic=max(values) > 100 * abs(values[-1])
    )
    assert [x for x, _ in found] == pytest.approx(range(len(values)), abs=0.02)
    assert [y for _, y in found] == pytest.approx(values, rel=0.02)


def test_series_differ_in_more_than_colour_and_references_lie_beneath():
    svg = chart(
        *(Series(str(number), [(0, number), (2, number + 1)], number) for number in range(14)),
        Series("healthy", [(0, 3.0), (2, 2.0)], None),
    )
    styles = [group(svg, f"line-{number}").find("path").get("style") for number in range(15)]
    assert len(set(styles)) == 15 and "var(--reference)" in styles[14]
    order = [one.get("class") for one in svg.iter("g") if one.get("class", "").startswith("line-")]
    assert order[0] == "line-14"
    found = points(svg, "line-14")
    assert found[0] == pytest.approx((0, 3), abs=0.05) and found[1] == pytest.approx((2, 2), abs=0.05)


def test_zones_and_ranges_lie_at_their_values():
    svg = chart(
        Series("a", [(0, 20.0), (4, 80.0)]),
        zones=[Zone("chance", 10.0, above=False)],
        ranges=[Range("others", 70.0, 75.0)],
    )
    y_at = scales(svg)[1]
    assert max(y_at(y) for _, y in corners(group(svg, "zone"))) == pytest.approx(10, abs=0.5)
    assert {round(y_at(y)) for _, y in corners(group(svg, "range"))} == {70, 75}
    svg = chart(Series("a", [(0, 0.9), (4, 0.5)]), zones=[Zone("nothing", 1.0)])
    places = [y for _, y in corners(group(svg, "zone"))]
    assert scales(svg)[1](max(places)) == pytest.approx(1.0, abs=0.01) and np.ptp(places) > 10


@pytest.mark.parametrize("values", [[0.5], [0.0], [3.0, 3.0, 3.0], [1e-300, 1e29]])
def test_odd_values_have_a_picture(values):
    svg = chart(Series("a", list(enumerate(values))))
    uses = list(group(svg, "line-0").iter("use"))
    assert len(uses) == len(values)
    for one in uses:
        assert 0 <= float(one.get("x")) <= curves.WIDTH and 0 <= float(one.get("y")) <= curves.HEIGHT


def test_of_thousands_of_points_the_extremes_stay():
    values = [1 / (1 + epoch) for epoch in range(5000)]
    values[3333], values[1111] = 7.0, 1e-6
    svg = chart(Series("a", list(enumerate(values))))
    found = points(svg, "line-0", logarithmic=True)
    assert len(found) < 1000 and not list(svg.iter("use"))
    assert max(y for _, y in found) == pytest.approx(7.0, rel=0.05)
    assert min(y for _, y in found) == pytest.approx(1e-6, rel=0.05)


def test_names_are_text_and_colours_are_variables():
    hostile = '<script>"&'
    text = curves.svg(hostile, [Series(hostile, [(0, 1.0), (1, 2.0)])], identity="c")
    svg = ElementTree.fromstring(text)
    assert "<script" not in text and svg.find("title").text == hostile
    assert svg.find("desc").text == f"{hostile}: 1 (0) - 2 (1)."
    assert svg.get("aria-labelledby").split() == [svg.find(tag).get("id") for tag in ("title", "desc")]
    assert [one.find("title").text for one in svg.iter("use")] == [f"{hostile} · 0: 1", f"{hostile} · 1: 2"]
    assert not re.search(r"#0+[1-9]|font-family|url\(", text)  # stand-in colours and foreign fonts


def test_charts_of_one_page_share_no_ids():
    first, second = (
        re.findall(r' id="(.*?)"', curves.svg("a", [Series("a", [(0, 1.0)])], identity=identity))
        for identity in ("a", "b")
    )
    assert len(first) == len(second) == 3 and not set(first) & set(second)


def test_long_labels_are_not_cut_off():
    for one in chart(Series("a", [(0, 1.05e-5), (10000, 1.25e-5)])).iter("text"):
        width = 6.5 * len(one.text)
        left = float(one.get("x")) - (width if "anchor: end" in one.get("style") else width / 2)
        assert left >= 0 and left + width <= curves.WIDTH, one.text
