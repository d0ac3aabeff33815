"""Where the first number that is not finite comes from."""
import paddle

from util import compilation, operations


def not_finite(epoch, step, lr, model, inputs):
    """The FloatingPointError to raise when the loss of a step was not finite.

    Args:
        model, inputs: the network and what it was called with last; it runs once more, in the caller's precision.
    """
    return FloatingPointError(f"the loss of epoch {epoch} step {step} is not finite (lr {lr:.3e}): "
                              + first_non_finite(model, lambda: model(*inputs)))


def first_non_finite(model, forward):
    """A sentence that names the first parameter or layer of `model` with a value that is not finite.

    Args:
        forward: runs the model once, on the batch whose loss was not finite.
    """
    for name, p in model.named_parameters():
        if not paddle.isfinite(p).all().item():
            return (f"parameter {name} is not finite: an earlier update did it "
                    "(a gradient overflowed, or the learning rate is too high)")
    found = []

    def hook(name):
        def look(layer, inputs, output):
            tensors = [t for t in (output if isinstance(output, (tuple, list)) else [output])
                       if isinstance(t, paddle.Tensor) and t.is_floating_point()]
            if not found and not all(paddle.isfinite(t).all().item() for t in tensors):
                found.append(name)
        return look

    handles = [layer.register_forward_post_hook(hook(name)) for name, layer in model.named_sublayers()]
    try:
        with paddle.no_grad(), operations.by_paddle(), compilation.layer_by_layer():  # so that each layer is called
            forward()
    finally:
        for handle in handles:
            handle.remove()
    return f"the first layer whose output is not finite is {found[0]}" if found else "every layer's output is finite"
