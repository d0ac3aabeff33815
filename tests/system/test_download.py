"""Downloads from a server on this machine, of a small archive in the form of CIFAR's."""

import hashlib
import http.server
import multiprocessing
import shutil
import socket
import threading
from types import SimpleNamespace

import pytest
from data_files import cifar_files, make_tar

import main_pretrain
from tools import calibrate, extract_features
from util.data import cifar
from util.data.sources import open_source
from util.system import download

NAME = "cifar-10-python.tar.gz"


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Has `data`, sends the first `sent` bytes of it, and lists what was asked for. HOME is a new one."""
    make_tar(tmp_path / "published" / NAME, cifar_files("cifar10"))
    server = SimpleNamespace(data=(tmp_path / "published" / NAME).read_bytes(), sent=None, asked=[])

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(server.data)))
            self.end_headers()
            self.wfile.write(server.data[: server.sent])

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        monkeypatch.setattr(cifar, "ADDRESS", f"http://127.0.0.1:{running.server_port}/cifar/")
        monkeypatch.setitem(cifar.MD5, "cifar10", hashlib.md5(server.data).hexdigest())
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield server
        running.shutdown()


@pytest.fixture
def cache(tmp_path):
    """Path of the archive in the cache of Paddle's own datasets."""
    return tmp_path / "home" / ".cache" / "paddle" / "dataset" / "cifar" / NAME


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


@pytest.mark.parametrize(
    "data_path, lands_in",
    [
        ("", "home/.cache/paddle/dataset/cifar"),
        ("new/folder", "new/folder"),
        ("old", "old"),
        ("new/" + NAME, "new"),
    ],
)
def test_what_is_missing_is_downloaded_once(tmp_path, server, capsys, data_path, lands_in):
    (tmp_path / "old").mkdir()
    place = str(tmp_path / data_path) if data_path else ""
    train, val = (open_source(place, split, dataset="cifar10") for split in ("train", "val"))
    assert (len(train), val.labels.tolist()) == (10, [6, 0]) and server.asked == [f"/cifar/{NAME}"]
    assert (tmp_path / lands_in / NAME).read_bytes() == server.data and visible(tmp_path / lands_in) == [NAME]
    assert (
        capsys.readouterr().out
        == f"downloading {cifar.ADDRESS}{NAME} to {tmp_path / lands_in / NAME} (0 MB)\n"
    )


def test_what_paddle_has_downloaded_is_used_if_it_is_whole(tmp_path, server, cache, capsys):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(server.data)
    assert len(open_source("", "val", dataset="cifar10")) == 2 and capsys.readouterr().out == ""
    assert len(open_source(str(tmp_path), "val", dataset="cifar10")) == 2
    assert f"there is no {tmp_path / NAME}; {cache} is read" in capsys.readouterr().out and server.asked == []
    cache.write_bytes(server.data[:1000])
    assert len(open_source("", "val", dataset="cifar10")) == 2 and len(server.asked) == 1


def test_the_addresses_are_those_of_paddle():
    from paddle.vision.datasets import cifar as paddles

    assert [cifar.ADDRESS + cifar.FORMATS[name].archive for name in ("cifar10", "cifar100")] == [
        paddles.CIFAR10_URL,
        paddles.CIFAR100_URL,
    ]
    assert cifar.MD5 == {"cifar10": paddles.CIFAR10_MD5, "cifar100": paddles.CIFAR100_MD5}


def test_another_file_than_expected_is_removed(server, cache):
    server.data = b"<html>Please log in</html>"
    has, expected = hashlib.md5(server.data).hexdigest(), cifar.MD5["cifar10"]
    with pytest.raises(ValueError, match=f"--dataset cifar10: .*{NAME} .*{has}.*{expected}"):
        open_source("", "train", dataset="cifar10")
    assert visible(cache.parent) == []


def test_a_connection_that_breaks_off_leaves_nothing(server, cache):
    cache.parent.mkdir(parents=True)
    (cache.parent / f".{NAME}.1.part").write_bytes(b"of a process that was killed")
    server.sent = 1000
    with pytest.raises(
        ValueError,
        match=rf"--dataset cifar10: .*{NAME} .*1,000 of {len(server.data):,} "
        r"bytes",
    ):
        open_source("", "train", dataset="cifar10")
    assert visible(cache.parent) == []


def test_without_a_connection_it_says_what_to_put_where(server, cache, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        monkeypatch.setattr(cifar, "ADDRESS", f"http://127.0.0.1:{taken.getsockname()[1]}/")
        with pytest.raises(
            ValueError,
            match=rf"--dataset cifar10: {cifar.ADDRESS}{NAME} .*{cache} "
            r".*refused.*--data_path",
        ):
            open_source("", "train", dataset="cifar10")
    assert visible(cache.parent) == []


def test_a_disk_that_is_too_small(server, cache, monkeypatch):
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=len(server.data) - 1))
    with pytest.raises(ValueError, match="--dataset cifar10: .*/cifar has 0 MB free"):
        open_source("", "train", dataset="cifar10")
    assert visible(cache.parent) == []


def fetch(url, path, md5, barrier):
    barrier.wait(30)
    download.fetch(url, path, md5=md5, flag="--dataset cifar10")


def test_of_several_processes_one_downloads(tmp_path, server, cache):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(3)
    processes = [
        context.Process(target=fetch, args=(cifar.ADDRESS + NAME, cache, cifar.MD5["cifar10"], barrier))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0] and server.asked == [f"/cifar/{NAME}"]


def test_the_progress_is_a_line_now_and_then(server, cache, monkeypatch, capsys):
    monkeypatch.setattr(download, "SECONDS_BETWEEN_LINES", 0)
    open_source("", "train", dataset="cifar10")
    assert "\ndownloaded 0 of 0 MB\n" in capsys.readouterr().out


def test_the_data_set_alone_is_enough(server, cache, call_script):
    """--data_path has an official default, which is of ImageNet."""
    said, _ = call_script(
        main_pretrain,
        "--model",
        "mae_vit_tiny_patch4",
        "--input_size",
        32,
        "--batch_size",
        2,
        "--device",
        "cpu",
        "--dataset",
        "cifar10",
        "--num_workers",
        0,
        "--output_dir",
        "",
        "--epochs",
        1,
        "--dry_run",
    )
    assert f"downloading {cifar.ADDRESS}{NAME} to {cache}" in said and "train       10 pictures" in said


def test_nor_do_the_tools_need_a_data_path():
    words = ["--resume", "x.pd", "--dataset", "cifar10"]
    calibrate.check(calibrate.get_args_parser().parse(words))
    extract_features.check(
        extract_features.get_args_parser().parse([*words, "--split", "val", "--output", "x.npz"])
    )
    with pytest.raises(ValueError, match="--data_path FOLDER is needed"):
        calibrate.check(calibrate.get_args_parser().parse(words[:2]))
    with pytest.raises(ValueError, match="--img_path PATH or --data_path FOLDER"):
        extract_features.check(extract_features.get_args_parser().parse([*words[:2], "--output", "x.npz"]))


def test_what_is_no_archive_in_the_cache_is_not_read(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    assert not download.has(tmp_path / "folder", "0" * 32) and not download.has(
        tmp_path / "file" / "x", "0" * 32
    )
