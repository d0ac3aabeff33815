"""Packed data sets: the same images as before, smaller, whatever interrupts the packing."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tools import pack_dataset
from util.data.sources import open_source
from util.images import decode
from util.system import console

SCRIPT = Path(pack_dataset.__file__)


def picture(width, height, seed=0, mode="RGB"):
    """A smooth picture, which survives JPEG: a low-resolution random one, enlarged."""
    channels = len(mode)
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, channels), np.uint8)
    return Image.fromarray(pixels.squeeze(), mode if channels == 4 else None).resize(
        (width, height), Image.Resampling.BICUBIC
    )


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def contents(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.fixture
def src(tmp_path):
    """Two splits; 20 training images in two classes whose order is not that of plain strings."""
    root = tmp_path / "src"
    for number in range(20):
        save(
            root / "train" / ("ant", "ant b")[number % 2] / "more" / f"{number}.png",
            picture(60 + number, 40, number),
        )
    save(root / "val" / "ant" / "1.jpg", picture(50, 90))
    save(root / "val" / "ant b" / os.fsdecode(b"\xe4 2.jpg"), picture(20, 30))
    return root


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A function that packs tmp_path / "src" into tmp_path / "dst" and returns the folder."""
    monkeypatch.setattr(pack_dataset, "_cores", lambda: 2)

    def run(*options, src=tmp_path / "src", dst=tmp_path / "dst"):
        pack_dataset.main(pack_dataset.get_args_parser().parse_args([str(src), str(dst), *options]))
        return dst

    return run


@pytest.fixture
def small_shards(monkeypatch):
    """A megabyte has 2,000 bytes: a few images fill a tar file."""
    write = pack_dataset._write_shard
    monkeypatch.setattr(
        pack_dataset,
        "_write_shard",
        lambda folder, images, results, manifest, size, *more: write(
            folder, images, results, manifest, size // 500, *more
        ),
    )


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- one picture ---

SHRUNK_SIZES = [
    (500, 375, (341, 256)),
    (375, 500, (256, 341)),
    (256, 400, (256, 400)),
    (257, 600, (256, 597)),
]


def test_the_shorter_side():
    """The longer side times 256 over the shorter one, rounded down."""
    for width, height, size in SHRUNK_SIZES:
        packed = pack_dataset.shrink(contents(picture(width, height), "PNG"), "x", short_side=256, quality=90)
        with Image.open(io.BytesIO(packed)) as image:
            assert image.size == size and image.format == "JPEG" and image.mode == "RGB"


def test_a_shrunk_picture_looks_the_same():
    for format in ("PNG", "JPEG"):
        packed = pack_dataset.shrink(contents(picture(1800, 1200), format), "x", short_side=120, quality=90)
        with Image.open(io.BytesIO(packed)) as image:
            difference = np.asarray(image).astype(float) - np.asarray(picture(180, 120))
        assert np.abs(difference).mean() < 1.5


def test_small_pictures_are_never_enlarged():
    packed = pack_dataset.shrink(contents(picture(30, 20), "PNG"), "x", short_side=256, quality=90)
    with Image.open(io.BytesIO(packed)) as image:
        assert image.size == (30, 20)


def test_a_small_jpeg_keeps_its_bytes_and_a_large_one_does_not():
    data = contents(picture(60, 40), "JPEG", quality=50)
    assert pack_dataset.shrink(data, "x", short_side=40, quality=90) == data
    assert pack_dataset.shrink(data, "x", short_side=39, quality=90) != data


def test_short_side_0_keeps_all_bytes():
    for format in ("PNG", "JPEG", "BMP"):
        data = contents(picture(600, 400), format)
        assert pack_dataset.shrink(data, "x", short_side=0, quality=90) == data


def test_quality_and_chroma():
    data = contents(picture(600, 400), "PNG")
    fine, coarse = (pack_dataset.shrink(data, "x", short_side=100, quality=quality) for quality in (90, 30))
    tables = {}
    for name, packed in (("fine", fine), ("coarse", coarse)):
        with Image.open(io.BytesIO(packed)) as image:
            # Factors of the three components: luma has twice the samples of chroma in both directions.
            assert [layer[1:3] for layer in image.layer] == [(2, 2), (1, 1), (1, 1)]
            tables[name] = image.quantization[0][0]
    # The first entry of the luma table of the JPEG standard is 16; libjpeg scales it by 200 - 2 quality per
    # cent from 50 on, and by 5000 / quality below.
    assert tables == {"fine": 3, "coarse": 27}


def orientation(value):
    exif = Image.Exif()
    exif[274] = value
    return exif


def sixteen_bits():
    return Image.fromarray(np.asarray(picture(120, 80, mode="L")).astype(np.uint16) * 257)


ODD = {
    "turned": lambda: contents(picture(120, 80), "JPEG", exif=orientation(6)),
    "turned, small": lambda: contents(picture(60, 30), "JPEG", exif=orientation(6)),
    "CMYK": lambda: contents(picture(120, 80).convert("CMYK"), "JPEG"),
    "16 bits": lambda: contents(sixteen_bits(), "PNG"),
    "transparent": lambda: contents(picture(120, 80, mode="RGBA"), "PNG"),
    "grey": lambda: contents(picture(120, 80, mode="L"), "JPEG"),
    "palette": lambda: contents(picture(120, 80).quantize(16), "PNG"),
}


def test_odd_pictures_come_out_as_a_viewer_shows_them():
    for kind in ODD:
        data = ODD[kind]()
        packed = pack_dataset.shrink(data, "x", short_side=80, quality=95)
        before, after = decode.decode(data), decode.decode(packed)
        assert after.size == before.size and after.mode == "RGB"
        # halved chroma aside
        blurred = [np.asarray(image.reduce(4)).astype(float) for image in (before, after)]
        assert np.abs(blurred[0] - blurred[1]).mean() < 3


# --- a data set ---


def test_the_packed_set_has_the_same_names_and_labels(src, run, small_shards):
    dst = run("--short_side", "32", "--shard_size", "1")
    assert len(list((dst / "train").glob("*.tar"))) > 3 and len(list((dst / "val").glob("*.tar"))) == 1
    for split in ("train", "val"):
        before, after = (open_source(str(root), split) for root in (src, dst))
        assert list(after.paths) == list(before.paths) and after.classes == before.classes == ["ant", "ant b"]
        assert after.labels.tolist() == before.labels.tolist()
        for index in range(len(before)):
            image = before.load(index)
            scale = min(1, 32 / min(image.size))
            assert after.load(index).size == tuple(int(side * scale) for side in image.size)
            small = image.resize(after.load(index).size, Image.Resampling.BICUBIC)
            assert np.abs(np.asarray(small).astype(float) - np.asarray(after.load(index))).mean() < 6


def test_one_folder_and_tar_files(src, run, tmp_path):
    whole = run("--short_side", "0", src=src / "train", dst=tmp_path / "one")
    images = open_source(str(whole), "train", labelled=False)
    before = open_source(str(src), "train")
    assert list(images.paths) == list(before.paths)
    assert [images.read(index) for index in range(20)] == [before.read(index) for index in range(20)]

    (tmp_path / "tars").mkdir()
    for suffix in ("tar", "tar.gz"):
        with tarfile.open(
            tmp_path / "tars" / f"train.{suffix}", "w:gz" if suffix == "tar.gz" else "w"
        ) as tar:
            tar.add(src / "train", "")
        again = run("--short_side", "0", src=tmp_path / "tars", dst=tmp_path / f"of {suffix}")
        assert tree(again / "train").keys() == {"000000.tar", "manifest.json"}
        assert (again / "train" / "000000.tar").read_bytes() == (whole / "000000.tar").read_bytes()
        (tmp_path / "tars" / f"train.{suffix}").unlink()


def test_splits(src, run, tmp_path, capsys):
    save(src / "test" / "1.png", picture(9, 9))
    run("--short_side", "0")
    assert "only train and val are packed, not test: see --split" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "dst").iterdir()) == [".lock", "train", "val"]
    run("--short_side", "0", "--split", "test", dst=tmp_path / "other")
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == [".lock", "test"]
    with pytest.raises(
        ValueError, match="--split dev: .*src holds no dev, dev.tar, dev.tar.gz or list of it"
    ):
        run("--short_side", "0", "--split", "train", "dev")


def test_the_result_does_not_depend_on_the_number_of_workers(src, run, small_shards, tmp_path):
    one = run("--short_side", "32", "--shard_size", "1", "--workers", "1", dst=tmp_path / "one")
    three = run("--short_side", "32", "--shard_size", "1", "--workers", "3", dst=tmp_path / "three")
    assert tree(one) == tree(three) and len(tree(one)) > 6


# --- interrupted, and again ---


@pytest.mark.parametrize("step", [1, 4, 9])
def test_it_goes_on_where_it_was_interrupted(src, run, small_shards, tmp_path, monkeypatch, step):
    """Interrupted at the `step`-th rename."""
    whole = tree(run("--short_side", "32", "--shard_size", "1", dst=tmp_path / "whole"))
    replace, left = os.replace, iter(range(step))

    def killed(*paths):
        if next(left, None) is None:
            raise KeyboardInterrupt
        replace(*paths)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        run("--short_side", "32", "--shard_size", "1")
    monkeypatch.setattr(os, "replace", replace)
    (tmp_path / "dst" / "train" / ".000009.tar.1.part").write_bytes(b"left by a process that was killed")
    finished = sorted((tmp_path / "dst" / "train").glob("*.tar"))[:-1]
    times = [path.stat().st_mtime_ns for path in finished]
    assert tree(run("--short_side", "32", "--shard_size", "1")) == whole
    assert [path.stat().st_mtime_ns for path in finished] == times


def test_a_killed_process_leaves_no_workers(src, tmp_path):
    for number in range(300):
        save(
            src / "train" / "ant" / f"{number}.png",
            picture(900, 600, number % 5) if number < 5 else picture(1, 1),
        )
        if number >= 5:
            shutil.copy(src / "train" / "ant" / f"{number % 5}.png", src / "train" / "ant" / f"{number}.png")
    with subprocess.Popen(
        [sys.executable, SCRIPT, src, tmp_path / "dst", "--short_side", "256", "--workers", "2"],
        stdout=subprocess.DEVNULL,
    ) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while len(workers := children.read_text().split()) < 2:
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while running := [
        pid
        for pid in workers
        if Path(f"/proc/{pid}/cmdline").exists()
        and str(SCRIPT).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]:
        assert time.monotonic() < deadline, f"still there: {running}"
        time.sleep(0.05)


def test_a_finished_set_is_left_alone(src, run, capsys):
    before = tree(run("--short_side", "32"))
    capsys.readouterr()
    assert tree(run("--short_side", "32")) == before
    assert "train: 20 images in 1 tar files" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, name",
    [
        (["--short_side", "33"], "--short_side 32, not 33"),
        (["--short_side", "32", "--quality", "80"], "--quality 90, not 80"),
        (["--short_side", "32", "--shard_size", "7"], "--shard_size 400, not 7"),
    ],
)
def test_other_options_in_the_same_folder(src, run, options, name):
    before = tree(run("--short_side", "32"))
    with pytest.raises(ValueError, match=rf"DST: .*dst/train was packed with {name}"):
        run(*options)
    assert tree(src.parent / "dst") == before


def test_other_images_in_the_same_folder(src, run):
    run("--short_side", "32")
    (src / "train" / "ant" / "more" / "0.png").rename(src / "train" / "ant" / "more" / "00.png")
    with pytest.raises(ValueError, match="was packed from 20 images; SRC now holds 20, or others by name"):
        run("--short_side", "32")


def test_a_damaged_result(src, run, tmp_path):
    run("--short_side", "32")
    tar = tmp_path / "dst" / "train" / "000000.tar"
    os.truncate(tar, 512)
    with pytest.raises(ValueError, match=r"000000\.tar is missing or has another size"):
        run("--short_side", "32")
    tar.unlink()
    with pytest.raises(ValueError, match=r"000000\.tar is missing or has another size"):
        run("--short_side", "32")
    for text in ("no JSON", "{}", "[]"):
        (tmp_path / "dst" / "train" / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json is not one of this tool"):
            run("--short_side", "32")


def test_foreign_files_are_not_packed_over(src, run, tmp_path):
    save(tmp_path / "dst" / "train" / "000000.png", picture(2, 2))
    with pytest.raises(ValueError, match=r"dst/train holds other files \(000000\.png\)"):
        run("--short_side", "32")
    with pytest.raises(ValueError, match=r"src/train holds other files \(ant, ant b\)"):
        run("--short_side", "32", dst=src)


def test_two_at_once(src, run, tmp_path):
    with pack_dataset._alone(tmp_path / "dst"), pytest.raises(ValueError, match="another process packs into"):
        run("--short_side", "32")


# --- what cannot be packed ---


def test_an_unreadable_image_stops_it_by_name(src, run, tmp_path):
    (src / "train" / "ant" / "more" / "4.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"ant/more/4\.png cannot be read as a picture.*--bad_images skip"):
        run("--short_side", "32")
    assert not list((tmp_path / "dst" / "train").glob("*.tar"))


def test_stopping_is_the_default_and_has_an_older_name():
    for words in ([], ["--bad_images", "error"], ["--bad_images", "stop"]):
        assert (
            pack_dataset.get_args_parser().parse_args(["src", "dst", "--short_side", "0", *words]).bad_images
            == "error"
        )


def test_what_is_too_long_for_a_jpeg_is_named():
    with pytest.raises(decode.UnreadableImage, match="x.png .* 65501 x 2 pixels do not fit into a JPEG"):
        pack_dataset.shrink(contents(Image.new("L", (65501, 2)), "PNG"), "x.png", short_side=256, quality=90)


def test_an_error_that_is_no_picture_s_fault_is_not_left_out(monkeypatch):
    monkeypatch.setattr(pack_dataset, "shrink", lambda *data, **options: 1 / 0)
    monkeypatch.setattr(
        pack_dataset, "_source", SimpleNamespace(read=bytes, name=str, in_chans=3), raising=False
    )
    monkeypatch.setattr(pack_dataset, "_options", pack_dataset.Options(1, 90, 1), raising=False)
    with pytest.raises(ZeroDivisionError):
        pack_dataset._shrink_some([0])


@pytest.mark.parametrize("short_side", ["0", "32"])
def test_unreadable_images_can_be_left_out(src, run, tmp_path, capsys, short_side):
    (src / "train" / "ant" / "more" / "4.png").write_bytes(b"no picture")
    whole = contents(picture(30, 20), "JPEG")
    (src / "train" / "ant b" / "more" / "5.png").write_bytes(whole[:-30])  # its header is sound
    with pytest.raises(ValueError):
        run("--short_side", short_side)
    capsys.readouterr()
    run("--short_side", short_side, "--bad_images", "skip")
    said = capsys.readouterr().out
    names = ["ant/more/4.png", "ant b/more/5.png"]
    assert "cannot be read (2):" in said and all(f"  {name}: " in said for name in names)
    manifest = json.loads((tmp_path / "dst" / "train" / "manifest.json").read_text())
    assert [image["name"] for image in manifest["left_out"]] == names
    assert list(open_source(str(tmp_path / "dst"), "train").paths) == [
        path for path in open_source(str(src), "train").paths if path not in names
    ]


def test_a_class_is_not_left_out(src, run):
    (src / "val" / "ant" / "1.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="no image of the class ant can be read"):
        run("--short_side", "32", "--bad_images", "skip")


def test_a_full_disk_is_seen_before_the_work(src, run, tmp_path, monkeypatch):
    # 20 images of at least 1,024 bytes beside their contents.
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**6, 10**6, 20 * 1024)
    )
    with pytest.raises(ValueError, match=r"dst/train has 0\.0 GB free, and about 0\.0 GB are needed"):
        run("--short_side", "32")
    assert not list((tmp_path / "dst" / "train").glob("*.tar"))


WRONG_OPTIONS = [
    (["--short_side", "-1"], "--short_side -1: must be from 0 to 65500"),
    (["--short_side", "1", "--quality", "96"], "--quality 96: must be from 1 to 95"),
    (["--short_side", "1", "--shard_size", "0"], "--shard_size 0: must be from 1"),
    (["--short_side", "1", "--workers", "0"], "--workers 0: must be from 1"),
]


def test_wrong_options(src, run):
    for options, what in WRONG_OPTIONS:
        with pytest.raises(ValueError, match=what):
            run(*options)
        assert not (src.parent / "dst").exists()


def test_a_source_that_does_not_exist(run, tmp_path):
    with pytest.raises(ValueError, match="SRC: .*nowhere does not exist"):
        run("--short_side", "1", src=tmp_path / "nowhere")


def test_progress(src, run, capsys, monkeypatch):
    run("--short_side", "32")
    assert "dst/train/000000.tar: 20 of 20 images, " in capsys.readouterr().out
    shutil.rmtree(src.parent / "dst")
    monkeypatch.setattr(console, "shows_bars", lambda: True)
    run("--short_side", "32")
    said = capsys.readouterr()
    assert "20/20" in said.err and "000000.tar" not in said.out


# --- lists, and the order in the tar files ---


def raw(images):
    return [images.read(index) for index in range(len(images))]


def test_a_packed_list_is_the_list(tmp_path, src, run, small_shards, capsys):
    """Images, order and labels stay: numbered classes, some without images, and one image twice."""
    pictures = sorted((src / "train").rglob("*.png"), key=lambda path: int(path.stem))
    names = [f"../src/{path.relative_to(src)}" for path in [*pictures[:12], pictures[3]]]
    lists = tmp_path / "lists"
    lists.mkdir()
    (lists / "train.txt").write_text("".join(f"{name}\t{10 if 'ant b' in name else 2}\n" for name in names))
    (lists / "val.csv").write_text("file,label\n../src/val/ant/1.jpg,11\n")
    packed = run("--short_side", "0", "--shard_size", "1", src=lists)
    assert len(list((packed / "train").glob("*.tar"))) > 1
    for split in ("train", "val"):
        listed, again = (open_source(str(folder), split) for folder in (lists, packed))
        assert again.classes == listed.classes == [str(number) for number in range(12)]
        assert again.labels.tolist() == listed.labels.tolist() and again.labels.dtype == np.int64
        assert raw(again) == raw(listed)
    assert list(open_source(str(packed), "train", labelled=False).paths)[3::9] == [
        "10/src/train/ant b/more/3.png",
        "10/src/train/ant b/more/3~2.png",
    ]
    capsys.readouterr()
    run("--short_side", "0", "--shard_size", "1", src=lists)
    assert "to pack" not in capsys.readouterr().out
    (lists / "val.csv").write_text("file,label\n../src/val/ant/1.jpg,12\n")
    with pytest.raises(
        ValueError, match="was packed from 13 images; SRC now holds 13, or others by name or class"
    ):
        run("--short_side", "0", "--shard_size", "1", src=lists)


def test_a_packed_list_without_classes(tmp_path, src, run):
    (tmp_path / "src" / "val" / ".hidden").mkdir()
    shutil.copy(src / "val" / "ant" / "1.jpg", src / "val" / ".hidden" / "odd")
    (tmp_path / "ids.json").write_text('["val/ant/1.jpg", "val/.hidden/odd"]')
    packed = run("--short_side", "0", "--image_root", str(src), src=tmp_path / "ids.json")
    images = open_source(str(packed), "train", labelled=False)
    assert list(images.paths) == ["val/ant/1.jpg", "val/hidden/odd.jpg"] and raw(images)[0] == raw(images)[1]
    (packed / "train").mkdir()
    for path in packed.iterdir():
        if path.is_file():
            path.rename(packed / "train" / path.name)
    with pytest.raises(ValueError, match="was packed from a list without classes"):
        open_source(str(packed), "train")


def test_a_class_that_is_no_folder(tmp_path, src, run):
    (tmp_path / "train.txt").write_text("src/val/ant/1.jpg\t../x\n")
    with pytest.raises(ValueError, match=r"SRC: the class \.\./x cannot be the name of a folder"):
        run("--short_side", "0", src=tmp_path)


def test_shuffled_packing_changes_places_and_nothing_else(src, run, small_shards, tmp_path, monkeypatch):
    write = pack_dataset._write_manifest

    def stop(folder, manifest):
        write(folder, manifest)
        if manifest["shards"]:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(pack_dataset, "_write_manifest", stop)
        run("--short_side", "0", "--shard_size", "1", "--shuffle", "5")
    with pytest.raises(ValueError, match="was packed with --shuffle 5, not None"):
        run("--short_side", "0", "--shard_size", "1")
    packed = run("--short_side", "0", "--shard_size", "1", "--shuffle", "5")
    plain = run("--short_side", "0", dst=tmp_path / "plain")
    shuffled, ordered = (open_source(str(folder), "train") for folder in (packed, plain))
    assert list(shuffled.paths) == list(ordered.paths) and shuffled.labels.tolist() == ordered.labels.tolist()
    assert raw(shuffled) == raw(ordered)
    places, other = (np.concatenate(images.shards()).tolist() for images in (shuffled, ordered))
    assert other == list(range(20)) != places and sorted(places) == other
    with pytest.raises(ValueError, match="--shuffle -1: expected a seed"):
        run("--short_side", "0", "--shuffle", "-1")


def test_what_was_packed_before_there_was_shuffle_goes_on(src, run, capsys):
    manifest = run("--short_side", "0") / "train" / "manifest.json"
    manifest.write_text(
        json.dumps(
            {name: value for name, value in json.loads(manifest.read_text()).items() if name != "shuffle"}
        )
    )
    capsys.readouterr()
    run("--short_side", "0")
    assert "to pack" not in capsys.readouterr().out
