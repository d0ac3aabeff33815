"""Classifier: probabilities by hand, every form of a picture, several threads."""

import itertools
import math
import threading
import time

import numpy as np
import paddle
import pytest
from PIL import Image

import main_infer
import models_vit
from util.images import decode
from util.infer.classifier import ImageClassifier
from util.infer.paddle_engine import ModelPredictor

INFO = {
    "task": "classification",
    "classes": ["a", "b", "c"],
    "temperature": 1.0,
    "outputs": {"logits": [None, 3]},
    "input": {"shape": [None, 3, 4, 6], "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}


class Fixed:
    """Predictor with logits from a function of the images."""

    precision = "float32"

    def __init__(self, logits, info=INFO):
        self.logits, self.info = logits, info

    def __call__(self, images):
        return {"logits": np.array(self.logits(images), "float32")}


def fixed(*rows, **info):
    """Predictor with these logits for any images."""
    return Fixed(lambda images: rows, {**INFO, **info})


def test_probabilities_are_a_softmax_of_the_logits():
    """By hand: e^0, e^1, e^2 over their sum, and a row far from zero."""
    model = ImageClassifier(fixed([1, 2, 0], [900, 0, 1000]), topk=2)
    first, second = model.top(model.probabilities(np.zeros([2, 3, 4, 6])))
    total = 1 + math.e + math.e**2
    assert [name for name, _ in first] == ["b", "a"] and [name for name, _ in second] == ["c", "a"]
    assert [value for _, value in first] == pytest.approx([math.e**2 / total, math.e / total], rel=1e-6)
    assert [value for _, value in second] == pytest.approx([1, math.exp(-100)], rel=1e-6)


@pytest.mark.parametrize("given, own", [(2, 1), (None, 2)])
def test_temperature_divides_the_logits(given, own):
    """By hand: e^2, e^4 and e^0 at temperature 2 are e^1, e^2 and e^0."""
    model = ImageClassifier(fixed([2, 4, 0], temperature=own), temperature=given)
    total = 1 + math.e + math.e**2
    np.testing.assert_allclose(
        model.probabilities(np.zeros([1, 3, 4, 6])), [[math.e / total, math.e**2 / total, 1 / total]]
    )


def left_and_right(images):
    """Return the means of the left half, of the right half, and 0 as logits."""
    left, right = images[..., :3].mean(axis=(1, 2, 3)), images[..., 3:].mean(axis=(1, 2, 3))
    return np.stack([left, right, 0 * left], axis=1)


def test_flip_is_the_mean_of_the_probabilities_of_both():
    images = np.zeros([2, 3, 4, 6], "float32")
    images[0, ..., :3], images[1] = 1, 1
    plain = ImageClassifier(Fixed(left_and_right)).probabilities(images)
    assert plain[0, 0] > 2 * plain[0, 1]
    found = ImageClassifier(Fixed(left_and_right), tta="flip").probabilities(images)
    np.testing.assert_allclose(found[0], [(plain[0, 0] + plain[0, 1]) / 2] * 2 + [plain[0, 2]])
    np.testing.assert_allclose(found[1], plain[1])


def test_ties_are_in_the_order_of_the_labels():
    names = [str(number) for number in range(100)]
    model = ImageClassifier(fixed([0, 1] * 50, classes=names, outputs={"logits": [None, 100]}), topk=200)
    assert [name for name, _ in model.top(model.probabilities(np.zeros([1, 3, 4, 6])))[0]] == names[
        1::2
    ] + names[::2]


def test_nan_is_an_error():
    with pytest.raises(FloatingPointError, match="not finite"):
        ImageClassifier(fixed([1, np.nan, 0])).probabilities(np.zeros([1, 3, 4, 6]))


def test_impossible_values_name_their_flag():
    for changes, flag in (
        ({"tta": "rotate"}, "--tta"),
        ({"temperature": math.nan}, "--temperature"),
        ({"batch_size": 0}, "--batch_size"),
        ({"topk": 0}, "--topk"),
    ):
        with pytest.raises(ValueError, match=flag):
            ImageClassifier(fixed([1, 2, 3]), **changes)


def test_a_model_of_features_names_no_classes():
    with pytest.raises(ValueError, match="mean.*--features"):
        ImageClassifier(fixed([1], task="features", outputs={"mean": [None, 8]}))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Checkpoint whose answer depends on the picture."""
    paddle.seed(0)
    sizes = {"img_size": [8, 8], "in_chans": 3, "num_classes": 3, "global_pool": True}
    model = models_vit.vit_tiny_patch4(**sizes)
    model.head.weight.set_value(paddle.randn([96, 3]))
    path = tmp_path_factory.mktemp("classifier") / "model.pd"
    paddle.save(
        {
            "model": model.state_dict(),
            "architecture": {"name": "vit_tiny_patch4", **sizes},
            "classes": [*"abc"],
        },
        str(path),
    )
    return path


@pytest.fixture
def pictures(tmp_path):
    rng, paths = np.random.default_rng(0), []
    for number in range(6):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(rng.integers(0, 256, [9, 11, 3]).astype("uint8")).save(paths[-1])
    return paths


def test_every_form_of_a_picture(path, pictures):
    model, picture = main_infer.Classifier(path), pictures[0]
    expected = model(str(picture))
    assert [name for name, _ in expected] == sorted("abc", key=lambda name: -dict(expected)[name])
    assert sum(value for _, value in expected) == pytest.approx(1)
    image = Image.open(picture)
    pixels = np.asarray(image)
    with open(picture, "rb") as file:
        assert model(file) == expected
    for form in (
        picture,
        picture.read_bytes(),
        image,
        pixels,
        Image.fromarray(pixels),
        np.dstack([pixels, np.full([9, 11], 255, "uint8")]),
    ):
        assert model(form) == expected
    grey = pixels[..., 0]
    assert model(grey) == model(grey[..., None]) == model(np.dstack([grey] * 3)) != expected
    both = model([picture, grey])
    assert [dict(answer) for answer in both] == [
        pytest.approx(dict(expected), abs=1e-6),
        pytest.approx(dict(model(grey)), abs=1e-6),
    ]
    assert both[0] != both[1] and model([]) == []


def test_a_picture_opened_by_its_owner_is_turned_upright_too(path, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, [8, 12, 3]).astype("uint8")
    exif = Image.Exif()
    exif[274] = 6  # stored lying on its left side
    Image.fromarray(pixels).save(tmp_path / "lying.png", exif=exif)
    model = main_infer.Classifier(path)
    upright = model(np.rot90(pixels, -1).copy())
    lying = tmp_path / "lying.png"
    assert model(Image.open(lying)) == model(lying) == upright != model(pixels)


def test_what_is_no_picture(path, tmp_path):
    model = main_infer.Classifier(path)
    for form, said in (
        (np.zeros([4, 4, 3]), r"uint8 .*, got float64 \[4, 4, 3\]"),
        (np.zeros([4, 4, 2], "uint8"), "got uint8"),
        (np.zeros([0, 4], "uint8"), "no pixels"),
        (7, "got int"),
    ):
        with pytest.raises(ValueError, match=said):
            model(form)
    Image.new("RGB", (1, 20000)).save(tmp_path / "line.png")
    with pytest.raises(
        decode.UnreadableImage, match="line.png .* 1 x 20000 pixels, one side more than 100 times"
    ):
        model(tmp_path / "line.png")
    assert len(model(Image.new("RGB", (2, 200)))) == 3
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(decode.UnreadableImage, match="text.png cannot be read as a picture"):
        model([tmp_path / "text.png"])


def test_several_threads_get_each_its_own_answer(path, pictures):
    """Answers may differ by rounding, because the number of cores of a product may differ."""
    model = main_infer.Classifier(path, batch_size=2)
    expected = [dict(model(picture)) for picture in pictures]
    differences = []

    def ask(number):
        for _ in range(10):
            answer = dict(model(pictures[number]))
            differences.append(max(abs(answer[name] - expected[number][name]) for name in "abc"))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(pictures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(differences) == 60 and max(differences) < 1e-6
    apart = [
        max(abs(one[name] - other[name]) for name in "abc")
        for one, other in itertools.combinations(expected, 2)
    ]
    assert min(apart) > 1e-5


def test_a_checkpoint_is_computed_for_one_thread_at_a_time():
    inside, seen = [], []

    class Model(paddle.nn.Layer):
        def forward(self, images):
            inside.append(1)
            time.sleep(0.01)
            seen.append(len(inside))
            inside.pop()
            return images

    predictor = ModelPredictor(Model(), {"task": "classification"}, device="cpu")
    threads = [threading.Thread(target=predictor, args=(np.zeros([1, 2], "float32"),)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 5


def test_options_of_the_constructor(path, pictures):
    assert main_infer.Classifier(path, topk=1)(pictures[0]) == main_infer.Classifier(path)(pictures[0])[:1]
    assert main_infer.Classifier(path, input_size=[12, 8])(pictures[0]) != main_infer.Classifier(path)(
        pictures[0]
    )
    with pytest.raises(TypeError):
        main_infer.Classifier(path, top_k=1)
    with pytest.raises(ValueError, match="--engine onnxruntime: .*tools/export.py"):
        main_infer.Classifier(path, engine="onnxruntime")
