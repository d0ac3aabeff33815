"""Class names of a classifier, in the order of its labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def of_checkpoint(state: Mapping[str, Any], num_classes: int) -> list[str]:
    """Return the names in a checkpoint, with "class 0", "class 1", ... for missing ones.

    A checkpoint without names has those of ImageNet if it has 1000 classes.

    Args:
        state: what util.weights.checkpoint.read_checkpoint returned.
    """
    names = state.get("classes") or []
    if len(names) > num_classes:
        names = []
    if not names and num_classes == 1000:
        return (Path(__file__).parent / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return [*names, *(f"class {number}" for number in range(len(names), num_classes))]


def read_class_names(path: Path | str, num_classes: int) -> list[str]:
    """Read names from a file. Raises ValueError unless each class has a name.

    The file has a name per line, or is JSON: a list, {label: name}, or {label: [identifier, name]}.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"--class_names {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--class_names {path}: not UTF-8 text") from error
    names = _from_json(path, text) if Path(path).suffix.lower() == ".json" else text.splitlines()
    while names and not names[-1].strip():
        names.pop()
    empty = next((number for number, name in enumerate(names) if not name.strip()), None)
    if empty is not None:
        raise ValueError(
            f"--class_names {path}: class {empty} has no name; write a name per line, in the "
            "order of the labels"
        )
    if len(names) != num_classes:
        raise ValueError(
            f"--class_names {path}: has {len(names)} names; this model has {num_classes} classes"
        )
    return [name.strip() for name in names]


def _from_json(path, text):
    try:
        found = json.loads(text)
        if isinstance(found, dict):
            found = [found[str(number)] for number in range(len(found))]
        names = [entry[-1] if isinstance(entry, list) else entry for entry in found]
        if not all(isinstance(name, str) for name in names):
            raise ValueError("a name is not a string")
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(
            f'--class_names {path}: expected JSON, ["name", ...] or {{"0": "name", ...}} ({error})'
        ) from error
    return names
