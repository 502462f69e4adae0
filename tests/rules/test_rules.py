"""Every rule on every linear map, over drawn geometries, equals its dense formula (tests/oracles/reference.py)."""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import reference
from strategies import LAYERS, cases, quarters, seeds
from torch import Tensor, nn

import lrp
from lrp import rules
from lrp.engine.backward import propagation

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")

TOLERANCE = 1e-10
Class = type[nn.Module]


@dataclass(frozen=True)
class Checked:
    """A rule of the library, and the dense formula with its arguments."""

    rule: rules.Rule
    formula: reference.Rule
    boxes: tuple = ()
    options: dict[str, Any] = field(default_factory=dict)

    def reference(self, layer: nn.Module, x: Tensor, R: Tensor) -> Tensor:
        return reference.relevance(layer, self.formula, x, R, *self.boxes, **self.options)


def dividing() -> st.SearchStrategy[dict]:
    """The options of every rule that divides."""
    bias = st.sampled_from(["absorb", "ignore", "distribute"])
    return st.fixed_dictionaries({"epsilon": st.sampled_from([0.0, 1e-6, 0.1]), "bias": bias})


def numeric(rule: type[rules.Rule], formula: reference.Rule, **numbers: st.SearchStrategy) -> Callable:
    """Rules whose arguments are plain numbers: the same names in the library and in the reference."""
    options = st.builds(dict.__or__, st.fixed_dictionaries(numbers), dividing())
    return lambda layer, x: options.map(lambda o: Checked(rule(**o), formula, options=o))


@st.composite
def alphabeta(draw: Callable, layer: nn.Module, x: Tensor) -> Checked:
    alpha, beta = draw(st.sampled_from([(1.0, 0.0), (2.0, 1.0), (1.5, 0.5)]))
    options = {"alpha": alpha, "beta": beta, "conserve": draw(st.booleans()), **draw(dividing())}
    return Checked(rules.AlphaBeta(**options), reference.alphabeta, options=options)


@st.composite
def zbox(draw: Callable, layer: nn.Module, x: Tensor) -> Checked:
    """low and high: numbers, tensors with one entry per channel, or tensors of the input's shape."""
    shape = reference.sample_shape(layer, x)
    shapes = [(), (shape[0], *(1 for _ in shape[1:]))]
    if getattr(layer, "padding_mode", "zeros") == "zeros":  # otherwise the layer's input is padded first
        shapes.append(tuple(x.shape))
    generator = torch.Generator().manual_seed(draw(seeds))
    low, high = (2 * quarters(generator, *draw(st.sampled_from(shapes))).abs() for _ in range(2))
    boxes = tuple(box.item() if box.dim() == 0 else box for box in (-low, high))
    options = draw(dividing())
    return Checked(rules.ZBox(*boxes, **options), reference.zbox, boxes, options)


def patterned(rule: type[rules.Rule], formula: reference.Rule) -> Callable:
    """Rules with a pattern, a tensor in the shape of the weight."""

    def checked(layer: nn.Module, seed: int) -> Checked:
        pattern = quarters(torch.Generator().manual_seed(seed), *layer.weight.shape)
        return Checked(rule(pattern), formula, options={"pattern": pattern})

    return lambda layer, x: seeds.map(lambda seed: checked(layer, seed))


# gammas are quarters like the weights, so that a raised total that ought to be zero is zero
RULES = {
    "gradient": lambda layer, x: st.just(Checked(rules.Gradient(), reference.gradient)),
    "epsilon": numeric(rules.Epsilon, reference.epsilon, exponent=st.integers(1, 3)),
    "gamma": numeric(rules.Gamma, reference.gamma, gamma=st.sampled_from([0.0, 0.25, 1.0])),
    "alphabeta": alphabeta,
    "zplus": numeric(rules.ZPlus, reference.zplus),
    "zbox": zbox,
    "wsquare": numeric(rules.WSquare, reference.wsquare),
    "flat": numeric(rules.Flat, reference.flat),
    "patternnet": patterned(rules.PatternNet, reference.patternnet),
    "patternattribution": patterned(rules.PatternAttribution, reference.patternattribution),
}

every_rule = pytest.mark.parametrize("name", RULES)
every_map = pytest.mark.parametrize("layer_class", LAYERS, ids=lambda c: c.__name__)


def explained(forward: Callable[[Tensor], Tensor], x: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """The output, a random relevance of the output, and what it becomes at the input."""
    x = x.clone().requires_grad_()
    y = forward(x)
    R = torch.randn(y.shape, dtype=y.dtype, generator=torch.Generator().manual_seed(seed))
    y.backward(R)
    return y, R, x.grad


def assert_same(map_: Tensor, oracle: Tensor) -> None:
    """The largest difference, relative to the largest relevance."""
    assert map_.shape == oracle.shape
    assert (map_ - oracle).abs().max() <= TOLERANCE * oracle.abs().max()


def functional(layer: nn.Module, rule: rules.Rule) -> Callable[[Tensor], Tensor]:
    """The layer as a call of lrp.functional."""
    name = type(layer).__name__
    function = getattr(lrp.functional, name.lower().replace("transpose", "_transpose"))
    arguments = [] if name == "Linear" else ["stride", "padding", "groups", "dilation"]
    arguments += ["output_padding"] if "Transpose" in name else []
    options = {a: getattr(layer, a) for a in arguments}
    return lambda x: function(x, layer.weight, layer.bias, **options, rule=rule)


@every_map
@every_rule
@settings(max_examples=50)
@given(data=st.data(), seed=seeds)
def test_layer_equals_formula(name: str, layer_class: Class, data: st.DataObject, seed: int) -> None:
    layer, x = data.draw(cases(layer_class))
    checked = data.draw(RULES[name](layer, x))
    twin = getattr(lrp, layer_class.__name__).from_torch(layer)

    y, R, R_in = explained(lambda x: twin(x, explain=True, rule=checked.rule), x, seed)

    assert torch.equal(y, layer(x))
    assert_same(R_in, checked.reference(layer, x, R))
    assert layer.weight.grad is None


@every_map
@every_rule
@settings(max_examples=20)
@given(data=st.data(), seed=seeds)
def test_functional_equals_formula(name: str, layer_class: Class, data: st.DataObject, seed: int) -> None:
    layer, x = data.draw(cases(layer_class))
    padding = reference.Padding.of(layer)  # a function of its own, save for zeros
    layer, x = padding.unpadded(layer), padding(x)
    checked = data.draw(RULES[name](layer, x))

    y, R, R_in = explained(functional(layer, checked.rule), x, seed)

    assert torch.equal(y, layer(x))
    assert_same(R_in, checked.reference(layer, x, R))


@every_map
@pytest.mark.parametrize("name", ["epsilon", "gamma", "alphabeta", "zplus"])
@settings(max_examples=15)
@given(data=st.data(), seed=seeds)
def test_zero_inputs_get_exactly_zero(name: str, layer_class: Class, data: st.DataObject, seed: int) -> None:
    layer, x = data.draw(cases(layer_class))
    checked = data.draw(RULES[name](layer, x).filter(lambda c: c.rule.bias != "distribute"))
    twin = getattr(lrp, layer_class.__name__).from_torch(layer)

    _, _, R_in = explained(lambda x: twin(x, explain=True, rule=checked.rule), x, seed)

    assert R_in[x == 0].count_nonzero() == 0


CONSERVING = [
    rules.Epsilon(0.0, bias="ignore"),
    rules.Epsilon(0.0, exponent=2, bias="ignore"),
    rules.Gamma(0.3, epsilon=0.0, bias="ignore"),
    rules.AlphaBeta(2.0, 1.0, epsilon=0.0, bias="ignore"),
    rules.AlphaBeta(2.0, 1.0, conserve=True, epsilon=0.0, bias="ignore"),
    rules.ZPlus(epsilon=0.0, bias="ignore"),
    rules.ZBox(-6.0, 6.0, epsilon=0.0, bias="ignore"),
    rules.WSquare(epsilon=0.0, bias="ignore"),
    rules.Flat(epsilon=0.0, bias="ignore"),
    rules.Epsilon(0.0, bias="distribute"),
    rules.WSquare(epsilon=0.0, bias="distribute"),
    rules.ZPlus(epsilon=0.0, bias="distribute"),
]


def receivers(layer: nn.Module, x: Tensor, rule: rules.Rule, shape: torch.Size) -> Tensor:
    """1 for the outputs whose inputs can take their relevance, else 0."""
    matrices = reference.DenseLayer.of(layer, reference.sample_shape(layer, x))
    C = matrices.W * (x.reshape(-1, matrices.copies.shape[1]) @ matrices.copies.T)[:, None]
    positive, negative = (C > 0).any(-1), (C < 0).any(-1)
    both = isinstance(rule, rules.AlphaBeta) and not rule.conserve
    either = positive if isinstance(rule, rules.ZPlus) else positive | negative
    return (positive & negative if both else either).reshape(shape).double()


@every_map
@pytest.mark.parametrize("rule", CONSERVING, ids=repr)
@settings(max_examples=15)
@given(data=st.data(), seed=seeds)
def test_nothing_is_lost(rule: rules.Rule, layer_class: Class, data: st.DataObject, seed: int) -> None:
    """No stabiliser, the bias ignored or distributed: relevances at input and output sum to the same."""
    layer, x = data.draw(cases(layer_class))
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(x.shape, dtype=x.dtype, generator=generator)  # not quarters: no total is zero by chance
    R = torch.randn(layer(x).shape, dtype=x.dtype, generator=generator)
    layer.weight.data = torch.randn(layer.weight.shape, dtype=x.dtype, generator=generator)
    R = R * receivers(layer, x, rule, R.shape)

    x.requires_grad_()
    getattr(lrp, layer_class.__name__).from_torch(layer)(x, explain=True, rule=rule).backward(R)

    assert (x.grad.sum() - R.sum()).abs() <= TOLERANCE * x.grad.abs().sum()


KEYS = {
    "gradient": rules.Gradient(),
    "epsilon": rules.Epsilon(0.1),
    "gamma": rules.Gamma(0.1),
    "gamma+epsilon": rules.Gamma(0.1, epsilon=0.1),
    "alpha1beta0": rules.AlphaBeta(1, 0, bias="ignore"),
    "alpha2beta1": rules.AlphaBeta(2, 1, bias="ignore"),
    "zplus": rules.ZPlus(),
    "wsquare": rules.WSquare(),
    "flat": rules.Flat(),
}


@pytest.mark.parametrize("key", KEYS)
def test_key_stands_for_the_rule(key: str) -> None:
    layer = lrp.Linear(5, 4, dtype=torch.float64)
    x = torch.randn(3, 5, dtype=torch.float64)

    def map_of(rule: str | rules.Rule) -> Tensor:
        return explained(lambda x: layer(x, explain=True, rule=rule), x, 0)[2]

    assert torch.equal(map_of(key), map_of(KEYS[key]))


REAL = {
    "epsilon": (rules.Epsilon(0.1), reference.epsilon, {"epsilon": 0.1}),
    "gamma": (rules.Gamma(0.3), reference.gamma, {"gamma": 0.3, "epsilon": 1e-6}),
    "zplus": (rules.ZPlus(), reference.zplus, {"epsilon": 1e-6}),
    "alphabeta": (rules.AlphaBeta(2.0, 1.0), reference.alphabeta, {"alpha": 2.0, "beta": 1.0, "epsilon": 1e-6}),
}


@pytest.mark.parametrize("key", REAL)
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("make", [lambda: nn.Linear(30, 20), lambda: nn.Conv2d(3, 5, 3, padding=1)])
def test_weights_that_are_no_round_numbers(key: str, signed: bool, make: Callable[[], nn.Module]) -> None:
    """Where sums round, and after a ReLU, where rules skip the negative part and reuse the output."""
    rule, formula, options = REAL[key]
    torch.manual_seed(0)
    layer = make().double()
    x = torch.randn(3, 30, dtype=torch.float64) if isinstance(layer, nn.Linear) else torch.randn(3, 3, 5, 5).double()
    model = lrp.Sequential(layer) if signed else lrp.Sequential(nn.ReLU(), layer)
    _, R, R_in = explained(lambda x: model(x, explain=True, rule=rule), x, 0)
    bias = "ignore" if key == "alphabeta" else "absorb"
    expected = reference.relevance(layer, formula, x if signed else x.relu(), R, bias=bias, **options)
    assert_same(R_in, expected)


class OfTheBatch:
    """Looks at the whole batch, and at the output."""

    def redistribute(self, f, x, w, b, z, R):  # type: ignore[no-untyped-def]
        return torch.full_like(x, len(x)) * z.sum() / R.shape[-1]


@pytest.mark.parametrize(
    "parent", [type(rule) for rule in rules.KEYS.values()] + [rules.ZBox, rules.Pass, rules.Proportional]
)
def test_a_way_to_share_of_ones_own_inherits_no_promise(parent: type, monkeypatch: pytest.MonkeyPatch) -> None:
    own = type("Own", (parent,), dict(vars(OfTheBatch)))
    rule = own(
        **{
            f.name: {"alpha": 1, "low": -1.0, "high": 1.0}.get(f.name, 0)
            for f in fields(parent)
            if f.default is MISSING
        }
    )
    if isinstance(rule, rules.PatternNet):
        rule = rule.with_pattern(torch.ones(2, 3))
    monkeypatch.setattr(propagation, "LARGE", 0)
    monkeypatch.setattr(propagation, "PART", 1)
    x, w = torch.rand(7, 3, requires_grad=True), torch.rand(2, 3)
    z = lrp.functional.linear(x, w, rule=rule)
    z.sum().backward()
    assert torch.allclose(x.grad, torch.full_like(x, 7) * z.detach().sum() / 2)
    assert not rule.is_divisible(x)
    assert rule.counts_zeros()
    kept = type("Kept", (parent,), {})  # one that shares as its parent does keeps its promises
    assert kept.is_divisible is parent.is_divisible
    assert kept.needs_output is parent.needs_output
    assert kept.counts_zeros is parent.counts_zeros


@pytest.mark.parametrize("method", ["share", "pull", "total"])
def test_parts_of_a_way_to_share_count_as_well(method: str) -> None:
    own = type("Own", (rules.Epsilon,), {method: getattr(rules.Epsilon, method)})
    assert not own().is_divisible(torch.rand(2, 3))
    said = type(
        "Said", (rules.Epsilon,), {method: getattr(rules.Epsilon, method), "is_divisible": lambda self, x: True}
    )
    assert said().is_divisible(torch.rand(2, 3))


@pytest.mark.parametrize("rule", [*rules.KEYS.values(), rules.ZBox(0.0, 1.0)], ids=repr)
def test_the_rules_themselves_are_divisible(rule: rules.Rule) -> None:
    assert rule.is_divisible(torch.rand(2, 3))


CONSERVING = [
    rules.Epsilon(0, bias="ignore"), rules.Epsilon(0, 2, bias="ignore"), rules.Gamma(0.3, epsilon=0, bias="ignore"),
    rules.Gamma(0.3, generalized=True, epsilon=0, bias="ignore"), rules.WSquare(epsilon=0, bias="ignore"),
    rules.Flat(epsilon=0, bias="ignore"), rules.ZBox(-9.0, 9.0, epsilon=0, bias="ignore"),
    rules.AlphaBeta(2, 1, conserve=True, epsilon=0), rules.AlphaBeta(1, 0, conserve=True, epsilon=0),
]  # fmt: skip


@given(seeds, st.sampled_from(CONSERVING), st.booleans())
def test_layers_without_a_bias_conserve(seed: int, rule: rules.Rule, signed: bool) -> None:
    torch.manual_seed(seed)
    x, w, b = (torch.randn(shape, dtype=torch.float64) for shape in ((3, 5), (4, 5), (4,)))
    w[0], x = w[0].abs(), x if signed else x.abs()  # a neuron with contributions of one sign
    w[1] = -w[1].abs()
    x.requires_grad_()
    z = lrp.functional.linear(x, w, b, rule=rule)
    R = torch.randn_like(z)
    (relevance,) = torch.autograd.grad(z, x, R)
    assert torch.allclose(relevance.sum(1), R.sum(1), rtol=1e-9, atol=1e-9 * float(relevance.abs().sum()))


def test_z_plus_and_alpha_beta_do_not_where_contributions_have_one_sign() -> None:
    for rule, positive, negative in (
        (rules.ZPlus(), 1, 0),
        (rules.AlphaBeta(2, 1), 2, -1),
        (rules.AlphaBeta(1, 0), 1, 0),
    ):
        rule = replace(rule, bias="ignore", epsilon=0)
        for w, total in ((torch.ones(1, 2), positive), (-torch.ones(1, 2), negative)):
            x = torch.ones(1, 2, requires_grad=True)
            lrp.functional.linear(x, w, torch.ones(1), rule=rule).backward()
            assert x.grad.sum().item() == pytest.approx(total)
