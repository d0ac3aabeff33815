"""Healthy runs to compare with: published numbers, records, and the losses of a model that learns nothing.

Texts are given as (key of util.report.wording, {name: value}).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from util.look.curves import Range, Series, Zone
from util.report import run_record
from util.report.run_record import RunRecord
from util.run import flag_facts

LOSSES = ("train_loss", "test_loss", "test_ema_loss")
MOST_RECORDS = 3  # reference curves in a chart

# Losses of the official code: ViT-B, normalised pixels, ImageNet-1k, effective batch 4096 (312 updates an
# epoch), 15 warm-up epochs; reported by users in beyond_masking issue 1, and for late epochs in
# facebookresearch/mae issue 21.
OFFICIAL_PRETRAINING = [(0, 0.9499), (1, 0.7824), (5, 0.6815), (10, 0.5883), (12, 0.5675)]
OFFICIAL_LATE = 0.42
# {model: (epochs, lowest, highest accuracy)} of four seeds of the official code on ImageNet-1k: its
# FINETUNE.md.
OFFICIAL_FINETUNING = {"vit_base_patch16": (100, 83.46, 83.66), "vit_large_patch16": (50, 85.76, 85.88)}
OFFICIAL_PROBE = {"vit_base_patch16": (90, 67.8)}  # facebookresearch/mae, FINETUNE.md


# ---- learning nothing


def uniform_loss(run: RunRecord) -> float | None:
    """Return the loss of a classifier that gives all classes the same probability; None in pretraining."""
    outputs = run.option("nb_classes", int)
    return math.log(outputs) if outputs and outputs > 1 and not run.pretraining else None


def prior_loss(run: RunRecord) -> float | None:
    """Return the loss of a classifier that knows only the class frequencies; None if that is unknown."""
    if run.confusion is None or not run.confusion[0].sum():
        return uniform_loss(run)
    shares = [
        float(images) / float(run.confusion[0].sum()) for images in run.confusion[0].sum(axis=1) if images
    ]
    return -math.fsum(share * math.log(share) for share in shares)


def chance(run: RunRecord) -> float | None:
    """Return the accuracy in per cent of always guessing the most frequent class; None in pretraining."""
    if run.pretraining:
        return None
    if run.confusion is not None and run.confusion[0].sum():
        return 100 * float(run.confusion[0].sum(axis=1).max() / run.confusion[0].sum())
    classes = run.option("nb_classes", int)
    return 100 / classes if classes and classes > 0 else None


def zones(runs: Sequence[RunRecord], name: str) -> list[tuple[str, dict[str, Any], Zone]]:
    """Values of `name` that mean that nothing was learned: [(key, values, Zone without a label), ...]."""
    if name in LOSSES and all(run.pretraining for run in runs):
        return (
            [("zone_zero", {}, Zone("", 1.0))]
            if all(run.option("norm_pix_loss", bool) for run in runs)
            else []
        )
    if name in LOSSES:
        losses = {uniform_loss(run) for run in runs}
        return [
            ("zone_uniform", {"loss": f"{loss:.3f}"}, Zone("", loss))
            for loss in losses
            if len(losses) == 1 and loss is not None
        ]
    if name in ("test_acc1", "test_ema_acc1"):
        found = {None if (value := chance(run)) is None else round(value, 6) for run in runs}
        return [
            ("zone_chance", {"accuracy": f"{value:.3g}"}, Zone("", value, above=False))
            for value in found
            if len(found) == 1 and value is not None
        ]
    return []


# ---- healthy runs


def expected(
    runs: Sequence[RunRecord], name: str, records: Sequence[RunRecord | None]
) -> list[tuple[str, dict[str, Any], Series | Range]]:
    """Values of `name` in healthy runs: [(key, values, Series or Range without a label), ...].

    Args:
        runs: those of the chart; a reference has to apply to all of them.
        records: for each run the result of `recorded`.
    """
    found: list[tuple[str, dict[str, Any], Series | Range]] = []
    if name == "train_loss" and all(map(_is_official_pretraining, runs)):
        warmup = {run.option("warmup_epochs", (int, float)) for run in runs}
        longest = max((run.lines[-1]["epoch"] for run in runs if run.lines), default=0)
        key = "official_curve" if warmup == {15} else "official_curve_warmup"
        found.append(
            (
                key,
                {"warmup": ", ".join(map(str, sorted(warmup, key=str)))},
                Series("", OFFICIAL_PRETRAINING, None),
            )
        )
        if longest >= 400:
            found.append(("official_late", {}, Range("", OFFICIAL_LATE, OFFICIAL_LATE)))
    if name == "test_acc1":
        official = {_official_accuracy(run) for run in runs}
        if len(official) == 1 and (one := official.pop()) is not None:
            key, epochs, low, high = one
            found.append((key, {"epochs": epochs, "low": low, "high": high}, Range("", low, high)))
    different = {(record.folder.name, record.name): record for record in records if record is not None}
    if name != "train_lr" and len(different) <= MOST_RECORDS:
        found += [
            ("recorded", {"record": "/".join(names)}, Series("", record.points(name), None))
            for names, record in different.items()
            if record.points(name)
        ]
    return found


def recorded(run: RunRecord, root: Path) -> RunRecord | None:
    """Find the run in `root`, the project's records/, with the same settings; None if there is none."""
    for path in sorted(root.glob("*/*.options.yaml")):
        name = path.name.removesuffix(".options.yaml")
        log = path.with_name(f"{name}.log.txt")
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
        if log.exists() and _has_settings(run, options):
            return run_record.read_log_only(log, name, options)
    return None


def _has_settings(run: RunRecord, others: Mapping[str, Any]) -> bool:
    """True if a run had the options of a record. Records are made by one process in the project's folder."""
    options = run.options
    names, known = options.keys() - flag_facts.VARIES, others.keys() - flag_facts.VARIES
    if "model" not in known or known - names or any(options[name] != others[name] for name in known):
        return False
    # Newer options must be off, or have the value that the record implies.
    before = flag_facts.before(probe=not options.keys() & {"mask_ratio", "layer_decay"})
    if any(
        options[name] not in (None, False, 0, "", "off", "auto", before.get(name)) for name in names - known
    ):
        return False
    if run.batch is None or run.batch != others.get("batch_size", 0) * others.get("accum_iter", 1):
        return False
    for name in ("data_path", "finetune"):
        mine, theirs = (Path(str(one.get(name) or "")).parts for one in (options, others))
        if mine[-len(theirs) :] != theirs if theirs else mine:
            return False
    return True


def _is_official_pretraining(run: RunRecord) -> bool:
    return (
        run.options.get("model") == "mae_vit_base_patch16"
        and run.option("norm_pix_loss", bool) is True
        and run.options.get("mask_ratio") == 0.75
        and _side(run) == 224
        and run.batch == 4096
        and run.options.get("patch_size") in (None, 16)
        and run.options.get("in_chans", 3) == 3
        and not run.options.get("encoder_mask_tokens")
        and not run.options.get("finetune")
    )


def _official_accuracy(run: RunRecord) -> tuple[str, int, float, float] | None:
    """(key, epochs, lowest, highest accuracy) of the official code with these settings."""
    options = run.options
    if options.get("nb_classes") != 1000 or not options.get("finetune") or _side(run) != 224:
        return None
    model = run.option("model", str)
    if options.get("layer_decay") is None and "drop_path" not in options and model in OFFICIAL_PROBE:
        epochs, accuracy = OFFICIAL_PROBE[model]
        return ("official_probe", epochs, accuracy, accuracy) if options.get("epochs") == epochs else None
    if (
        model in OFFICIAL_FINETUNING
        and options.get("mixup") == 0.8
        and options.get("cutmix") == 1.0
        and options.get("global_pool") is True
    ):
        epochs, low, high = OFFICIAL_FINETUNING[model]
        return ("official_finetuning", epochs, low, high) if options.get("epochs") == epochs else None
    return None


def _side(run: RunRecord) -> Any:
    """Return the image size of a run if height and width are equal."""
    size = run.options.get("input_size")
    sizes = set(size) if isinstance(size, list) else {size}
    return sizes.pop() if len(sizes) == 1 else None
