"""Whether a run may continue a checkpoint: which options may have changed, and which make it another run."""
import hashlib

import numpy as np

from util.run.flag_facts import NOT_COMPARED
from util.weights.flag_names import FLAG_OF


def essentials(options, kept):
    """{name: value} of what must not change in a run, as far as it is known; one value however it was written.

    Args:
        options: {name: value} of all options.
        kept: beside them in a checkpoint; of it "architecture", "normalization", "data", a `fingerprint`,
            "shuffle_buffer", that of a ShuffleBuffer, and "images_an_update", over all processes.
    """
    known = {name: value for name, value in options.items() if name not in NOT_COMPARED}
    if known.get("amp") == "auto":  # whatever the device has
        del known["amp"]
    if "img_size" in kept.get("architecture", {}):
        known[FLAG_OF["img_size"]] = [int(side) for side in np.broadcast_to(kept["architecture"]["img_size"], 2)]
    for name in {"num_heads", "decoder_num_heads"} & known.keys():
        known[name] = kept.get("architecture", {}).get(name)
        if known[name] is None:  # the model's own, of a checkpoint that does not say how many
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


def facts(loader, images_an_update, *, architecture, normalization, classes=None):
    """Entries of a checkpoint that describe the run, beside its options.

    Args:
        loader: training batches.
        images_an_update: images per update, over all processes.
        architecture: {"name": ..., keyword arguments of the model}.
        normalization: {"mean", "std"} of the images.
        classes: class names by label; None in pretraining.
    """
    found = {"architecture": architecture, "normalization": normalization, "data": fingerprint(loader.source),
             "order": digest(loader.source), "images_an_update": images_an_update}
    if loader.sampler.buffer is not None:
        found["shuffle_buffer"] = loader.sampler.buffer.fingerprint()
    if classes is not None:
        found["classes"] = list(classes)
    return found


def digest(images):
    """A checksum of the order of a source's images, by name without folder and ending, and of their labels."""
    found = hashlib.sha256()
    if hasattr(images, "paths"):  # else the order is that of a published archive
        names = images.paths.data.tobytes().split(b"\0")  # a million in half a second, unlike images.name
        found.update(b"\0".join(name.rpartition(b"/")[2].partition(b".")[0] for name in names))
    if images.labels is not None:
        found.update(np.ascontiguousarray(images.labels, "<i8").tobytes())
    return found.hexdigest()[:16]


def fingerprint(images):
    """What a source of images is told by, wherever it may have been moved: its length and some file names."""
    places = range(0, len(images), max(1, len(images) // 8))
    names = [images.name(place).replace("\\", "/").rpartition("/")[2].partition(".")[0] for place in places]
    return f"{len(images)} images ({', '.join(names)})"


def check(path, then, now, allowed):
    """ValueError if the run would be another one than that of the checkpoint at `path`; it names both values of each.

    What an older checkpoint does not say is not compared.

    Args:
        then, now: `essentials` of the checkpoint's run and of this one.
        allowed: names that may differ all the same (--allow_changes).
    """
    changed = [name for name in now if name in then and then[name] != now[name] and name not in allowed]
    if changed:
        lines = "".join(f"\n  --{name}: {then[name]} in the checkpoint, {now[name]} now" for name in changed)
        raise ValueError(f"--resume {path}: it would be another run with these changes:{lines}\n"
                         "Give the values of the checkpoint, or, to go on with the new ones all the same, "
                         f"--allow_changes {' '.join(changed)}")


def check_names(allowed, now):
    """ValueError if --allow_changes has names that are not among the `essentials` of this run."""
    if unknown := sorted(set(allowed) - now.keys() - {"amp"}):
        raise ValueError(f"--allow_changes {' '.join(unknown)}: expected names of options that a run depends on, "
                         "such as epochs or blr")
