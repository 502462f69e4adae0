"""Flat and w-square where dimension 0 may be no batch: what they put in place of the input has its shape."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import reference
from strategies import seeds
from torch import Tensor, nn
from torch.nn import functional as F

import lrp
from lrp.rules import Flat, WSquare

Draw = Callable
Drawn = tuple[Callable[[Tensor], Tensor], Tensor]


def reduced(draw: Draw) -> Drawn:
    """A sum or a mean, in a spelling of its own, over any dimensions of any input."""
    shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    dims = draw(st.sets(st.integers(0, len(shape) - 1)))
    keepdim = draw(st.booleans())
    name = draw(st.sampled_from(["sum", "mean"]))
    if not dims:
        return getattr(torch, name), torch.zeros(shape)
    return lambda x: getattr(x, name)(tuple(dims), keepdim=keepdim), torch.zeros(shape)


def stacked(draw: Draw) -> Drawn:
    """The sum of several tensors, as a sum over what they are stacked along."""
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    dim = draw(st.integers(0, len(shape) - 1))
    return lambda x: torch.stack([x, 2 * x], dim).sum(dim), torch.zeros(shape)


def pooled(draw: Draw) -> Drawn:
    """An average pool of an input with or without a batch, or with one that has been flattened into its channels."""
    places = draw(st.integers(1, 3))
    shape = [
        *draw(st.lists(st.integers(1, 3), min_size=1, max_size=2)),
        *(draw(st.integers(3, 5)) for _ in range(places)),
    ]
    if draw(st.booleans()):
        size = draw(st.integers(1, 3))
        return lambda x: getattr(F, f"adaptive_avg_pool{places}d")(x, size), torch.zeros(shape)
    options = {"stride": draw(st.integers(1, 2)), "padding": draw(st.integers(0, 1)), "ceil_mode": draw(st.booleans())}
    return lambda x: getattr(F, f"avg_pool{places}d")(x, 3, **options), torch.zeros(shape)


FUNCTIONS = {f.__name__: f for f in (reduced, stacked, pooled)}


def relevance(function: Callable[[Tensor], Tensor], x: Tensor, R: Tensor, rule: lrp.Rule) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(lrp.convert(function)(x, explain=True, rule=rule, strict=True), x, R)[0]


@pytest.mark.parametrize("rule", [Flat(epsilon=0), WSquare(epsilon=0)], ids=repr)
@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=60)
@given(data=st.data(), seed=seeds)
def test_fixed_functions_share_in_equal_parts(name: str, rule: lrp.Rule, data: st.DataObject, seed: int) -> None:
    function, x = FUNCTIONS[name](data.draw)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(function, x).reshape(-1, x.numel())
    R = torch.randn(function(x).shape, generator=generator, dtype=torch.float64)
    expected = reference.flat(matrix, None, x.flatten(), R.flatten(), epsilon=0, mask=(matrix != 0).double())
    if name == "stacked":  # the products with constants pass what the sum gives to each of two terms
        expected = R.flatten()
    torch.testing.assert_close(relevance(function, x, R, rule).flatten(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("rule", ["flat", "wsquare"])
def test_a_sample_alone_and_in_a_batch(rule: str) -> None:
    """The layers whose samples go by themselves take ones of one sample for all of them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(9, 4), nn.LayerNorm(4)).double()
    x = torch.randn(3, 2, 8, dtype=torch.float64)
    R = torch.randn(3, 4, dtype=torch.float64)
    together = relevance(model, x, R, lrp.rules.get(rule))
    for i in range(3):
        torch.testing.assert_close(relevance(model, x[i : i + 1], R[i : i + 1], lrp.rules.get(rule))[0], together[i])
