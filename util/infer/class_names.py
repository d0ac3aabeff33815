"""The names of a classifier's classes, in the order of its labels."""
import json
from pathlib import Path


def of_checkpoint(state, num_classes):
    """The checkpoint's own, ImageNet's for 1000 classes, else numbers.

    Args:
        state: what util.weights.checkpoint.read_checkpoint gave.
    """
    if state.get("classes") and len(state["classes"]) <= num_classes:
        return [*state["classes"], *(f"class {number}" for number in range(len(state["classes"]), num_classes))]
    if num_classes == 1000:
        return (Path(__file__).parent / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines()
    return [f"class {number}" for number in range(num_classes)]


def read(path, num_classes):
    """Those in a file: a name a line; or JSON, a list of names, or {label: name}, or {label: [identifier, name]}.

    The last is the form in which Keras has ImageNet's. ValueError unless there is a name for each class.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"--class_names {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"--class_names {path}: this is no text in UTF-8") from error
    names = _from_json(path, text) if Path(path).suffix.lower() == ".json" else text.splitlines()
    while names and not names[-1].strip():
        names.pop()
    empty = next((number for number, name in enumerate(names) if not name.strip()), None)
    if empty is not None:
        raise ValueError(f"--class_names {path}: class {empty} has no name; expected one a line, in the labels' order")
    if len(names) != num_classes:
        raise ValueError(f"--class_names {path}: expected {num_classes} names, one for each class of this model, got "
                         f"{len(names)}")
    return [name.strip() for name in names]


def _from_json(path, text):
    try:
        found = json.loads(text)
        if isinstance(found, dict):
            found = [found[str(number)] for number in range(len(found))]
        names = [entry[-1] if isinstance(entry, list) else entry for entry in found]
        if not all(isinstance(name, str) for name in names):
            raise ValueError("a name is not a text")
    except (ValueError, TypeError, LookupError) as error:
        raise ValueError(f'--class_names {path}: expected ["name", ...] or {{"0": "name", ...}} as JSON '
                         f"({error})") from error
    return names
