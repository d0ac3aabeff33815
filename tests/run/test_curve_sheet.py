"""The picture of a log: where its lines are, in pixels."""
import numpy as np

from util.run.curve_sheet import draw

BLUE = (31, 119, 180)  # matplotlib's first colour


def blue(image, left, right, top=0.0, bottom=1.0):
    """Rows of the blue pixels in a part of the picture, whose sides are given as shares of it."""
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    part = pixels[int(top * height):int(bottom * height), int(left * width):int(right * width)]
    return np.argwhere((part == BLUE).all(axis=2))


def test_a_curve_for_each_number():
    lines = [{"epoch": epoch, "train_loss": 1 - epoch / 10, "train_lr": 1e-3 * epoch, "n_parameters": 7,
              "same": 5.0}
             for epoch in range(5)]
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
    lines = [{"epoch": epoch, "loss": 1.0, **({"entropy": 1.0} if epoch in (2, 3) else {})} for epoch in range(5)]
    image = draw(lines)
    loss, entropy = (np.ptp(blue(image, start, start + 1 / 3)[:, 1]) for start in (0, 1 / 3))
    assert 3 < loss / entropy < 5  # four epochs, and one


def test_more_curves_take_more_rows():
    line = {"epoch": 0, **{f"number_{number}": float(number) for number in range(7)}}
    assert draw([line]).height == 3 * draw([{"epoch": 0, "loss": 1.0}]).height
