"""Origin of a NaN or infinite loss: the first parameter or layer with such a value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import paddle

from util.compute import compilation, operations

if TYPE_CHECKING:
    from util.run.epoch_log import EpochLog


def stop(log: EpochLog, step: int, model: paddle.nn.Layer, inputs: tuple[Any, ...] | None) -> None:
    """Raise FloatingPointError for a NaN or infinite loss; the default `on_nan` of the engines.

    Args:
        log: of the epoch.
        step: the step with that loss.
        model: runs once more, in the precision of the caller.
        inputs: of the model in that step; None if they are gone.
    """
    raise error(log, step, first_non_finite(model, None if inputs is None else lambda: model(*inputs)))


def error(log: EpochLog, step: int, found: Mapping[str, Any]) -> FloatingPointError:
    """Return the exception for the loss in `step`; `found` is the result of `first_non_finite`."""
    return FloatingPointError(
        f"the loss of epoch {log.epoch} step {step} is not finite (lr "
        f"{log.lrs[step]:.3e}): " + describe(found)
    )


def first_non_finite(model: paddle.nn.Layer, forward: Callable[[], Any] | None) -> dict[str, Any]:
    """Find the first parameter or layer of `model` with a NaN or infinite value.

    Running statistics stay unchanged.

    Args:
        model: to search.
        forward: runs the model once, on the batch with the NaN loss; None if that batch is gone.

    Returns {"parameter": name}; or {"layer": name, "inputs": [{"shape", "min", "max", "not_finite"}, ...]};
    or {} if all values are finite; or {"layer": None} without `forward`. min and max are those of the finite
    values, or None; not_finite counts the others.
    """
    for name, p in model.named_parameters():
        if not paddle.isfinite(p).all().item():
            return {"parameter": name}
    if forward is None:
        return {"layer": None}
    found: dict[str, Any] = {}
    statistics = [
        (p, p.clone()) for name, p in model.named_parameters() if name.endswith(("._mean", "._variance"))
    ]

    def hook(name: str) -> Callable[..., Any]:
        def look(layer: paddle.nn.Layer, inputs: Any, output: Any) -> None:
            if not found and not all(paddle.isfinite(t).all().item() for t in _tensors(output)):
                found.update(layer=name, inputs=[_range(t) for t in _tensors(inputs)])

        return look

    handles = [layer.register_forward_post_hook(hook(name)) for name, layer in model.named_sublayers()]
    try:
        # Neither fused nor compiled, so that the hook of each layer is called.
        with paddle.no_grad(), operations.by_paddle(), compilation.layer_by_layer():
            forward()
    finally:
        for handle in handles:
            handle.remove()
        for value, before in statistics:  # a forward pass in training updates those of a BatchNorm
            value.set_value(before)
    return found


def describe(found: Mapping[str, Any]) -> str:
    """Return the sentence about the result of `first_non_finite`."""
    if "parameter" in found:
        return (
            f"parameter {found['parameter']} is not finite: an earlier update caused this "
            "(a gradient overflowed, or the learning rate is too high)"
        )
    if "layer" not in found:
        return "every layer's output is finite"
    if found["layer"] is None:
        return "its origin is unknown, because its batch is gone"
    ranges = " and ".join(map(_in_words, found["inputs"]))
    return f"the first layer whose output is not finite is {found['layer']} (input {ranges})"


def _in_words(values: Mapping[str, Any]) -> str:
    if values["min"] is None:
        return "without finite values"
    others = f" and {values['not_finite']} values that are not finite" if values["not_finite"] else ""
    return f"{values['min']:.3g} to {values['max']:.3g}{others}"


def _tensors(values: Any) -> list[paddle.Tensor]:
    return [
        t
        for t in (values if isinstance(values, (tuple, list)) else [values])
        if isinstance(t, paddle.Tensor) and t.is_floating_point()
    ]


def _range(tensor: paddle.Tensor) -> dict[str, Any]:
    values = tensor.astype("float32")
    finite = values.masked_select(paddle.isfinite(values))
    low, high = (finite.min().item(), finite.max().item()) if finite.size else (None, None)
    return {
        "shape": list(tensor.shape),
        "min": low,
        "max": high,
        "not_finite": int(values.size - finite.size),
    }
