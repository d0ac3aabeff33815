"""Models as static graphs (--compile): traced at the first call with each kind of input, and then run as a whole."""
import contextlib
import warnings

import paddle

# What Paddle 3.3 and 2.6 say of their own tracing.
WARNINGS = ("Tensor do not have 'place' interface", r"The Attr\(force_cpu\)")


def compiled(model):
    """`model`, which from now on is traced; its parameters and their names stay. What cannot be traced is an error."""
    for message in WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    return paddle.jit.to_static(model, full_graph=True)


@contextlib.contextmanager
def layer_by_layer():
    """Context: compiled models run as if they were not, so that hooks of their layers are called."""
    paddle.jit.enable_to_static(False)
    try:
        yield
    finally:
        paddle.jit.enable_to_static(True)


def check(device, amp, recompute):
    """ValueError where a compiled model could not do what another flag asks for; else a line for the log, or "".

    Args:
        device: "gpu" or "cpu"; amp: as `util.compute.amp.resolve` returns it; recompute: --recompute.
    """
    if recompute:
        raise ValueError("--compile and --recompute exclude each other: Paddle recomputes outside of static graphs "
                         "only; pass one of the two")
    if device == "cpu" and amp is not None:
        raise ValueError("--compile: on a CPU it runs Paddle's own operations, which compute in float32 only; pass "
                         "--amp off, or leave --compile out")
    return "--compile on a CPU runs Paddle's own operations, which are slower than oneDNN's" if device == "cpu" else ""
