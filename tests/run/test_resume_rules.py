"""Changes that make a resumed run another one, and those that do not."""

import pytest
from training_runs import TRAINED, result

from util.run.resume import brings_weights
from util.weights import checkpoint, sealed_pickle


@pytest.mark.parametrize(
    "changed, complaint",
    [
        ({"lr": 0.5}, r"--lr: None in the checkpoint, 0\.5 now"),
        (
            {"batch_size": 1},
            "--batch_size: 4 images in an update in the checkpoint, 2 images in an update now",
        ),
        (
            {"epochs": 10, "seed": 1},
            r"(?s)--epochs: 9 in .*, 10 now.*--seed: 5 in .*--allow_changes epochs seed$",
        ),
    ],
)
def test_other_values_are_refused_with_both(start, changed, complaint):
    start().end_epoch(0, TRAINED, result(1.0))
    with pytest.raises(ValueError, match=complaint):
        start("auto", options=changed)
    start("auto", options={**changed, "allow_changes": list(changed)})


def test_other_images_are_refused_although_as_many(start):
    start().end_epoch(0, TRAINED, result(1.0))
    with pytest.raises(
        ValueError,
        match=r"--data_path: 10 images \(a, b, .*\) in the checkpoint, 10 images "
        r"\(x, b",
    ):
        start("auto", names="xbcdefghij")


def test_other_classes_are_refused(start, tmp_path):
    start().end_epoch(0, TRAINED, result(1.0))
    with pytest.raises(checkpoint.CheckpointError, match="(?s)dog.*eel"):
        start(tmp_path / "run" / "checkpoint-latest.pd", classes=["cat", "eel"])


def test_what_may_change(start):
    start().end_epoch(0, TRAINED, result(1.0))
    run = start(
        "auto", options={"print_freq": 1, "on_nan": "skip", "keep": 3, "batch_size": 1, "accum_iter": 4}
    )
    assert run.state.start_epoch == 1


def test_names_that_cannot_be_allowed(start):
    with pytest.raises(ValueError, match="--allow_changes epoch keep: expected"):
        start("auto", options={"allow_changes": ["keep", "epoch", "lr"]})


@pytest.mark.parametrize(
    "name, then, now",
    [
        ("architecture", {"name": "tiny", "img_size": 8}, {"name": "tiny", "img_size": [8, 8]}),
        ("normalization", {"mean": [0.5], "std": [1]}, {"mean": (0.5,), "std": (1.0,)}),
    ],
)
def test_the_same_value_in_another_form_is_the_same(start, name, then, now):
    start(**{name: then}).end_epoch(0, TRAINED, result(1.0))
    assert start("auto", **{name: now}).state.start_epoch == 1


def test_whether_a_checkpoint_brings_weights(start, tmp_path):
    assert not brings_weights("", tmp_path) and not brings_weights("auto", tmp_path / "run")
    start().end_epoch(0, TRAINED, result(1.0))
    assert brings_weights("auto", tmp_path / "run") and brings_weights("x.pd", tmp_path)


@pytest.mark.parametrize("name, value", [("epoch", "3"), ("progress", 5), ("log", {})])
def test_entries_of_another_type_are_refused(start, tmp_path, name, value):
    start().end_epoch(0, TRAINED, result(1.0))
    path = tmp_path / "run" / "checkpoint-latest.pd"
    state = checkpoint.read_checkpoint(path)
    with open(path, "wb") as f:
        sealed_pickle.dump({**state, name: value}, f)
    with pytest.raises(checkpoint.CheckpointError, match=name):
        start(path)
