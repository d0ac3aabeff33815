"""What tests expect of the processor that they run on."""

import numpy as np
import paddle
import pytest

from util.compute import amp, onednn, operations

# Of values of the same image in other batches, relative to the largest: 3 times the most that we measured.
ROUNDING = 5e-6


def refusal():
    """The sentence with which this CPU refuses `--amp bf16`; "" if it takes it."""
    try:
        amp.resolve("bf16", "cpu")
    except ValueError as error:
        return str(error)
    return ""


needs_bfloat16 = pytest.mark.skipif(bool(refusal()), reason=refusal())
BOTH_PRECISIONS = ["float32", pytest.param("bfloat16", marks=needs_bfloat16)]


def batches_share_bits():
    """Whether an image's features have the same bits in every batch: where docs/seeing.md says so."""
    return (
        paddle.__version__.startswith("3.")
        and not operations.unavailable()
        and not operations._choice.by_paddle
        and onednn.instruction_set().startswith("AVX-512")
    )


def assert_same_in_any_batch(found, expected, name=""):
    """Arrays [N, ...] of the same images, computed in other batches."""
    if batches_share_bits():
        np.testing.assert_array_equal(found, expected, err_msg=name)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ROUNDING * np.abs(expected).max(), err_msg=name)
