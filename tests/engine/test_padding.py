"""Zeros that pad an input are no inputs, whoever pads it: the layer that follows, or a function before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import error
from oracles import reference
from spellings import Function, draw, explained
from strategies import quarters, seeds
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import lrp
from lrp.engine.backward.kept import TELLS_HOOKS
from lrp.rules import AlphaBeta, Epsilon, Flat, Gamma, PatternNet, Rule, WSquare, ZBox, ZPlus

Draw = Callable[..., Any]

RULES: dict[str, tuple[Rule, reference.Rule, dict[str, Any]]] = {
    "flat": (Flat(), reference.flat, {}),
    "wsquare": (WSquare(), reference.wsquare, {}),
    "zbox": (ZBox(-2.5, 3.0), reference.zbox, {"low": -2.5, "high": 3.0}),
    "epsilon": (Epsilon(0.1), reference.epsilon, {}),
    "distributing": (Epsilon(0.1, bias="distribute"), reference.epsilon, {"bias": "distribute"}),
    "gamma": (Gamma(0.25), reference.gamma, {"gamma": 0.25}),
    "distributing gamma": (Gamma(0.25, bias="distribute"), reference.gamma, {"gamma": 0.25, "bias": "distribute"}),
    "zplus": (ZPlus(), reference.zplus, {}),
    "alpha2beta1": (AlphaBeta(2, 1), reference.alphabeta, {"alpha": 2, "beta": 1}),
}
every_rule = pytest.mark.parametrize("rule", RULES)

FLAT = ["flat", "wsquare", ZBox(-3.0, 3.0), Epsilon(0.1, bias="distribute")]

BETWEEN: dict[str, Function] = {
    "nothing": lambda x: x,
    "clone": torch.clone,
    "contiguous": Tensor.contiguous,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x,
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "dropout in place": lambda x: F.dropout(x, 0.5, training=False, inplace=True),
    "view": lambda x: x.view_as(x),
    "double": lambda x: x.to(torch.float64, copy=True),
    "no padding": lambda x: F.pad(x, (0, 0)),
    **({"checkpoint": lambda x: checkpoint(torch.clone, x, use_reentrant=False)} if TELLS_HOOKS else {}),
}


@st.composite
def padded(draw: Draw, n: int) -> tuple[Function, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Pads in turn of the last ``n`` dimensions, identities between them; the sizes before and after."""
    sizes = given = [draw(st.integers(1, {1: 7, 2: 5, 3: 3}[n])) for _ in range(n)]
    steps: list[Function] = []
    for _ in range(draw(st.integers(1, 3))):
        widths = draw(st.lists(st.integers(-2, 3), min_size=2 * n, max_size=2 * n))
        pairs = zip(reversed(sizes), widths[::2], widths[1::2], strict=True)
        grown = [size + near + far if size + min(near, 0) + min(far, 0) >= 0 else 0 for size, near, far in pairs][::-1]
        if min(grown) < 1:  # nothing would be left, or torch would not cut as much off
            continue
        sizes = grown
        steps += [spelled(draw, widths), BETWEEN[draw(st.sampled_from([*BETWEEN]))]]

    def function(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return function, (tuple(given), tuple(sizes))


def spelled(draw: Draw, widths: Sequence[int]) -> Function:
    spellings = {
        "function": lambda x: F.pad(x, widths),
        "mode": lambda x: F.pad(x, tuple(widths), "constant"),
        "value": lambda x: F.pad(x, widths, "constant", 0.0),
        "keywords": lambda x: F.pad(input=x, pad=widths, value=0),
        "operator": lambda x: torch.constant_pad_nd(x, widths),
        "module": (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)[len(widths) // 2 - 1](tuple(widths)),
        "constant": (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)[len(widths) // 2 - 1](tuple(widths), 0),
    }
    return spellings[draw(st.sampled_from([*spellings]))]


@st.composite
def convolved(draw: Draw, n: int) -> tuple[Callable[..., Tensor], Function, Tensor, Tensor, Tensor]:
    """A convolution of any geometry of what was padded: a function of x, w and b, the pads alone, and x, w and b."""
    pad, (given, sizes) = draw(padded(n))
    groups, dilation = draw(st.integers(1, 2)), [draw(st.integers(1, 2)) for _ in sizes]
    stride, own = [draw(st.integers(1, 2)) for _ in sizes], [draw(st.integers(0, 1)) for _ in sizes]
    most = [(size + 2 * p - 1) // d + 1 for size, p, d in zip(sizes, own, dilation, strict=True)]
    kernel = [draw(st.integers(1, min(3, k))) for k in most]
    generator = torch.Generator().manual_seed(draw(seeds))
    x, w, b = (quarters(generator, *shape) for shape in ((2, 2, *given), (2, 2 // groups, *kernel), (2,)))
    convolve = getattr(F, f"conv{n}d")

    def function(x: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
        return convolve(pad(x), w, b, stride, own, dilation, groups)

    return function, pad, x, w, b


def relevance(function: Function, x: Tensor, R: Tensor, rule: Rule | str) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(lrp.convert(function)(x, explain=True, rule=rule, strict=True), x, R)[0]


@every_rule
@pytest.mark.parametrize("n", [1, 2, 3])
@settings(max_examples=20)
@given(data=st.data(), seed=seeds)
def test_pads_and_a_convolution_are_one_layer(n: int, rule: str, data: st.DataObject, seed: int) -> None:
    function, pad, x, w, b = data.draw(convolved(n))
    own, formula, options = RULES[rule]
    R = torch.randn(function(x, w, b).shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    W, mask = (reference.dense(lambda t, v=v: function(t, v, None), x.shape[1:]) for v in (w, torch.ones_like(w)))
    left = x * reference.dense(pad, x.shape[1:]).sum(0).view(x.shape[1:])  # what is cut off has no sign
    biases = function(torch.zeros_like(x[:1]), w, b).flatten()
    rows = [formula(W, biases, t.flatten(), r.flatten(), mask=mask, **options) for t, r in zip(left, R, strict=True)]
    expected = torch.stack(rows).view(x.shape)
    actual = relevance(lambda t: function(t, w, b), x, R, own)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10 * max(1.0, float(expected.abs().max())))


W, B = draw(4, 2, 3, 3), draw(4, seed=2)
X = networks.images(size=6).detach()


class Own(Rule):
    """A rule of one's own that asks a map for its connections."""

    def redistribute(self, f, x, w, b, z, R):  # type: ignore[no-untyped-def]
        ones = torch.ones_like(w)
        return f.pullback(R / f.forward(torch.ones_like(x), ones), ones)


SAME: list[Any] = [
    *(rule for rule, _, _ in RULES.values()),
    *("gradient", "epsilon_plus_flat", "epsilon_alpha2_beta1_flat"),
    *(Own(), PatternNet(draw(4, 2, 3, 3, seed=3), normalize=True), ZBox(-X.abs(), X.abs() + 1)),
    Gamma(0.25, generalized=True),
]


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("rule", SAME, ids=str)
def test_who_pads_makes_no_difference(rule: Rule | str, between: str) -> None:
    actual = explained(lambda x: F.conv2d(BETWEEN[between](F.pad(x, (1, 1, 1, 1))), W, B), X, rule)
    assert error(actual, explained(lambda x: F.conv2d(x, W, B, padding=1), X, rule)) < 1e-12


@pytest.mark.parametrize("rule", FLAT, ids=str)
def test_zeros_stay_zeros_in_another_dtype(rule: Rule | str) -> None:
    actual = explained(lambda x: F.conv2d(F.pad(x, (1, 1, 1, 1)).double(), W, B), X.float(), rule)
    assert error(actual, explained(lambda x: F.conv2d(x.double(), W, B, padding=1), X.float(), rule)) < 1e-6


@pytest.mark.parametrize("rule", ["flat", "epsilon"])
def test_the_trace_shows_what_the_layer_takes(rule: str) -> None:
    model = networks.randomize(lrp.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), lrp.Conv2d(2, 3, 3)))
    y = model(X.clone().requires_grad_(), explain=True, rule=rule)
    with lrp.trace.record() as relevances:
        y.sum().backward()
    assert relevances["1"].shape == (2, 2, 7, 9)
    assert not relevances["1"][..., :1].any()


ARE_INPUTS: dict[str, tuple[Function, Function]] = {
    "another number": (lambda x: F.pad(x, (1, 1), value=0.5), lambda x: torch.cat([half(x), x, half(x)], -1)),
    "around zeros": (
        lambda x: F.pad(F.pad(x, (1, 1)), (1, 0), value=0.5),
        lambda x: torch.cat([half(x), 0 * half(x), x, 0 * half(x)], -1),
    ),
    "added to": (lambda x: F.pad(x, (1, 1)) + 1, lambda x: torch.cat([0 * half(x), x, 0 * half(x)], -1) + 1),
    "written to": (lambda x: F.pad(x, (1, 1)).sub_(1), lambda x: torch.cat([0 * half(x), x, 0 * half(x)], -1) - 1),
    "replicated": (
        lambda x: F.pad(F.pad(x, (1, 1)), (1, 1, 0, 0), mode="replicate"),
        lambda x: torch.cat([0 * half(x), 0 * half(x), x, 0 * half(x), 0 * half(x)], -1),
    ),
}


def half(x: Tensor) -> Tensor:
    return torch.full_like(x[..., :1].detach(), 0.5)


@pytest.mark.parametrize("rule", FLAT, ids=str)
@pytest.mark.parametrize("name", ARE_INPUTS)
def test_other_numbers_are_inputs(name: str, rule: Rule | str) -> None:
    one, other = ARE_INPUTS[name]
    maps = [explained(lambda x, pad=pad: F.conv2d(pad(x), W, B), X, rule) for pad in (one, other)]
    assert error(*maps) < 1e-12


@pytest.mark.parametrize("rule", FLAT, ids=str)
def test_a_view_that_is_written_to_holds_inputs(rule: Rule | str) -> None:
    def padded(x: Tensor) -> Tensor:
        x = F.pad(x, (1, 0))
        x[..., :1] = x[..., -1:]
        return x

    def joined(x: Tensor) -> Tensor:
        return torch.cat([x[..., -1:], x], -1)

    maps = [explained(lambda x, pad=pad: F.conv2d(pad(x), W, B), X, rule) for pad in (padded, joined)]
    assert error(*maps) < 1e-12


@pytest.mark.parametrize("rule", [*FLAT, Gamma(0.25)], ids=str)
def test_what_was_padded_may_be_overwritten_later(rule: Rule | str) -> None:
    def model(x: Tensor) -> Tensor:
        h = F.pad(x, (1, 2, 0, 1))
        y = F.conv2d(h, W, B)
        h.zero_()
        return y

    assert error(explained(model, X, rule), explained(lambda x: F.conv2d(F.pad(x, (1, 2, 0, 1)), W, B), X, rule)) == 0


LAYERS: dict[str, tuple[Function, Function]] = {
    "linear": (lambda x: F.linear(F.pad(x, (2, 1)), draw(3, 9)), lambda x: F.linear(x, draw(3, 9)[:, 2:8])),
    "product": (lambda x: F.pad(x, (2, 1)) @ draw(9, 3), lambda x: x @ draw(9, 3)[2:8]),
    "channels": (
        lambda x: F.conv2d(F.pad(x, (0, 0, 0, 0, 1, 1)), draw(3, 4, 3, 3)),
        lambda x: F.conv2d(x, draw(3, 4, 3, 3)[:, 1:3]),
    ),
    "samples": (lambda x: F.conv2d(F.pad(x, (0,) * 6 + (1, 2)), W, B)[1:-2], lambda x: F.conv2d(x, W, B)),
    "one sample": (
        lambda x: F.conv2d(F.pad(x[0], (1, 1, 1, 1)), W, B),
        lambda x: F.conv2d(x[0], W, B, padding=1),
    ),
    "norm": (
        lambda x: networks.randomize(nn.BatchNorm2d(4))(F.conv2d(F.pad(x, (1, 1, 1, 1)), W, B)),
        lambda x: networks.randomize(nn.BatchNorm2d(4))(F.conv2d(x, W, B, padding=1)),
    ),
    "transposed": (
        lambda x: F.conv_transpose2d(F.pad(x, (1, 1, 1, 1)), draw(2, 3, 3, 3), padding=1),
        lambda x: F.conv_transpose2d(x, draw(2, 3, 3, 3)),
    ),
    "pool": (lambda x: F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 2), lambda x: F.avg_pool2d(x, 3, 2, padding=1)),
    "sum": (lambda x: F.pad(x, (1, 1)).sum(-1), lambda x: x.sum(-1)),
}


@pytest.mark.parametrize("rule", [*FLAT, Epsilon(0.0), Gamma(0.25)], ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_other_layers(name: str, rule: Rule | str) -> None:
    maps = [explained(layer, X, rule) for layer in LAYERS[name]]
    assert error(*maps) < 1e-10


@pytest.mark.parametrize("rule", [Flat(), Gamma(0.25, bias="distribute")], ids=str)
def test_a_few_samples_at_a_time(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    def model(x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 2, 0, 1)), W, B)

    together = explained(model, X, rule)
    monkeypatch.setattr("lrp.engine.backward.propagation.LARGE", 0)
    monkeypatch.setattr("lrp.engine.backward.propagation.PART", 1)
    assert error(explained(model, X, rule), together) < 1e-12


@pytest.mark.parametrize("rule", [ZBox(-3.0, 3.0), Epsilon(0.1, bias="distribute")], ids=str)
def test_relevance_of_what_was_padded_can_be_differentiated(rule: Rule) -> None:
    def relevance_of(x: Tensor) -> Tensor:
        y = lrp.convert(lambda x: F.conv2d(F.pad(x, (1, 0, 2, 1)), W, B).tanh())(
            x, explain=True, rule=rule, differentiable=True
        )
        return torch.autograd.grad(y.sum(), x, create_graph=True)[0]

    assert torch.autograd.gradcheck(relevance_of, X[:1, :, :3, :3].clone().requires_grad_())


class Same(nn.Conv2d):
    """Padding as TensorFlow has it: as many zeros as the stride wants, more of them on the far side."""

    def forward(self, x: Tensor) -> Tensor:
        sizes = zip(x.shape[-2:], self.kernel_size, self.stride, strict=True)
        totals = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size, kernel, stride in sizes]
        x = F.pad(x, [side for total in reversed(totals) for side in (total // 2, total - total // 2)])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Thinned(nn.Conv2d):
    """Its own padding on both sides, and every second output from the second on."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, padding=1)[..., 1::2, 1::2]


def network(first: nn.Module, norm: nn.Module) -> nn.Module:
    rest = [norm, nn.SiLU(), nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.ReLU()]
    return networks.randomize(nn.Sequential(first, *rest, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)))


STEMS = ["epsilon_plus_flat", "epsilon_alpha2_beta1_flat", "epsilon_plus", "flat", ZBox(-4.0, 4.0)]


@pytest.mark.parametrize("rule", STEMS, ids=str)
@pytest.mark.parametrize(("stride", "size"), [(1, 8), (1, 7), (2, 7)])
def test_a_stem_with_as_many_zeros_on_both_sides(stride: int, size: int, rule: Rule | str) -> None:
    x = networks.images(size=size).detach()
    stems = (Same(2, 4, 3, stride), nn.Conv2d(2, 4, 3, stride, padding=1))
    maps = [explained(network(stem, nn.BatchNorm2d(4)), x, rule) for stem in stems]
    assert error(*maps) < 1e-10


@pytest.mark.parametrize("rule", STEMS, ids=str)
def test_a_stem_with_zeros_on_the_far_side_alone(rule: Rule | str) -> None:
    x = networks.images(size=8).detach()
    maps = [explained(network(stem, nn.Identity()), x, rule) for stem in (Same(2, 4, 3, 2), Thinned(2, 4, 3))]
    assert error(*maps) < 1e-10
