"""Relevance that is differentiated: equal to finite differences, or an error."""

import networks
import pytest
import torch
from networks import error
from torch import Tensor, nn
from torch.func import functional_call

import lrp
from lrp.rules import AlphaBeta, Epsilon, Flat, Gamma, Rule, WSquare, ZBox, ZPlus

RULES = [
    Epsilon(0.1),
    Epsilon(0.1, bias="ignore"),
    Gamma(0.25),
    Gamma(0.25, bias="distribute"),
    ZPlus(),
    AlphaBeta(2, 1),
    AlphaBeta(2, 1, bias="absorb"),
    AlphaBeta(2, 1, conserve=True),
    ZBox(-3, 3),
    WSquare(),
    Flat(),
]


def smooth(inplace: bool = False) -> lrp.Sequential:
    """A small convolutional net with a batch norm, a residual block, pools and nothing that is not smooth."""
    return networks.randomize(
        lrp.Sequential(
            lrp.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Softplus(), lrp.Conv2d(3, 4, 2, stride=2), nn.ReLU(inplace),
            networks.Residual(4, inplace), nn.AvgPool2d(2), nn.Flatten(), lrp.Linear(8, 2),
        )
    )  # fmt: skip


def loss_of_relevance(model: nn.Module, parameters: dict[str, Tensor], x: Tensor, rule: Rule) -> Tensor:
    """A number that depends on every pixel's relevance in a way of its own."""
    y = functional_call(model, parameters, (x,), {"explain": True, "rule": rule, "differentiable": True})
    (relevance,) = torch.autograd.grad(y[:, 0].sum(), x, create_graph=True)
    return (relevance * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sum()


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_derivatives_of_relevance_equal_finite_differences(rule: Rule, inplace: bool) -> None:
    model, x = smooth(inplace), networks.images(1, 1, 6)
    parameters = dict(model.named_parameters())
    loss = loss_of_relevance(model, parameters, x, rule)
    gradients = torch.autograd.grad(loss, [x, *parameters.values()], allow_unused=True)
    for name, gradient in zip(["x", *parameters], gradients, strict=True):
        tensor = x if name == "x" else parameters[name]
        gradient = torch.zeros_like(tensor) if gradient is None else gradient
        direction = torch.randn(tensor.shape, dtype=tensor.dtype, generator=torch.Generator().manual_seed(0))
        step = 1e-6 * direction
        sides = []
        for sign in (1, -1):
            moved = {**parameters, name: (parameters[name] + sign * step).detach()} if name != "x" else parameters
            at = (x + sign * step).detach().requires_grad_() if name == "x" else x
            sides.append(loss_of_relevance(model, moved, at, rule).item())
        numeric = (sides[0] - sides[1]) / 2e-6
        analytic = (gradient * direction).sum().item()
        assert abs(analytic - numeric) < 1e-6 * max(1.0, abs(loss.item()), abs(numeric)), name


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_relevance_that_can_be_differentiated_is_the_same_relevance(rule: Rule) -> None:
    for inplace in (False, True):
        model, x = smooth(inplace), networks.images(2, 1, 6)
        y = model(x, explain=True, rule=rule, differentiable=True)
        assert torch.equal(y, model(x))
        start = networks.first_output(y)
        (explained,) = torch.autograd.grad(y, x, start, create_graph=True)
        assert error(explained, networks.relevance(model, x, rule)) < 1e-12


def test_create_graph_without_differentiable_is_an_error() -> None:
    model, x = smooth(), networks.images(1, 1, 6)
    y = model(x, explain=True)
    with pytest.raises(RuntimeError, match=r"create_graph=True.*differentiable=True"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_training_on_relevance() -> None:
    """A loss of the relevance reaches the parameters through backward() too."""
    model, x = smooth(), networks.images(1, 1, 6)
    loss_of_relevance(model, dict(model.named_parameters()), x, Epsilon()).backward()
    assert model[0].weight.grad.abs().max() > 0


class Assigning(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x.detach())
        y[:, :2] = x[:, 1:]
        return y


class Alias(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        part = x[:, :2]
        x.relu_()
        return part


def test_item_assignment_in_a_differentiable_explanation() -> None:
    model = networks.randomize(lrp.Sequential(nn.Linear(4, 3), Assigning(), nn.Linear(3, 2)))
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    parameters = dict(model.named_parameters())

    def loss(x: Tensor) -> Tensor:
        return loss_of_relevance(model, parameters, x, Epsilon())

    assert torch.autograd.gradcheck(loss, (x,))


def test_a_stale_view_in_a_differentiable_explanation_is_an_error() -> None:
    model = networks.randomize(lrp.Sequential(nn.Linear(4, 3), Alias(), nn.Linear(2, 2)))
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="modified in place through another view"):
        model(x, explain=True, differentiable=True)
