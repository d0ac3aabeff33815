"""Marks of the tests that need something of the processor, or that are about its instruction sets."""
import pytest

from util import amp


def refusal(amp_flag, level="O1"):
    """The sentence with which this CPU refuses `--amp amp_flag`; "" if it takes it."""
    try:
        amp.resolve(amp_flag, "cpu", level)
    except ValueError as error:
        return str(error)
    return ""


needs_bfloat16 = pytest.mark.skipif(bool(refusal("bf16")), reason=refusal("bf16"))
BOTH_PRECISIONS = ["float32", pytest.param("bfloat16", marks=needs_bfloat16)]
