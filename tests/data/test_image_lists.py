"""Lists of images in every form, and the errors of wrong ones."""

import json

import numpy as np
import pytest

from util.data.image_lists import read_image_list

SUFFIXES = (".jpg", ".png")


@pytest.fixture
def lists(tmp_path):
    """Function that writes a list, from text, bytes or an object for JSON, and reads it."""

    def lists(content, suffix):
        path = tmp_path / f"train{suffix}"
        if suffix == ".json" and not isinstance(content, (bytes, str)):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_image_list(str(path), SUFFIXES)

    return lists


def found(image_list):
    return (
        list(image_list.names),
        None if image_list.labels is None else image_list.labels.tolist(),
        image_list.classes,
    )


NAMES = ["b.jpg", "a/my cat.PNG", "ä.jpg"]


NAMES_ALONE = [
    (".txt", "b.jpg\na/my cat.PNG\nä.jpg"),
    (".txt", "\ufeff\n  b.jpg  \r\n\r\na/my cat.PNG\r\nä.jpg\r\n"),
    (".csv", "b.jpg\na/my cat.PNG\nä.jpg\n"),
    (".csv", '\ufeffImage\r\nb.jpg\r\n"a/my cat.PNG"\r\nä.jpg\r\n'),
    (".csv", "width, filename\n5,b.jpg\n6,a/my cat.PNG\n7,ä.jpg\n"),
    (".json", NAMES),
    (".json", [[name] for name in NAMES]),
    (".json", [{"path": name, "width": 5} for name in NAMES]),
]
NUMBERED = [
    (".txt", "b.jpg 3\na/my cat.PNG  0\nä.jpg 03\n"),
    (".txt", "b.jpg\t3\na/my cat.PNG\t0\r\n\nä.jpg \t 3"),
    (".csv", "b.jpg,3\na/my cat.PNG,0\nä.jpg,3\n"),
    (".csv", "LABEL,file\n3,b.jpg\n0,a/my cat.PNG\n\n3,ä.jpg\n"),
    (".csv", "class,box,path\n3,1,b.jpg\n0,,a/my cat.PNG\n3,2,ä.jpg\n"),
    (".json", [["b.jpg", 3], ["a/my cat.PNG", 0], ["ä.jpg", "3"]]),
    (".json", [{"file": name, "label": label} for name, label in zip(NAMES, (3, 0, 3), strict=True)]),
    (".json", dict(zip(NAMES, (3, 0, 3), strict=True))),
]
NAMED = [
    (".txt", "b.jpg\tzebra\na/my cat.PNG\thouse cat\nä.jpg\tzebra"),
    (".csv", "image,class\nb.jpg,zebra\na/my cat.PNG,house cat\nä.jpg,zebra"),
    (".json", {"b.jpg": "zebra", "a/my cat.PNG": "house cat", "ä.jpg": "zebra"}),
]


def test_names_alone(lists):
    """The order stays. A JSON list of names is the img_ids of MindSpore's MAE (tot_ids.json)."""
    for suffix, content in NAMES_ALONE:
        assert found(lists(content, suffix)) == (NAMES, None, None), content


def test_numbers_are_the_labels(lists):
    """Classes 1 and 2 have no image, but still there are four classes."""
    for suffix, content in NUMBERED:
        image_list = lists(content, suffix)
        assert found(image_list) == (NAMES, [3, 0, 3], ["0", "1", "2", "3"]), content
        assert image_list.numbered and image_list.labels.dtype == np.int64


def test_names_of_classes_are_sorted(lists):
    for suffix, content in NAMED:
        image_list = lists(content, suffix)
        assert found(image_list) == (NAMES, [1, 0, 1], ["house cat", "zebra"]) and not image_list.numbered


def test_in_text_the_last_word_is_a_class_unless_it_ends_as_a_picture(lists):
    assert found(lists("my cat.jpg\nyour cat.png", ".txt"))[:2] == (["my cat.jpg", "your cat.png"], None)
    assert found(lists("my cat\nyour cat", ".txt")) == (["my", "your"], [0, 0], ["cat"])
    assert found(lists("a.gif\nb.gif", ".txt"))[:2] == (["a.gif", "b.gif"], None)  # a single word is a name


def test_a_picture_may_be_named_twice_in_one_class(lists):
    assert found(lists("a.jpg 1\nb.jpg 0\na.jpg 1", ".txt"))[:2] == (["a.jpg", "b.jpg", "a.jpg"], [1, 0, 1])
    assert found(lists("a.jpg\na.jpg", ".txt"))[0] == ["a.jpg", "a.jpg"]
    with pytest.raises(ValueError, match=r"train\.txt, line 3: a\.jpg is of another class in line 1"):
        lists("a.jpg 1\nb.jpg 0\na.jpg 0", ".txt")


WRONG = [  # suffix, content, place
    (".txt", "", ": names no picture"),
    (".csv", "file,label\n", ": names no picture"),
    (".json", [], ": names no picture"),
    (".txt", "a.jpg\nb\xe4.jpg".encode("latin-1"), ", line 2: this is no text in UTF-8"),
    (".txt", "a.jpg\n\nb\0.jpg", ", line 3: a zero byte"),
    (".txt", "a.jpg 1\n\nb.jpg", ", line 3: this line has none, and line 1 has"),
    (".txt", "a.jpg\nb.jpg 1", ", line 2: this line has a class, and line 1 has none"),
    (".txt", "a.jpg\t1\nb.jpg 1", ", line 2: expected a name, a tab and"),
    (".txt", "a.jpg\t1\nb.jpg\t", ", line 2: expected a name, a tab and a class"),
    (".txt", "a.jpg\t1\t2", ", line 1: expected a name, a tab and a class"),
    (".txt", "a.jpg\t1\n\t2", ", line 2: there is no name here"),
    (".txt", "a.jpg 1\nb.jpg cat", ", line 2: the class is cat, and in line 1"),
    (".txt", "a.jpg cat\nb.jpg 1", ", line 1: the class is cat, and in line 2 it is 1"),
    (".txt", "a.jpg 1\nb.jpg 20121224", ", line 2: the class 20121224: "),
    (".csv", "a,b,c\nd,e,f", ", line 1: 3 columns need a header"),
    (
        ".csv",
        "file,label,class\na.jpg,1,x",
        ", line 1: several columns could be meant: label, class; keep one",
    ),
    (".csv", "file,label\na.jpg,1,2", ", line 2: expected 2 columns, as in the first line, got 3"),
    (".csv", "a.jpg,1\nb.jpg", ", line 2: expected 2 columns, as in the first line, got 1"),
    (".csv", "file,label\na.jpg,", ", line 2: there is no class beside a.jpg"),
    (".csv", 'file\n"a.jpg', ", line 2: this is no CSV ("),
    (".json", '["a.jpg",\n', ", line 2: this is no JSON ("),
    (".json", 5, ": expected a list or an object, got 5"),
    (".json", ["a.jpg", 5], ", entry 2: expected a name, [name, class] or"),
    (".json", [["a.jpg", 1.5]], ", entry 1: expected a name"),
    (".json", [["a.jpg", True]], ", entry 1: expected a name"),
    (".json", [["a.jpg", 1, 2]], ", entry 1: expected a name"),
    (".json", {"a.jpg": None}, ", entry 1: expected a name"),
    (".json", [{"file": "a.jpg", "path": "b.jpg"}], ", entry 1: expected a name"),
    (".json", ["a\0.jpg"], ", entry 1: expected a name"),
    (".json", ["\ud800.jpg"], ": it has a name that no file can have"),
    (".json", ["a.jpg", ["b.jpg", 1]], ", entry 2: this entry has a class, and entry 1 has none"),
    (".json", [["a.jpg", -1]], ", entry 1: the class -1: classes are numbered from 0"),
    (".json", '{"a.jpg": 1, "a.jpg": 2}', ": this is no list of images (a.jpg stands twice in an object)"),
    (".json", "[" * 100_000, ": this is no list of images ("),
]


def test_errors_say_the_place(lists):
    for suffix, content, place in WRONG:
        with pytest.raises(ValueError) as error:
            lists(content, suffix)
        assert f"train{suffix}{place}" in str(error.value) and str(error.value).startswith("--data_path: ")


def test_a_list_that_cannot_be_read(tmp_path):
    (tmp_path / "train.txt").mkdir()
    with pytest.raises(
        ValueError, match=r"--data_path: .*train\.txt: this list cannot be read \(Is a directory\)"
    ):
        read_image_list(str(tmp_path / "train.txt"), SUFFIXES)


def test_an_unknown_header_is_no_image(lists):
    for suffix, content in (
        (".csv", "filepath,category\na.jpg,cat\nb.jpg,dog\n"),
        (".txt", "# list\na.jpg cat\nb.jpg dog\n"),
        (".csv", "picture\na.jpg\n"),
    ):
        with pytest.raises(ValueError, match="line 1.*a.jpg.* header"):
            lists(content, suffix)


def test_numbers_that_pandas_made_decimals_are_numbers(lists):
    found_list = lists("".join(f"{number}.jpg {number}.0\n" for number in (10, 2, 0)), ".txt")
    assert found_list.labels.tolist() == [10, 2, 0] and found_list.numbered and len(found_list.classes) == 11
