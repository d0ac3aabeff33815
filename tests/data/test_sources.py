"""Sources of images: every layout of --data_path, CIFAR archives, and the errors of wrong ones."""

import json
import multiprocessing
import os
import pickle
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
from data_files import FILES, cifar_files, cifar_pixels, contents, make_folder, make_tar, picture

from util.data import file_index
from util.data.class_labels import check_same_classes
from util.data.sources import has_split, open_source, open_train_val
from util.images import decode

LABELS = [0, 0, 1, 2, 2, 2]


def make_shards(root):
    paths = list(contents())
    for number in range(3):
        make_tar(root / "train" / f"{number}.tar", {path: contents()[path] for path in paths[number::3]})


LAYOUTS = {
    "folder": lambda root: make_folder(root / "train", contents()),
    "tar": lambda root: make_tar(root / "train.tar", contents()),
    "tar.gz": lambda root: make_tar(root / "train.tar.gz", contents()),
    "tgz": lambda root: make_tar(root / "train.tgz", contents()),
    "tar of ./": lambda root: make_tar(root / "train.tar", contents(), "./"),
    "tar of train/": lambda root: make_tar(root / "train.tar", contents(), "train/"),
    "shards": make_shards,
}


def values(source):
    return [source.load(index).getpixel((1, 0)) for index in range(len(source))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_layouts_give_the_same_images_and_labels(tmp_path, layout):
    LAYOUTS[layout](tmp_path)
    source = open_source(str(tmp_path), "train")
    assert values(source) == [(value, 0, 0) for value in FILES.values()]
    assert source.classes == ["ant", "ant b", "bee"]
    assert source.labels.dtype == np.int64 and source.labels.tolist() == LABELS
    assert [source.name(index).endswith(path) for index, path in enumerate(FILES)] == [True] * 6

    unlabelled = open_source(str(tmp_path), "train", labelled=False)
    assert values(unlabelled) == values(source)
    assert unlabelled.labels is None and unlabelled.classes is None

    assert values(pickle.loads(pickle.dumps(source))) == values(source)
    assert open_source(str(tmp_path), "train", in_chans=1).load(5).mode == "L"


def test_unlabelled_images_need_no_split(tmp_path):
    make_folder(tmp_path / "folder", contents())
    make_tar(tmp_path / "data.tar.gz", contents())
    make_tar(tmp_path / "tars" / "a.tar", contents())
    for name in ("folder", "data.tar.gz", "tars"):
        source = open_source(str(tmp_path / name), "train", labelled=False)
        assert values(source) == [(value, 0, 0) for value in FILES.values()], name
    make_folder(tmp_path / "flat", {"2.png": picture("2.png", 2), "1.png": picture("1.png", 1)})
    assert values(open_source(str(tmp_path / "flat"), "train", labelled=False)) == [(1, 0, 0), (2, 0, 0)]


def test_unlabelled_training_leaves_val_alone(tmp_path):
    make_folder(tmp_path, {"train/a/1.png": picture("1.png", 1), "val/a/2.png": picture("2.png", 2)})
    assert values(open_source(str(tmp_path), "train", labelled=False)) == [(1, 0, 0)]


def test_linked_folders_are_followed_but_not_in_circles(tmp_path):
    make_folder(tmp_path / "elsewhere", {"1.png": picture("1.png", 1)})
    make_folder(tmp_path / "data" / "train" / "a", {"2.png": picture("2.png", 2)})
    (tmp_path / "data" / "train" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "train" / "a" / "up").symlink_to(tmp_path / "data" / "train" / "a")
    source = open_source(str(tmp_path / "data"), "train")
    assert values(source) == [(2, 0, 0), (1, 0, 0)] and source.classes == ["a", "b"]


def test_links_inside_a_tar_are_images_too(tmp_path):
    make_folder(tmp_path / "train" / "a", {"1.png": picture("1.png", 1)})
    os.link(tmp_path / "train" / "a" / "1.png", tmp_path / "train" / "a" / "2.png")
    (tmp_path / "train" / "b").mkdir()
    (tmp_path / "train" / "b" / "3.png").symlink_to("../a/1.png")
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        tar.add(tmp_path / "train", ".")
    (tmp_path / "train").rename(tmp_path / "not train")
    source = open_source(str(tmp_path), "train")
    assert values(source) == [(1, 0, 0)] * 3 and source.labels.tolist() == [0, 0, 1]


def test_an_image_that_a_tar_only_points_to(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.png").symlink_to("/outside/1.png")
    with tarfile.open(tmp_path / "train.tar", "w") as tar:
        tar.add(tmp_path / "train" / "1.png", "a/1.png")
    (tmp_path / "train").rename(tmp_path / "not train")
    with pytest.raises(
        ValueError, match=r"train\.tar has the names but not the contents of images: a/1\.png"
    ):
        open_source(str(tmp_path), "train")


def test_a_sparse_member(tmp_path):
    with tarfile.open(tmp_path / "train.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        member = tarfile.TarInfo("a/1.png")
        member.type = tarfile.GNUTYPE_SPARSE
        tar.addfile(member)
    with pytest.raises(
        ValueError, match=r"train\.tar has the names but not the contents of images: a/1\.png"
    ):
        open_source(str(tmp_path), "train")


def test_a_member_is_read_exactly(tmp_path):
    for suffix in ("tar", "tar.gz"):
        make_tar(tmp_path / suffix / f"train.{suffix}", contents())
        source = open_source(str(tmp_path / suffix), "train")
        assert [source.read(index) for index in range(6)] == [contents()[path] for path in FILES]


def test_members_that_climb_out_are_left_out(tmp_path):
    make_tar(
        tmp_path / "train.tar",
        {
            "../b/1.png": picture("1.png", 1),
            "a/../../2.png": picture("2.png", 2),
            "a/3.png": picture("3.png", 3),
        },
    )
    assert values(open_source(str(tmp_path), "train")) == [(3, 0, 0)]


def test_a_broken_image_in_a_tar_is_named(tmp_path):
    make_tar(tmp_path / "train.tar", {"a/1.png": b"no picture"})
    with pytest.raises(ValueError, match=r"train\.tar/a/1\.png cannot be read as a picture"):
        open_source(str(tmp_path), "train").load(0)


def read_reds(source, barrier, queue, order):
    barrier.wait(60)
    queue.put([source.load(index).getpixel((0, 0))[0] for index in order])


@pytest.mark.parametrize("method, suffix", [("fork", "tar"), ("spawn", "tar.gz")])
def test_processes_read_one_tar_at_the_same_time(tmp_path, method, suffix):
    files = {f"a/{value:03d}.png": picture("x.png", value) for value in range(200)}
    make_tar(tmp_path / f"train.{suffix}", files)
    source = open_source(str(tmp_path), "train")
    assert source.load(0).getpixel((0, 0)) == (0, 0, 0)  # whatever stays open is open before the others start
    context = multiprocessing.get_context(method)
    orders = [10 * list(range(200)), 10 * list(reversed(range(200)))]
    queues, barrier = [context.Queue() for _ in orders], context.Barrier(2)
    workers = [
        context.Process(target=read_reds, args=(source, barrier, queue, order))
        for queue, order in zip(queues, orders, strict=True)
    ]
    for worker in workers:
        worker.start()
    assert [queue.get(timeout=60) for queue in queues] == orders
    for worker in workers:
        worker.join()


def test_shards_are_the_images_as_they_lie_there(tmp_path):
    make_tar(
        tmp_path / "train" / "b.tar", {name: picture(name, 1) for name in ("a/3.png", "a/1.png", "b/4.png")}
    )
    make_tar(tmp_path / "train" / "a.tar", {name: picture(name, 1) for name in ("a/2.png", "a/0.png")})
    (tmp_path / "train" / "manifest.json").write_text('{"classes": ["x"]}')  # another program's
    source = open_source(str(tmp_path), "train")
    assert list(source.paths) == ["a/0.png", "a/1.png", "a/2.png", "a/3.png", "b/4.png"]
    assert [shard.tolist() for shard in source.shards()] == [[2, 0], [3, 1, 4]]


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system cannot be asked to read ahead")
def test_what_is_announced_is_the_bytes_of_the_images(tmp_path, monkeypatch):
    """Neighbours are one stretch with their headers; other gaps and compressed tar files are left out."""
    files = {f"a/{number}.png": picture("x.png", number).ljust(20 * 512, b"0") for number in range(5)}
    make_tar(tmp_path / "train" / "0.tar", files)
    # Its image begins where the fourth of the tar file before ends.
    make_tar(
        tmp_path / "train" / "1.tar", {"readme": bytes(4 * 21 * 512 - 2 * 512), "b/0.png": files["a/0.png"]}
    )
    make_tar(tmp_path / "train" / "2.tar.gz", {"c/0.png": files["a/0.png"]})
    source, asked = open_source(str(tmp_path), "train"), []
    monkeypatch.setattr(
        os,
        "posix_fadvise",
        lambda file, start, length, advice: asked.append(
            (os.readlink(f"/proc/self/fd/{file}")[-5:], os.pread(file, length, start), advice)
        ),
    )
    source.announce(np.array([0, 1, 3, 5, 6]))
    whole = (tmp_path / "train" / "0.tar").read_bytes()
    first, second, fourth = (files[f"a/{number}.png"] for number in (0, 1, 3))
    assert asked == [
        ("0.tar", whole[whole.index(first) : whole.index(second) + len(second)], os.POSIX_FADV_WILLNEED),
        ("0.tar", fourth, os.POSIX_FADV_WILLNEED),
        ("1.tar", first, os.POSIX_FADV_WILLNEED),
    ]
    (tmp_path / "train" / "0.tar").unlink()
    source.announce(np.array([0]))  # reading it will be the error


@pytest.fixture
def index_cache(tmp_path, monkeypatch):
    """Lists of any length are kept, of files of any age."""
    monkeypatch.setenv("MAE_INDEX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_index, "MINIMUM", 1)
    monkeypatch.setattr(file_index, "SETTLED_NS", -(10**12))
    return tmp_path / "cache"


@pytest.mark.parametrize("layout", ["folder", "tar", "tar of train/", "shards"])
def test_the_list_of_images_is_kept_for_the_next_start(tmp_path, index_cache, capsys, layout):
    LAYOUTS[layout](tmp_path)
    first, second = (open_source(str(tmp_path), "train") for _ in range(2))
    assert "index of 6 files from cache" in capsys.readouterr().out
    assert values(second) == values(first) and list(second.paths) == list(first.paths)
    assert second.classes == first.classes and second.labels.tolist() == first.labels.tolist()


def test_a_changed_tar_is_gone_through_again(tmp_path, index_cache):
    make_shards(tmp_path)
    open_source(str(tmp_path), "train")
    first = tmp_path / "train" / "0.tar"
    status = first.stat()
    names = [name for name in list(contents())[::3] if name in FILES]
    make_tar(tmp_path / "new.tar", {name: contents()[name] for name in reversed(list(contents())[::3])})
    (tmp_path / "new.tar").replace(first)  # as large and as old as the one before, in another order
    os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert first.stat().st_size == status.st_size and len(names) > 1
    assert values(open_source(str(tmp_path), "train")) == [(value, 0, 0) for value in FILES.values()]
    make_tar(tmp_path / "train" / "3.tar", {"cow/1.png": picture("1.png", 70)})
    assert open_source(str(tmp_path), "train").classes == ["ant", "ant b", "bee", "cow"]


def test_the_kept_list_of_a_tar_is_of_one_split(tmp_path, index_cache):
    make_tar(tmp_path / "all.tar", contents(), "val/")
    as_val = open_source(str(tmp_path / "all.tar"), "val", labelled=False)
    as_train = open_source(str(tmp_path / "all.tar"), "train", labelled=False)
    assert as_val.paths[0] == "ant/1.png" and as_train.paths[0] == "val/ant/1.png"


def test_a_compressed_tar_needs_no_list(tmp_path, index_cache):
    LAYOUTS["tar.gz"](tmp_path)
    open_source(str(tmp_path), "train")
    assert not index_cache.exists()


# --- what users get wrong ---


def missing(root):
    return root / "nowhere"


def no_split(root):
    make_folder(root / "a", {"1.png": picture("1.png", 1)})
    return root


def no_images(root):
    make_folder(root / "train" / "a", {"1.gif": b""})
    return root


def flat(root):
    make_folder(root / "train", {"1.png": picture("1.png", 1)})
    return root


def flat_tar(root):
    make_tar(root / "train.tar", {"1.png": picture("1.png", 1)})
    return root


def only_text(root):
    make_folder(root / "train", {"readme.txt": b""})
    return root


def empty_tar(root):
    make_tar(root / "train.tar", {"a/readme.txt": b""})
    return root


def empty_class(root):
    make_folder(root / "train", {**contents(), "cow/readme.txt": b""})
    return root


def both_kinds(root):
    make_folder(root / "train", contents())
    make_tar(root / "train" / "all.tar", contents())
    return root


def twice(root):
    for name in ("1.tar", "1.tar.gz"):
        make_tar(root / "train" / name, {"a/1.png": b"x"})
    return root


def not_a_tar(root):
    (root / "train.tar").write_bytes(b"no tar" * 200)
    return root


def cut_tar(root):
    make_tar(root / "whole.tar", {"a/1.png": b"0" * 5000})
    (root / "train.tar").write_bytes((root / "whole.tar").read_bytes()[:3000])
    return root


def cut_gzip(root):
    make_tar(root / "whole.tar.gz", contents())
    (root / "train.tar.gz").write_bytes((root / "whole.tar.gz").read_bytes()[:-50])
    return root


WRONG = [
    (missing, r"nowhere: does not exist.*train/<class>/<image>"),
    (no_split, r"holds no 'train'.*train/<class>/<image>"),
    (no_images, r"no images in these class folders of .*train: a .*\.webp.*train/<class>/<image>"),
    (flat, r"the image 1\.png in .*train is in no class folder.*train/<class>/<image>"),
    (flat_tar, r"the image 1\.png in .*train\.tar is in no class folder.*members <class>/<image>"),
    (only_text, r"train has no class folders.*train/<class>/<image>"),
    (empty_tar, r"no images in .*train\.tar .*members <class>/<image>"),
    (empty_class, r"no images in these class folders of .*train: cow "),
    (both_kinds, r"both tar files \(all\.tar\) and images or folders \(ant\)"),
    (twice, r"holds 1\.tar both as it is and compressed"),
    (not_a_tar, r"train\.tar cannot be read as a tar file"),
    (cut_tar, r"train\.tar cannot be read as a tar file"),
    (cut_gzip, r"train\.tar\.gz cannot be decompressed"),
]


def test_wrong_labelled_data(tmp_path):
    for make, problem in WRONG:
        root = tmp_path / make.__name__
        root.mkdir()
        with pytest.raises(ValueError, match=r"--data_path.*" + problem):
            open_source(str(make(root)), "train")


def test_wrong_unlabelled_data(tmp_path):
    with pytest.raises(
        ValueError, match=r"--data_path: no images in .*any folders under DATA_PATH/train or DATA_PATH"
    ):
        open_source(str(tmp_path), "train", labelled=False)
    (tmp_path / "images.zip").write_bytes(b"")
    with pytest.raises(ValueError, match=r"--data_path: .*images\.zip is neither a folder nor a tar file"):
        open_source(str(tmp_path / "images.zip"), "train", labelled=False)


def test_unknown_dataset(tmp_path):
    with pytest.raises(ValueError, match="--dataset mnist: .*folder, cifar10, cifar100"):
        open_source(str(tmp_path), "train", dataset="mnist")


def test_classes_must_agree():
    train = SimpleNamespace(classes=[f"{number:02d}" for number in range(14)] + ["x"])
    with pytest.raises(ValueError, match=r"Only in train: 01, 02, .*, 10 and 3 more\. Only in val: y, z\. "):
        check_same_classes(train, SimpleNamespace(classes=["00", "x", "y", "z"]))
    more = SimpleNamespace(classes=[*train.classes, "z"])
    with pytest.raises(ValueError, match=r"Only in train: none\. Only in val: z\."):
        check_same_classes(train, more)
    with pytest.raises(ValueError, match=r"Only in train: z\. Only in val: none\."):
        check_same_classes(more, train)
    check_same_classes(train, SimpleNamespace(classes=list(train.classes)))


def test_open_train_val(tmp_path):
    make_folder(tmp_path / "train", contents())
    make_folder(tmp_path / "val", contents({"ant/1.png": 1, "ant b/1.png": 2, "bee/1.png": 3}))
    train, val = open_train_val(str(tmp_path), num_classes=3)
    assert (len(train), len(val), val.labels.tolist()) == (6, 3, [0, 1, 2])
    assert open_train_val(str(tmp_path), num_classes=1000, only_val=True)[0] is None
    with pytest.raises(ValueError, match=r"--nb_classes 2: .* holds 3 classes; pass --nb_classes 3"):
        open_train_val(str(tmp_path), num_classes=2)
    (tmp_path / "val" / "bee").rename(tmp_path / "val" / "wasp")
    with pytest.raises(ValueError, match=r"Only in train: bee\. Only in val: wasp\."):
        open_train_val(str(tmp_path), num_classes=3)


# --- lists ---


def write_list(path, entries):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(map(str, entry)) + "\n" for entry in entries))


def test_a_list_gives_its_images_in_its_order(tmp_path):
    make_folder(tmp_path / "pictures", contents())
    names = list(reversed(FILES))
    write_list(
        tmp_path / "data" / "train.txt", [(f"../pictures/{name}", name.split("/")[0]) for name in names]
    )
    source = open_source(str(tmp_path / "data"), "train")
    assert values(source) == [(FILES[name], 0, 0) for name in names]
    assert source.classes == ["ant", "ant b", "bee"] and source.labels.tolist() == LABELS[::-1]
    assert source.name(0) == str(tmp_path / "data" / "../pictures/bee/2.png")
    assert source.read(0) == contents()["bee/2.png"] and values(pickle.loads(pickle.dumps(source))) == values(
        source
    )
    unlabelled = open_source(str(tmp_path / "data"), "train", labelled=False, in_chans=1)
    assert unlabelled.labels is None and unlabelled.load(0).mode == "L"

    write_list(tmp_path / "data" / "train.txt", [(name,) for name in names])
    with pytest.raises(
        ValueError, match=r"--data_path: .*train\.txt names bee/2\.png, .*data/bee/2\.png .*--image_root"
    ):
        open_source(str(tmp_path / "data"), "train", labelled=False)
    rooted = open_source(
        str(tmp_path / "data"), "train", labelled=False, image_root=str(tmp_path / "pictures")
    )
    assert values(rooted) == values(source)
    with pytest.raises(ValueError, match=r"--data_path: the list .*train\.txt has names only"):
        open_source(str(tmp_path / "data"), "train", image_root=str(tmp_path / "pictures"))


def test_without_labels_a_list_may_be_the_data_path(tmp_path, monkeypatch):
    make_folder(tmp_path, {name: picture(name, value) for name, value in FILES.items()})
    names = list(FILES)[::2]
    (tmp_path / "tot_ids.json").write_text(json.dumps(names))
    assert values(open_source(str(tmp_path / "tot_ids.json"), "train", labelled=False)) == [
        (FILES[name], 0, 0) for name in names
    ]
    monkeypatch.chdir(tmp_path)
    assert open_source("tot_ids.json", "train", labelled=False).name(1) == "ant b/1.BmP"
    with pytest.raises(
        ValueError, match=r"--data_path tot_ids\.json: holds no 'train'.*DATA_PATH/train\.txt, \.csv or"
    ):
        open_source("tot_ids.json", "train")


def test_one_picture_of_a_list_may_be_gone(tmp_path):
    make_folder(tmp_path, {"2.png": picture("2.png", 2)})
    write_list(tmp_path / "train.txt", [("1.png",), ("2.png",)])
    source = open_source(str(tmp_path), "train", labelled=False)
    assert source.load(1).getpixel((0, 0)) == (2, 0, 0)
    with pytest.raises(
        decode.UnreadableImage, match=r"1\.png cannot be read as a picture: there is no such file"
    ):
        source.open(0)


def test_folders_and_tars_come_before_lists_and_say_so(tmp_path, capsys):
    make_folder(tmp_path / "train", contents())
    write_list(tmp_path / "train.txt", [("train/ant/1.png", "a")])
    assert len(open_source(str(tmp_path), "train")) == 6
    assert f"the list {tmp_path}/train.txt is not; " in capsys.readouterr().out
    (tmp_path / "train").rename(tmp_path / "pictures")
    write_list(tmp_path / "train.txt", [("pictures/ant/1.png", "a")])
    assert len(open_source(str(tmp_path), "train")) == 1 and has_split(str(tmp_path), "train")
    write_list(tmp_path / "train.csv", [("pictures/ant/1.png,a",)])
    with pytest.raises(
        ValueError, match=r"--data_path: both .*train\.txt and .*train\.csv are lists of 'train'"
    ):
        open_source(str(tmp_path), "train")
    assert not has_split(str(tmp_path), "val")


def test_numbered_classes_are_those_of_both_lists(tmp_path, capsys):
    """A number without a picture is a class all the same, in train, in val and where val is opened alone."""
    make_folder(tmp_path, {"1.png": picture("1.png", 1)})
    write_list(tmp_path / "train.txt", [("1.png", 4), ("1.png", 4)])
    write_list(tmp_path / "val.txt", [("1.png", 2)])
    train, val = open_train_val(str(tmp_path), num_classes=5)
    assert train.classes == val.classes == ["0", "1", "2", "3", "4"]
    assert train.labels.tolist() == [4, 4] and val.labels.tolist() == [2]
    said = capsys.readouterr().out
    assert "the list of 'train' has classes up to 4; no image is of class 0, 1, 2, 3\n" in said
    assert "the list of 'val' has classes up to 4; no image is of class 0, 1, 3, 4\n" in said
    assert open_source(str(tmp_path), "val").classes == train.classes
    with pytest.raises(ValueError, match=r"--nb_classes 4: .* holds 5 classes; pass --nb_classes 5"):
        open_train_val(str(tmp_path), num_classes=4)
    write_list(tmp_path / "val.txt", [("1.png", "x")])
    with pytest.raises(ValueError, match=r"Only in train: 0, 1, 2, 3, 4\. Only in val: x\."):
        open_train_val(str(tmp_path), num_classes=5)


def test_the_same_classes_in_another_order_are_others(tmp_path):
    """Folders are sorted as text, in which 10 comes before 2."""
    make_folder(tmp_path / "val", {f"{number}/1.png": picture("1.png", number) for number in range(11)})
    write_list(tmp_path / "train.txt", [(f"val/{number}/1.png", number) for number in range(11)])
    with pytest.raises(ValueError, match=r"the class 2 has the label 2 in train and 3 in val"):
        open_train_val(str(tmp_path), num_classes=11)


def test_image_root_is_for_lists(tmp_path):
    make_folder(tmp_path / "train", contents())
    for options, problem in (({}, "train is none"), ({"dataset": "cifar10"}, "not for --dataset")):
        with pytest.raises(ValueError, match=f"--image_root x: .*{problem}"):
            open_source(str(tmp_path), "train", image_root="x", **options)


# --- CIFAR ---


@pytest.mark.parametrize(
    "dataset, archive, labels, names",
    [
        ("cifar10", "cifar-10-python.tar.gz", [1, 0, 2, 0, 3, 0, 4, 0, 5, 0], "c"),
        ("cifar100", "cifar-100-python.tar.gz", [1, 99], "f"),
    ],
)
def test_cifar_archives(tmp_path, dataset, archive, labels, names):
    make_tar(tmp_path / archive, cifar_files(dataset))
    make_folder(tmp_path / "unpacked", cifar_files(dataset))
    places = [tmp_path / archive, tmp_path, tmp_path / "unpacked", next((tmp_path / "unpacked").iterdir())]
    for place in places:
        train = open_source(str(place), "train", dataset=dataset)
        assert train.labels.dtype == np.int64 and train.labels.tolist() == labels
        assert train.classes == [f"{names}{i}" for i in range(len(train.classes))]
        for index in range(len(train)):
            red, green, blue = cifar_pixels(1 + index // 2)[index % 2].reshape(3, 32, 32)
            image = train.load(index)
            assert image.mode == "RGB" and image.getpixel((5, 7)) == (red[7, 5], green[7, 5], blue[7, 5])
        val = open_source(str(place), "val", dataset=dataset)
        assert val.labels.tolist() == [6, {"cifar10": 0, "cifar100": 99}[dataset]]
        assert val.load(0).getpixel((0, 0))[0] == cifar_pixels(6)[0, 0]
        check_same_classes(train, val)
    assert open_source(str(tmp_path), "val", dataset=dataset, labelled=False).labels is None
    assert open_source(str(tmp_path), "val", dataset=dataset, in_chans=1).load(0).mode == "L"


def test_cifar_pickles_cannot_call_functions(tmp_path):
    files = cifar_files("cifar10")
    files["cifar-10-batches-py/test_batch"] = (
        b"cos\nmkdir\n(U" + bytes([len(str(tmp_path / "pwned"))]) + str(tmp_path / "pwned").encode() + b"tR."
    )
    make_tar(tmp_path / "x.tar.gz", files)
    with pytest.raises(ValueError, match=r"--data_path .*x\.tar\.gz: does not hold cifar10.*os\.mkdir"):
        open_source(str(tmp_path / "x.tar.gz"), "val", dataset="cifar10")
    assert not (tmp_path / "pwned").exists()


def test_wrong_cifar_data(tmp_path):
    make_tar(tmp_path / "x.tar.gz", cifar_files("cifar10"))
    with pytest.raises(
        ValueError, match=r"--data_path: .*x\.tar\.gz lacks meta, train\. .*cifar-100-python\.tar\.gz"
    ):
        open_source(str(tmp_path / "x.tar.gz"), "train", dataset="cifar100")
    (tmp_path / "y.tar.gz").write_bytes((tmp_path / "x.tar.gz").read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"--data_path: .*y\.tar\.gz cannot be read as a tar file"):
        open_source(str(tmp_path / "y.tar.gz"), "train", dataset="cifar10")
