import numpy as np
import paddle

from util.images.normalize import Normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# every value in every channel
EVERY = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)


def test_numpy_and_tensors_give_the_same_bits():
    expected = np.empty(EVERY.shape, np.float32)
    for channel, (mean, std) in enumerate(zip(np.float32(MEAN), np.float32(STD), strict=True)):
        # one rounding after each of the three steps
        for place, value in np.ndenumerate(EVERY[0, channel]):
            expected[0, channel][place] = (np.float32(value) / np.float32(255) - mean) / std
    normalize = Normalize(MEAN, STD)
    for got in (normalize(EVERY), normalize.tensor(paddle.to_tensor(EVERY)).numpy()):
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected)


def test_other_numbers_of_channels():
    for channels in (1, 4):
        pixels = np.full([2, channels, 2, 2], 51, np.uint8)
        mean, std = np.arange(channels) / 10, np.arange(channels) + 1.0
        expected = np.broadcast_to(((0.2 - mean) / std)[:, None, None], pixels.shape)
        np.testing.assert_allclose(Normalize(mean, std)(pixels), expected, atol=1e-7)
        assert (pixels == 51).all()
