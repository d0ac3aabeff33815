"""Flags of the entries of a model description, such as --input_size for `img_size`."""

# Entries whose flag has another name.
FLAG_OF = {"name": "model", "img_size": "input_size", "num_classes": "nb_classes"}


def flag(entry: str) -> str:
    """Return the flag that sets an entry, such as --input_size for "img_size"."""
    return f"--{FLAG_OF.get(entry, entry)}"
