import builtins
import io

import numpy as np
import pytest
from data_files import PHOTOS
from PIL import Image

from util.images.crops import CROP_RATIO, random_resized_crop_box
from util.images.decode import EncodedImage, decode
from util.images.resize import backend, crop_and_resize
from util.system.keyed_random import IMAGE, keyed_generator


def cubic(x):
    """Keys' kernel with a = -0.5, the published antialiasing filter of PIL's BICUBIC."""
    x = np.abs(x)
    outer = np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0)
    return np.where(x < 1, 1.5 * x**3 - 2.5 * x**2 + 1, outer)


def resized(values, size):
    """Resize the first axis by antialiased bicubic: the kernel is as wide as a pixel of the smaller image."""
    scale = len(values) / size
    centre = (np.arange(size) + 0.5) * scale
    weights = cubic((np.arange(len(values)) + 0.5 - centre[:, None]) / max(scale, 1))
    return np.clip(np.rint(weights / weights.sum(axis=1, keepdims=True) @ values), 0, 255)


def test_resizing_is_antialiased_bicubic_inside_the_box():
    for size in ((7, 11), (40, 23), (9, 60)):
        pixels = np.random.default_rng(0).integers(0, 256, (40, 50)).astype(np.uint8)
        left, top, right, bottom = box = (6, 3, 43, 29)
        inside = pixels[top:bottom, left:right]
        result = np.asarray(crop_and_resize(Image.fromarray(pixels), box, size)).astype(float)
        assert result.shape == size
        # Pillow 9.5 always narrows the rows first, Pillow 13 begins with the cheaper direction.
        orders = [
            resized(resized(inside.T, size[1]).T, size[0]),
            resized(resized(inside, size[0]).T, size[1]).T,
        ]
        assert min(np.abs(result - expected).max() for expected in orders) <= 1


@pytest.mark.parametrize("name", ["pillow", "fast"])
def test_a_backend_gives_a_part_of_an_image_of_any_mode(name):
    if name == "fast":
        pytest.importorskip("cykooz_resizer")
    rng = np.random.default_rng(0)
    for channels, mode in ((1, "L"), (3, "RGB"), (4, "RGBA")):
        # Smooth enough that both agree, and without transparency, which both weigh in.
        pixels = np.array(
            Image.fromarray(rng.integers(0, 256, (5, 7, 3), np.uint8)).resize((70, 50)).convert(mode)
        )
        image = Image.fromarray(pixels)
        before = pixels.copy()
        part = backend(name)(image, (10, 5, 60, 45), (20, 25))
        assert part.mode == mode and part.size == (25, 20)
        for channel in range(channels):
            plane = before.reshape(50, 70, -1)[5:45, 10:60, channel].astype(float)
            expected = resized(resized(plane.T, 25).T, 20)
            assert np.abs(np.asarray(part).reshape(20, 25, -1)[..., channel] - expected).max() <= 1
        np.testing.assert_array_equal(np.asarray(image), before)


def psnr(image, reference):
    difference = np.asarray(image, float) - np.asarray(reference, float)
    return 10 * np.log10(255**2 / (difference**2).mean())


@pytest.mark.parametrize("photo", PHOTOS, ids=lambda path: path.stem)
def test_fast_differs_little_from_pillow(photo):
    pytest.importorskip("cykooz_resizer")
    width, height = EncodedImage(photo).size
    seen = set()
    for index in range(12):
        box = random_resized_crop_box(
            width, height, keyed_generator(0, IMAGE, 0, index), scale=(0.2, 1.0), ratio=CROP_RATIO
        )
        for side in (224, 64):
            exact = backend("pillow")(EncodedImage(photo), box, (side, side))
            fast = backend("fast")(EncodedImage(photo), box, (side, side))
            reduced = min(box[2] - box[0], box[3] - box[1]) >= 2 * side  # then the decoder has reduced it
            seen.add(reduced)
            assert psnr(fast, exact) > (32 if reduced else 50)
            if not reduced:
                difference = np.abs(np.asarray(fast, int) - np.asarray(exact, int))
                assert (difference > 0).mean() < 0.3 and (difference > 1).mean() < 0.02
    assert seen == {True, False}


def turned_jpeg(orientation):
    """JPEG of a photograph, stored with an EXIF orientation; upright it has 200 x 152 pixels."""
    upright = decode(PHOTOS[0]).resize((200, 152))
    back = {
        1: None,
        3: Image.Transpose.ROTATE_180,
        6: Image.Transpose.ROTATE_90,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright if back[orientation] is None else upright.transpose(back[orientation])
    exif = Image.Exif()
    exif[274] = orientation
    file = io.BytesIO()
    stored.save(file, "JPEG", quality=95, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_fast_reduces_turned_pictures_upright(orientation):
    pytest.importorskip("cykooz_resizer")
    data = turned_jpeg(orientation)
    picture = EncodedImage(data)
    assert picture.size == (200, 152)
    box = (60, 14, 172, 134)  # 112 x 120
    reduced = backend("fast")(picture, box, (28, 28))
    assert picture._image.size in ((50, 38), (38, 50))  # a quarter
    assert psnr(reduced, crop_and_resize(decode(data), box, (28, 28))) > 26
    picture = EncodedImage(data)
    assert psnr(backend("fast")(picture, box, (57, 57)), crop_and_resize(decode(data), box, (57, 57))) > 40
    assert sorted(picture._image.size) == [152, 200]  # half of 112 would not be enough


def test_a_missing_package_is_named(monkeypatch):
    real = builtins.__import__
    import importlib

    monkeypatch.setattr(importlib, "import_module", lambda name: real(f"{name}_that_is_missing"))
    with pytest.raises(ValueError, match="--image_backend fast: .*pip install cykooz-resizer"):
        backend("fast")
    assert backend("pillow") is crop_and_resize


def test_an_unknown_backend_is_answered_by_the_list():
    with pytest.raises(ValueError, match="--image_backend quick: .*pillow, fast"):
        backend("quick")
