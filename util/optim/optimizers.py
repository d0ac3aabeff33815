"""The optimizers that --opt names."""
import paddle

from util.optim.fused_adamw import FusedAdamW
from util.optim.lars import LARS


def make(name, lr, groups, *, betas=None, momentum=None, fused=False, masters=False):
    """The optimizer of that name; arguments that it does not have are left alone.

    adamw: weight decay apart from the gradient (arXiv 1711.05101): p -= lr * decay * p beside Adam's step.
    sgd: as PyTorch's, g = grad + decay * p, v = momentum * v + g, p -= lr * v: decay is a part of the gradient, so that
        values of adamw's recipes are far too strong here.
    lars: see util.optim.lars; decay is a part of the gradient, before that is rescaled.

    Args:
        groups: of util.optim.param_groups, each with a weight decay, and if it likes a share of the learning rate.
        betas: of adamw; None: 0.9 and 0.999; momentum: of the others.
        fused: adamw by one operation a group; masters: keep float32 copies of weights in half precision.
    """
    if name == "lars":
        return LARS(lr, groups, momentum=momentum)
    if name == "sgd":
        return paddle.optimizer.Momentum(lr, momentum, parameters=groups)
    AdamW = FusedAdamW if fused else paddle.optimizer.AdamW
    beta1, beta2 = betas or (0.9, 0.999)
    return AdamW(lr, beta1=beta1, beta2=beta2, parameters=groups, multi_precision=masters)
