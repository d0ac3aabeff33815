"""Points for VisualDL, read back with its own reader."""

import struct

import pytest
from visualdl_points import points

from util.run import visualdl_writer
from util.system import distributed


def train(folder, first, last, *, place=None, steps=4):
    """Write points of steps `first` to `last`, counted over epochs of `steps`; the value is the step."""
    writer = visualdl_writer.open_writer(folder, place=place)
    for number in range(first, last):
        epoch, step = divmod(number, steps)
        for tag in ("train_loss", "lr", "grad_norm"):
            writer.add_scalar(tag, number, visualdl_writer.thousandth(epoch, step / steps))
        if step + 1 == steps:
            for tag in ("data_wait", "perf/test_acc1", "watched/attention_entropy"):
                writer.add_scalar(tag, epoch, epoch)
    writer.close()


WHOLE = {
    tag: [(0, 0.0), (250, 1.0), (500, 2.0), (750, 3.0), (1000, 4.0), (1250, 5.0), (1500, 6.0), (1750, 7.0)]
    for tag in ("train_loss", "lr", "grad_norm")
}
WHOLE |= {tag: [(0, 0.0), (1, 1.0)] for tag in ("data_wait", "perf/test_acc1", "watched/attention_entropy")}


@pytest.mark.parametrize(
    "got_to, saved",
    [
        (7, 5),  # within an epoch, by a checkpoint from within
        (8, 4),  # at the end of an epoch, whose end is not saved
        (4, 4),  # nothing has to be made again
        (6, 0),
    ],
)  # everything has
def test_a_run_that_is_continued_has_each_point_once(tmp_path, got_to, saved):
    train(tmp_path, 0, got_to)
    train(tmp_path, saved, 8, place=divmod(saved / 4, 1))
    assert points(tmp_path) == WHOLE and len(list(tmp_path.iterdir())) == 1


def test_a_third_process_continues_the_second_in_silence(tmp_path, capsys):
    train(tmp_path, 0, 3)
    train(tmp_path, 2, 7, place=(0, 0.5))
    train(tmp_path, 5, 8, place=(1, 0.25))
    assert points(tmp_path) == WHOLE and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "damage",
    [struct.pack("<Q", 1000) + b"\n\1", struct.pack("<Q", 3) + b"\xff\xff\xff"],
    ids=["half a record", "no record"],
)
def test_a_damaged_end_is_cut_off(tmp_path, damage):
    train(tmp_path, 0, 5)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes() + damage)
    train(tmp_path, 5, 8, place=(1, 0.25))
    assert points(tmp_path) == WHOLE


def test_the_newest_file_is_continued(tmp_path):
    """VisualDL shows no other."""
    (tmp_path / "vdlrecords.1000000000.log").write_bytes(b"another's")
    train(tmp_path, 0, 5)
    train(tmp_path, 5, 8, place=(1, 0.25))
    assert points(tmp_path) == WHOLE
    assert (tmp_path / "vdlrecords.1000000000.log").read_bytes() == b"another's"


@pytest.mark.parametrize("log_dir, rank", [("", 0), ("vdl", 1)])
def test_no_writer_without_a_folder_or_on_another_process(tmp_path, monkeypatch, log_dir, rank):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    assert visualdl_writer.open_writer(log_dir) is None and list(tmp_path.iterdir()) == []
