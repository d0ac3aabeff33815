"""The first layer or parameter with a NaN, by hand-made layers."""

import paddle
import pytest
from paddle import nn

from util.run import nonfinite
from util.run.epoch_log import EpochLog
from util.run.nonfinite import describe, first_non_finite


class Chain(nn.Layer):
    """Divides by `divisor` between two layers, and returns a pair."""

    def __init__(self, divisor):
        super().__init__()
        self.divisor = divisor
        self.first, self.middle, self.last = nn.Identity(), nn.Identity(), nn.Linear(2, 2)

    def forward(self, x):
        return self.last(self.middle(self.first(x) / self.divisor)), paddle.to_tensor([1])


def test_the_first_layer_is_named_with_the_range_of_its_input():
    model = Chain(0.0)
    found = first_non_finite(model, lambda: model(paddle.to_tensor([[-2.0, 3.0]])))
    # -2 / 0 and 3 / 0, that is: no input of `middle` is finite.
    assert found["layer"] == "middle" and found["inputs"] == [
        {"shape": [1, 2], "min": None, "max": None, "not_finite": 2}
    ]


def test_the_range_is_that_of_finite_values():
    model = nn.Sequential(nn.Linear(3, 1))
    model[0].weight.set_value(paddle.full([3, 1], 3e38))
    found = first_non_finite(model, lambda: model(paddle.to_tensor([[-2.0, 5.5, 1e30]])))
    assert found["layer"] == "0" and found["inputs"] == [
        {"shape": [1, 3], "min": -2.0, "max": pytest.approx(1e30), "not_finite": 0}
    ]
    assert describe(found) == "the first layer whose output is not finite is 0 (input -2 to 1e+30)"


def test_values_that_are_not_finite_are_counted():
    model = nn.Sequential(nn.Linear(3, 1))
    found = first_non_finite(model, lambda: model(paddle.to_tensor([[-2.0, 5.5, float("inf")]])))
    assert found["inputs"] == [{"shape": [1, 3], "min": -2.0, "max": 5.5, "not_finite": 1}]
    assert describe(found).endswith("(input -2 to 5.5 and 1 values that are not finite)")


def test_a_finite_pass_is_reported_as_such_and_leaves_no_hooks():
    model = Chain(1.0)
    found = first_non_finite(model, lambda: model(paddle.ones([1, 2])))
    assert found == {} and describe(found) == "every layer's output is finite"
    assert not any(layer._forward_post_hooks for layer in model.sublayers())


@pytest.mark.filterwarnings("ignore:When training, we now always track")
def test_running_statistics_stay_as_they_are():
    model = nn.Sequential(nn.BatchNorm1D(2))
    first_non_finite(model, lambda: model(paddle.to_tensor([[1.0, 9.0], [3.0, 5.0]])))
    assert model[0]._mean.tolist() == [0, 0]


def test_without_the_batch_only_parameters_can_be_named():
    found = first_non_finite(Chain(0.0), None)
    assert found == {"layer": None} and "unknown" in describe(found)


def test_hooks_go_when_the_pass_fails():
    model = Chain(1.0)
    with pytest.raises(ZeroDivisionError):
        first_non_finite(model, lambda: 1 / 0)
    assert not any(layer._forward_post_hooks for layer in model.sublayers())


def test_a_parameter_comes_before_the_layers():
    model = Chain(0.0)
    model.last.bias.set_value(paddle.to_tensor([1.0, float("inf")]))
    found = first_non_finite(model, lambda: model(paddle.ones([1, 2])))
    assert found == {"parameter": "last.bias"} and describe(found).startswith(
        "parameter last.bias is not finite"
    )


def test_the_error_tells_where_it_happened():
    log = EpochLog(4, 20)
    log.lrs = [1.5e-4] * 18
    with pytest.raises(FloatingPointError) as error:
        nonfinite.stop(log, 17, Chain(0.0), (paddle.ones([1, 2]),))
    assert str(error.value) == (
        "the loss of epoch 4 step 17 is not finite (lr 1.500e-04): the first layer whose output is not "
        "finite is middle (input without finite values)"
    )
