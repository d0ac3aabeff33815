"""Checkpoints of a folder: the order of writing, those that stay, the newest, and their disk space."""

import os
import pickle
from functools import partial

import numpy as np
import pytest
from scripts import read_state

from util.run import checkpoints
from util.run.checkpoints import Policy
from util.weights import checkpoint


def save(folder, epoch, **options):
    checkpoints.save(folder, state(epoch), **options)


def state(epoch, step=None):
    progress = {} if step is None else {"progress": {"step": step}}
    return {"model": {"weight": np.full([2], epoch, "float32")}, "epoch": epoch, **progress}


def epochs(folder):
    return {
        path.name.removeprefix("checkpoint-").removesuffix(".pd"): read_state(path)["epoch"]
        for path in folder.glob("checkpoint-*.pd")
    }


def test_names(tmp_path, file_system):
    save(tmp_path, 0, number=0, best=True)
    assert epochs(tmp_path) == {"latest": 0, "0": 0, "best": 0}
    save(tmp_path, 1)
    assert epochs(tmp_path) == {"latest": 1, "previous": 0, "0": 0, "best": 0}
    save(tmp_path, 2, number=2, best=True)
    assert epochs(tmp_path) == {"latest": 2, "previous": 1, "0": 0, "2": 2, "best": 2}
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".pd"] * 5


class Killed(BaseException):
    """Stands for the end of the process; `except Exception` does not catch it."""


CALLS = ("open", "fsync", "replace", "link", "unlink")


@pytest.mark.parametrize("after", [False, True], ids=["before the call", "after the call"])
def test_a_run_killed_while_saving_finds_the_checkpoint_before_and_loses_nothing_by_repeating(
    tmp_path, monkeypatch, after
):
    """Killed at each call by which saving changes the disk, until a run comes through."""
    for last in range(100):
        folder = tmp_path / str(last)
        folder.mkdir()
        save(folder, 0, number=0, best=True)
        save(folder, 1, number=1)
        count = 0

        def deadly(real):
            def call(*args, **options):
                nonlocal count
                count += 1
                if count - 1 == last and not after:
                    raise Killed
                result = real(*args, **options)
                if count - 1 == last:
                    raise Killed
                return result

            return call

        with monkeypatch.context() as patch:
            for name in CALLS:
                patch.setattr(os, name, deadly(getattr(os, name)))
            # A killed process cleans nothing up.
            patch.setattr("pathlib.Path.unlink", lambda path, missing_ok=False: None)
            try:
                save(folder, 2, number=2, best=True, policy=Policy(1, 1, 40))
                break
            except Killed:
                pass
        path, found, complaints = checkpoints.newest(folder)
        assert path.name == "checkpoint-latest.pd" and found["epoch"] in (1, 2) and complaints == []
        for path in folder.glob("checkpoint-*.pd"):
            read_state(path)  # whole
        if found["epoch"] == 2:  # it is the latest only once everything else is in its place
            assert epochs(folder)["best"] == epochs(folder)["2"] == 2
        save(folder, 2, number=2, best=True, policy=Policy(1, 1, 40))
        assert {"latest": 2, "best": 2, "2": 2, "0": 0}.items() <= epochs(folder).items()
    assert last > 8


def test_a_failure_leaves_the_checkpoint_before_and_no_part(tmp_path, monkeypatch):
    save(tmp_path, 0)
    before = (tmp_path / "checkpoint-latest.pd").read_bytes()

    def dump_half(state, file, protocol):
        file.write(pickle.dumps(state, protocol)[:20])
        raise OSError("No space left on device")

    monkeypatch.setattr(pickle, "dump", dump_half)
    with pytest.raises(OSError):
        save(tmp_path, 1, number=1, best=True)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-latest.pd"]
    assert (tmp_path / "checkpoint-latest.pd").read_bytes() == before


# ---- which stay


@pytest.mark.parametrize(
    "every, keep, more, left",
    [
        (20, None, {}, [0, 20, 24]),
        (1, None, {}, list(range(25))),
        (20, 3, {}, [0, 20, 22, 23, 24]),
        (15, 2, {"milestone": 15}, [0, 15, 23, 24]),
    ],
)  # --save_every 15 --keep 2
def test_numbered_checkpoints_that_stay(tmp_path, every, keep, more, left):
    policy = Policy(every, keep, 25, **more)
    most = 0
    for epoch in range(25):
        save(
            tmp_path,
            epoch,
            number=epoch if policy.numbers(epoch, epoch) else None,
            best=epoch == 7,
            policy=policy,
        )
        most = max(most, len({path.stat().st_ino for path in tmp_path.glob("*.pd")}))
    assert sorted(checkpoints.numbered_files(tmp_path)) == left
    assert epochs(tmp_path)["best"] == 7
    # One more while it is written; some are links to the same file.
    assert most < policy.most(0, best=True) <= most + 4


def test_rotation_leaves_other_files_alone(tmp_path):
    (tmp_path / "checkpoint-mine.pd").touch()
    (tmp_path / "checkpoint-9.pd").touch()  # of another run, perhaps
    for epoch in range(3):
        save(tmp_path, epoch, number=epoch, policy=Policy(1, 1, 40))
    assert {path.name for path in tmp_path.iterdir()} == {
        f"checkpoint-{name}.pd" for name in ("mine", "9", "0", "2", "latest", "previous")
    }


def test_keep_is_checked():
    with pytest.raises(ValueError, match="--keep -1"):
        Policy(1, -1, 9)
    with pytest.raises(ValueError, match="--save_every 0: expected a number of epochs, at least 1"):
        Policy(0, None, 9)


# ---- the newest


def test_there_is_none(tmp_path):
    assert checkpoints.newest(tmp_path / "nowhere") == (None, None, [])


def damage(path):
    data = bytearray(path.read_bytes())
    path.unlink()  # only this name
    path.write_bytes(data[: len(data) // 2])


def test_a_damaged_one_is_reported_and_the_one_before_it_taken(tmp_path):
    for epoch in range(4):
        save(tmp_path, epoch, number=epoch if epoch < 3 else None, best=epoch == 1)
    order = []
    while True:
        try:
            path, found, complaints = checkpoints.newest(tmp_path)
        except checkpoint.CheckpointError as error:
            assert "none of the checkpoints is whole" in str(error)
            assert str(error).count("/checkpoint-") >= len(order)
            break
        assert len(complaints) == len(order) and all("damaged" in complaint for complaint in complaints)
        order.append((path.name.removeprefix("checkpoint-").removesuffix(".pd"), found["epoch"]))
        damage(path)
    assert order[0] == ("latest", 3) and sorted(order[1:3]) == [("2", 2), ("previous", 2)]
    assert sorted(order[3:5]) == [("1", 1), ("best", 1)] and order[5:] == [("0", 0)]


def test_a_place_within_an_epoch_is_newer_than_its_beginning(tmp_path):
    save(tmp_path, 4, number=4)
    checkpoints.save(tmp_path, state(4, step=30))
    checkpoints.save(tmp_path, state(4, step=60))
    damage(tmp_path / "checkpoint-latest.pd")
    path, found, _ = checkpoints.newest(tmp_path)
    assert path.name == "checkpoint-previous.pd" and checkpoints.position(found) == (5, 30)


# ---- space


def disk_with(free):
    return lambda path: type("Usage", (), {"free": free})


@pytest.mark.parametrize(
    "aside, start_epoch, needed",
    [
        # Epochs 2 and 3, latest, previous and a new one; 2 and latest will be replaced.
        ([], 2, (2 + 3) * 100 - 200),
        ([], 0, (4 + 3) * 100 - 400),  # all will
        (["checkpoint-latest.pd", "checkpoint-2.pd"], 0, (4 + 3) * 100 - 200),  # these stay, put aside
        (None, 0, (4 + 3) * 100),
    ],
)  # and all those of an earlier run
def test_space_is_counted_without_what_will_be_replaced(tmp_path, monkeypatch, aside, start_epoch, needed):
    for number in range(3):
        (tmp_path / f"checkpoint-{number}.pd").write_bytes(bytes(100))
    (tmp_path / "checkpoint-latest.pd").write_bytes(bytes(100))
    os.link(tmp_path / "checkpoint-0.pd", tmp_path / "checkpoint-best.pd")  # one file, which stays if 0 does
    check = partial(
        checkpoints.check_space,
        tmp_path / ".",
        100,
        Policy(1, None, 4),
        start_epoch,
        best=False,
        aside=aside and [tmp_path / name for name in aside],
    )
    monkeypatch.setattr("shutil.disk_usage", disk_with(needed))
    assert check() == (needed, needed)
    monkeypatch.setattr("shutil.disk_usage", disk_with(needed - 1))
    with pytest.raises(ValueError, match=r"free, and this run needs 0\.\d kB for up to \d checkpoints"):
        check()


@pytest.mark.parametrize(
    "every, advice", [(1, r"or keep 6 at most: --keep 1$"), (20, r"name another folder$")]
)
def test_keeping_fewer_is_advised_where_it_helps(tmp_path, monkeypatch, every, advice):
    """Of 25 epochs, 0, 20 and 24 keep a checkpoint in any case."""
    monkeypatch.setattr("shutil.disk_usage", disk_with(0))
    with pytest.raises(ValueError, match=advice):
        checkpoints.check_space(tmp_path, 100, Policy(every, None, 25), 0, best=False, aside=[])


def test_what_rotation_will_remove_and_parts_give_their_space(tmp_path, monkeypatch):
    for name in ("checkpoint-0.pd", "checkpoint-5.pd", ".checkpoint-new.part"):
        (tmp_path / name).write_bytes(bytes(100))
    monkeypatch.setattr("shutil.disk_usage", disk_with(10**6))
    needed, _ = checkpoints.check_space(tmp_path, 100, Policy(1, 1, 8), 7, best=False, aside=[])
    assert needed == (1 + 3) * 100 - 200  # 0 is a milestone


# ---- files beyond the past of a run


def test_after_a_step_back_later_checkpoints_are_beyond(tmp_path):
    for epoch in range(4):
        save(tmp_path, epoch, number=epoch, best=epoch == 2)
    path = tmp_path / "checkpoint-1.pd"
    beyond = checkpoints.beyond(tmp_path, path, checkpoint.read_checkpoint(path))
    assert sorted(file.name for file in beyond) == sorted(
        f"checkpoint-{name}.pd" for name in ("2", "3", "latest", "previous", "best")
    )


def test_a_damaged_latest_is_beyond_and_a_best_of_the_past_is_not(tmp_path):
    for epoch in range(3):
        save(tmp_path, epoch, number=epoch, best=epoch == 0)
    damage(tmp_path / "checkpoint-latest.pd")
    damage(tmp_path / "checkpoint-2.pd")
    path, found, _ = checkpoints.newest(tmp_path)
    assert path.name == "checkpoint-previous.pd"
    assert sorted(file.name for file in checkpoints.beyond(tmp_path, path, found)) == [
        "checkpoint-2.pd",
        "checkpoint-latest.pd",
    ]


def test_nothing_is_beyond_the_latest(tmp_path):
    save(tmp_path, 0, number=0, best=True)
    path = tmp_path / "checkpoint-latest.pd"
    assert checkpoints.beyond(tmp_path, path, checkpoint.read_checkpoint(path)) == []


def test_a_folder_that_does_not_exist_yet_has_the_space_of_the_one_above(tmp_path):
    needed, free = checkpoints.check_space(
        tmp_path / "a" / "b", 1, Policy(1, None, 1), 0, best=True, aside=None
    )
    assert needed == 5 and free > 5
    assert list(tmp_path.iterdir()) == []


def test_sizes_in_words():
    assert [checkpoints.in_words(size) for size in (1.05e9, 350e6, 2000)] == ["1.05 GB", "350 MB", "2 kB"]
