"""The relevance through each weight adds up to the layer's, and is what the dense formula says."""

import pytest
import torch
from networks import convolutional, images, randomize
from torch import Tensor, nn

import lrp
from lrp.rules import AlphaBeta, Epsilon, Flat, Gamma, Gradient, Rule, WSquare, ZBox, ZPlus

RULES = {
    "epsilon": Epsilon(0.1),
    "ignore": Epsilon(0.1, bias="ignore"),
    "zplus": ZPlus(),
    "gamma": Gamma(0.25, generalized=True),
    "alpha2beta1": AlphaBeta(2, 1),
    "flat": Flat(),
    "wsquare": WSquare(),
    "zbox": ZBox(-3.0, 3.0),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layer", ["first", "block.conv", "alone", "last"])
def test_they_add_up_to_the_layer(layer: str, rule: str) -> None:
    model, x = convolutional(True), images(3).detach()
    composite = lrp.Composite({layer: RULES[rule]}, default="epsilon")
    e = lrp.explain(model, x, 1, rule=composite, layers={layer: "input"}, batch_size=2)
    found = e.weights(layer)
    assert found.shape == model.get_submodule(layer).weight.shape
    with lrp.trace.record() as relevances:
        y = lrp.convert(model)(x.clone().requires_grad_(), explain=True, rule=composite)
        y.backward(torch.zeros_like(y).index_fill_(1, torch.tensor([1]), 1.0) * y.detach())
    torch.testing.assert_close(found.sum(), relevances[layer].sum())


@pytest.mark.parametrize("rule", [Epsilon(0.1), ZPlus(epsilon=0.1), AlphaBeta(2, 1, epsilon=0.1)])
def test_dense(rule: Rule) -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3).double(), torch.randn(5, 4).double()
    e = lrp.explain(model, x, rule=rule, initial_relevance=(R := torch.randn(5, 3).double()))
    w, b = model.weight.detach(), model.bias.detach()
    terms = x[:, None] * w  # (samples, outputs, inputs)
    if isinstance(rule, Epsilon):
        z = terms.sum(2) + b
        expected = terms * (R / (z + 0.1 * torch.where(z < 0, -1.0, 1.0)))[..., None]
    else:
        up, down = terms.clamp(min=0), terms.clamp(max=0)
        of_bias = b.clamp(min=0) if isinstance(rule, ZPlus) else 0
        expected = up * (R / (up.sum(2) + of_bias + 0.1))[..., None]
        if isinstance(rule, AlphaBeta):
            expected = 2 * expected - down * (R / (down.sum(2) - 0.1))[..., None]
    torch.testing.assert_close(_weights(e), expected.sum(0))


def _weights(e: lrp.Explanation) -> Tensor:
    return e.weights(next(iter(e.rules)))


def test_a_layer_that_is_called_again() -> None:
    layer = randomize(nn.Linear(4, 4))
    model, x = nn.Sequential(layer, nn.ReLU(), layer), torch.randn(3, 4).double()
    twice = nn.Sequential(layer, nn.ReLU(), randomize(nn.Linear(4, 4)))
    twice[2].load_state_dict(layer.state_dict())
    apart = lrp.explain(twice, x, 0, rule=Epsilon(0.1))
    together = lrp.explain(model, x, 0, rule=Epsilon(0.1)).weights("0")
    torch.testing.assert_close(together, apart.weights("0") + apart.weights("2"))


def test_several_targets_are_summed() -> None:
    model, x = convolutional(), images().detach()
    several = lrp.explain(model, x, "all", rule="epsilon").weights("first")
    torch.testing.assert_close(
        several, sum(lrp.explain(model, x, k, rule="epsilon").weights("first") for k in range(3))
    )


def test_what_has_none() -> None:
    model, x = convolutional(), images().detach()
    with pytest.raises(ValueError, match=r"weights\('fist'\): no layer has that name; there are 'first'"):
        lrp.explain(model, x, rule="epsilon").weights("fist")
    with pytest.raises(ValueError, match=r"its rule, Gradient\(\), does not share out by weights"):
        lrp.explain(model, x, rule=Gradient()).weights("first")
    with pytest.raises(RuntimeError, match="the model is not known here"):
        lrp.explain(model, x, rule="epsilon")[0].weights("first")
