"""A page of HTML, in one file, on which one points at a patch and sees which others are like it."""
import base64
import io
import json
from pathlib import Path

import numpy as np

from util.look.figures import heat, to_image


def page(picture, cosines, grid, patch):
    """
    Args:
        picture: [C, height, width] in [0, 1]; cosines: [L, L] between its patches, kept in 255 steps from the least.
        grid: (h, w); patch: (row, column), chosen at first.
    """
    png = io.BytesIO()
    to_image(picture).save(png, format="PNG")
    least, most = float(cosines.min()), float(cosines.max())
    steps = ((cosines - least) / max(most - least, 1e-6) * 255).round().astype("uint8")
    colours = (heat(np.arange(256)[None] / 255, 1.0)[:, 0].T * 255).round().astype(int).tolist()
    html = Path(__file__).with_name("affinity.html").read_text(encoding="utf-8")
    for name, value in {"picture": base64.b64encode(png.getvalue()).decode(), "rows": grid[0], "columns": grid[1],
                        "colours": json.dumps(colours, separators=(",", ":")), "row": patch[0], "column": patch[1],
                        "least": f"{least:.4f}", "most": f"{most:.4f}",
                        "cosines": base64.b64encode(steps.tobytes()).decode()}.items():
        html = html.replace(f"@{name}@", str(value))
    return html
