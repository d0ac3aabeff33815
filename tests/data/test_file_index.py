"""The list of a folder's images: what it holds, when the kept one is used, and when not."""

import io
import multiprocessing
import os
import pickle
import shutil
import time
import zipfile

import numpy as np
import pytest

from util.data import file_index
from util.data.file_index import Paths, list_files_below
from util.system import console

SUFFIXES = (".jpg", ".png")
FILES = [
    "b/1.jpg",
    "b/10.jpg",
    "b/2.PNG",
    "b c/1.jpg",
    "b/deep/er/1.jpg",
    "top.jpg",
    "ä/ö\n.jpg",
    os.fsdecode(b"b/\xff.jpg"),
]
OTHERS = ["b/.hidden.jpg", ".cache/1.jpg", "b/1.txt", "empty/1.gif", "jpg"]
# By hand: as lists of parts, in the order of their characters' numbers.
SORTED = [
    "b/1.jpg",
    "b/10.jpg",
    "b/2.PNG",
    "b/deep/er/1.jpg",
    os.fsdecode(b"b/\xff.jpg"),
    "b c/1.jpg",
    "top.jpg",
    "ä/ö\n.jpg",
]


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the cache, which keeps lists of any length."""
    monkeypatch.setenv("MAE_INDEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_index, "MINIMUM", 1)
    return tmp_path / "cache"


@pytest.fixture
def later(monkeypatch):
    """Files that the tests write are ten seconds old."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 10**10)


@pytest.fixture
def root(tmp_path):
    """A folder of images, with one that is linked to, and links that lead nowhere and in a circle."""
    root = tmp_path / "images"
    touch(root, *FILES, *OTHERS)
    touch(tmp_path / "elsewhere", "x/1.jpg", "x/2.jpg")
    touch(tmp_path / "other", "1.jpg")
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "nowhere").symlink_to(tmp_path / "missing")
    (root / "link.jpg").symlink_to(tmp_path / "missing.jpg")
    (root / "b" / "up").symlink_to(root)
    return root


LISTED = [*SORTED[:6], "link/x/1.jpg", "link/x/2.jpg", "link.jpg", *SORTED[6:]]


def listed(root, capsys):
    """The paths below `root`, and whether they come from the cache."""
    capsys.readouterr()
    paths = list(list_files_below(str(root), SUFFIXES))
    return paths, "from cache" in capsys.readouterr().out


def test_paths_are_a_list_of_strings():
    paths = Paths(SORTED)
    assert len(paths) == 8 and list(paths) == SORTED and paths[-1] == SORTED[-1] and paths[-8] == SORTED[0]
    for index in (8, -9):
        with pytest.raises(IndexError):
            paths[index]
    assert list(pickle.loads(pickle.dumps(paths))) == SORTED
    assert not Paths() and list(Paths([])) == []


def test_a_folder_is_listed_in_the_order_of_its_parts(root, monkeypatch, capsys):
    monkeypatch.setenv("MAE_INDEX_CACHE", "off")
    assert listed(root, capsys) == (LISTED, False)


def test_the_second_start_takes_the_list_from_the_cache(root, cache, later, capsys):
    assert listed(root, capsys) == (LISTED, False)
    assert len(list(cache.iterdir())) == 1
    assert listed(root, capsys) == (LISTED, True)
    (root / "b" / "1.jpg").write_bytes(b"other contents, same name")
    assert listed(root, capsys) == (LISTED, True)
    assert list_files_below(str(root), (".gif",))[0] == "empty/1.gif"  # a list of its own


def test_one_line_says_so(root, cache, later, capsys):
    list_files_below(str(root), SUFFIXES)
    assert capsys.readouterr().out.startswith(f"{root}: listed 11 files in 0.0 s\n")
    list_files_below(str(root), SUFFIXES)
    assert capsys.readouterr().out == f"{root}: index of 11 files from cache\n"


def swap(root, path, target):
    (root / path).unlink()
    (root / path).symlink_to(target)


CHANGES = {
    "added": lambda root: touch(root, "b/0.jpg"),
    "added to an empty folder": lambda root: touch(root, "empty/0.jpg"),
    "removed": lambda root: (root / "b" / "10.jpg").unlink(),
    "folder renamed": lambda root: (root / "b c").rename(root / "d"),
    "folder replaced": lambda root: [shutil.rmtree(root / "b c"), touch(root, "b c/9.jpg")],
    "added behind a link": lambda root: touch(root.parent, "elsewhere/x/0.jpg"),
    "link turned": lambda root: swap(root, "link", root.parent / "other"),
    "linked folder replaced": lambda root: [
        (root.parent / "elsewhere").rename(root.parent / "was"),
        (root.parent / "other").rename(root.parent / "elsewhere"),
    ],
    "link that led nowhere": lambda root: touch(root.parent, "missing/1.jpg"),
    "root replaced": lambda root: [root.rename(root.parent / "was"), touch(root, "1.jpg")],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_listed_anew(root, cache, later, capsys, change):
    before, _ = listed(root, capsys)
    assert listed(root, capsys)[1]
    CHANGES[change](root)
    paths, from_cache = listed(root, capsys)
    assert not from_cache and paths != before
    assert listed(root, capsys) == (paths, True)


def test_a_change_shows_although_the_time_of_the_folder_was_put_back(root, cache, later, capsys):
    before, _ = listed(root, capsys)
    status = os.stat(root / "b")
    touch(root, "b/0.jpg")
    os.utime(root / "b", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert listed(root, capsys) == (["b/0.jpg", *before], False)


def test_a_folder_that_has_just_changed_is_not_trusted(root, cache, capsys):
    listed(root, capsys)
    assert not cache.exists()
    assert listed(root, capsys) == (LISTED, False)


def test_a_file_system_that_does_not_keep_times_is_not_trusted(root, cache, later, capsys):
    os.utime(root / "b", (0, 0))
    listed(root, capsys)
    assert not cache.exists()


def test_few_files_are_not_worth_a_cache(root, cache, later, monkeypatch, capsys):
    monkeypatch.setattr(file_index, "MINIMUM", 12)
    assert listed(root, capsys) == (LISTED, False) and not cache.exists()
    monkeypatch.setattr(file_index, "MINIMUM", 11)
    listed(root, capsys)
    assert cache.exists()


# --- what lies in the cache is not trusted ---


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("bomb",)


def bomb(file):
    data = io.BytesIO()
    np.save(data, np.array([Bomb()], object), allow_pickle=True)
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("about", "watched", "stamps", "no_folders", "paths"):
            archive.writestr(f"{name}.npy", data.getvalue())


def rewrite(file, **changes):
    with np.load(file) as kept:
        arrays = {**kept, **changes}
    np.savez(file, **{name: array for name, array in arrays.items() if array is not None})


DAMAGES = {
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-30]),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:100]),
    "text": lambda file: file.write_text("not an index"),
    "plain pickle": lambda file: file.write_bytes(pickle.dumps(Bomb())),
    "pickle inside": bomb,
    "of another folder": lambda file: rewrite(file, about=np.frombuffer(b"{}", np.uint8)),
    "without stamps": lambda file: rewrite(file, stamps=None),
    "one stamp missing": lambda file: rewrite(file, stamps=np.load(file)["stamps"][:-1]),
    "places of other paths": lambda file: rewrite(file, places=np.zeros([3, 3], np.int64)),
    "a folder": lambda file: [file.unlink(), file.mkdir(), (file / "x").touch()],
}


def test_a_damaged_or_foreign_cache_is_ignored_and_rewritten(
    root, cache, later, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    listed(root, capsys)
    for damage, make in DAMAGES.items():
        (file,) = cache.iterdir()
        make(file)
        assert listed(root, capsys) == (LISTED, False), damage
        assert not (tmp_path / "bomb").exists()
        if damage != "a folder":  # which nobody can write to
            assert listed(root, capsys) == (LISTED, True), damage


def test_any_changed_byte_is_found(root, cache, later, capsys):
    listed(root, capsys)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 100):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        assert listed(root, capsys)[0] == LISTED


def test_a_cache_that_cannot_be_written_is_no_error(root, tmp_path, later, monkeypatch, capsys):
    monkeypatch.setattr(file_index, "MINIMUM", 1)
    touch(tmp_path, "file")
    monkeypatch.setenv("MAE_INDEX_CACHE", str(tmp_path / "file" / "cache"))
    assert list(list_files_below(str(root), SUFFIXES)) == LISTED
    assert "the index of 11 files is not cached" in capsys.readouterr().out


def test_a_full_disk_leaves_the_cache_as_it_was(root, cache, later, monkeypatch, capsys):
    def full(file, **arrays):
        file.write(b"the beginning")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", full)
    assert listed(root, capsys) == (LISTED, False)
    assert list(cache.iterdir()) == []


# --- where it lies ---


@pytest.mark.parametrize(
    "variables, folder",
    [
        ({"MAE_INDEX_CACHE": "{tmp}/own", "XDG_CACHE_HOME": "{tmp}/xdg"}, "own"),
        ({"XDG_CACHE_HOME": "{tmp}/xdg"}, "xdg/mae-paddle"),
        ({"HOME": "{tmp}/home"}, "home/.cache/mae-paddle"),
        ({"HOME": "{tmp}/home", "XDG_CACHE_HOME": "xdg"}, "home/.cache/mae-paddle"),
        ({"HOME": "~", "MAE_INDEX_CACHE": ""}, None),
        ({"HOME": "{tmp}/home", "MAE_INDEX_CACHE": "off"}, None),
    ],
)
def test_the_folder_of_the_cache(root, tmp_path, later, monkeypatch, variables, folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(file_index, "MINIMUM", 1)
    for name in ("MAE_INDEX_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp=tmp_path))
    list_files_below(str(root), SUFFIXES)
    assert [path.parent for path in tmp_path.rglob("index-*.npz")] == (
        [] if folder is None else [tmp_path / folder]
    )


# --- several processes ---


def list_in_process(root, barrier, queue):
    barrier.wait(60)
    queue.put(list(list_files_below(root, SUFFIXES)))


def test_processes_start_at_the_same_time(root, cache, later, capsys):
    context = multiprocessing.get_context("fork")  # takes the fixtures along
    barrier, queue = context.Barrier(4), context.Queue()
    workers = [context.Process(target=list_in_process, args=(str(root), barrier, queue)) for _ in range(4)]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=60) for _ in workers] == [LISTED] * 4
    for worker in workers:
        worker.join()
    assert len(list(cache.iterdir())) == 1 and listed(root, capsys) == (LISTED, True)


def test_only_the_first_process_speaks(root, cache, later, monkeypatch, capsys):
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    monkeypatch.setattr(console, "shows_bars", lambda: True)
    for _ in range(2):
        list_files_below(str(root), SUFFIXES)
    assert capsys.readouterr() == ("", "")


# --- progress ---


def test_a_long_listing_shows_lines(monkeypatch, capsys):
    clock = iter(range(0, 10**6, 4))  # four seconds pass with every thousand files
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with file_index.ListingProgress("images") as progress:
        for _ in range(7000):
            progress.update()
    assert capsys.readouterr().out == "images: listed 3,000 files so far\nimages: listed 6,000 files so far\n"


def test_a_long_listing_shows_a_count_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(console, "shows_bars", lambda: True)
    with file_index.ListingProgress("images") as progress:
        progress.bar.start_t -= 5  # seconds; it shows itself after one
        progress.bar.last_print_t -= 5
        for _ in range(7000):
            progress.update()
    said = capsys.readouterr()
    assert "listing images: " in said.err and "000 files" in said.err and said.out == ""
