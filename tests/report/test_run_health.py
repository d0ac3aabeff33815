"""Verdicts, warnings about the folder, and references that appear only for matching settings."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from util.report import health, references
from util.report.run_record import RunRecord

RECORDS = Path(__file__).resolve().parents[2] / "records"
MAE = {
    "model": "mae_vit_base_patch16",
    "norm_pix_loss": True,
    "mask_ratio": 0.75,
    "input_size": 224,
    "batch_size": 64,
    "accum_iter": 1,
    "warmup_epochs": 15,
    "epochs": 400,
}
VIT = {"model": "vit_base_patch16", "nb_classes": 10}


def run(options=VIT, *, train=(), test=None, accuracy=None, **changes):
    columns = {"train_loss": train, "test_loss": test, "test_acc1": accuracy}
    lines = [
        {"epoch": epoch, **{name: column[epoch] for name, column in columns.items() if column is not None}}
        for epoch in range(len(train))
    ]
    return RunRecord(Path("somewhere"), "run", lines=lines, options=dict(options), **changes)


def bad(run):
    return [(key, values) for key, values, is_bad in health.verdicts(run) if is_bad]


WARM = {**MAE, "warmup_epochs": 1}
FALLING = [2.0, 1.5, 1.2, 1.0, 0.9, 0.8]


@pytest.mark.parametrize(
    "options, train, expected",
    [
        (WARM, [1.0, 0.98, 0.995], [("stays_at_one", {"least": "0.98"})]),
        (WARM, [1.2, 1.05, 1.02, 1.0, 0.985, 0.975], []),
        (WARM, [1.911, 1.656, 1.244, 1.02, 0.999, 0.986], []),  # fall
        (MAE, [1.01, 1.0, 1.0], [("train_flat", {"first": "1.01", "last": "1"})]),  # still warming up
        (
            WARM,
            [1.1, 2.0, 30.0, 400.0, 5000.0, 6000.0, 9000.0],
            [("train_rises", {"epoch": 0, "least": "1.1", "last": "9000"})],
        ),
        (
            MAE,
            [1.0, 0.8, 0.5, 0.5, 0.5, 0.5, 30.0],
            [("train_rises", {"epoch": 5, "least": "0.5", "last": "30"})],
        ),
        (
            MAE,
            [0.9, 0.7, 0.5, 0.5, 0.5, 0.55, 0.485, 0.56, 0.65, 0.75, 0.85, 0.95],
            [("train_rises", {"epoch": 6, "least": "0.485", "last": "0.95"})],
        ),
        (MAE, [1.0, 0.8, math.nan, 0.7], []),
        (MAE, [1.0, 0.8, math.nan, math.inf], [("train_lost", {"epoch": 2})]),
        (MAE, [1.0, 0.99], []),  # too few
        ({**MAE, "norm_pix_loss": False}, [1.02, 1.0, 0.98], []),  # there it may be anything
        (
            MAE,
            [0.9, 0.7, 0.71, 0.72, 0.74, 0.76, 0.78, 0.8],
            [("train_rises", {"epoch": 1, "least": "0.7", "last": "0.8"})],
        ),
        (MAE, [0.9, 0.7, 0.701, 0.702, 0.703], []),  # wavers
        (MAE, [0.9, 0.8, 0.7, 0.9], []),  # a single epoch
        (VIT, FALLING, []),
        (VIT, [2.0, 1.995, 1.99], [("train_flat", {"first": "2", "last": "1.99"})]),
    ],
)
def test_verdicts_on_training_losses(options, train, expected):
    assert bad(run(options, train=train)) == expected


def test_overfitting_is_a_test_loss_that_rises_while_the_training_loss_falls():
    rising = [1.5, 1.2, 1.1, 1.15, 1.25, 1.35, 1.45, 1.55]
    falling = [*FALLING, 0.7, 0.65]
    assert bad(run(train=falling, test=rising)) == [
        ("overfits", {"epoch": 2, "least": "1.1", "last": "1.55"})
    ]
    assert bad(run(train=falling, test=falling)) == []
    assert [key for key, _ in bad(run(train=rising, test=rising))] == ["train_rises", "test_rises"]


def test_noise_does_not_rise():
    """Falling and flat curves with a scatter of 2 per cent."""
    rng = np.random.default_rng(0)
    for length in range(3, 300, 3):
        for curve in (np.full(length, 0.75), 0.6 + 0.6 * np.exp(-4 * np.arange(length) / length)):
            noisy = curve * (1 + 0.02 * rng.standard_normal(length))
            assert "train_rises" not in dict(bad(run(MAE, train=noisy.tolist()))), length


def test_a_test_loss_that_is_lost():
    assert bad(run(train=FALLING, test=[2.0, 1.5, 1.2, math.nan, math.nan, math.nan])) == [
        ("test_lost", {"epoch": 3})
    ]


def test_an_accuracy_at_chance():
    losses = [2.31, 2.302, 2.3]
    assert bad(run(train=losses, test=losses, accuracy=[9.0, 10.5, 10.0])) == [
        ("stays_at_chance", {"best": "10.5", "chance": "10"})
    ]
    assert ("stays_at_chance", {"best": "10.5", "chance": "10"}) not in bad(
        run(train=losses, test=[2.3, 2.2, 2.0], accuracy=[9.0, 10.5, 10.0])
    )  # the loss says that it learns
    assert bad(run(train=FALLING, accuracy=[30.0] * 6)) == []
    # Where the classes are not equally frequent, always saying the most frequent one is chance.
    counts = np.array([[0, 40], [0, 60]])
    assert bad(run(train=FALLING, test=[2.3] * 6, accuracy=[60.0] * 6, confusion=(counts, ["a", "b"], 0)))[
        0
    ] == ("stays_at_chance", {"best": "60", "chance": "60"})


def test_what_is_said_in_any_case():
    assert health.verdicts(run()) == [("no_epochs", {}, False)]
    assert health.verdicts(run(train=[2.0], accuracy=[50.0])) == [
        ("one_epoch", {"loss": "2"}, False),
        ("best_accuracy", {"accuracy": "50.00", "epoch": 0}, False),
        ("too_few", {"epochs": 3}, False),
    ]
    record = run(train=[1.9, 1.4])
    assert health.verdicts(run(train=[2.0, 1.5]), record)[-2:] == [
        ("beside_record", {"epoch": 1, "loss": "1.5", "then": "1.4"}, False),
        ("too_few", {"epochs": 3}, False),
    ]


# ---- what is expected


def zone(runs, name):
    return [
        (key, values, pytest.approx(one.value), one.above)
        for key, values, one in references.zones(runs, name)
    ]


def test_zones_of_nothing_learned():
    assert zone([run(MAE)], "train_loss") == [("zone_zero", {}, 1.0, True)]
    assert zone([run({**MAE, "norm_pix_loss": False})], "train_loss") == []
    for name in ("train_loss", "test_loss"):
        assert zone([run()], name) == [("zone_uniform", {"loss": "2.303"}, math.log(10), True)]
    assert zone([run()], "test_acc1") == [("zone_chance", {"accuracy": "10"}, 10.0, False)]
    assert zone([run(), run({"nb_classes": 5})], "test_acc1") == []
    assert zone([run({})], "test_acc1") == zone([run({})], "train_loss") == zone([run()], "train_lr") == []


def expected(runs, name="train_loss", records=None):
    return [
        (key, values) for key, values, _ in references.expected(runs, name, records or [None] * len(runs))
    ]


def test_the_official_curve_is_shown_for_the_official_settings_only():
    official = run(MAE, train=[0.95], environment={"processes": 64})
    ((key, _, series),) = references.expected([official], "train_loss", [None])
    assert (
        key == "official_curve"
        and series.points == [(0, 0.9499), (1, 0.7824), (5, 0.6815), (10, 0.5883), (12, 0.5675)]
        and series.style is None
    )
    for change in (
        {"norm_pix_loss": False},
        {"mask_ratio": 0.6},
        {"model": "mae_vit_large_patch16"},
        {"input_size": 192},
        {"batch_size": 32},
        {"patch_size": 8},
        {"in_chans": 1},
    ):
        other = run({**MAE, **change}, train=[0.95], environment={"processes": 64})
        assert expected([other]) == expected([official, other]) == [], change
    warm = run({**MAE, "warmup_epochs": 40}, environment={"processes": 64})
    assert expected([warm]) == [("official_curve_warmup", {"warmup": "40"})]
    assert expected([official], "train_lr") == []
    late = run(MAE, train=[0.5] * 401, environment={"processes": 64})
    assert [key for key, _ in expected([late])] == ["official_curve", "official_late"]


def test_the_official_accuracies():
    options = {
        "model": "vit_base_patch16",
        "nb_classes": 1000,
        "input_size": 224,
        "finetune": "x.pd",
        "mixup": 0.8,
        "cutmix": 1.0,
        "global_pool": True,
        "epochs": 100,
        "layer_decay": 0.65,
        "drop_path": 0.1,
    }
    assert expected([run(options)], "test_acc1") == [
        ("official_finetuning", {"epochs": 100, "low": 83.46, "high": 83.66})
    ]
    for change in (
        {"nb_classes": 999},
        {"finetune": ""},
        {"epochs": 50},
        {"mixup": 0.0},
        {"global_pool": False},
    ):
        assert expected([run({**options, **change})], "test_acc1") == []
    probe = {
        "model": "vit_base_patch16",
        "nb_classes": 1000,
        "input_size": [224],
        "finetune": "x.pd",
        "epochs": 90,
    }
    assert expected([run(probe)], "test_acc1") == [
        ("official_probe", {"epochs": 90, "low": 67.8, "high": 67.8})
    ]


@pytest.mark.parametrize("name", ["pretrain", "linprobe"])
def test_the_demo_has_its_record_beside_it(name):
    options = yaml.safe_load((RECORDS / "2026-11-21_demo" / f"{name}.options.yaml").read_text())
    now = run(
        {**options, "output_dir": "elsewhere", "bad_images": "error", "keep": None, "future_switch": False}
    )
    found = references.recorded(now, RECORDS)
    assert found.name == name and found.folder.name == "2026-11-21_demo"
    lines = (RECORDS / "2026-11-21_demo" / f"{name}.log.txt").read_text().splitlines()
    assert found.points("train_loss") == [
        (line["epoch"], line["train_loss"]) for line in map(json.loads, lines)
    ]
    assert expected([now], records=[found])[-1] == ("recorded", {"record": f"2026-11-21_demo/{name}"})
    assert expected([now, now], records=[found, None]) == expected([now], records=[found])
    assert expected([now], "train_lr", [found]) == []
    here = {**now.options, "data_path": f"/some/where/{now.options['data_path']}"}
    assert references.recorded(run(here), RECORDS) is not None
    assert (
        references.recorded(run(now.options, environment={"processes": 8}), RECORDS) is None
    )  # another batch
    for change in (
        {"blr": 0.5},
        {"epochs": 7},
        {"data_path": "other"},
        {"future_switch": True},
        {"model": None},
        {"data_path": "x/fashion_mnist"},
        {"finetune": "other/weights.pd"},
    ):
        assert references.recorded(run({**now.options, **change}), RECORDS) is None, change
    assert references.recorded(run({}), RECORDS) is None
    newer = {
        **now.options,
        "opt": "adamw",
        "momentum": None,
        "sched": "cosine",
        "loss_scale": "dynamic",
        "ema": False,
        "mask_mode": "random",
        "crop": "random",
    }
    if name == "linprobe":
        newer.update(opt="lars", momentum=0.9)
    assert references.recorded(run(newer), RECORDS) is not None
    for change in (
        {"opt": "sgd"},
        {"momentum": 0.8},
        {"sched": "step"},
        {"loss_scale": 128.0},
        {"ema": True},
    ):
        assert references.recorded(run({**newer, **change}), RECORDS) is None, change


# ---- warnings


def warned(run):
    return {key: values for key, values, _ in health.warnings(run)}


def test_a_folder_in_order_has_no_warnings(tmp_path):
    for name in ("log.txt", "options.yaml", "environment.json"):
        (tmp_path / name).touch()
    fine = run(
        {**VIT, "epochs": 2},
        train=[1.0, 0.9],
        accuracy=[5.0, 100.0],
        environment={"operations": "operations by oneDNN 3.6.2", "git_dirty": False},
        confusion=(np.eye(10), list("abcdefghij"), 1),
    )
    fine.folder = tmp_path
    for line in fine.lines:
        line["train_data_wait"] = 9.9
    assert health.warnings(fine) == []


def test_a_log_that_begins_late_and_a_matrix_of_another_run():
    late = run(
        {**VIT, "nb_classes": 2, "epochs": 5},
        train=[1.0] * 5,
        accuracy=[50.0] * 5,
        confusion=(np.array([[3, 1], [0, 4]]), "ab", 2),
    )
    late.lines = late.lines[2:]
    found = warned(late)
    assert found["gaps"] == {"epochs": "0, 1"} and "ends_early" not in found
    assert found["other_confusion"] == {"accuracy": "87.50", "best": "50.00"}
    late.options["start_epoch"] = 2
    assert "gaps" not in warned(late)
    late.options["nb_classes"] = 3
    assert warned(late)["other_outputs"] == {"classes": 2, "outputs": 3}


def test_always_the_most_frequent_class_is_chance():
    counts = np.array([[0, 10], [0, 90]])
    blind = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    options = {"model": "vit_base_patch16", "nb_classes": 2}
    for loss, said in ((blind, True), (0.5 * blind, False)):
        found = bad(
            run(
                options,
                train=FALLING,
                test=[loss] * 6,
                accuracy=[90.0] * 6,
                confusion=(counts, ["a", "b"], 0),
            )
        )
        assert ("stays_at_chance" in dict(found)) == said


def test_each_warning():
    found = run(
        {**VIT, "epochs": 9},
        train=[1.0, math.nan, 0.9],
        accuracy=[5.0, 6.0, 5.5],
        environment={
            "operations": "Paddle's own operations, slower than oneDNN's: why",
            "git_dirty": True,
            "git_revision": "0123456789abcdef",
        },
        damaged=[("log.txt", 2), ("confusion.npz", None)],
        earlier=["earlier.1"],
        not_finite=[{"message": "loss is nan"}],
        bad_images={"val": [("a.jpg", "empty")] * 21},
        confusion=(np.eye(10), list("abcdefghij"), 0),
    )
    found.lines[2]["epoch"] = 4
    for line, wait in zip(found.lines, (10.0, 30.0, 50.0)):
        line.update(train_data_wait=wait, train_skipped_updates=1, test_left_out=3)
    assert warned(found) == {
        "damaged_lines": {"lines": 2, "file": "log.txt"},
        "damaged_file": {"file": "confusion.npz"},
        "missing_file": {"file": "environment.json"},
        "ends_early": {"done": 3, "epochs": 9},
        "gaps": {"epochs": "2, 3"},
        "not_finite_values": {"names": "train_loss"},
        "not_finite": {"reports": 1},
        "skipped_updates": {"updates": "3", "epochs": "0, 1, 4"},
        "data_wait": {"epochs": 2, "of": 3, "share": "40"},
        "left_out": {"images": "3"},
        "bad_images": {"images": 21, "split": "val"},
        "slow_operations": {"operations": "Paddle's own operations, slower than oneDNN's: why"},
        "git_dirty": {"revision": "0123456789ab"},
        "earlier": {"folders": "earlier.1", "count": 1},
        "other_epoch": {"epoch": 0, "best": 1},
    }
    lines = {key: lines for key, _, lines in health.warnings(found)}
    assert lines["not_finite"] == ["loss is nan"] and lines["bad_images"] == ["a.jpg: empty"] * 20 + ["... 1"]
