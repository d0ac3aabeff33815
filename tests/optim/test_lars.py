"""LARS against a loop in numpy."""

import numpy as np
import paddle
import pytest

from util.optim.lars import LARS

RATES = [0.5, 0.5, 2.0, 0.1]


def parameters(arrays):
    made = []
    for array in arrays:
        p = paddle.create_parameter(array.shape, "float32")
        p.set_value(array)
        made.append(p)
    return made


def numpy_lars(start, gradients, weight_decay):
    p, v = start.astype("float64"), 0.0
    for rate, gradient in zip(RATES, gradients):
        g = gradient.astype("float64")
        if p.ndim > 1:
            g = g + weight_decay * p
            p_norm, g_norm = np.sqrt((p**2).sum()), np.sqrt((g**2).sum())
            if p_norm > 0 and g_norm > 0:
                g = g * 0.001 * p_norm / g_norm
        v = 0.9 * v + g
        p = p - rate * v
    return p


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_several_steps(weight_decay):
    rng = np.random.default_rng(0)
    starts = [
        rng.standard_normal(shape).astype("float32") for shape in ([3, 4], [4], [2, 2], [2, 2], [2, 3, 2])
    ]
    starts[2][:] = 0  # a weight of length 0
    gradients = [rng.standard_normal([len(RATES), *start.shape]).astype("float32") for start in starts]
    gradients[3][1:3] = 0  # gradients of length 0: the momentum goes on
    made = parameters(starts)
    optimizer = LARS(0.0, made, weight_decay=weight_decay)
    for step, rate in enumerate(RATES):
        optimizer.set_lr(rate)
        sum((p * paddle.to_tensor(g[step])).sum() for p, g in zip(made, gradients)).backward()
        optimizer.step()
        optimizer.clear_grad()
    for p, start, gradient in zip(made, starts, gradients):
        np.testing.assert_allclose(p.numpy(), numpy_lars(start, gradient, weight_decay), rtol=1e-5, atol=1e-6)


def test_the_length_of_a_weights_gradient_does_not_matter():
    start = np.random.default_rng(0).standard_normal([3, 4]).astype("float32")
    made = parameters([start, start])
    ((made[0] + 1000 * made[1]) * paddle.to_tensor(start)).sum().backward()
    LARS(1.0, made).step()
    np.testing.assert_allclose(made[0].numpy(), made[1].numpy(), rtol=1e-6)
    np.testing.assert_allclose(made[0].numpy(), start * 0.999, rtol=1e-5)  # trust coefficient 0.001


def test_frozen_and_unused_parameters_stay():
    made = parameters([np.ones([2, 2], "float32")] * 3)
    made[1].stop_gradient = True
    (made[0] + made[1]).sum().backward()
    LARS(1.0, made, weight_decay=0.1).step()
    assert (made[0] != 1).all() and (made[1] == 1).all() and (made[2] == 1).all()
