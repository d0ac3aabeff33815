"""The curves of a run's log as one picture."""
import numpy as np
from PIL import Image

ACROSS = 3  # curves beside each other


def draw(lines):
    """A curve over the epochs for each number of log.txt that every run has one of, as a PIL image.

    Args:
        lines: of log.txt, a dict an epoch; a number that is not finite leaves a gap, one that an epoch lacks does not.
    """
    from matplotlib.backends.backend_agg import (
        FigureCanvasAgg,  # a third of a second, for runs that draw only
    )
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = [name for name in dict.fromkeys(name for line in lines for name in line)
             if name not in ("epoch", "n_parameters")]
    first, last = lines[0]["epoch"], lines[-1]["epoch"]
    margin = max(0.5, (last - first) / 20)
    rows = -(-len(names) // ACROSS)
    figure = Figure(figsize=(4 * ACROSS, 2.6 * rows), dpi=100, layout="constrained")
    axes = figure.subplots(rows, ACROSS, squeeze=False)
    for name, axis in zip(names, axes.flat):
        axis.plot(*zip(*((line["epoch"], line[name]) for line in lines if name in line)), marker=".")
        axis.set_xlim(first - margin, last + margin)
        axis.set_title(name)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(names):]:
        axis.set_visible(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
