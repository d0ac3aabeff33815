"""Random erasing (arXiv 1708.04896) of normalised images, as the official fine-tuning uses it (timm 0.3.2)."""
import math

import numpy as np

MODES = ("const", "rand", "pixel")

AREA = (0.02, 1 / 3)        # share of the image that the boxes of one image cover together
ASPECT = (0.3, 1 / 0.3)     # height / width of a box
TRIES = 10                  # for a box that fits; then this box is left out


class RandomErasing:
    """Draw boxes, and what to fill them with, for images whose values are already normalised.

    Args:
        prob: of erasing anything in an image (--reprob).
        mode: "const" fills with zero, the mean color; "rand" with one N(0, 1) color a box; "pixel" with N(0, 1) noise
            (--remode).
        max_count: an image gets 1 to max_count boxes (--recount), which share the area of one.
    """

    def __init__(self, prob, mode="pixel", max_count=1):
        if not 0 <= prob <= 1:
            raise ValueError(f"--reprob is a probability from 0 to 1, got {prob}.")
        if mode not in MODES:
            raise ValueError(f"--remode must be one of {', '.join(MODES)}, got {mode!r}.")
        if max_count < 1:
            raise ValueError(f"--recount must be at least 1, got {max_count}; switch erasing off with --reprob 0.")
        self.prob = prob
        self.mode = mode
        self.max_count = max_count

    def draw(self, shape, rng):
        """Boxes and their new content for an image of `shape` (C, H, W): list of ((top, left, bottom, right), values).

        The values broadcast to [C, bottom - top, right - left].
        """
        channels, height, width = shape
        if rng.random() >= self.prob:
            return []
        count = int(rng.integers(1, self.max_count + 1))
        drawn = []
        for _ in range(count):
            box = draw_box(height, width, rng, count=count)
            if box is None:
                continue
            top, left, bottom, right = box
            if self.mode == "pixel":
                values = rng.standard_normal((channels, bottom - top, right - left), dtype=np.float32)
            elif self.mode == "rand":
                values = rng.standard_normal((channels, 1, 1), dtype=np.float32)
            else:
                values = np.zeros((channels, 1, 1), np.float32)
            drawn.append((box, values))
        return drawn


def draw_box(height, width, rng, *, count):
    """(top, left, bottom, right) of one of `count` boxes in the image, or None if no try fits inside it."""
    for _ in range(TRIES):
        area = rng.uniform(*AREA) * (height * width) / count
        aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        box_height = round(math.sqrt(area * aspect))
        box_width = round(math.sqrt(area / aspect))
        if box_height < height and box_width < width:
            top = int(rng.integers(0, height - box_height + 1))
            left = int(rng.integers(0, width - box_width + 1))
            return top, left, top + box_height, left + box_width
    return None


def fill_boxes(images, erased):
    """`images` float32 [N, C, H, W], a numpy array or a Paddle tensor, changed in place and returned.

    Args:
        erased: for each image the list that RandomErasing.draw gave.
    """
    for number, drawn in enumerate(erased):
        for (top, left, bottom, right), values in drawn:
            images[number, :, top:bottom, left:right] = values
    return images
