"""A function that hides weights of both signs is named under rules that ask for their signs, and exact under others."""

from collections.abc import Callable

import networks
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import lrp
from lrp.rules import AlphaBeta, Epsilon, Flat, Gamma, Rule, WSquare, ZPlus

PLACES = torch.rand(1, 3, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1
ROWS = torch.tensor([1, 2, 3, 0])

HIDING: dict[str, Callable[[Tensor], Tensor]] = {
    "interpolate": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "upsample": lambda x: torch._C._nn.upsample_bicubic2d(x, [8, 8], False),
    "grid_sample": lambda x: F.grid_sample(x, PLACES, mode="bicubic", align_corners=False),
    "avg_pool": lambda x: F.avg_pool2d(x, 2, divisor_override=-3),
    "index_add": lambda x: torch.index_add(x, 2, ROWS, x, alpha=-2.0),
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
