"""Images of any number of channels, read from files that this test writes byte by byte."""

import io
import os
import sys
import tracemalloc

import numpy as np
import pytest
from band_writer import npy, npy_with_header, tiff, tiff_pages
from data_files import encoded
from PIL import Image

from util.images.bands import Bands, array_from_image, channels_last, image_from_array
from util.images.decode import EncodedImage, UnreadableImage, decode

RNG = np.random.default_rng(0)
COUNTS = RNG.integers(0, 10000, [6, 4, 13]).astype(np.uint16)


def pixels(data, in_chans):
    """Decoded pixels [H, W, C]."""
    picture = EncodedImage(data, in_chans=in_chans)
    assert picture.size == picture.decode().size
    return array_from_image(picture.decode()).transpose(1, 2, 0)


@pytest.mark.parametrize(
    "kind, channels",
    [
        ("u1", 1),
        ("i1", 2),
        ("<u2", 3),
        (">u2", 4),
        ("<i2", 5),
        ("<u4", 13),
        ("<f2", 1),
        ("<f4", 3),
        (">f8", 13),
        ("u1", 4),
    ],
)
def test_npy_values_stay_the_same(kind, channels):
    array = (RNG.integers(0, 120, [6, 7, channels]) - 50 * (kind[-2] in "if")).astype(kind)
    for stored in (array, array.transpose(2, 0, 1), np.asfortranarray(array)):
        got = pixels(npy(stored), channels)
        assert got.dtype == (np.uint8 if kind == "u1" else np.float32)
        np.testing.assert_array_equal(got, array)
    if channels == 1:
        np.testing.assert_array_equal(pixels(npy(array[:, :, 0]), 1), array)


def pages(array, *more):
    return tiff_pages([*(array[:, :, channel : channel + 1] for channel in range(array.shape[2])), *more])


@pytest.mark.parametrize(
    "make, kind, channels",
    [
        (tiff, "u1", 13),
        (tiff, "f4", 2),
        (lambda array: tiff(array, order=">"), "u2", 13),
        (lambda array: tiff(array, planar=True), "i2", 2),
        (lambda array: tiff(array, deflate=True), "f4", 13),
        (lambda array: tiff(array, deflate=True, planar=True, order=">"), "u2", 2),
        (pages, "u1", 2),
        (pages, "i2", 13),
        (lambda array: pages(array, array[:3, :2, :1]), "f4", 13),
        (lambda array: tiff_pages([array, array[:3, :2]]), "u1", 2),
    ],
    ids=[
        "u1",
        "f4",
        "big-endian",
        "planes",
        "deflate",
        "deflated-planes",
        "pages-u1",
        "pages-i2",
        "pages-and-overview",
        "overview",
    ],
)
def test_tiff_values_stay_the_same(make, kind, channels):
    array = (COUNTS[:, :, :channels] // 64).astype(kind)
    got = pixels(make(array), channels)
    assert got.dtype == (np.uint8 if kind == "u1" else np.float32)
    np.testing.assert_array_equal(got, array)


def test_four_bands_that_pillow_does_not_read():
    array = COUNTS[:, :, :4].astype(np.float32)
    np.testing.assert_array_equal(pixels(tiff(array), 4), array)


def test_of_eight_bits_one_channel_is_grey_and_three_are_rgb():
    array = COUNTS.astype(np.uint8)
    assert decode(npy(array[:, :, :3])).mode == "RGB" and decode(npy(array[:, :, 0]), in_chans=1).mode == "L"
    assert isinstance(decode(npy(array[:, :, :4]), in_chans=4), Bands)  # the fourth is not said to be alpha


def test_two_channels_of_an_ordinary_picture_are_grey_and_alpha():
    for image, expected in (
        (Image.new("RGBA", (1, 1), (255, 0, 0, 51)), [76, 51]),  # .299 of 255
        (Image.new("RGB", (1, 1), (9, 9, 9)), [9, 255]),
        (Image.merge("LA", (Image.new("L", (1, 1), 7), Image.new("L", (1, 1), 3))), [7, 3]),
    ):
        found = decode(encoded(image), in_chans=2)
        assert found.mode == "LA" and found.getpixel((0, 0)) == tuple(expected)


DOES_NOT_FIT = [
    (npy(COUNTS[:, :, :3]), 13, r"its shape is \[6, 4, 3\].*--in_chans 13"),
    (npy(COUNTS[:, :, 0]), 13, r"its shape is \[6, 4\]"),
    (npy(COUNTS[None]), 13, r"its shape is \[1, 6, 4, 13\]"),
    (npy(COUNTS[:, :, :6]), 6, r"\[6, 4, 6\]: the first and the last axis could both be"),
    (npy(COUNTS[:0]), 13, "no pixels"),
    (npy(np.where(COUNTS == COUNTS.max(), np.nan, COUNTS)), 13, "NaN, infinite"),
    (npy(COUNTS * 1e35), 13, "too large for float32"),
    (npy(COUNTS * 1j), 13, "it holds complex128"),
    (npy(COUNTS > 7), 13, "it holds bool"),
    (npy(COUNTS)[:-1], 13, r"\[6, 4, 13\] of uint16, 624 bytes; 623 are there"),
    (npy(COUNTS)[:50], 13, "header is damaged"),
    (
        npy_with_header("{'descr': '<u2', 'fortran_order': False, 'shape': (-2, 4, 13), }"),
        13,
        r"\[-2, 4, 13\]",
    ),
    (npy_with_header("{'descr': '<u2', 'fortran_order': False, 'shape': (9"), 13, "header is damaged"),
    (npy_with_header("__import__('os').abort()"), 13, "header is damaged"),
    (tiff(COUNTS[:, :, :3]), 13, r"its shape is \[6, 4, 3\]"),
    (tiff_pages([COUNTS[:, :, :1]] * 14), 13, r"its shape is \[6, 4, 14\]"),
    (tiff_pages([COUNTS[:, :, :1], COUNTS[:, :, :1].astype("f4")]), 2, "uint16, float32"),
    (tiff(COUNTS)[:400], 13, r"\S"),
    (tiff(COUNTS, tags={257: 7, 278: 7}), 13, "truncated"),
    (tiff(COUNTS, tags={273: 400}), 13, "truncated"),
    (tiff(COUNTS, deflate=True, tags={256: 40000, 257: 40000, 278: 40000}), 13, "83,200,000,000 bytes"),
    (encoded(Image.new("RGB", (2, 2))), 13, "R G B.*--in_chans asks for 13"),
]


def test_files_that_do_not_fit_are_named_with_a_reason():
    for data, in_chans, reason in DOES_NOT_FIT:
        tracemalloc.start()
        with pytest.raises(UnreadableImage, match=f"^train/x cannot be read as a picture: .*{reason}"):
            decode(data, in_chans=in_chans, name="train/x")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 10**7, reason


def test_a_header_that_claims_terabytes_takes_no_memory():
    data = npy_with_header(
        "{'descr': '<f8', 'fortran_order': False, 'shape': (10000000, 10000000, 13), }", b"\0" * 99
    )
    with pytest.raises(UnreadableImage, match="10,400,000,000,000,000 bytes; 99 are there"):
        decode(data, in_chans=13)


class Malice:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_an_array_file_is_not_run(tmp_path):
    target = tmp_path / "made"
    data = npy(np.array([Malice(str(target))], object))
    with pytest.raises(UnreadableImage, match="it holds object"):
        decode(data, in_chans=13)
    assert not target.exists()
    np.load(io.BytesIO(data), allow_pickle=True)
    assert target.exists()  # the file is as evil as it is meant to be


def test_without_tifffile(monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UnreadableImage, match="pip install tifffile"):
        decode(tiff(COUNTS), in_chans=13)


def test_advice_fits_the_file():
    with pytest.raises(UnreadableImage, match="Repair it or take it out of the data"):
        decode(npy(COUNTS), in_chans=5, name="x.npy")


def test_arrays_may_have_the_channels_first_or_last():
    for array in (COUNTS, COUNTS.transpose(2, 0, 1)):
        assert image_from_array(channels_last(array, 13)).size == (4, 6)


def test_pages_are_the_channels_of_a_picture_of_three(tmp_path):
    """Pillow would take the first page for all of them. With another number of pages it is the image."""
    written = np.random.default_rng(0).integers(0, 256, (3, 6, 5)).astype("uint8")
    assert (array_from_image(decode(tiff_pages(written[..., None]), in_chans=3)) == written).all()
    assert (array_from_image(decode(tiff_pages(written[:2, ..., None]), in_chans=3)) == written[:1]).all()
