"""Pictures of any number of channels, read from files that this test writes byte by byte."""
import io
import os
import sys
import tracemalloc

import numpy as np
import pytest
from band_writer import npy, npy_with_header, tiff, tiff_pages
from data_files import encoded
from PIL import Image

from util.images import band_files
from util.images.bands import Bands
from util.images.decode import Picture, UnreadableImage, decode

RNG = np.random.default_rng(0)
COUNTS = RNG.integers(0, 10000, [6, 4, 13]).astype(np.uint16)


def pixels(data, in_chans):
    """[H, W, C] of what is read."""
    picture = Picture(data, in_chans=in_chans)
    assert picture.size == picture.decode().size
    return np.stack([np.asarray(band) for band in picture.decode().split()], axis=2)


@pytest.mark.parametrize("kind", ["u1", "i1", "<u2", ">u2", "<i2", "<u4", "<f2", "<f4", ">f8"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
def test_the_numbers_of_an_array_file_stay_what_they_are(kind, channels):
    array = (RNG.integers(0, 120, [6, 7, channels]) - 50 * (kind[-2] in "if")).astype(kind)
    for stored in (array, array.transpose(2, 0, 1), np.asfortranarray(array)):
        got = pixels(npy(stored), channels)
        assert got.dtype == (np.uint8 if kind == "u1" else np.float32)
        np.testing.assert_array_equal(got, array)
    if channels == 1:
        np.testing.assert_array_equal(pixels(npy(array[:, :, 0]), 1), array)


@pytest.mark.parametrize("make", [
    lambda array: tiff(array),
    lambda array: tiff(array, order=">"),
    lambda array: tiff(array, planar=True),
    lambda array: tiff(array, deflate=True),
    lambda array: tiff(array, deflate=True, planar=True, order=">"),
    lambda array: tiff_pages([array[:, :, channel:channel + 1] for channel in range(array.shape[2])]),
    lambda array: tiff_pages([*(array[:, :, channel:channel + 1] for channel in range(array.shape[2])),
                              array[:3, :2, :1]]),
    lambda array: tiff_pages([array, array[:3, :2]]),
], ids=["plain", "big-endian", "planes", "deflate", "deflated-planes", "pages", "pages-and-overview", "overview"])
@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "f4"])
@pytest.mark.parametrize("channels", [2, 13])
def test_tiff(make, kind, channels):
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
    for image, expected in ((Image.new("RGBA", (1, 1), (255, 0, 0, 51)), [76, 51]),   # .299 of 255
                            (Image.new("RGB", (1, 1), (9, 9, 9)), [9, 255]),
                            (Image.merge("LA", (Image.new("L", (1, 1), 7), Image.new("L", (1, 1), 3))), [7, 3])):
        found = decode(encoded(image), in_chans=2)
        assert found.mode == "LA" and found.getpixel((0, 0)) == tuple(expected)


@pytest.mark.parametrize("data, in_chans, why", [
    (npy(COUNTS[:, :, :3]), 13, r"its shape is \[6, 4, 3\], and --in_chans 13 expects \[height, width, 13\] or \[13, "),
    (npy(COUNTS[:, :, 0]), 13, r"its shape is \[6, 4\]"),
    (npy(COUNTS[None]), 13, r"its shape is \[1, 6, 4, 13\]"),
    (npy(COUNTS[:, :, :6]), 6, r"\[6, 4, 6\], of which the first and the last axis could be the 6 channels"),
    (npy(COUNTS[:0]), 13, "no pixels"),
    (npy(np.where(COUNTS == COUNTS.max(), np.nan, COUNTS)), 13, "not finite"),
    (npy(COUNTS * 1e35), 13, "too large for float32"),
    (npy(COUNTS * 1j), 13, "it holds complex128"),
    (npy(COUNTS > 7), 13, "it holds bool"),
    (npy(COUNTS)[:-1], 13, r"\[6, 4, 13\] of uint16, 624 bytes; 623 are there"),
    (npy(COUNTS)[:50], 13, "header is damaged"),
    (npy_with_header("{'descr': '<u2', 'fortran_order': False, 'shape': (-2, 4, 13), }"), 13, r"\[-2, 4, 13\]"),
    (npy_with_header("{'descr': '<u2', 'fortran_order': False, 'shape': (9"), 13, "header is damaged"),
    (npy_with_header("__import__('os').abort()"), 13, "header is damaged"),
    (tiff(COUNTS[:, :, :3]), 13, r"its shape is \[6, 4, 3\]"),
    (tiff_pages([COUNTS[:, :, :1]] * 14), 13, r"its shape is \[6, 4, 14\]"),
    (tiff_pages([COUNTS[:, :, :1], COUNTS[:, :, :1].astype("f4")]), 2, "uint16, float32"),
    (tiff(COUNTS)[:400], 13, r"\S"),
    (tiff(COUNTS, tags={257: 7, 278: 7}), 13, "truncated"),
    (tiff(COUNTS, tags={273: 400}), 13, "truncated"),
    (tiff(COUNTS, deflate=True, tags={256: 40000, 257: 40000, 278: 40000}), 13, "83,200,000,000 bytes"),
    (encoded(Image.new("RGB", (2, 2))), 13, "it has the channels R G B, and --in_chans asks for 13"),
])
def test_what_does_not_fit_is_named_with_a_reason(data, in_chans, why):
    tracemalloc.start()
    with pytest.raises(UnreadableImage, match=f"^train/x cannot be read as a picture: .*{why}"):
        decode(data, in_chans=in_chans, name="train/x")
    largest = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert largest < 10 ** 7


def test_a_header_that_tells_of_terabytes_takes_no_memory():
    data = npy_with_header("{'descr': '<f8', 'fortran_order': False, 'shape': (10000000, 10000000, 13), }", b"\0" * 99)
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


def test_arrays_are_told_apart_as_files_are():
    for array in (COUNTS, COUNTS.transpose(2, 0, 1)):
        assert band_files.from_array(array, 13).size == (4, 6)


def test_pages_are_the_channels_of_a_picture_of_three(tmp_path):
    """Pillow would take the first page for all of them. With another number of pages the first is the picture."""
    pages = np.random.default_rng(0).integers(0, 256, (3, 6, 5)).astype("uint8")
    got = decode(tiff_pages(pages[..., None]), in_chans=3)
    assert (np.stack([np.asarray(band) for band in got.split()]) == pages).all()
    grey = decode(tiff_pages(pages[:2, ..., None]), in_chans=3)
    assert all((np.asarray(band) == pages[0]).all() for band in grey.split())
