"""Reports: every number is there, no network is needed, names are escaped, and a phone shows the page."""

import base64
import io
import json
import re
import string
import struct
import sys
import zlib
from html.parser import HTMLParser

import browser
import numpy as np
import pytest
import yaml
from PIL import Image

from tools import report
from util.report import html_page, wording
from util.report.run_record import RunRecord
from util.run import confusion

HOSTILE = '</td><script>alert("1")</script>&amp;\'猫'
OPTIONS = {
    "model": "vit_tiny_patch4",
    "nb_classes": 3,
    "epochs": 4,
    "blr": 0.001,
    "aa": "",
    "input_size": [28, 32],
    "global_pool": True,
    "mixup": None,
}
LINES = [
    {
        "train_lr": 1e-3 / (1 + epoch),
        "train_loss": 1.05 - epoch / 8,
        "train_images_per_s": 100.0 + epoch,
        "train_data_wait": 1.5,
        "train_grad_norm": 2.0 + epoch,
        "test_loss": 1.0 - epoch / 10,
        "test_acc1": 40.0 + 5 * epoch,
        "test_acc5": 100.0,
        "n_parameters": 12345,
        "epoch": epoch,
    }
    for epoch in range(4)
]
COUNTS = np.array([[8, 2, 0], [5, 3, 2], [0, 0, 20]])


class Page(HTMLParser):
    """Texts, tags, and table rows of a page; fails for tags that are not closed."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.tables, self.texts, self.open = [], [], [], []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "input", "br"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        if "style" in self.open or "script" in self.open:
            return
        self.texts.append(text)
        if self.open and {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += text

    def table(self, *head):
        return next(table[1:] for table in self.tables if table[0][: len(head)] == list(head))

    @property
    def text(self):
        return " ".join(self.texts)


def make_run(folder, *, lines=LINES, options=OPTIONS, classes=("猫", "dog", "bird"), environment=None):
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "options.yaml").write_text(yaml.safe_dump(options, allow_unicode=True), encoding="utf-8")
    (folder / "environment.json").write_text(
        json.dumps({"paddle": "3.3.1", "command": ["main.py", "--x"], **(environment or {})}),
        encoding="utf-8",
    )
    if classes:
        confusion.write(folder, confusion.pack(COUNTS, 3), classes)
    return folder


def add_pictures(folder, count, *, side=8):
    (folder / "reconstructions").mkdir()
    for epoch in range(count):
        pixels = np.random.default_rng(epoch).integers(0, 256, [side, side, 3]).astype("uint8")
        Image.fromarray(pixels).save(folder / "reconstructions" / f"epoch_{epoch:04d}.png")


def test_a_single_run(tmp_path):
    folder = make_run(tmp_path / "run")
    path = report.write([folder])
    assert path == folder / "report.html"
    page = Page(path)
    facts = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", page.source)
    assert facts == [
        ("epochs", "4 of 4"),
        ("last training loss", "0.675"),
        ("best top-1 (%)", "55.00"),
        ("best epoch", "3"),
        ("last top-1 (%)", "55.00"),
        ("last top-5 (%)", "100.00"),
        ("last test loss", "0.7"),
        ("images/s (median)", "102"),
        ("trained parameters", "12,345"),
    ]
    values = page.table("epoch", "learning rate", "training loss")
    assert [row[0] for row in values] == ["0", "1", "2", "3"]
    for row, line in zip(values, LINES):
        assert [float(text) for text in row[1:]] == pytest.approx(
            [value for name, value in line.items() if name not in ("n_parameters", "epoch")], rel=1e-5
        )
    # recall: 8 of 10, 3 of 10, all; precision: 8 of 13, 3 of 5, 20 of 22
    assert page.table("class") == [
        ["dog", "10", "30.0", "60.0", "猫 (5)"],
        ["猫", "10", "80.0", "61.5", "dog (2)"],
        ["bird", "20", "100.0", "90.9", "–"],
    ]
    assert page.table("true class \\ predicted") == [
        ["猫", "8", "2", "0"],
        ["dog", "5", "3", "2"],
        ["bird", "0", "0", "20"],
    ]
    assert re.findall(r'style="--v:([\d.]+)">(\d+)<', page.source)[3:6] == [
        ("0.71", "5"),
        ("0.55", "3"),
        ("0.45", "2"),
    ]
    assert "40 held-out images in epoch 3" in page.text
    assert "The training loss went from 1.05 to 0.675 in 4 epochs." in page.texts
    settings = dict(page.table("name", "value"))
    assert settings == {
        "model": "vit_tiny_patch4",
        "nb_classes": "3",
        "epochs": "4",
        "blr": "0.001",
        "aa": "–",
        "input_size": "28 32",
        "global_pool": "true",
        "mixup": "–",
    }
    assert ["command", "main.py --x"] in page.tables[3] and ["paddle", "3.3.1"] in page.tables[3]
    for name in ("training loss", "test loss", "top-1 accuracy (%)", "learning rate", "gradient norm"):
        assert f"<h3>{name}</h3><svg" in page.source
    assert "attention entropy" not in page.text


def test_it_needs_nothing_else(tmp_path):
    add_pictures(make_run(tmp_path / "run"), 3)
    page = Page(report.write([tmp_path / "run"]))
    assert not [
        tag for tag, _ in page.tags if tag in ("link", "iframe", "object", "embed", "base", "form", "a")
    ]
    for tag, attributes in page.tags:
        assert tag != "script" or "src" not in attributes
        for name in ("src", "href", "srcset", "xlink:href", "action", "data"):
            assert attributes.get(name, "#").startswith(("data:image/png;base64,", "#")), (tag, name)
        assert not [name for name in attributes if name.startswith("on")]
    assert not re.search(r"url\(|@import|https?:", page.source)


def test_names_are_text_wherever_they_stand(tmp_path):
    line = {**LINES[0], HOSTILE: 1.0}
    folder = make_run(
        tmp_path / HOSTILE.replace("/", "⁄"),
        lines=[line],
        options={**OPTIONS, HOSTILE: HOSTILE, "epochs": 9},
        classes=[HOSTILE, "dog", "bird"],
        environment={
            HOSTILE: [HOSTILE, {HOSTILE: 1}],
            "git_dirty": True,
            "git_revision": HOSTILE,
            "operations": "Paddle's own " + HOSTILE,
        },
    )
    (folder / "bad_images_val.txt").write_text(f"{HOSTILE}.jpg\t{HOSTILE}\n", encoding="utf-8")
    (folder / f"bad_images_{HOSTILE.replace('/', '⁄')}.txt").write_text("a\tb\n", encoding="utf-8")
    (folder / "not_finite_0_0.json").write_text(json.dumps({"message": HOSTILE}))
    (folder / f"earlier.{HOSTILE.replace('/', '⁄')}").mkdir()
    add_pictures(folder, 1)
    picture = folder / "reconstructions" / "epoch_0000.png"
    picture.rename(picture.with_name(HOSTILE.replace("/", "⁄") + ".png"))
    other = make_run(tmp_path / "other" / folder.name)
    for folders, output in (([folder], None), ([folder, other], tmp_path / "both.html")):
        page = Page(report.write(folders, output))  # whose tags are balanced
        assert "<script>alert" not in page.source and "script" not in [tag for tag, _ in page.tags]
        assert page.text.count(HOSTILE) >= 8 and page.text.count(HOSTILE.replace("/", "⁄")) >= 3


def test_several_runs_beside_each_other(tmp_path):
    first = make_run(tmp_path / "a" / "run")
    second = make_run(
        tmp_path / "b" / "run", lines=LINES[:2], options={**OPTIONS, "blr": 0.5, "seed": 1}, classes=None
    )
    with pytest.raises(ValueError, match="--output FILE"):
        report.write([first, second])
    page = Page(report.write([first, second], tmp_path / "both.html"))
    assert [row[:4] for row in page.table("run", "epochs")] == [
        ["a/run", "4 of 4", "0.675", "55.00"],
        ["b/run", "2 of 4", "0.925", "45.00"],
    ]
    assert page.table("name", "a/run", "b/run") == [["blr", "0.001", "0.5"], ["seed", "–", "1"]]
    assert "The environments are the same." in page.texts
    assert "2 of 4 epochs are in log.txt: the run goes on, was interrupted, or has failed." in page.texts
    losses = re.search(r"<h3>training loss</h3>(<svg.*?</svg>)", page.source)[1]
    assert losses.count('class="line-') == 2 and "stroke-dasharray: 7,3" in losses and "var(--s1)" in losses


def test_pictures_are_inside_and_evenly_chosen_over_time(tmp_path, monkeypatch):
    folder = make_run(tmp_path / "run")
    add_pictures(folder, 40)
    (folder / "reconstructions" / "epoch_0041.png").write_bytes(
        b"\x89PNG\r\n\x1a\n of which the end is missing"
    )

    def shown():
        page = Page(report.write([folder]))
        return page, [
            (attributes["alt"], base64.b64decode(attributes["src"].partition(",")[2]))
            for tag, attributes in page.tags
            if tag == "img"
        ]

    page, pictures = shown()
    assert "16 of 41 pictures are shown, evenly chosen over time. 1 cannot be read." in page.texts
    epochs = [int(alt.removeprefix("after epoch ")) for alt, _ in pictures]
    assert epochs[0] == 0 and epochs[-1] == 39 and len(epochs) == 16 and set(np.diff(epochs)) <= {2, 3}
    for epoch, (_, content) in zip(epochs, pictures):
        expected = np.random.default_rng(epoch).integers(0, 256, [8, 8, 3])
        assert (np.asarray(Image.open(io.BytesIO(content))) == expected).all()
    monkeypatch.setattr(html_page.pictures, "REPORT_BYTES", 1200)
    page, pictures = shown()
    assert "More would take more than the 0.0012 MB that the page has for them." in page.text
    assert 2 <= len(pictures) <= 4 and sum(len(content) for _, content in pictures) <= 900
    assert pictures[-1][0] == "after epoch 0039"


def test_large_pictures_are_made_smaller(tmp_path):
    folder = make_run(tmp_path / "run")
    add_pictures(folder, 2)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, [40, 70, 3]).astype("uint8")
    for epoch in (2, 10000):  # sorted by number
        large = Image.fromarray(coarse).resize((1400, 800), Image.Resampling.BICUBIC)
        fine = np.asarray(large).astype(int) + rng.integers(-20, 20, [800, 1400, 3])
        Image.fromarray(fine.clip(0, 255).astype("uint8")).save(
            folder / "reconstructions" / f"epoch_{epoch:04d}.png"
        )
    page = Page(report.write([folder]))
    shown = [
        (attributes["alt"], Image.open(io.BytesIO(base64.b64decode(attributes["src"].partition(",")[2]))))
        for tag, attributes in page.tags
        if tag == "img"
    ]
    assert [alt for alt, _ in shown] == [
        f"after epoch {epoch}" for epoch in ("0000", "0001", "0002", "10000")
    ]
    assert [picture.format for _, picture in shown] == ["PNG", "PNG", "WEBP", "WEBP"]
    assert "Large ones are shown smaller than the files are." in page.texts
    assert shown[3][1].width == 1000 and len(page.source) < 1_000_000
    same = np.asarray(shown[3][1].convert("RGB").resize((70, 40), Image.Resampling.BOX)).astype(int)
    assert abs(same - np.asarray(large.resize((70, 40), Image.Resampling.BOX))).mean() < 5


def test_pictures_that_are_damaged_within(tmp_path):
    """Right checksums, missing pixels; other pictures take their places."""
    folder = make_run(tmp_path / "run")
    add_pictures(folder, 18)

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    for epoch, width in ((0, 2000), (18, 200)):
        (folder / "reconstructions" / f"epoch_{epoch:04d}.png").write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", width, 200, 8, 2, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(b"x" * 50))
            + chunk(b"IEND", b"")
        )
    page = Page(report.write([folder]))
    shown = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert len(shown) == 16 and (shown[0], shown[-1]) == ("after epoch 0001", "after epoch 0017")
    assert "16 of 19 pictures are shown, evenly chosen over time. 2 cannot be read." in page.texts


@pytest.mark.parametrize("theme", [0, 1])
def test_numbers_on_coloured_cells_can_be_read(theme):
    """A contrast of 4.5 (WCAG 2) at any strength, light and dark."""
    style = (report.RECORDS.parent / "util/report/style.css").read_text(encoding="utf-8")
    style = style.partition("@media (prefers-color-scheme: dark)")[2 * theme]
    values = dict(re.findall(r"--([a-z-]+): ([^;}]+?) *[;}]", style))

    def colour(text):
        if text.startswith("#"):
            text = text[1:] if len(text) == 7 else "".join(2 * digit for digit in text[1:])
            return np.array([int(text[start : start + 2], 16) for start in (0, 2, 4)])
        return np.array(text.split(), float)

    def luminance(rgb):
        share = rgb / 255
        return np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4) @ [
            0.2126,
            0.7152,
            0.0722,
        ]

    page, text = colour(values["page"]), luminance(colour(values["text"]))
    for name in ("heat", "miss"):
        for strength in np.linspace(0, float(values[f"most-{name}"]), 51):
            dark, light = sorted([text, luminance(page + (colour(values[name]) - page) * strength)])
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, strength)


def test_it_says_why_no_record_is_drawn(tmp_path, monkeypatch):
    folders = [make_run(tmp_path / name) for name in "abcd"]
    found = {name: RunRecord(tmp_path / "records" / "day", name, lines=LINES) for name in "abcd"}
    monkeypatch.setattr(report.references, "recorded", lambda run, root: found[run.name])
    sentence = "No record is drawn: more than 3 would be needed."
    assert sentence in Page(report.write(folders, tmp_path / "4.html")).texts
    page = Page(report.write(folders[:3], tmp_path / "3.html"))
    assert sentence not in page.texts and "the same settings in day/c" in page.text


@pytest.mark.parametrize("classes", [24, 25, 1000])
def test_any_number_of_classes(tmp_path, classes):
    counts = np.diag(np.full(classes, 9))
    counts[1, 0] = 3
    names = [f"class {number}" for number in range(classes)]
    folder = make_run(tmp_path / "run", classes=None)
    confusion.write(folder, confusion.pack(counts, 3), names)
    page = Page(report.write([folder]))
    assert page.table("class")[0] == ["class 1", "12", "75.0", "100.0", "class 0 (3)"]
    assert sum(len(table) - 1 for table in page.tables if table[0][0] == "class") == classes
    assert len(page.table("class")) == (50 if classes > 60 else classes)
    pictures = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert bool(pictures) == (classes > 24) and len(page.source) < 500_000
    if pictures:
        dots = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(",")[2]))))
        each = 2 if classes > 500 else 1
        assert dots.shape == (classes // each, classes // each, 4)
        assert (dots[..., 3] > 0).sum() == classes // each + (
            each == 1
        )  # the diagonal, and the one that is wrong
        assert (dots[-1, -1] == [40, 140, 210, 255]).all()
        if each == 1:
            assert (dots[1, 0] == [230, 110, 20, round(255 * (0.15 + 0.85 * 0.5))]).all()


def test_classes_without_images_are_not_shown_and_others_have_no_numbers(tmp_path):
    folder = make_run(tmp_path / "run", classes=None)
    counts = np.array([[0, 0, 0, 0], [2, 0, 0, 0], [0, 0, 5, 0], [0, 0, 0, 0]])
    confusion.write(folder, confusion.pack(counts, 3), "abcd")
    assert Page(report.write([folder])).table("class") == [
        ["b", "2", "0.0", "–", "a (2)"],
        ["c", "5", "100.0", "100.0", "–"],
        ["a", "0", "–", "0.0", "–"],
    ]


def test_whatever_is_missing_or_damaged_there_is_a_page(tmp_path):
    language = "zh"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "log.txt").touch()
    (tmp_path / "settings").mkdir()
    (tmp_path / "settings" / "options.yaml").write_text("model: x\nepochs: many\nnb_classes: -3\n")
    odd = make_run(
        tmp_path / "odd",
        options={"nb_classes": 10**400, "input_size": {}, "epochs": -1, "model": []},
        lines=[
            {"epoch": 0, "train_loss": float("nan"), "test_acc1": float("inf")},
            {"epoch": 1, "train_loss": -1e29, "train_lr": 0},
        ],
    )
    (odd / "environment.json").write_text(
        '{"processes": "two", "git_revision": null, "git_dirty": true, "operations": 3}'
    )
    (odd / "confusion.npz").write_bytes(b"PK")
    pretraining = make_run(
        tmp_path / "mae",
        classes=None,
        options={"mask_ratio": 0.75, "norm_pix_loss": True, "epochs": 3000},
        lines=[{"epoch": epoch, "train_loss": 1 / (1 + epoch)} for epoch in range(2500)],
    )
    folders = [tmp_path / "empty", tmp_path / "settings", odd, pretraining]
    for folder in folders:
        Page(report.write([folder], language=language))
    assert report.write([pretraining], language=language).stat().st_size < 100_000
    Page(report.write(folders, tmp_path / "all.html", language=language))


def test_it_writes_over_nothing_but_reports(tmp_path, capsys, monkeypatch):
    folder = make_run(tmp_path / "run")
    (tmp_path / "mine.html").write_text("<p>mine")
    for output, complaint in (
        ("mine.html", "exists and is not a report"),
        (".", "is a folder"),
        ("nowhere/x.html", "cannot be written"),
    ):
        with pytest.raises(ValueError, match=complaint):
            report.write([folder], tmp_path / output)
    assert (tmp_path / "mine.html").read_text() == "<p>mine"
    report.write([folder])
    monkeypatch.setattr(sys, "argv", ["report.py", str(folder), "--language", "zh"])
    report.main()
    assert 'lang="zh-CN"' in (folder / "report.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.startswith(f"wrote {folder / 'report.html'} (")
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        report.main()
    assert stop.value.code == 2 and "not the folder of a run" in capsys.readouterr().err


def test_both_languages_say_the_same_and_nothing_is_left_over():
    english, chinese = (wording.TEXT[language] for language in wording.LANGUAGES)

    def fields(sentence):
        return {name for _, name, _, _ in string.Formatter().parse(sentence) if name}

    assert english.keys() == chinese.keys()
    for key in english:
        assert fields(english[key]) == fields(chinese[key]), key
        assert english[key] != chinese[key] and re.search("[一-鿿]", chinese[key]), key
    code = "".join(
        path.read_text(encoding="utf-8")
        for path in (report.RECORDS.parent / "util" / "report").iterdir()
        if path.suffix in (".py", ".j2") and path.stem != "wording"
    )
    assert [
        key
        for key in english
        if f'"{key}"' not in code and f"'{key}'" not in code and key not in LINES[0] and key != "epoch"
    ] == []


@pytest.mark.slow
@pytest.mark.skipif(not browser.available(), reason="no Chromium")
@pytest.mark.parametrize("width, dark", [(390, True), (1280, False)])
def test_in_a_browser(tmp_path, width, dark):
    long = "x" * 200
    first = make_run(
        tmp_path / "run",
        options={**OPTIONS, "data_path": f"/{long}", long: [long] * 3},
        classes=[long, "dog", "鸟" * 40],
    )
    add_pictures(first, 5, side=200)
    second = make_run(tmp_path / long)
    path = report.write([first, second], tmp_path / "both.html")
    with browser.page(path, width=width, height=800, dark=dark) as page:
        assert not page.overflows() and page.complaints == []
        assert [url for url in page.requests if not url.startswith("data:image/")] == [path.as_uri()]
        back, front = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (back, front)]
        assert (
            (brightness[0] < 150 and brightness[1] > 600)
            if dark
            else (brightness[0] > 700 and brightness[1] < 150)
        )
        sizes = page.evaluate(
            "[...document.querySelectorAll('figure > svg text')]"
            ".map(one => one.getBoundingClientRect().height)"
        )
        assert len(sizes) > 20 and min(sizes) > 9  # readable without zooming
        visible = (
            "[...document.querySelectorAll('.frames figure')].filter(one => one.offsetHeight)"
            ".map(one => one.innerText)"
        )
        assert page.evaluate(visible) == ["after epoch 0004"]
        page.evaluate(
            "(slider => { slider.value = 1; slider.dispatchEvent(new Event('input')) })"
            "(document.querySelector('input[type=range]'))"
        )
        assert page.evaluate(visible) == ["after epoch 0001"]


@pytest.mark.parametrize("odd", ["input_size: [[1], [2]]", "a: &a [1, *a]"])
def test_options_that_no_script_has_written(tmp_path, odd):
    folder = make_run(tmp_path / "run")
    name, official = (
        odd.partition(":")[0],
        {
            "model": "mae_vit_base_patch16",
            "norm_pix_loss": True,
            "mask_ratio": 0.75,
            "input_size": 224,
            "batch_size": 64,
            "accum_iter": 64,
            "warmup_epochs": 15,
            "epochs": 400,
            "nb_classes": 1000,
            "finetune": "x",
        },
    )
    official.pop(name, None)
    (folder / "options.yaml").write_text(odd + "\n" + yaml.safe_dump(official))
    assert name in Page(report.write([folder])).source


def test_a_name_that_no_file_can_have(tmp_path):
    with pytest.raises(ValueError, match="--output x.*: cannot be written"):
        report.write([make_run(tmp_path / "run")], "x" * 300)
