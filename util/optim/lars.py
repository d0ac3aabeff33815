"""LARS, the optimizer of the linear probe (arXiv 1708.03888, in the form of MoCo v3 and MAE)."""
import paddle


class LARS(paddle.optimizer.Momentum):
    """Momentum on gradients that are rescaled, parameter by parameter, to the length of the parameter.

    For weights: g = grad + weight_decay * p, g *= trust_coefficient * |p| / |g| (as it is where either length is 0).
    Biases and norm scales (at most 1-D) are neither rescaled nor decayed. Then v = momentum * v + g, p -= lr * v.
    Paddle's own LarsMomentumOptimizer does not rescale at all on a CPU when the weight decay is 0.

    Args:
        parameters: Tensors, or groups of util.optim.param_groups, which have a weight decay and a share of the rate each.
    """

    def __init__(self, learning_rate, parameters, weight_decay=0.0, momentum=0.9, trust_coefficient=0.001):
        parameters = list(parameters)
        groups = parameters if isinstance(parameters[0], dict) else [{"params": parameters, "weight_decay": weight_decay}]
        self._rescaled = [(p, group["weight_decay"]) for group in groups for p in group["params"] if p.ndim > 1]
        self._trust_coefficient = trust_coefficient
        super().__init__(learning_rate, momentum, parameters=[{**group, "weight_decay": 0.0} for group in groups]
                         if groups is parameters else parameters)

    @paddle.no_grad()
    def step(self):
        for p, weight_decay in self._rescaled:
            if p.stop_gradient or p.grad is None:
                continue
            gradient = p.grad + weight_decay * p
            p_length, g_length = paddle.norm(p), paddle.norm(gradient)
            trust = self._trust_coefficient * p_length / g_length
            usable = paddle.logical_and(p_length > 0, g_length > 0)
            p.grad = gradient * paddle.where(usable, trust, paddle.ones_like(trust))
        super().step()
