"""Static graphs (--compile): a model is traced at its first call with each input shape."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator

import paddle

# Harmless warnings of Paddle 3.3 and 2.6 about their own tracing.
WARNINGS = ("Tensor do not have 'place' interface", r"The Attr\(force_cpu\)")


def compiled(model: paddle.nn.Layer) -> paddle.nn.Layer:
    """Return `model`, traced from now on, with the same parameters. Code that cannot be traced fails."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    return paddle.jit.to_static(model, full_graph=True)


@contextlib.contextmanager
def layer_by_layer() -> Iterator[None]:
    """Context: run compiled models as if they were not compiled, so that hooks of layers are called."""
    paddle.jit.enable_to_static(False)
    try:
        yield
    finally:
        paddle.jit.enable_to_static(True)


def check(device: str, amp: str | None, recompute: bool) -> str:
    """Check --compile against the other flags; return a line for the log, or "".

    Args:
        device: "gpu" or "cpu".
        amp: None, "float16" or "bfloat16", as `util.compute.amp.resolve` returns it.
        recompute: --recompute.

    Raises:
        ValueError: if a compiled model cannot do what another flag asks for.
    """
    if recompute:
        raise ValueError(
            "--compile and --recompute exclude each other: Paddle recomputes outside of static "
            "graphs only; pass one of the two"
        )
    if device == "cpu" and amp is not None:
        raise ValueError(
            "--compile: on a CPU it runs Paddle's own operations, which compute in float32 "
            "only; pass --amp off, or remove --compile"
        )
    if device == "cpu":
        return "--compile on a CPU runs Paddle's own operations, which are slower than oneDNN's"
    return ""
