import paddle
import pytest
from paddle import nn

from util.finite import first_non_finite, not_finite


class Chain(nn.Layer):
    """Doubles, divides by `divisor` and doubles again; gives a pair."""

    def __init__(self, divisor):
        super().__init__()
        self.divisor = divisor
        self.first, self.middle, self.last = nn.Identity(), nn.Identity(), nn.Linear(2, 2)

    def forward(self, x):
        return self.last(self.middle(self.first(x) / self.divisor)), paddle.to_tensor([1])


def test_the_first_layer_is_named():
    model = Chain(0.0)
    assert first_non_finite(model, lambda: model(paddle.ones([1, 2]))) == (
        "the first layer whose output is not finite is middle")


def test_a_finite_pass_is_reported_as_such_and_leaves_no_hooks():
    model = Chain(1.0)
    assert first_non_finite(model, lambda: model(paddle.ones([1, 2]))) == "every layer's output is finite"
    assert not any(layer._forward_post_hooks for layer in model.sublayers())


def test_hooks_go_when_the_pass_fails():
    model = Chain(1.0)
    with pytest.raises(ZeroDivisionError):
        first_non_finite(model, lambda: 1 / 0)
    assert not any(layer._forward_post_hooks for layer in model.sublayers())


def test_a_parameter_comes_before_the_layers():
    model = Chain(0.0)
    model.last.bias.set_value(paddle.to_tensor([1.0, float("inf")]))
    found = first_non_finite(model, lambda: model(paddle.ones([1, 2])))
    assert found.startswith("parameter last.bias is not finite")


def test_the_error_tells_where_it_happened():
    error = not_finite(4, 17, 1.5e-4, Chain(0.0), (paddle.ones([1, 2]),))
    assert isinstance(error, FloatingPointError)
    assert str(error) == ("the loss of epoch 4 step 17 is not finite (lr 1.500e-04): "
                          "the first layer whose output is not finite is middle")
