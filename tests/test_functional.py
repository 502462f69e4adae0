"""lrp.functional: torch's functions with a rule, one at a time."""

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lrp
from lrp.rules import Epsilon


def test_weights_are_constants() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    weight, bias = torch.randn(4, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    computed = weight * 2
    y = lrp.functional.linear(x, computed, bias, rule="zplus")
    assert torch.equal(y, F.linear(x, computed, bias))
    y.sum().backward()
    assert x.grad is not None
    assert weight.grad is None
    assert bias.grad is None


def test_an_input_that_needs_no_gradient_gets_torchs_function() -> None:
    x, weight = torch.randn(2, 3), torch.randn(4, 3)
    assert torch.equal(lrp.functional.linear(x, weight, rule="zplus"), F.linear(x, weight))


def test_bad_arguments() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    with pytest.raises(ValueError, match="rule='zpluss' is unknown: did you mean 'zplus'"):
        lrp.functional.linear(x, torch.randn(4, 3), rule="zpluss")
    with pytest.raises(TypeError):
        lrp.functional.linear(x, torch.randn(4, 3), rulle="zplus")


@pytest.mark.parametrize("name", ["avg_pool2d", "max_pool2d", "adaptive_avg_pool2d"])
@pytest.mark.parametrize("rule", ["epsilon", "flat", "gradient"])
def test_pools_equal_the_layers(name: str, rule: str) -> None:
    layers = {"avg_pool2d": lrp.AvgPool2d, "max_pool2d": lrp.MaxPool2d, "adaptive_avg_pool2d": lrp.AdaptiveAvgPool2d}
    function, layer = getattr(lrp.functional, name), layers[name](2)
    maps = []
    for explain in (lambda x: function(x, 2, rule=rule), lambda x: layer(x, explain=True, rule=rule)):
        x = networks.images()
        explain(x).square().sum().backward()
        maps.append(x.grad)
    assert torch.equal(*maps)


def test_batch_norm_on_its_own() -> None:
    x = networks.images()
    mean, var = torch.zeros(2, dtype=torch.float64), torch.full((2,), 4.0, dtype=torch.float64)
    y = lrp.functional.batch_norm(x, mean, var, eps=0.0, rule=Epsilon(0.0))
    assert torch.equal(y, x / 2)
    y.sum().backward()
    assert torch.allclose(x.grad, torch.ones_like(x))


class OneLayerByItsOwnRule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(lrp.functional.linear(x, self.first.weight, self.first.bias, rule="flat")))


@pytest.mark.filterwarnings("ignore::lrp.RelevanceWarning")
def test_a_rule_inside_an_explained_model_holds() -> None:
    model = networks.randomize(lrp.Sequential(OneLayerByItsOwnRule()))
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    y = model(x, explain=True, rule="epsilon")
    assert torch.equal(y, model(x))
    explained = torch.autograd.grad(y.sum(), x)[0]
    assert torch.allclose(explained, explained[:, :1].expand_as(explained))


def test_a_warning_points_to_the_line_that_called_the_model() -> None:
    with pytest.warns(lrp.RelevanceWarning) as caught:
        lrp.Sequential(nn.LogSoftmax(-1))(torch.rand(2, 3, requires_grad=True), explain=True)
    assert caught[0].filename == __file__
