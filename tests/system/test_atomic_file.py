import errno
import os
import shutil
import stat

import pytest

from util.system.atomic_file import alias, atomic_write, remove_parts


def test_a_complete_file_takes_the_place_of_the_old_one(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old, and longer")
    with atomic_write(path) as f:
        f.write(b"new")
        f.flush()
        assert path.read_bytes() == b"old, and longer"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        with atomic_write(path) as f:
            f.write(b"half")
            raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_failure_at_the_first_file_leaves_none(tmp_path):
    with pytest.raises(ValueError):
        with atomic_write(tmp_path / "a.bin"):
            raise ValueError
    assert os.listdir(tmp_path) == []


def test_a_full_disk_says_whose_file_it_was(tmp_path):
    with pytest.raises(OSError, match="No space left on device.*a.bin"):
        with atomic_write(tmp_path / "a.bin"):
            raise OSError(errno.ENOSPC, "No space left on device")


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append(("fsync", os.fstat(fd).st_size)) or fsync(fd))
    monkeypatch.setattr(os, "replace", lambda *paths: calls.append("replace") or replace(*paths))
    with atomic_write(tmp_path / "a.bin") as f:
        f.write(b"12345")
    folder = os.stat(tmp_path).st_size
    assert calls == [("fsync", 5), "replace", ("fsync", folder)]  # its name is on the disk, too


def test_a_file_system_that_cannot_flush_folders(tmp_path, monkeypatch):
    fsync = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    with atomic_write(tmp_path / "a.bin") as f:
        f.write(b"12345")
    assert (tmp_path / "a.bin").read_bytes() == b"12345"


def test_an_error_at_the_flush_of_a_folder_is_not_hidden(tmp_path, monkeypatch):
    def fail(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        with atomic_write(tmp_path / "a.bin") as f:
            f.write(b"12345")


def test_text_is_utf8(tmp_path):
    with atomic_write(tmp_path / "a.txt", "w") as f:
        f.write("权重")
    assert (tmp_path / "a.txt").read_bytes() == "权重".encode("utf-8")


def test_another_name_replaces_what_had_it(tmp_path, file_system):
    latest, best = tmp_path / "latest", tmp_path / "best"
    latest.write_bytes(b"epoch 1")
    best.write_bytes(b"epoch 0")
    alias(latest, "best")
    assert best.read_bytes() == b"epoch 1"
    assert latest.samefile(best) == (file_system == "hard links")
    assert sorted(os.listdir(tmp_path)) == ["best", "latest"]


def test_the_same_name_twice_leaves_no_part(tmp_path, file_system):
    (tmp_path / "latest").write_bytes(b"epoch 1")
    for _ in range(2):
        alias(tmp_path / "latest", "best")
    assert sorted(os.listdir(tmp_path)) == ["best", "latest"]


def test_another_name_keeps_its_content_when_the_file_is_written_anew(tmp_path, file_system):
    latest = tmp_path / "latest"
    for epoch in (b"epoch 0", b"epoch 1"):
        with atomic_write(latest) as f:
            f.write(epoch)
        if epoch == b"epoch 0":
            alias(latest, "best")
    assert (tmp_path / "best").read_bytes() == b"epoch 0"
    alias(latest, "best")
    alias(latest, "best")
    assert (tmp_path / "best").read_bytes() == b"epoch 1"


def test_a_copy_that_fails_leaves_no_part(tmp_path, monkeypatch):
    (tmp_path / "latest").write_bytes(b"epoch 1")
    monkeypatch.setattr(os, "link", lambda *paths: (_ for _ in ()).throw(PermissionError("no links here")))
    monkeypatch.setattr(
        shutil, "copyfileobj", lambda *files: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(OSError, match="No space left"):
        alias(tmp_path / "latest", "best")
    assert os.listdir(tmp_path) == ["latest"]


def test_parts_of_killed_writers_are_removed_and_nothing_else(tmp_path):
    for name in (".a.bin.123.part", "a.part", ".hidden", "b.bin"):
        (tmp_path / name).touch()
    remove_parts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "a.part", "b.bin"]
