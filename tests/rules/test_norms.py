"""Every rule on every norm equals its dense formula on the norm's matrix, in which the deviation is a constant."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import reference
from strategies import seeds
from torch import Tensor, nn
from torch.nn import functional as F

import lrp
from lrp import rules

TOLERANCE = 1e-10


@dataclass(frozen=True)
class Norm:
    """A norm, the input, and the input's elements by group: those of other groups do not meet."""

    function: Callable[[Tensor], Tensor]
    constant: Callable[[Tensor], Tensor]  # the same, with the deviation of the input as a constant and without bias
    x: Tensor
    groups: Tensor
    bias: Tensor  # broadcasts to the input


def drawn(draw: Callable, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(draw(seeds) + torch.Size(shape).numel())  # a mean is not an input
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    kind = draw(st.sampled_from(["signed", "positive", "shifted", "some zeros"]))
    return {"signed": x, "positive": x.abs(), "shifted": x + 2, "some zeros": x.relu()}[kind]


def affine(draw: Callable, *shape: int) -> tuple[Tensor | None, Tensor | None]:
    return tuple(drawn(draw, *shape) if draw(st.booleans()) else None for _ in range(2))


def sizes(draw: Callable, at_least: int, at_most: int) -> list[int]:
    return draw(st.lists(st.integers(1, 3), min_size=at_least, max_size=at_most))


def centred(x: Tensor, grouped: tuple[int, ...], weight: Tensor | None, parameter_shape: tuple[int, ...]) -> Callable:
    deviation = (x.reshape(grouped).var(-1, correction=0, keepdim=True) + 1e-5).sqrt()

    def constant(t: Tensor) -> Tensor:
        t = t.reshape(grouped)
        t = ((t - t.mean(-1, keepdim=True)) / deviation).reshape(x.shape)
        return t if weight is None else t * weight.view(parameter_shape)

    return constant


def of_groups(function: Callable, x: Tensor, grouped: tuple[int, ...], weight: Any, bias: Any, parameters: Any) -> Norm:
    groups = torch.arange(x.numel()).reshape(-1, grouped[-1])
    return Norm(function, centred(x, grouped, weight, parameters), x, groups, shaped(bias, parameters))


def shaped(bias: Tensor | None, shape: Any) -> Tensor:
    return torch.zeros((), dtype=torch.float64) if bias is None else bias.view(shape)


def layer_norm(draw: Callable) -> Norm:
    leading, shape = sizes(draw, 0, 2), [*sizes(draw, 0, 2), draw(st.integers(1, 5))]
    x, (w, b) = drawn(draw, *leading, *shape), affine(draw, *shape)
    grouped = (*leading, torch.Size(shape).numel())
    return of_groups(lambda x: F.layer_norm(x, shape, w, b), x, grouped, w, b, shape)


def group_norm(draw: Callable) -> Norm:
    groups, of_group, places = draw(st.integers(1, 3)), draw(st.integers(1, 3)), sizes(draw, 0, 2)
    channels = groups * of_group
    x, (w, b) = drawn(draw, 2, channels, *places), affine(draw, channels)
    grouped = (2, groups, of_group * torch.Size(places).numel())
    return of_groups(lambda x: F.group_norm(x, groups, w, b), x, grouped, w, b, (-1, *(1 for _ in places)))


def instance_norm(draw: Callable) -> Norm:
    places = [*sizes(draw, 0, 2), draw(st.integers(2, 4))]
    x, (w, b) = drawn(draw, 2, 3, *places), affine(draw, 3)
    grouped = (2, 3, torch.Size(places).numel())
    return of_groups(lambda x: F.instance_norm(x, None, None, w, b), x, grouped, w, b, (-1, *(1 for _ in places)))


def rms_norm(draw: Callable) -> Norm:
    leading, shape = sizes(draw, 0, 2), sizes(draw, 1, 2)
    x, (w, _) = drawn(draw, *leading, *shape), affine(draw, *shape)
    over = tuple(range(-len(shape), 0))
    scale = (x.square().mean(over, keepdim=True) + 1e-5).rsqrt() * (1 if w is None else w)
    alone = torch.arange(x.numel())[:, None]
    return Norm(lambda x: F.rms_norm(x, shape, w, 1e-5), lambda t: t * scale, x, alone, shaped(None, ()))


def batch_norm(draw: Callable) -> Norm:
    x = drawn(draw, 2, 3, *sizes(draw, 0, 2))
    mean, var, (w, b) = drawn(draw, 3), drawn(draw, 3).abs() + 0.1, affine(draw, 3)
    scale = (var + 1e-5).rsqrt() * (1 if w is None else w)
    shift = (0 if b is None else b) - mean * scale
    channels = (-1, *(1 for _ in x.shape[2:]))
    alone = torch.arange(x.numel())[:, None]
    return Norm(
        lambda x: F.batch_norm(x, mean, var, w, b), lambda t: t * scale.view(channels), x, alone, shift.view(channels)
    )


NORMS = {f.__name__: f for f in (layer_norm, group_norm, instance_norm, rms_norm, batch_norm)}

RULES: dict[str, tuple[type[rules.Rule], reference.Rule, dict[str, Any]]] = {
    "epsilon": (rules.Epsilon, reference.epsilon, {}),
    "epsilon, exponent 2": (rules.Epsilon, reference.epsilon, {"exponent": 2}),
    "epsilon, exponent 3": (rules.Epsilon, reference.epsilon, {"exponent": 3}),
    "gamma": (rules.Gamma, reference.gamma, {"gamma": 0.3}),
    "gamma, generalized": (rules.Gamma, reference.gamma, {"gamma": 0.3, "generalized": True}),
    "zplus": (rules.ZPlus, reference.zplus, {}),
    "alpha 1, beta 0": (rules.AlphaBeta, reference.alphabeta, {"alpha": 1.0, "beta": 0.0}),
    "alpha 2, beta 1": (rules.AlphaBeta, reference.alphabeta, {"alpha": 2.0, "beta": 1.0}),
    "conserve": (rules.AlphaBeta, reference.alphabeta, {"alpha": 2.0, "beta": 1.0, "conserve": True}),
    "zbox": (rules.ZBox, reference.zbox, {"low": -5.0, "high": 6.0}),
    "wsquare": (rules.WSquare, reference.wsquare, {}),
    "flat": (rules.Flat, reference.flat, {}),
}

options = st.fixed_dictionaries(
    {"epsilon": st.sampled_from([1e-6, 0.1]), "bias": st.sampled_from(["absorb", "ignore", "distribute"])}
)


def by_formula(norm: Norm, formula: reference.Rule, R: Tensor, **options: Any) -> Tensor:
    """Group by group: the matrix of the group, and the formula."""
    n = norm.x.numel()
    matrix = torch.autograd.functional.jacobian(norm.constant, norm.x).reshape(n, n)
    bias = norm.bias.expand(norm.x.shape).flatten()
    relevance, together = torch.zeros(n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.bool)
    for group in norm.groups:
        block = matrix[group][:, group]
        mask = torch.ones_like(block)
        relevance[group] = formula(
            block, bias[group], norm.x.flatten()[group], R.flatten()[group], mask=mask, **options
        )
        together[group[:, None], group] = True
    assert not matrix[~together].any()
    return relevance.view_as(norm.x)


def explained(norm: Norm, rule: rules.Rule, seed: int, **settings: Any) -> tuple[Tensor, Tensor]:
    x = norm.x.clone().requires_grad_()
    composite = lrp.Composite({"norm": rule}, default="epsilon")
    met = []

    def after_a_layer(x: Tensor) -> Tensor:
        """A batch norm that the data meets is a change of unit, and one that a layer's output meets merges with it."""
        layer = F.linear(x, torch.eye(x.shape[-1], dtype=x.dtype)) if x.dim() else x
        met.append(torch.where(torch.ones_like(x, dtype=torch.bool), layer, 0.0))
        return norm.function(met[-1])

    y = lrp.convert(after_a_layer)(x, explain=True, rule=composite, strict=True, **settings)
    R = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(seed))
    return R, torch.autograd.grad(y, met[-1], R)[0]


def assert_same(map_: Tensor, oracle: Tensor) -> None:
    assert map_.shape == oracle.shape
    assert (map_ - oracle).abs().max() <= TOLERANCE * oracle.abs().max()


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("name", RULES)
@settings(max_examples=40)
@given(data=st.data(), seed=seeds, options=options)
def test_norm_equals_formula(name: str, kind: str, data: st.DataObject, seed: int, options: dict) -> None:
    rule, formula, own = RULES[name]
    norm = NORMS[kind](data.draw)
    R, relevance = explained(norm, rule(**own, **options), seed)
    generalized = own.get("generalized", False)
    own = {key: value for key, value in own.items() if key != "generalized"}
    formula = generalised_gamma if generalized else formula
    assert_same(relevance, by_formula(norm, formula, R, **own, **options))


def generalised_gamma(W, b, x, R, gamma, **options: Any) -> Tensor:
    """The generalised rule for every sample: as if each had a negative input that nothing is connected to."""
    padded = F.pad(x, (0, 1), value=-1.0)
    mask = F.pad(options.pop("mask"), (0, 1))
    return reference.gamma(F.pad(W, (0, 1)), b, padded, R, gamma, mask=mask, **options)[:-1]


@pytest.mark.parametrize("rule", ["zplus", "gamma", "alpha2beta1", "flat", "wsquare"])
def test_the_same_norm_in_other_words(rule: str) -> None:
    x = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.5
    spellings: dict[str, list[Callable[[Tensor], Tensor]]] = {
        "all": [
            lambda x: F.layer_norm(x, (4, 3)),
            lambda x: F.group_norm(x, 1),
            lambda x: F.layer_norm(x.flatten(1), (12,)).view_as(x),
        ],
        "each channel": [lambda x: F.layer_norm(x, (3,)), lambda x: F.group_norm(x, 4), F.instance_norm],
    }
    composite = lrp.Composite({"norm": rule}, default="epsilon")
    for functions in spellings.values():
        maps = []
        for function in functions:
            given = x.clone().requires_grad_()
            lrp.convert(function)(given, explain=True, rule=composite).pow(3).sum().backward()
            maps.append(given.grad)
        assert_same(maps[1], maps[0])
        assert_same(maps[2], maps[0])


@pytest.mark.parametrize("rule", [rules.ZPlus(), rules.AlphaBeta(2, 1), rules.WSquare(), rules.Gamma(0.3)], ids=repr)
@pytest.mark.parametrize("norm", [nn.LayerNorm(4), nn.GroupNorm(2, 4)], ids=repr)
def test_relevance_of_a_norm_can_be_differentiated(norm: nn.Module, rule: rules.Rule) -> None:
    norm = norm.double()
    norm.weight.data = torch.tensor([0.5, -1.5, 1.0, -0.7], dtype=torch.float64)
    composite = lrp.Composite({"norm": rule}, default="epsilon")

    def relevance(x: Tensor) -> Tensor:
        y = lrp.convert(norm)(x, explain=True, rule=composite, differentiable=True)
        return torch.autograd.grad(y.sum(), x, create_graph=True)[0]

    x = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(relevance, x)


def test_what_is_small_beside_another_of_its_group_is_not_lost() -> None:
    """By z+ an output with a negative weight has the other inputs of its group: their sum is no difference."""
    x = torch.tensor([[1e6, 1e-3, 2e-3]])
    norm = nn.LayerNorm(3, bias=False)
    norm.weight.data.fill_(-1.0)
    given = x.clone().requires_grad_()
    lrp.convert(norm)(given, explain=True, rule=lrp.Composite({"norm": rules.ZPlus(epsilon=0)}))[:, 0].sum().backward()
    torch.testing.assert_close(given.grad, torch.tensor([[0.0, 1 / 3, 2 / 3]]))


@pytest.mark.parametrize("norm", [nn.LayerNorm((4, 3)), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4)], ids=repr)
def test_an_empty_batch(norm: nn.Module) -> None:
    x = torch.zeros(0, 4, 3, requires_grad=True)
    lrp.convert(norm)(x, explain=True, rule=lrp.Composite({"norm": "zplus"})).sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("size", [1e-2, 1.0, 200.0, 3000.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [
    lambda: nn.LayerNorm(8), lambda: nn.GroupNorm(2, 8), lambda: nn.RMSNorm(8, eps=1e-6), lambda: nn.InstanceNorm1d(8),
], ids=["layer", "group", "rms", "instance"])  # fmt: skip
def test_norms_of_what_half_precision_holds(make: Callable[[], nn.Module], dtype: torch.dtype, size: float) -> None:
    """Its square is beyond float16, which the output never sees."""
    x = (torch.randn(4, 8) * size).to(dtype)
    x = x[..., None] * torch.tensor([1.0, -2.0, 0.5], dtype=dtype) if isinstance(make(), nn.InstanceNorm1d) else x
    half, double = (_map(make().to(t), x.to(t)).double() for t in (dtype, torch.float64))
    assert (half - double).abs().max() < 0.03 * double.abs().max()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_an_rms_norm_without_epsilon_has_that_of_torch(dtype: torch.dtype) -> None:
    x = torch.full((1, 3), 1e-2, dtype=dtype)
    assert torch.allclose(_map(nn.RMSNorm(3, dtype=dtype), x), torch.ones_like(x), rtol=0.02)


def _map(norm: nn.Module, x: Tensor) -> Tensor:
    """Of the first three features."""
    x = x.clone().requires_grad_()
    y = lrp.convert(norm)(x, explain=True, rule=rules.Epsilon(1e-6), strict=True)
    return torch.autograd.grad(y.flatten(1)[:, :3].sum(), x)[0]
