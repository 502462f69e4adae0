"""A function that hides weights of both signs is named under rules that ask for their signs, and exact under others."""

from collections.abc import Callable

import networks
import pytest
import torch
from oracles import reference
from torch import Tensor
from torch.nn import functional as F

import lrp
from lrp.rules import AlphaBeta, Epsilon, Flat, Gamma, Rule, WSquare, ZBox, ZPlus

PLACES = torch.rand(1, 3, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
ROWS = torch.tensor([1, 2, 3, 0])

HIDING: dict[str, Callable[[Tensor], Tensor]] = {
    "interpolate": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "upsample": lambda x: torch._C._nn.upsample_bicubic2d(x, [8, 8], False),
    "grid_sample": lambda x: F.grid_sample(x, PLACES, mode="bicubic", align_corners=False),
    "avg_pool": lambda x: F.avg_pool2d(x, 2, divisor_override=-3),
    "index_add": lambda x: torch.index_add(x, 2, ROWS, x, alpha=-2.0),
    "lanczos": lambda x: F.interpolate(x, size=(5, 7), mode="lanczos", antialias=True),
}


def explained(function: Callable[[Tensor], Tensor], rule: Rule) -> tuple[Tensor, Tensor]:
    """The relevance that starts with the output, and gradient * input."""
    x = networks.images(1, 1, 4)
    y = lrp.convert(function)(x, explain=True, rule=lrp.Composite({"pool": rule, "sum": rule}), strict=True)
    actual = torch.autograd.grad(y, x, y.detach())[0]
    return actual, x.detach() * torch.autograd.grad(function(x).sum(), x)[0]


@pytest.mark.parametrize("rule", [ZPlus(), Gamma(0.25), AlphaBeta(2, 1), WSquare(), Flat(), Epsilon(0.0, 2)], ids=str)
@pytest.mark.parametrize("name", HIDING)
def test_rules_that_ask_for_signs_name_the_function(name: str, rule: Rule) -> None:
    with pytest.raises(NotImplementedError, match="there is no rule for the relevance of"):
        explained(HIDING[name], rule)


@pytest.mark.parametrize("name", HIDING)
def test_the_epsilon_rule_is_gradient_times_input(name: str) -> None:
    assert networks.error(*explained(HIDING[name], Epsilon(0.0))) < 1e-10


@pytest.mark.parametrize("rule", [ZPlus(), Gamma(0.25), AlphaBeta(2, 1)], ids=str)
def test_weights_of_one_sign_need_no_name(rule: Rule) -> None:
    explained(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), rule)
    explained(lambda x: F.grid_sample(x, PLACES, mode="bilinear", align_corners=False), rule)
    explained(lambda x: torch.index_add(x, 2, ROWS, 2 * x, alpha=-2.0), rule)


UNEVEN: dict[str, Callable[[Tensor], Tensor]] = {
    "bilinear": lambda x: F.interpolate(x, size=(5, 7), mode="bilinear"),
    "upsample": lambda x: torch._C._nn.upsample_bilinear2d(x, [5, 7], False),
    "grid_sample": lambda x: F.grid_sample(x, PLACES, align_corners=False),
    "index_add": lambda x: torch.index_add(x, 2, ROWS, x, alpha=2.0),
    "index_put": lambda x: torch.zeros(4).double().index_put((torch.tensor([0, 0, 1]),), x[0, 0, 1, 2:3], True),
}


@pytest.mark.parametrize("rule", [WSquare(), Flat(), Epsilon(0.0, 2)], ids=str)
@pytest.mark.parametrize("name", UNEVEN)
def test_rules_that_ask_for_sizes_name_the_function(name: str, rule: Rule) -> None:
    with pytest.raises(NotImplementedError, match="there is no rule for the relevance of"):
        explained(UNEVEN[name], rule)


RULES: dict[str, tuple[Rule, Callable[..., Tensor]]] = {
    "zplus": (ZPlus(), reference.zplus),
    "alphabeta": (AlphaBeta(2, 1), lambda *m: reference.alphabeta(*m, 2, 1)),
    "gamma": (Gamma(0.3, generalized=True), lambda *m: reference.gamma(*m, 0.3)),
    "zbox": (ZBox(-3.0, 2.0), lambda *m: reference.zbox(*m, -3.0, 2.0)),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", UNEVEN)
def test_rules_that_ask_for_signs_are_those_of_the_matrix(name: str, rule: str) -> None:
    function, (chosen, formula) = UNEVEN[name], RULES[rule]
    x = networks.images(1, 1, 4)
    W = torch.autograd.functional.jacobian(function, x.detach()).reshape(-1, x.numel())
    y = lrp.convert(function)(x, explain=True, rule=lrp.Composite({"pool": chosen, "sum": chosen}), strict=True)
    actual = torch.autograd.grad(y, x, y.detach())[0]
    expected = formula(W, None, x.detach().flatten(), y.detach().flatten())
    assert networks.error(actual.flatten(), expected) < 1e-9
