"""Image transforms and mixing against torchvision and timm, for the numbers that those drew.

The references were recorded by tools/maintain/make_golden.py, with what their random functions gave.
"""

import hashlib

import numpy as np
import paddle
import parity
import pytest
from PIL import Image

from util.data.masking import Mask
from util.data.mixup import Mixup
from util.images.crops import CROP_RATIO, random_resized_crop_box
from util.images.randaugment import INCREASING, OPERATIONS, apply_operation
from util.images.random_erasing import RandomErasing, fill_boxes
from util.images.resize import crop_and_resize
from util.images.transforms import EvalTransform, FinetuneTransform, PretrainTransform

TRANSFORMS, TRANSFORMS_META = parity.load("transforms")
EVALUATION, _ = parity.load("evaluation")
RANDAUG, RANDAUG_META = parity.load("randaug")
ERASING, ERASING_META = parity.load("erasing")
MIXUP, MIXUP_META = parity.load("mixup")


class Recorded:
    """Generator that returns the reference's draws, if asked for the same ranges in the same order."""

    def __init__(self, draws):
        self.left = {kind: list(values) for kind, values in draws.items()}

    def _next(self, kind, *asked):
        *drawn_from, value = np.atleast_1d(self.left[kind].pop(0))
        np.testing.assert_allclose(asked, drawn_from, rtol=1e-6, err_msg=kind)  # torch's ranges are float32
        return value

    def random(self, size=None, dtype=None):
        if size is not None:  # mask noise, which no library draws here
            return np.zeros(size, dtype)
        return self._next("random")

    def uniform(self, low, high):
        return self._next("uniform", low, high)

    def normal(self, mean, std):
        return self._next("normal", mean, std)

    def integers(self, low, high, size=None):
        if size is not None:
            assert (low, high) == (0, len(OPERATIONS))
            return [OPERATIONS.index(self.left["operations"].pop(0)) for _ in range(size)]
        following = self.left.get("integers")
        if high == low + 1 and not (following and tuple(following[0][:2]) == (low, high)):
            return low  # timm does not draw where there is one number to choose from
        return int(self._next("integers", low, high))

    def standard_normal(self, shape, dtype):
        values, self.left["pixels"] = np.split(self.left["pixels"], [int(np.prod(shape))])
        return values.astype(dtype).reshape(shape)

    def all_used(self):
        return not any(len(values) for values in self.left.values())


def names(arrays, prefix):
    return sorted({name.split("/")[0] for name in parity.under(arrays, prefix)} - {"source"})


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_crop_boxes(library):
    for index in names(TRANSFORMS, f"boxes/{library}"):
        case = parity.under(TRANSFORMS, f"boxes/{library}/{index}")
        rng = Recorded(parity.under(case, "draws"))
        width, height = map(int, case["size"])
        box = random_resized_crop_box(
            width, height, rng, scale=TRANSFORMS_META["scale"][library], ratio=CROP_RATIO
        )
        parity.check("crop-boxes", box, case["box"], f"{library} {index}")
        assert rng.all_used()


def test_crop_pixels():
    source = Image.fromarray(TRANSFORMS["crops/source"])
    for index in names(TRANSFORMS, "crops"):
        expected = TRANSFORMS[f"crops/{index}/pixels"]
        box = tuple(map(int, TRANSFORMS[f"crops/{index}/box"]))
        parity.check("crop-pixels", crop_and_resize(source, box, expected.shape[:2]), expected, index)


@pytest.mark.parametrize("name", ["pretrain", "finetune"])
def test_whole_training_transform(name):
    normalization = {key: TRANSFORMS_META[key] for key in ("mean", "std")}
    mask = Mask("random", (6, 6), 0.5)
    transform = (
        PretrainTransform((32, 24), draw_noise=mask.draw, **normalization)
        if name == "pretrain"
        else FinetuneTransform((32, 24), erasing=RandomErasing(TRANSFORMS_META["reprob"]), **normalization)
    )
    source = Image.fromarray(TRANSFORMS["crops/source"])
    for index in names(TRANSFORMS, name):
        case = parity.under(TRANSFORMS, f"{name}/{index}")
        rng = Recorded(parity.under(case, "draws"))
        pixels, *others = transform(source, rng)
        images = transform.finish([paddle.to_tensor(pixels[None]), *([other] for other in others)])[0].numpy()
        parity.check(f"{name}-transform", images[0], case["values"], index)
        assert rng.all_used()


@pytest.mark.parametrize("size", [32, 96, 224, 448])
@pytest.mark.parametrize("name", ["wide", "high", "tiny", "grey"])
def test_evaluation(name, size):
    source = EVALUATION[f"{name}/source"]
    channels = 1 if source.ndim == 2 else 3
    transform = EvalTransform((size, size), mean=(0.0,) * channels, std=(1.0,) * channels)
    (pixels,) = transform(Image.fromarray(source))
    every = max(1, size // 48)
    parity.check(
        "evaluation", pixels[:, ::every, ::every], EVALUATION[f"{name}/{size}/pixels"], f"{name} {size}"
    )
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == str(EVALUATION[f"{name}/{size}/sha256"])


@pytest.mark.parametrize("operation", OPERATIONS)
def test_randaugment_operation(operation):
    compared = 0
    for mode in ("colour", "grey"):
        source, fill = Image.fromarray(RANDAUG[f"{mode}/source"]), tuple(RANDAUG_META["fill"][mode])
        for level, expected in parity.under(RANDAUG, f"{mode}/{operation}").items():
            result = apply_operation(source, operation, INCREASING[operation](float(level)), fill)
            parity.check("randaug", np.asarray(result), expected, f"{mode} {operation} {level}")
            compared += 1
    assert compared >= 6


@pytest.mark.parametrize(
    "index, mode, count", [(index, *case) for index, case in enumerate(ERASING_META["cases"])]
)
def test_random_erasing(index, mode, count):
    rng = Recorded(parity.under(ERASING, f"{index}/draws"))
    image = ERASING["image"]
    drawn = RandomErasing(ERASING_META["prob"], mode, count).draw(image.shape, rng)
    result = fill_boxes(image[None].copy(), [drawn])[0]
    parity.check("erasing", result, ERASING[f"{index}/result"], f"{mode} {count}")
    assert rng.all_used()


class RecordedBatch:
    """A generator that gives one array a call, each a number for every share."""

    def __init__(self, case):
        self.case, self.uniforms, self.whole = case, list(case["uniforms"]), list(case["integers"])

    def random(self, count):
        return self.uniforms.pop(0)

    def beta(self, a, b):
        # Where nothing is mixed the reference may not have got as far as choosing between the two.
        np.testing.assert_array_equal([a, b], [self.case["alphas"]] * 2)
        return self.case["betas"]

    def integers(self, low, high, size=None):
        return self.whole.pop(0) if self.whole else np.zeros(len(self.case["betas"]), int)


@pytest.mark.parametrize("index, settings", list(enumerate(MIXUP_META["cases"])))
def test_mixup(index, settings):
    case = parity.under(MIXUP, str(index))
    mixup = Mixup(
        **settings, label_smoothing=MIXUP_META["label_smoothing"], num_classes=MIXUP_META["num_classes"]
    )
    height, width = MIXUP["images"].shape[2:]
    shares, boxes = mixup.draw(len(MIXUP["images"]), height, width, RecordedBatch(case))
    if settings["mode"] == "pair":  # the reference has the first half; the partners share theirs
        shares, boxes = shares[:3], boxes[:3]
    parity.check("mixup-boxes", boxes, case["boxes"], str(settings))
    parity.check("mixup-shares", shares, case["shares"], str(settings))
    images, targets = mixup(
        paddle.to_tensor(MIXUP["images"]), paddle.to_tensor(MIXUP["labels"]), RecordedBatch(case)
    )
    parity.check("mixup-images", images.numpy(), case["images"], str(settings))
    parity.check("mixup-targets", targets.numpy(), case["targets"], str(settings))
