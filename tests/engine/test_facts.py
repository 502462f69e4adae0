"""What is known of a tensor: that none of its elements is negative, or that it is a gate; proved, or unknown."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from networks import error
from spellings import Function, draw, explained
from torch import Tensor, nn
from torch.nn import functional as F

import lrp
from lrp.rules import AlphaBeta, Epsilon, Gamma, Rule, ZPlus

W, V, W2, B2 = draw(5, 3), draw(5, 3, seed=1), draw(4, 5, seed=2), draw(4, seed=3)
X = draw(4, 3, seed=4)
MASK = draw(4, 5, seed=5) > 0
INTEGERS = torch.tensor([-3, -1, 0, 2, 1])
MINUS_ONE = torch.tensor(-1.0, dtype=torch.float64)


def positive(x: Tensor) -> Tensor:
    return F.linear(x, W).relu()


# 1. That no element is negative is proved, or the rule is shown both signs.


def data_write(x: Tensor) -> Tensor:
    h = positive(x)
    h.data.sub_(3)
    return h


def detached_write(x: Tensor) -> Tensor:
    h = positive(x)
    h.detach().sub_(3)
    return h


def numpy_write(x: Tensor) -> Tensor:
    h = positive(x)
    h.detach().numpy()[...] -= 3
    return h * 1


def late_numpy_write(x: Tensor) -> Tensor:
    h = positive(x)
    array = h.detach().numpy()
    h = h.view(4, 5)
    array -= 3
    return h


def array_write(x: Tensor) -> Tensor:
    h = positive(x)
    array = h.detach().__array__()
    part = h[:, :]
    array -= 3
    return part


def dlpack_write(x: Tensor) -> Tensor:
    h = positive(x)
    torch.from_dlpack(h.detach()).sub_(3)
    return h


def storage_write(x: Tensor) -> Tensor:
    h = positive(x)
    torch.empty(0, dtype=h.dtype).set_(h.untyped_storage()).sub_(3)
    return h


def no_grad_write(x: Tensor) -> Tensor:
    h = positive(x)
    with torch.no_grad():
        h.sub_(3)
    return h


def out_write(x: Tensor) -> Tensor:
    h = positive(x)
    with torch.no_grad():
        torch.sub(h, 3, out=h)
    return h


def data_set(x: Tensor) -> Tensor:
    h = positive(x)
    h.data = h.data - 3
    return h


def foreach_write(x: Tensor) -> Tensor:
    h = positive(x)
    torch._foreach_sub_([h], 3.0)
    return h


NAMED_WRITES = [detached_write, no_grad_write, out_write, foreach_write]
UNSEEN_WRITES = [
    data_write, numpy_write, late_numpy_write, array_write, dlpack_write, storage_write, data_set,
]  # fmt: skip


def write_through_view(x: Tensor) -> Tensor:
    h = positive(x)
    h[:2].sub_(3)
    return h


def view_of_written(x: Tensor) -> Tensor:
    h = positive(x)
    view = h[:2]
    h.sub_(3)
    return torch.cat([view, view])


def item_assignment(x: Tensor) -> Tensor:
    h = positive(x)
    h[MASK] = -1.0
    return h


def live_item_assignment(x: Tensor) -> Tensor:
    h = positive(x)
    h[:, :2] = F.linear(x, V)[:, :2]
    return h


SIGNED: dict[str, Function] = {
    "add a number": lambda x: positive(x) + (-3),
    "number first": lambda x: -3 + positive(x),
    "sub": lambda x: positive(x) - 3,
    "rsub": lambda x: 3 - positive(x),
    "integer": lambda x: positive(x) + torch.tensor(-3),
    "integers": lambda x: positive(x) + INTEGERS,
    "alpha": lambda x: torch.add(positive(x), positive(x).flip(1), alpha=-2),
    "alpha of a number": lambda x: torch.add(positive(x), 2, alpha=-2),
    "mul": lambda x: positive(x) * -2,
    "mul integers": lambda x: positive(x) * INTEGERS,
    "div": lambda x: positive(x) / -2,
    "div integer": lambda x: positive(x) / torch.tensor(-2),
    "neg": lambda x: -positive(x),
    "where number": lambda x: torch.where(MASK, positive(x), -1.0),
    "where number first": lambda x: torch.where(MASK, -1.0, positive(x)),
    "where method": lambda x: positive(x).where(MASK, -1.0),
    "where tensor": lambda x: positive(x).where(MASK, MINUS_ONE),
    "where by name": lambda x: torch.where(condition=MASK, input=positive(x), other=MINUS_ONE),
    "threshold": lambda x: F.threshold(positive(x), 0.5, -1.0),
    "low threshold": lambda x: F.threshold(F.linear(x, W), -0.5, 1.0),
    "threshold in place": lambda x: nn.Threshold(0.1, -2, inplace=True)(positive(x)),
    "masked_fill": lambda x: positive(x).masked_fill(MASK, -1),
    "masked_fill_": lambda x: positive(x).masked_fill_(MASK, MINUS_ONE),
    "index_fill": lambda x: positive(x).index_fill(1, torch.tensor([0, 2]), -2.0),
    "scatter": lambda x: positive(x).scatter(1, torch.tensor([[0], [1], [2], [3]]), -4.0),
    "select_scatter": lambda x: positive(x).select_scatter(-torch.ones(4, dtype=torch.float64), 1, 0),
    "pad": lambda x: F.pad(positive(x)[:, :3], (1, 1), value=-1),
    "pad by position": lambda x: F.pad(positive(x)[:, :3], (1, 1), "constant", -1),
    "constant_pad_nd": lambda x: torch.constant_pad_nd(positive(x)[:, :3], (1, 1), -1),
    "softplus": lambda x: F.softplus(F.linear(x, W), -1.0),
    "softplus by name": lambda x: F.softplus(F.linear(x, W), beta=-2),
    "softplus threshold": lambda x: F.softplus(F.linear(x, W), 1, -20),
    "hardtanh": lambda x: F.hardtanh(positive(x), -2, -1),
    "hardtanh by name": lambda x: F.hardtanh(positive(x), max_val=-1, min_val=-2),
    "clamp": lambda x: positive(x).clamp(-2, -1),
    "clamp max": lambda x: positive(x).clamp(max=-1),
    "clamp_max": lambda x: positive(x).clamp_max(-1),
    "clamp_": lambda x: positive(x).clamp_(max=-1),
    "clamp tensor": lambda x: positive(x).clamp(max=MINUS_ONE),
    "minimum": lambda x: torch.minimum(positive(x), MINUS_ONE),
    "elu": lambda x: F.elu(F.linear(x, W)),
    "leaky_relu": lambda x: F.leaky_relu(F.linear(x, W), -2.0),
    "logsigmoid": lambda x: F.logsigmoid(positive(x)),
    "avg_pool": lambda x: F.avg_pool2d(positive(x)[None, None], 1, divisor_override=-2)[0, 0],
    "bicubic": lambda x: F.interpolate(positive(x)[None, None], (4, 5), mode="bicubic", align_corners=True)[0, 0] - 1,
    "cat": lambda x: torch.cat([positive(x)[:, :3], -torch.ones(4, 2, dtype=torch.float64)], 1),
    "cat integers": lambda x: torch.cat([positive(x)[:, :3], torch.full((4, 2), -1)], 1),
    "cat live": lambda x: torch.cat([positive(x)[:2], F.linear(x, W)[:2]]),
    "copy_": lambda x: torch.zeros(4, 5, dtype=torch.float64).copy_(positive(x) - 1),
    "alpha dropout": lambda x: F.alpha_dropout(positive(x), 0.5, True),
    "rrelu": lambda x: F.rrelu(F.linear(x, W), -2, -1, True),
    "product with a constant": lambda x: positive(x) @ -torch.eye(5, dtype=torch.float64),
    "write through a view": write_through_view,
    "view of what was written": view_of_written,
    "item assignment": item_assignment,
    "live item assignment": live_item_assignment,
}
SIGN_RULES = [ZPlus(), Gamma(0.25), AlphaBeta(2, 1), Epsilon(0.1)]


def error_at_hidden(make: Function, rule: Rule) -> float:
    """The relevance at a hidden tensor, against that of the layer after it explained alone: its sign is unknown."""
    hidden = []

    def network(x: Tensor) -> Tensor:
        torch.manual_seed(0)
        h = make(x)
        h.retain_grad()
        hidden.append(h)
        return F.linear(h, W2, B2)

    y = lrp.convert(network)(X.clone().requires_grad_(), explain=True, rule=rule)
    y.backward(draw(*y.shape, seed=9))
    h = hidden[0].detach().clone().requires_grad_()
    y = lrp.convert(lambda h: F.linear(h, W2, B2))(h, explain=True, rule=rule)
    y.backward(draw(*y.shape, seed=9))
    return error(hidden[0].grad, h.grad)


@pytest.mark.parametrize("rule", SIGN_RULES, ids=str)
@pytest.mark.parametrize("name", SIGNED)
def test_a_sign_is_proved_or_unknown(name: str, rule: Rule) -> None:
    assert error_at_hidden(SIGNED[name], rule) < 1e-10


@pytest.mark.parametrize("rule", SIGN_RULES, ids=str)
@pytest.mark.parametrize("write", UNSEEN_WRITES)
def test_a_write_that_torch_does_not_count_leaves_nothing_known(write: Function, rule: Rule) -> None:
    assert error_at_hidden(write, rule) < 1e-10


@pytest.mark.parametrize("rule", SIGN_RULES, ids=str)
@pytest.mark.parametrize("write", NAMED_WRITES)
def test_a_write_without_gradients_is_named_and_leaves_nothing_known(write: Function, rule: Rule) -> None:
    with pytest.warns(lrp.RelevanceWarning, match="a write that lrp does not see|where gradients are switched off"):
        assert error_at_hidden(write, rule) < 1e-10


class Signs(Rule):
    """Notes whether each layer is shown a signed input."""

    def __init__(self) -> None:
        self.signed: list[bool] = []

    def redistribute(self, f, x, w, b, z, R):  # type: ignore[no-untyped-def]
        self.signed.insert(0, f.signed)
        return f.pullback(R, w)


NONNEGATIVE: dict[str, Function] = {
    "relu": positive,
    "clamp": lambda x: F.linear(x, W).clamp(min=0),
    "sum": lambda x: positive(x) + positive(x),
    "number": lambda x: positive(x) + 2,
    "boolean": lambda x: positive(x) * MASK,
    "where": lambda x: torch.where(MASK, positive(x), 0.0),
    "pad": lambda x: F.pad(positive(x)[:, :3], (1, 1)),
    "moved": lambda x: positive(x).t().reshape(5, 4).permute(1, 0).contiguous(),
    "max": lambda x: F.max_pool1d(positive(x)[None], 3, 1, 1)[0],
    "average": lambda x: F.avg_pool1d(positive(x)[None], 3, 1, 1)[0],
    "softplus": lambda x: F.softplus(F.linear(x, W)),
    "sigmoid": lambda x: F.linear(x, W).sigmoid(),
    "dropout": lambda x: F.dropout(positive(x), 0.5),
}


@pytest.mark.parametrize("name", NONNEGATIVE)
def test_what_is_proved_is_used(name: str) -> None:
    rule, x = Signs(), X.clone().requires_grad_()
    lrp.convert(lambda x: F.linear(NONNEGATIVE[name](x), W2))(x, explain=True, rule=rule).sum().backward()
    assert rule.signed == [True] * (len(rule.signed) - 1) + [False]


@pytest.mark.parametrize("read", [lambda h: h.detach().numpy(), lambda h: h.data_ptr(), lambda h: h.tolist()])
def test_memory_that_others_only_read_is_as_well_known_as_before(read: Callable[[Tensor], object]) -> None:
    rule, x = Signs(), X.clone().requires_grad_()

    def network(x: Tensor) -> Tensor:
        h = positive(x)
        read(h)
        return F.linear(h, W2)

    lrp.convert(network)(x, explain=True, rule=rule, strict=True).sum().backward()
    assert rule.signed == [True, False]


# 2. A gate stays a gate until a linear layer makes a signal of it.


def rows(s: Tensor) -> Tensor:
    filled = torch.empty_like(s)
    for i in range(len(s)):
        filled[i] = s[i]
    return filled


def filled(s: Tensor) -> Tensor:
    s = s.clone()
    s[:, 0] = 0.5
    return s


def overwritten(h: Tensor, s: Tensor) -> Tensor:
    s = s.clone()
    s.mul_(h)
    return s


def scaled(h: Tensor, s: Tensor) -> Tensor:
    h = h.clone()
    h *= s
    return h


def range_of(s: Tensor) -> Tensor:
    low, high = s.amin(1, keepdim=True), s.amax(1, keepdim=True)
    return (s - low) / (high - low)


FACTOR = torch.rand(5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
WEIGHED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "*": lambda h, s: h * s,
    "gate first": lambda h, s: s * h,
    "by name": lambda h, s: torch.mul(input=h, other=s),
    "in place": lambda h, s: h.clone().mul_(s),
    "*=": scaled,
    "gate overwritten": overwritten,
    "dropout": lambda h, s: h * F.dropout(s, 0.5, False),
    "dropout module": lambda h, s: h * nn.Dropout(0.5).eval()(s),
    "dropout in place": lambda h, s: h * F.dropout(s.clone(), 0.5, False, True),
    "expand_as": lambda h, s: h * s[:, :1].expand_as(h),
    "view_as": lambda h, s: h * s.view_as(h),
    "reshape_as": lambda h, s: h * s.reshape_as(h),
    "type_as": lambda h, s: h * s.type_as(h),
    "to": lambda h, s: h * s.to(h),
    "broadcast_tensors": lambda h, s: torch.mul(*torch.broadcast_tensors(h, s[:, :1])),
    "clamp": lambda h, s: h * s.clamp(0.3, 1),
    "relu": lambda h, s: h * (s - 0.3).relu(),
    "hardtanh": lambda h, s: h * F.hardtanh(s, 0, 0.6),
    "relu6": lambda h, s: h * (F.relu6(s * 6) / 6),
    "interpolate": lambda h, s: h * F.interpolate(s[:, None], 5, mode="linear")[:, 0],
    "nearest": lambda h, s: h * F.interpolate(s[:, None, :2], 5)[:, 0],
    "mean": lambda h, s: h * s.mean(1, keepdim=True),
    "avg_pool": lambda h, s: h * F.avg_pool1d(s[None], 3, 1, 1)[0],
    "max_pool": lambda h, s: h * F.max_pool1d(s[None], 3, 1, 1)[0],
    "amax": lambda h, s: h * s.amax(1, keepdim=True),
    "max": lambda h, s: h * s.max(1, keepdim=True)[0],
    "1 - g": lambda h, s: h * (1 - s),
    "ones - g": lambda h, s: h * (torch.ones_like(h) - s),
    "rsub": lambda h, s: h * torch.rsub(s, 1),
    "g / g.sum()": lambda h, s: h * (s / (s.sum(1, keepdim=True) + 1e-6)),
    "range": lambda h, s: h * range_of(s),
    "g c + d": lambda h, s: h * (s * 2 + 0.5),
    "g c": lambda h, s: h * (s * FACTOR),
    "g + 1 in place": lambda h, s: h * s.clone().add_(1),
    "g g": lambda h, s: h * (s * s.flip(1)),
    "g + g": lambda h, s: h * (s + s.flip(1)),
    "maximum": lambda h, s: h * torch.maximum(s, s.flip(0)),
    "cat": lambda h, s: h * torch.cat([s[:, :2], s[:, 2:]], 1),
    "cat with ones": lambda h, s: h * torch.cat([s[:, :2], torch.ones(4, 3, dtype=torch.float64)], 1),
    "stack": lambda h, s: h * torch.stack([s, s.flip(1)]).mean(0),
    "where": lambda h, s: h * torch.where(MASK, s, s * 2),
    "where constant": lambda h, s: h * torch.where(h > 0, s, 1.0),
    "masked_fill": lambda h, s: h * s.masked_fill(h > 0, 0.0),
    "gather": lambda h, s: h * s.gather(1, torch.tensor([[4, 3, 2, 1, 0]] * 4)),
    "index": lambda h, s: h * s[:, [1, 0, 2, 3, 4]],
    "index_select": lambda h, s: h * s.index_select(1, torch.tensor([1, 0, 2, 3, 4])),
    "topk": lambda h, s: h * s.topk(5, 1)[0],
    "pad": lambda h, s: h * F.pad(s[:, :3], (1, 1), value=1.0),
    "moved": lambda h, s: (h.t()[:, :, None] * s.t().contiguous()[:, :, None]).squeeze(2).t(),
    "rows": lambda h, s: h * rows(s),
    "filled": lambda h, s: h * filled(s),
    "pieces": lambda h, s: torch.stack([a * b for a, b in zip(h.unbind(1), s.unbind(1), strict=True)], 1),
    "tanh": lambda h, s: h * torch.tanh(s),
    "GRU": lambda h, s: (1 - s) * h.tanh() + s * h,
    "residual": lambda h, s: h + h * s,
    "quotient": lambda h, s: h / s,
}
GATES = {"sigmoid": torch.sigmoid, "hardsigmoid": F.hardsigmoid, "softmax": lambda t: F.softmax(t, 1)}


@pytest.mark.parametrize("rule", [Epsilon(1e-14), "zplus", "alpha2beta1"], ids=str)
@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", WEIGHED)
def test_a_gate_gets_what_a_constant_gets(name: str, gate: str, rule: Rule | str) -> None:
    def network(x: Tensor, of_gate: Function) -> Tensor:
        return F.linear(WEIGHED[name](F.linear(x, W), of_gate(GATES[gate](F.linear(x, V)))), W2, B2)

    actual = explained(partial(network, of_gate=lambda s: s), X, rule)
    assert error(actual, explained(partial(network, of_gate=Tensor.detach), X, rule)) < 1e-10


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_cells_written_by_hand(cell: str) -> None:
    weights = draw(20, 5, seed=7)

    def step(h: Tensor, c: Tensor, x: Tensor, of_gate: Function) -> tuple[Tensor, Tensor]:
        i, f, g, o = (F.linear(h, weights) + F.linear(x, weights[:, :3])).chunk(4, 1)
        i, f, o = (of_gate(t.sigmoid()) for t in (i, f, o))
        if cell == "gru":
            return (1 - i) * g.tanh() + i * h, c
        c = f * c + i * g.tanh()
        return o * c.tanh(), c

    def network(x: Tensor, of_gate: Function) -> Tensor:
        h = c = torch.zeros(4, 5, dtype=torch.float64)
        for t in range(3):
            h, c = step(h, c, x * (t + 1), of_gate)
        return F.linear(h, W2)

    actual = explained(partial(network, of_gate=lambda s: s), X, Epsilon(1e-14))
    assert error(actual, explained(partial(network, of_gate=Tensor.detach), X, Epsilon(1e-14))) < 1e-10


def test_a_linear_layer_makes_a_signal_of_a_gate() -> None:
    def halves(x: Tensor, of_a: Function, of_b: Function) -> Tensor:
        s = F.linear(x, V)
        gate = s * (s.sigmoid() / s).detach()  # an activation passes relevance unchanged
        return F.linear(of_a(F.linear(x, W)) * of_b(F.linear(gate, torch.eye(5, dtype=torch.float64))), W2) / 2

    x = X.clone().requires_grad_()
    same = lambda t: t  # noqa: E731
    y = halves(x, same, Tensor.detach) + halves(x, Tensor.detach, same)
    start = F.linear(F.linear(x, W) * F.linear(F.linear(x, V).sigmoid(), torch.eye(5, dtype=torch.float64)), W2)
    expected = x.detach() * torch.autograd.grad(y, x, torch.ones_like(y))[0]

    def network(x: Tensor) -> Tensor:
        return F.linear(F.linear(x, W) * F.linear(F.linear(x, V).sigmoid(), torch.eye(5, dtype=torch.float64)), W2)

    x = X.clone().requires_grad_()
    z = lrp.convert(network)(x, explain=True, rule=Epsilon(1e-14), strict=True)
    assert torch.allclose(y, start)
    assert error(torch.autograd.grad(z, x, z.detach())[0], expected) < 1e-9
