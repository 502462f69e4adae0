"""A gate however it is spelled: a hard sigmoid by hand, the exponential of a log, or a part of a larger tensor."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import error
from spellings import Function, draw, explained
from torch import Tensor, nn
from torch.nn import functional as F

from lrp.rules import Epsilon, Rule

W, V, W2, B2 = draw(6, 3), draw(6, 3, seed=1), draw(4, 6, seed=2), draw(4, seed=3)
X = draw(4, 3, seed=4)
SIX = torch.tensor(6.0, dtype=torch.float64)
RULES = [Epsilon(0.1), "zplus", "gamma", "alpha2beta1"]
Weighing = Callable[[Tensor, Tensor], Tensor]


def network(x: Tensor, weighing: Weighing) -> Tensor:
    return F.linear(weighing(F.linear(x, W), F.linear(x, V)), W2, B2)


def error_between(one: Weighing, other: Weighing, rule: Rule | str, x: Tensor = X) -> float:
    return error(*(explained(partial(network, weighing=weighing), x, rule) for weighing in (one, other)))


# 1. What saturates at 0 and above is a hard sigmoid, unless it is an activation or data.

HARD_SIGMOIDS: dict[str, Function] = {
    "relu6": lambda t: F.relu6(t + 3) / 6,
    "relu6 module": lambda t: nn.ReLU6()(t + 3) / 6,
    "relu6 in place": lambda t: F.relu6(t + 3, inplace=True).div_(6),
    "number first": lambda t: F.relu6(3 + t) * (1 / 6),
    "add": lambda t: torch.add(t, 3.0).clamp(0, 6).mul(1 / 6),
    "in place": lambda t: t.clone().add_(3).clamp_(0, 6).div_(6),
    "tensor": lambda t: F.relu6(t + SIX / 2) / SIX,
    "halves": lambda t: F.relu6((t + 1) + 2) / 6,
    "shift moved": lambda t: F.relu6((t + 3).t()).t() / 6,
    "shift scaled": lambda t: F.relu6(2 * (t / 2 + 1.5)) / 6,
    "clamp": lambda t: torch.clamp(t / 6 + 0.5, 0, 1),
    "clamp by name": lambda t: (t / 6 + 0.5).clamp(max=1, min=0),
    "clip": lambda t: torch.clip(t / 6 + 0.5, 0.0, 1.0),
    "hardtanh": lambda t: F.hardtanh(t / 6 + 0.5, 0, 1),
    "hardtanh module": lambda t: nn.Hardtanh(0, 1)(t / 6 + 0.5),
    "relu and clamp": lambda t: (t / 6 + 0.5).relu().clamp(max=1),
    "clamp_min and clamp_max": lambda t: (t + 3).clamp_min(0).clamp_max(6) / 6,
    "clamp and relu": lambda t: (t / 6 + 0.5).clamp(max=1).relu(),
    "scaled to one": lambda t: (t + 3).relu().flatten().clamp(max=6).view(4, 6) / 6,
    "falling": lambda t: 1 - F.relu6(3 - t) / 6,
    "rsub": lambda t: 1 - F.relu6(torch.rsub(t, 3)) / 6,
}
OTHERS: dict[str, tuple[Function, Function]] = {
    "unshifted": (lambda t: F.relu6(6 * t) / 6, lambda t: F.hardsigmoid(6 * (t - 0.5))),
    "clamp": (lambda t: t.clamp(0, 1), lambda t: F.hardsigmoid(6 * (t - 0.5))),
    "hardtanh": (lambda t: F.hardtanh(t, 0, 1), lambda t: F.hardsigmoid(6 * (t - 0.5))),
    "logsigmoid": (lambda t: F.logsigmoid(t).exp(), torch.sigmoid),
    "logsigmoid shifted": (lambda t: (F.logsigmoid(t) * 2).exp_(), lambda t: torch.sigmoid(t) ** 2),
    "log_softmax": (lambda t: t.log_softmax(1).exp(), lambda t: t.softmax(1)),
    "log_softmax moved": (lambda t: F.log_softmax(t, 1).view(2, 12).exp().view(4, 6), lambda t: t.softmax(1)),
}


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", HARD_SIGMOIDS)
def test_a_hard_sigmoid_by_hand_is_a_gate(name: str, rule: Rule | str) -> None:
    assert error_between(lambda t, h: h * HARD_SIGMOIDS[name](t), lambda t, h: h * F.hardsigmoid(t), rule) < 1e-12


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", OTHERS)
def test_what_equals_a_gate_is_one(name: str, rule: Rule | str) -> None:
    actual, expected = OTHERS[name]
    assert error_between(lambda t, h: actual(t) * h, lambda t, h: expected(t) * h, rule) < 1e-12


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("spelling", [
    lambda t: t * F.relu6(t + 3) / 6, lambda t: t * (F.relu6(t + 3) / 6), lambda t: (t + 3).clamp(0, 6) * t / 6,
])  # fmt: skip
def test_a_hard_swish_by_hand(spelling: Function, rule: Rule | str) -> None:
    assert error_between(lambda t, h: h + spelling(t), lambda t, h: h + F.hardswish(t), rule) < 1e-12


SIGNALS: dict[str, Function] = {
    "relu6": F.relu6,
    "biased": lambda t: F.relu6(t + draw(6)),
    "learned shift": lambda t: F.relu6(t + nn.Parameter(SIX / 2)),
    "shift before a layer": lambda t: F.relu6(F.linear(t + 3, draw(6, 6, seed=5))),
    "one bound": lambda t: (t + 3).relu(),
    "signed": lambda t: (t + 3).clamp(-1, 1),
    "tanh": lambda t: F.hardtanh(t / 2),
    "log_softmax": lambda t: t.log_softmax(1),
}


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", SIGNALS)
def test_an_activation_is_a_signal(name: str, rule: Rule | str) -> None:
    activation = SIGNALS[name]
    of_first = explained(partial(network, weighing=lambda t, h: h.detach() * activation(t)), X, rule)
    of_second = explained(partial(network, weighing=lambda t, h: h * activation(t).detach()), X, rule)
    found = explained(partial(network, weighing=lambda t, h: h * activation(t)), X, rule)
    assert error(found, (of_first + of_second) / 2) < 1e-12


@pytest.mark.parametrize("clamp", [lambda x: x.clamp(0, 1), lambda x: F.relu6(x + 3), lambda x: F.hardtanh(x, 0, 1)])
def test_data_within_bounds_are_no_gate(clamp: Function) -> None:
    def weighed(x: Tensor, of_data: Function) -> Tensor:
        return F.linear(of_data(clamp(x)) * F.linear(x, W[:3]), W2[:, :3])

    with_data = explained(partial(weighed, of_data=lambda x: x), X, Epsilon(1e-14))
    assert error(with_data, explained(partial(weighed, of_data=Tensor.detach), X, Epsilon(1e-14))) > 1e-3


# 2. A gate that is a part of a larger tensor.

GATES = draw(24, 3, seed=6)


def fresh(g: Tensor) -> tuple[Tensor, ...]:
    i, f, n, o = g.chunk(4, 1)
    return i.sigmoid(), f.sigmoid(), n.tanh(), o.sigmoid()


def slices(g: Tensor) -> tuple[Tensor, ...]:
    g[:, :12].sigmoid_()
    g[:, 12:18].tanh_()
    g[:, 18:].sigmoid_()
    return g.chunk(4, 1)


def kept_slices(g: Tensor) -> tuple[Tensor, ...]:
    i, f, n, o = (g[:, k : k + 6] for k in range(0, 24, 6))
    i.sigmoid_(), f.sigmoid_(), n.tanh_(), o.sigmoid_()
    return i, f, n, o


def narrowed(g: Tensor) -> tuple[Tensor, ...]:
    g.narrow(1, 12, 6).tanh_()
    g.narrow(1, 0, 12).sigmoid_()
    g.t()[18:].sigmoid_()
    return tuple(g.t()[k : k + 6].t() for k in range(0, 24, 6))


def viewed(g: Tensor) -> tuple[Tensor, ...]:
    parts = g.view(4, 4, 6)
    parts[:, :2].sigmoid_()
    parts[:, 2].tanh_()
    parts[:, 3].sigmoid_()
    return g.split(6, 1)


def assigned(g: Tensor) -> tuple[Tensor, ...]:
    g[:, :12] = g[:, :12].sigmoid()
    g[:, 12:18] = g[:, 12:18].tanh()
    g[..., 18:] = g[:, 18:].sigmoid()
    return tuple(g[:, k : k + 6].clone() for k in range(0, 24, 6))


def assigned_to_view(g: Tensor) -> tuple[Tensor, ...]:
    parts = g.view(4, 4, 6)
    parts[:, :2] = parts[:, :2].sigmoid()
    parts[:, 2] = parts[:, 2].tanh()
    parts[:, 3] = parts[:, 3].sigmoid()
    return g.chunk(4, 1)


def filled(g: Tensor) -> tuple[Tensor, ...]:
    out = torch.empty_like(g)
    out[:, :12] = g[:, :12].sigmoid()
    out[:, 12:18].copy_(g[:, 12:18].tanh())
    out[:, 18:] = g[:, 18:].sigmoid()
    return out.unflatten(1, (4, 6)).unbind(1)


def rest_of_all(g: Tensor) -> tuple[Tensor, ...]:
    n = g[:, 12:18].tanh()
    g.sigmoid_()
    g[:, 12:18] = n
    return g.clone().chunk(4, 1)


def rows(g: Tensor) -> tuple[Tensor, ...]:
    for row in range(4):
        for k in (0, 6, 18):
            g[row, k : k + 6].sigmoid_()
        g[row, 12:18].tanh_()
    return tuple(torch.stack([g[row, k : k + 6] for row in range(4)]) for k in range(0, 24, 6))


def cells(x: Tensor, gates: Callable[[Tensor], tuple[Tensor, ...]]) -> Tensor:
    h = c = torch.zeros(4, 6, dtype=torch.float64)
    for t in range(3):
        i, f, n, o = gates(F.linear(x * (t + 1), GATES) + F.linear(h, draw(24, 6, seed=7)))
        c = f * c + i * n
        h = o * c.tanh()
    return F.linear(h, W2)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("gates", [
    slices, kept_slices, narrowed, viewed, assigned, assigned_to_view, filled, rest_of_all, rows,
])  # fmt: skip
def test_gates_written_side_by_side(gates: Callable[[Tensor], tuple[Tensor, ...]], rule: Rule | str) -> None:
    expected = explained(partial(cells, gates=fresh), X, rule)
    assert error(explained(partial(cells, gates=gates), X, rule), expected) < 1e-10


def written_to(t: Tensor, view: Function) -> Tensor:
    t = t.clone()
    view(t).sigmoid_()
    return t


VIEWS_OF_ALL: list[Function] = [
    lambda t: t.view(-1), lambda t: t[:], lambda t: t.t(), lambda t: t[None], lambda t: t.view(2, 12),
    lambda t: t.as_strided((6, 4), (1, 6)), lambda t: t.unflatten(1, (2, 3)).transpose(0, 1),
]  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("view", VIEWS_OF_ALL)
def test_a_view_of_all_makes_a_gate_of_all(view: Function, rule: Rule | str) -> None:
    assert error_between(lambda t, h: h * written_to(t, view), lambda t, h: h * t.sigmoid(), rule) < 1e-12


def test_what_was_written_between_is_no_part_of_it() -> None:
    def every_second(t: Tensor, h: Tensor) -> Tensor:
        t = t.clone()
        t[:, ::2].sigmoid_()
        return h[:, :3] * t[:, :3]

    def of(x: Tensor, of_part: Function) -> Tensor:
        return every_second(of_part(F.linear(x, W)), F.linear(x, V))

    found = explained(partial(of, of_part=lambda t: t), X, Epsilon(0.1))
    assert error(found, explained(partial(of, of_part=Tensor.detach), X, Epsilon(0.1))) > 1e-3


@given(st.data())
def test_a_part_is_a_gate_where_only_gates_were_written(data: st.DataObject) -> None:
    """Drawn writes to slices: only gates count as gates, and what was written last is known."""
    slices = st.tuples(*(st.builds(lambda a, b: slice(min(a, b), max(a, b) + 1), *[st.integers(0, 5)] * 2),) * 2)
    writes = data.draw(st.lists(st.tuples(slices, st.sampled_from(["sigmoid_", "tanh_"])), min_size=1, max_size=6))
    rows, columns = data.draw(slices)
    is_gate = torch.zeros(6, 6, dtype=torch.bool)
    for part, function in writes:
        is_gate[part] |= function == "sigmoid_"  # a gate stays one
    weights = draw(6, 6, seed=8), draw(6, 6, seed=9)

    def weighed(x: Tensor, of_gates: Function) -> Tensor:
        t, h = (F.linear(x, w) for w in weights)
        for part, function in writes:
            getattr(t[part], function)()
        return h[rows, columns] * of_gates(t)[rows, columns]

    x = draw(6, 6, seed=10)
    found = explained(partial(weighed, of_gates=lambda t: t), x, Epsilon(0.1))
    as_constant = explained(partial(weighed, of_gates=Tensor.detach), x, Epsilon(0.1))
    weighs = error(found, as_constant) < 1e-12
    assert not weighs or is_gate[rows, columns].all()
    part, function = writes[-1]
    assert weighs or function == "tanh_" or not _is_within((rows, columns), part)


def _is_within(part: tuple[slice, ...], other: tuple[slice, ...]) -> bool:
    return all(b.start <= a.start and a.stop <= b.stop for a, b in zip(part, other, strict=True))
