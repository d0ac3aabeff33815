"""RandAugment (arXiv 1909.13719) on PIL images, as in timm 0.3.2."""
import re

from util.images.augment_operations import (
    IMAGENET_FILL,
    INCREASING,
    MAX_LEVEL,
    OPERATIONS,
    PLAIN,
    apply_operation,
    draw_level,
)

PROB = 0.5      # of applying an operation that was drawn

# timm 0.3.2's only other distribution of the operations, "w0": how likely each is drawn.
WEIGHTS = {"Rotate": 0.3, "ShearX": 0.2, "ShearY": 0.2, "TranslateX": 0.1, "TranslateY": 0.1, "Color": 0.025,
           "Sharpness": 0.025, "AutoContrast": 0.025, "Solarize": 0.005, "SolarizeAdd": 0.005, "Contrast": 0.005,
           "Brightness": 0.005, "Equalize": 0.005, "Posterize": 0.0, "Invert": 0.0}
MOST_WEIGHTED = sum(weight > 0 for weight in WEIGHTS.values())


class RandAugment:
    """`num_ops` operations drawn at random, each applied with probability 1/2 at a level near `magnitude`.

    Args:
        magnitude: mean level, 0 to 10.
        magnitude_std: of the normal distribution of the level, which is then clipped to 0-10.
        increasing: whether Posterize, Solarize and the enhancements grow with the level; else they are
            AutoAugment's, of which some fade.
        weighted: draw by WEIGHTS without replacement; else all alike with replacement.
        fill: one whole number (0-255) a channel, for what a geometric operation moves into the picture.
    """

    def __init__(self, magnitude, magnitude_std=0.0, num_ops=2, *, increasing=True, weighted=False, fill=IMAGENET_FILL):
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        self.num_ops = num_ops
        self.magnitudes = INCREASING if increasing else PLAIN
        self.weighted = weighted
        self.fill = fill

    @classmethod
    def parse(cls, text, *, fill=IMAGENET_FILL):
        """From timm's notation "rand-m9-mstd0.5-inc1"; ValueError for what is not of it.

        m: magnitude (10); mstd: its deviation (0); n: operations (2); inc: the increasing ones, as in timm 0.3.2 with
        any number, even 0; w0: weighted.
        """
        _, *parts = text.split("-")
        values = {}
        for part in parts:
            match = re.fullmatch(r"(m|n|inc)(\d+)|(w)(0)|(mstd)(\d+\.?\d*|\.\d+)", part)
            if match is None:
                raise ValueError(f"--aa {text!r}: cannot read {part!r}; the parts are m and n with a whole number, "
                                 "mstd with a number, inc1 and w0.")
            key, value = (group for group in match.groups() if group is not None)
            if key in values:
                raise ValueError(f"--aa {text!r}: {key} is given twice.")
            values[key] = float(value) if key == "mstd" else int(value)
        magnitude, num_ops = values.get("m", MAX_LEVEL), values.get("n", 2)
        if magnitude > MAX_LEVEL:
            raise ValueError(f"--aa {text!r}: m must be from 0 to {MAX_LEVEL}, got {magnitude}.")
        if "w" in values and num_ops > MOST_WEIGHTED:
            raise ValueError(f"--aa {text!r}: w0 has {MOST_WEIGHTED} operations to draw from, each once; n must not be "
                             f"more, got {num_ops}.")
        return cls(magnitude, values.get("mstd", 0.0), num_ops, increasing="inc" in values, weighted="w" in values,
                   fill=fill)

    def draw(self, rng):
        """The operations to apply to one image, in order: list of (name, level)."""
        if self.weighted:
            names = rng.choice(list(WEIGHTS), size=self.num_ops, replace=False, p=list(WEIGHTS.values())).tolist()
        else:
            names = [OPERATIONS[index] for index in rng.integers(0, len(OPERATIONS), size=self.num_ops)]
        return [(name, draw_level(self.magnitude, self.magnitude_std, self.magnitudes[name], rng))
                for name in names if rng.random() < PROB]

    def __call__(self, image, rng):
        """PIL image of mode L, RGB or RGBA -> image of the same size and mode."""
        for name, level in self.draw(rng):
            image = apply_operation(image, name, self.magnitudes[name](level), self.fill)
        return image
