"""Clipping of gradients by one norm."""
import paddle


@paddle.no_grad()
def clip_grad_norm(parameters, max_norm):
    """Scale the gradients of `parameters` down, in place, so that their common 2-norm is at most `max_norm`.

    An optimizer's own grad_clip would take one norm a parameter group, and paddle.nn.utils.clip_grad_norm_ cannot add
    up gradients of two types, which --amp_level O2 has. The norm is taken in float32 and stays on the device.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = paddle.linalg.norm(paddle.stack([paddle.linalg.norm(g.astype("float32")) for g in gradients]))
    factor = paddle.clip(max_norm / (norm + 1e-6), max=1.0)
    for gradient in gradients:
        gradient.multiply_(factor.astype(gradient.dtype))
