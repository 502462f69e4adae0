"""Totals that are differences of larger ones keep their precision."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import reference
from strategies import LAYERS, cases, seeds
from torch import Tensor, nn

import lrp
from lrp.maps import Linear
from lrp.maps.arithmetic import divide, identity, negative, positive
from lrp.patterns.observation import Observation, Observed, evaluating
from lrp.rules import AlphaBeta, Epsilon, Gamma, totals

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")

ALPHABETA = {"alpha": 2.0, "beta": 1.0}
RULES = {
    "alpha-beta": (AlphaBeta(2.0, 1.0), reference.alphabeta, {**ALPHABETA, "bias": "ignore", "epsilon": 1e-6}),
    "alpha-beta, absorb": (
        AlphaBeta(2.0, 1.0, bias="absorb"), reference.alphabeta, {**ALPHABETA, "bias": "absorb", "epsilon": 1e-6},
    ),
    "epsilon": (Epsilon(1e-6, bias="ignore"), reference.epsilon, {"epsilon": 1e-6, "bias": "ignore"}),
    "gamma": (Gamma(0.25, bias="ignore"), reference.gamma, {"gamma": 0.25, "bias": "ignore"}),
}  # fmt: skip


def relevance(layer: nn.Module, x: Tensor, R: Tensor, rule: lrp.Rule) -> Tensor:
    x = x.clone().requires_grad_()
    twin = getattr(lrp, type(layer).__name__).from_torch(layer)
    return torch.autograd.grad(twin(x, explain=True, rule=rule), x, R)[0]


def observed(layer: nn.Module, x: Tensor) -> Observed:
    calls: list[Observed] = []
    with evaluating(layer), Observation(layer, x, calls.append):
        layer(x)
    return calls[-1]


def test_an_opposing_total_that_is_small_beside_the_agreeing_one() -> None:
    """1e3 against 7e-6, and epsilon 1e-6: the opposing input gets -7 / 8 of the relevance."""
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -7e-6]])
    x, R = torch.tensor([[1e3, 1.0]]), torch.ones(1, 1)
    torch.testing.assert_close(relevance(layer, x, R, AlphaBeta(2, 1)), torch.tensor([[2.0, -0.875]]))


@pytest.mark.parametrize("exponent", range(0, 9, 2))
@pytest.mark.parametrize("bias", [0.0, 1.0, -300.0, 1e4])
@pytest.mark.parametrize("share", [1.0, 0.01], ids=["every output", "few outputs"])
@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(6, 500), lambda: nn.Conv2d(2, 5, 2, padding=1)], ids=["lin", "conv"]
)
def test_float32_equals_float64(
    make: Callable[[], nn.Module], name: str, share: float, bias: float, exponent: int
) -> None:
    rule, formula, options = RULES[name]
    torch.manual_seed(exponent)
    layer = make()
    small = torch.rand_like(layer.weight) < 0.5
    layer.weight.data = layer.weight.abs().where(~small, -(10.0**-exponent) * layer.weight.abs())
    layer.bias.data = torch.where(torch.rand_like(layer.bias) < share, bias, layer.bias * 0.1)
    x = torch.rand(2, 6) if isinstance(layer, nn.Linear) else torch.rand(2, 2, 11, 11)
    R = torch.randn(layer(x).shape)
    expected = reference.relevance(layer.double(), formula, x.double(), R.double(), **options)
    explained = relevance(layer.float(), x, R, rule)
    assert (explained - expected).abs().max() <= 1e-3 * expected.abs().max()


@pytest.mark.parametrize("layer_class", LAYERS, ids=lambda c: c.__name__)
@settings(max_examples=30)
@given(data=st.data(), seed=seeds)
def test_some_outputs_alone(layer_class: type[nn.Module], data: st.DataObject, seed: int) -> None:
    """What a map makes of some outputs is what it makes of all of them."""
    call = observed(*data.draw(cases(layer_class)))
    chosen = torch.rand(call.z.shape, generator=torch.Generator().manual_seed(seed)) < data.draw(
        st.sampled_from([0.0, 0.3, 1.0])
    )
    at = chosen.nonzero(as_tuple=True)
    for make in (identity, positive, negative, torch.square):
        some = call.f.forward_at(at, call.x, make, call.w)
        assert torch.equal(some, call.f.forward(call.x, make(call.w))[at])


def test_no_pass_is_taken_where_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = lrp.Linear(200, 50), torch.rand(4, 200, requires_grad=True)

    def again(*_: object) -> None:
        raise AssertionError("a total is made again")

    y = layer(x, explain=True, rule=AlphaBeta(2, 1))
    monkeypatch.setattr(totals, "total", again)
    monkeypatch.setattr(Linear, "forward_at", again)
    y.sum().backward()


@pytest.mark.parametrize("sign", [0, 1, -1])
def test_division_by_zero_is_zero(sign: int) -> None:
    nan, inf = float("nan"), float("inf")
    R, z = (
        torch.tensor([1.0, 0.0, nan, inf, 2.0, nan, 1.0, inf]),
        torch.tensor([0.0, 0.0, 0.0, 0.0, 4.0, 1.0, nan, 1.0]),
    )
    expected = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5, nan, nan, inf])
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            torch.testing.assert_close(divide(R.clone(), z.clone(), 0.0, sign), expected, equal_nan=True)


def test_division_without_a_stabiliser_has_a_derivative() -> None:
    z = torch.tensor([0.0, 0.0, 2.0, -3.0], dtype=torch.float64, requires_grad=True)
    R = torch.tensor([0.0, 1.0, 1.0, 2.0], dtype=torch.float64, requires_grad=True)
    of_R, of_z = torch.autograd.grad(divide(R, z, 0.0).sum(), (R, z), create_graph=True)
    torch.testing.assert_close(of_R, torch.tensor([0.0, 0.0, 1 / 2, -1 / 3], dtype=torch.float64))
    torch.testing.assert_close(of_z, torch.tensor([0.0, 0.0, -1 / 4, -2 / 9], dtype=torch.float64))
    (second,) = torch.autograd.grad(of_z.sum(), z)
    torch.testing.assert_close(second, torch.tensor([0.0, 0.0, 1 / 4, -4 / 27], dtype=torch.float64))
