"""Values that --augment gives to flags that are not given themselves.

"light" is the official augmentation of pretraining and of the linear probe, "medium" the default one of
finetuning, and "strong" that of the published finetuning results.
"""

from collections.abc import Mapping
from typing import Any

Presets = dict[str, dict[str, Any]]  # {value of --augment: {name of a flag: value}}

RANDAUGMENT = "rand-m9-mstd0.5-inc1"
STRONG = {"color_jitter": None, "aa": RANDAUGMENT, "reprob": 0.25, "smoothing": 0.1}
NO_SOFT_TARGETS = {"smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0}
PRETRAIN: Presets = {
    "light": {"color_jitter": None, "aa": ""},
    "medium": {"color_jitter": 0.4, "aa": ""},
    "strong": {"color_jitter": None, "aa": RANDAUGMENT},
}
FINETUNE: Presets = {
    "light": {"color_jitter": None, "aa": "", "reprob": 0.0, **NO_SOFT_TARGETS},
    "medium": {"color_jitter": None, "aa": RANDAUGMENT, "reprob": 0.25, **NO_SOFT_TARGETS, "smoothing": 0.1},
    "strong": {**STRONG, "mixup": 0.8, "cutmix": 1.0},
}
LINPROBE: Presets = {
    "light": {"color_jitter": None, "aa": "", "reprob": 0.0, **NO_SOFT_TARGETS},
    "medium": {"color_jitter": 0.4, "aa": "", "reprob": 0.0, **NO_SOFT_TARGETS},
    "strong": {**STRONG, "mixup": 0.0, "cutmix": 0.0},
}


def describe(presets: Presets) -> str:
    """Return the flags that each preset switches on, as words for --help."""
    return "; ".join(f"{name}: {_switched_on(values)}" for name, values in presets.items())


def _switched_on(values: Mapping[str, Any]) -> str:
    return " ".join(f"--{name} {value}" for name, value in values.items() if value) or "only crop and flip"
