"""Images of every kind against pixel values written by hand."""

import io
import struct

import numpy as np
import pytest
from data_files import encoded
from PIL import Image

from util.images.decode import UnreadableImage, decode, to_channels


def pixels(data, in_chans=3):
    return np.asarray(decode(data, in_chans=in_chans)).tolist()


def grey(rows):
    return Image.fromarray(np.array(rows, np.uint8))


def tiff(bits, photometric, data, *, width=2, sample_format=1):
    """A one-row uncompressed little-endian TIFF, put together from its specification."""
    tags = [
        (256, 3, width),
        (257, 3, 1),
        (258, 3, bits),
        (259, 3, 1),
        (262, 3, photometric),
        (273, 4, 8),
        (277, 3, 1),
        (278, 3, 1),
        (279, 4, len(data)),
        (339, 3, sample_format),
    ]
    data += b"\0" * (len(data) % 2)
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return (
        b"II*\0"
        + struct.pack("<I", 8 + len(data))
        + data
        + struct.pack("<H", len(tags))
        + entries
        + b"\0\0\0\0"
    )


def test_rgb_jpeg_is_what_pillow_decodes():
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(rng.integers(0, 256, (24, 16, 3), np.uint8)), "JPEG")
    image = decode(data)
    assert image.mode == "RGB" and image.size == (16, 24)
    np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(data))))


def test_an_rgb_picture_is_not_copied():
    image = Image.new("RGB", (2, 2))
    assert to_channels(image, 3) is image
    grey_image = Image.new("L", (2, 2))
    assert to_channels(grey_image, 1) is grey_image


def test_grey_gets_three_equal_channels():
    assert pixels(encoded(grey([[0, 7, 255]]))) == [[[0, 0, 0], [7, 7, 7], [255, 255, 255]]]


def test_rgb_to_grey_weighs_the_channels_as_bt601():
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]]], np.uint8))
    assert pixels(encoded(image), in_chans=1) == [[76, 150, 29, 9]]  # .299, .587, .114 of 255


def test_an_opaque_picture_gets_full_alpha():
    assert pixels(encoded(grey([[0, 7]])), in_chans=4) == [[[0, 0, 0, 255], [7, 7, 7, 255]]]


def test_one_bit():
    image = Image.fromarray(np.array([[True, False]]))
    assert image.mode == "1"
    assert pixels(encoded(image)) == [[[255, 255, 255], [0, 0, 0]]]
    assert pixels(encoded(image), in_chans=1) == [[255, 0]]


def test_transparency_shows_white_unless_alpha_is_asked_for():
    rgba = [[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]]
    data = encoded(Image.fromarray(np.array(rgba, np.uint8)))
    assert pixels(data) == [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]]
    assert pixels(data, in_chans=4) == rgba


def test_grey_with_alpha():
    data = encoded(Image.merge("LA", (grey([[10, 10, 0]]), grey([[255, 0, 51]]))))
    assert pixels(data, in_chans=1) == [[10, 255, 204]]
    assert pixels(data) == [[[10] * 3, [255] * 3, [204] * 3]]
    assert pixels(data, in_chans=4) == [[[10, 10, 10, 255], [10, 10, 10, 0], [0, 0, 0, 51]]]


TRANSPARENCIES = [(None, [0, 0, 255]), (2, [255, 255, 255]), (bytes([255, 255, 51]), [204, 204, 255])]


@pytest.mark.filterwarnings("error")  # PIL's own convert("RGB") warns of bytes, and drops them
def test_palette():
    for transparency, third in TRANSPARENCIES:
        image = grey([[0, 1, 2]])
        image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
        data = encoded(image, **({} if transparency is None else {"transparency": transparency}))
        assert pixels(data) == [[[255, 0, 0], [0, 255, 0], third]]


def test_one_transparent_colour():
    data = encoded(
        Image.fromarray(np.array([[[255, 0, 0], [254, 0, 0]]], np.uint8)), transparency=(255, 0, 0)
    )
    assert pixels(data) == [[[255, 255, 255], [254, 0, 0]]]
    assert pixels(data, in_chans=4) == [[[255, 0, 0, 0], [254, 0, 0, 255]]]
    data = encoded(grey([[7, 8]]), transparency=7)
    assert pixels(data, in_chans=1) == [[255, 8]]


def test_cmyk_jpeg_of_adobe_is_not_shown_as_its_negative():
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[..., 0] = 255  # all cyan: no red
    data = encoded(Image.frombytes("CMYK", (16, 16), ink.tobytes()), "JPEG", quality=100)
    assert b"Adobe" in data  # such files hold 255 - ink
    colour = np.asarray(decode(data), int)[8, 8]
    assert abs(colour - [0, 255, 255]).max() <= 2
    assert abs(int(np.asarray(decode(data, in_chans=1))[8, 8]) - 179) <= 2  # .587 and .114 of 255


SIXTEEN_BIT_FORMATS = [
    lambda rows: encoded(Image.fromarray(rows), "PNG"),
    lambda rows: encoded(Image.fromarray(rows), "TIFF"),
    lambda rows: encoded(Image.frombytes("I;16B", rows.shape[::-1], rows.astype(">u2").tobytes()), "TIFF"),
    lambda rows: b"P5 %d %d 65535\n" % rows.shape[::-1] + rows.astype(">u2").tobytes(),
]


def test_sixteen_bits_are_scaled_not_clipped():
    for make in SIXTEEN_BIT_FORMATS:
        data = make(np.array([[0, 257, 25700, 32896, 65535, 128, 129]], np.uint16))
        assert pixels(data, in_chans=1) == [[0, 1, 100, 128, 255, 0, 1]]  # divided by 257 and rounded
        assert pixels(data)[0][2] == [100, 100, 100]


def test_sixteen_bits_with_a_transparent_grey():
    data = encoded(Image.fromarray(np.array([[0, 32896, 32897]], np.uint16)), transparency=32896)
    assert pixels(data, in_chans=1) == [[0, 255, 128]]
    assert pixels(data, in_chans=4) == [[[0, 0, 0, 255], [128, 128, 128, 0], [128, 128, 128, 255]]]


def test_sixteen_bit_tiff_in_which_zero_is_white():
    assert pixels(tiff(16, 0, struct.pack("<2H", 65535, 25700)), in_chans=1) == [[0, 155]]


def test_twelve_bit_tiff():
    # 0xfff, 0x642 = 1602 / 16.06
    assert pixels(tiff(12, 1, bytes([0xFF, 0xF6, 0x42])), in_chans=1) == [[255, 100]]


WITHOUT_WHITE = [
    (tiff(32, 1, struct.pack("<2f", 0.5, 1), sample_format=3), "floating-point"),
    (tiff(32, 1, struct.pack("<2i", 70000, 0), sample_format=2), "from 0 to 70000"),
    (tiff(16, 1, struct.pack("<2h", -1, 5), sample_format=2), "from -1 to 5"),
]


def test_pixels_without_a_white_are_refused():
    for data, what in WITHOUT_WHITE:
        with pytest.raises(ValueError, match=what):
            decode(data)


ORIENTATIONS = [
    (1, [[0, 50, 100], [150, 200, 250]]),
    (2, [[100, 50, 0], [250, 200, 150]]),
    (3, [[250, 200, 150], [100, 50, 0]]),
    (4, [[150, 200, 250], [0, 50, 100]]),
    (5, [[0, 150], [50, 200], [100, 250]]),
    (6, [[150, 0], [200, 50], [250, 100]]),
    (7, [[250, 100], [200, 50], [150, 0]]),
    (8, [[100, 250], [50, 200], [0, 150]]),
]


def test_exif_orientation():
    for orientation, upright in ORIENTATIONS:
        exif = Image.Exif()
        exif[274] = orientation
        for file_format, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("JPEG", {})):
            data = encoded(grey([[0, 50, 100], [150, 200, 250]]), file_format, exif=exif, **options)
            got = np.asarray(decode(data, in_chans=1), int)
            assert got.shape == np.shape(upright)
            assert abs(got - upright).max() <= (5 if file_format == "JPEG" else 0)


def test_a_damaged_exif_block_does_not_lose_the_image():
    for file_format, exif in (
        ("JPEG", b"garbage"),
        ("PNG", b"Exif\0\0garbage"),
        ("WEBP", b"Exif\0\0MM\0*\0"),
    ):
        data = encoded(Image.new("RGB", (8, 8), "white"), file_format, exif=exif)
        assert decode(data).getpixel((4, 4)) == (255, 255, 255)


def test_path_and_open_file_give_what_the_bytes_give(tmp_path):
    data = encoded(grey([[1, 2, 3]]))
    path = tmp_path / "x.png"
    path.write_bytes(data)
    with open(path, "rb") as file:
        assert pixels(path) == pixels(str(path)) == pixels(file) == [[[1] * 3, [2] * 3, [3] * 3]]


def test_channel_numbers_below_one_are_refused():
    for in_chans in (0, -3):
        with pytest.raises(ValueError, match=rf"--in_chans {in_chans}:"):
            decode(encoded(grey([[0]])), in_chans=in_chans)


def noise_jpeg():
    return encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")


def test_unreadable_images_are_named(tmp_path):
    path = tmp_path / "8.jpg"
    for data, reason in (
        (b"<html>not found</html>", "no picture format"),
        (b"", "empty"),
        (noise_jpeg()[:2000], "truncated"),
    ):
        with pytest.raises(
            UnreadableImage, match=rf"^a\.tar/cat/7\.jpg cannot be read as a picture: .*{reason}"
        ):
            decode(data, name="a.tar/cat/7.jpg")
        path.write_bytes(data)
        with pytest.raises(UnreadableImage, match=rf"8\.jpg cannot be read as a picture: .*{reason}"):
            decode(path)
