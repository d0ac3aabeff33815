"""Where the first number that is not finite comes from."""
import paddle

from util.compute import compilation, operations


def stop(log, step, model, inputs):
    """Raise the FloatingPointError about a loss that is not finite: what engines do unless they are told otherwise.

    Args:
        log: util.run.epoch_log.EpochLog of the epoch; step: the step with that loss.
        model, inputs: the network and what it was called with, or None; it runs once more, in the caller's precision.
    """
    raise error(log, step, first_non_finite(model, None if inputs is None else lambda: model(*inputs)))


def error(log, step, found):
    """The FloatingPointError about `step`; `found` as `first_non_finite` returns it."""
    return FloatingPointError(f"the loss of epoch {log.epoch} step {step} is not finite (lr {log.lrs[step]:.3e}): "
                              + describe(found))


def first_non_finite(model, forward):
    """The first parameter or layer of `model` with a value that is not finite. Leaves running statistics as they are.

    Args:
        forward: runs the model once, on the batch whose loss was not finite; None where that batch is gone.
    Returns:
        {"parameter": name}; or {"layer": name, "inputs": [{"shape", "min", "max", "not_finite"}, ...]}, where min and
        max are of the finite values, or None, and not_finite counts the others; or {} if all are finite;
        without `forward`, {"layer": None}.
    """
    for name, p in model.named_parameters():
        if not paddle.isfinite(p).all().item():
            return {"parameter": name}
    if forward is None:
        return {"layer": None}
    found = {}
    statistics = [(p, p.clone()) for name, p in model.named_parameters() if name.endswith(("._mean", "._variance"))]

    def hook(name):
        def look(layer, inputs, output):
            if not found and not all(paddle.isfinite(t).all().item() for t in _numbers(output)):
                found.update(layer=name, inputs=[_range(t) for t in _numbers(inputs)])
        return look

    handles = [layer.register_forward_post_hook(hook(name)) for name, layer in model.named_sublayers()]
    try:
        with paddle.no_grad(), operations.by_paddle(), compilation.layer_by_layer():  # so that each layer is called
            forward()
    finally:
        for handle in handles:
            handle.remove()
        for value, before in statistics:  # of a BatchNorm, which a forward pass in training moves
            value.set_value(before)
    return found


def describe(found):
    """The sentence about what `first_non_finite` has found."""
    if "parameter" in found:
        return (f"parameter {found['parameter']} is not finite: an earlier update did it "
                "(a gradient overflowed, or the learning rate is too high)")
    if "layer" not in found:
        return "every layer's output is finite"
    if found["layer"] is None:
        return "where it arose is not known any more, since its batch is gone"
    ranges = " and ".join(map(_in_words, found["inputs"]))
    return f"the first layer whose output is not finite is {found['layer']} (input {ranges})"


def _in_words(one):
    if one["min"] is None:
        return "without finite values"
    others = f" and {one['not_finite']} values that are not finite" if one["not_finite"] else ""
    return f"{one['min']:.3g} to {one['max']:.3g}{others}"


def _numbers(values):
    return [t for t in (values if isinstance(values, (tuple, list)) else [values])
            if isinstance(t, paddle.Tensor) and t.is_floating_point()]


def _range(tensor):
    values = tensor.astype("float32")
    finite = values.masked_select(paddle.isfinite(values))
    low, high = (finite.min().item(), finite.max().item()) if finite.size else (None, None)
    return {"shape": list(tensor.shape), "min": low, "max": high, "not_finite": int(values.size - finite.size)}
