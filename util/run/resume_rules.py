"""Rules for resuming: options that may differ from those of the checkpoint, and others."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from util.run.flag_facts import NOT_COMPARED
from util.weights.flag_names import FLAG_OF

if TYPE_CHECKING:
    from util.data.loaders import ImageSource, Loader


def essentials(options: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return {name: value} of what must not change in a run, as far as it is known, each value in one form.

    Args:
        options: {flag name: value} of all options.
        kept: other entries of the checkpoint, see `facts`.
    """
    known = {name: value for name, value in options.items() if name not in NOT_COMPARED}
    if known.get("amp") == "auto":  # depends on the device
        del known["amp"]
    if "img_size" in kept.get("architecture", {}):
        sides = np.broadcast_to(kept["architecture"]["img_size"], 2)
        known[FLAG_OF["img_size"]] = [int(side) for side in sides]
    for name in {"num_heads", "decoder_num_heads"} & known.keys():
        known[name] = kept.get("architecture", {}).get(name)
        if known[name] is None:  # the model's default, in a checkpoint that does not tell the number
            del known[name]
    for name, values in kept.get("normalization", {}).items():
        known[name] = [float(value) for value in values]
    if "data" in kept:
        known["data_path"] = kept["data"]
    if "order" in kept:
        known["image_order"] = f"order and labels with the checksum {kept['order']}"
    if "shuffle_buffer" in kept:
        known["shuffle_buffer"] = kept["shuffle_buffer"]
    if "images_an_update" in kept:
        known["batch_size"] = f"{kept['images_an_update']} images in an update"
    return known


def facts(
    loader: Loader,
    images_an_update: int,
    *,
    architecture: Mapping[str, Any],
    normalization: Mapping[str, Sequence[float]],
    classes: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return the entries of a checkpoint that describe the run, beside its options.

    Args:
        loader: training batches.
        images_an_update: images per update, over all processes.
        architecture: {"name": ..., keyword arguments of the model}.
        normalization: {"mean", "std"} of the images.
        classes: class names by label; None in pretraining.
    """
    found = {
        "architecture": architecture,
        "normalization": normalization,
        "data": fingerprint(loader.source),
        "order": digest(loader.source),
        "images_an_update": images_an_update,
    }
    if loader.sampler.buffer is not None:
        found["shuffle_buffer"] = loader.sampler.buffer.fingerprint()
    if classes is not None:
        found["classes"] = list(classes)
    return found


def digest(source: ImageSource) -> str:
    """Return a checksum of the order of the images (by name without folder and suffix) and their labels."""
    found = hashlib.sha256()
    if hasattr(source, "paths"):  # otherwise the order is that of a published archive
        names = source.paths.data.tobytes().split(b"\0")  # a million in half a second, unlike source.name
        found.update(b"\0".join(name.rpartition(b"/")[2].partition(b".")[0] for name in names))
    if source.labels is not None:
        found.update(np.ascontiguousarray(source.labels, "<i8").tobytes())
    return found.hexdigest()[:16]


def fingerprint(source: ImageSource) -> str:
    """Return the number of images and some file names, by which they are recognized in another folder."""
    indices = range(0, len(source), max(1, len(source) // 8))
    names = [source.name(index).replace("\\", "/").rpartition("/")[2].partition(".")[0] for index in indices]
    return f"{len(source)} images ({', '.join(names)})"


def check(path: str, then: Mapping[str, Any], now: Mapping[str, Any], allowed: Collection[str]) -> None:
    """Raise ValueError with both values of each difference if this is not the run of the checkpoint.

    Values that an older checkpoint does not tell are not compared.

    Args:
        path: checkpoint.
        then: `essentials` of its run.
        now: `essentials` of this run.
        allowed: names that may differ (--allow_changes).
    """
    changed = [name for name in now if name in then and then[name] != now[name] and name not in allowed]
    if changed:
        lines = "".join(f"\n  --{name}: {then[name]} in the checkpoint, {now[name]} now" for name in changed)
        raise ValueError(
            f"--resume {path}: it would be another run with these changes:{lines}\n"
            "Give the values of the checkpoint, or, to go on with the new ones all the same, "
            f"--allow_changes {' '.join(changed)}"
        )


def check_names(allowed: Collection[str], now: Mapping[str, Any]) -> None:
    """Raise ValueError for names of --allow_changes that are not among the `essentials` of this run."""
    if unknown := sorted(set(allowed) - now.keys() - {"amp"}):
        raise ValueError(
            f"--allow_changes {' '.join(unknown)}: expected names of options that a run depends "
            "on, such as epochs or blr"
        )
