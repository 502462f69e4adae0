"""What is known of a tensor: proved, or unknown. What is known must never change a map."""

from collections.abc import Callable
from functools import partial

import networks
import pytest
import torch
from networks import error
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import lrp
from lrp.rules import AlphaBeta, Epsilon, Gamma, Rule, ZBox, ZPlus

Function = Callable[[Tensor], Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def explained(f: Callable[..., Tensor], x: Tensor, rule: Rule | str, **settings: object) -> Tensor:
    x = x.detach().clone().requires_grad_()
    y = lrp.convert(f)(x, explain=True, rule=rule, strict=True, **settings)
    assert torch.equal(y, f(x))
    return torch.autograd.grad(y, x, y.detach())[0]


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
    "pieces": lambda h, s: torch.stack([a * b for a, b in zip(h.unbind(), s.unbind(), strict=True)]),
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


# 3. A layer stays a layer through identities, and a scale and shift of each channel belong to it.


def normalised() -> tuple[nn.Conv2d, nn.BatchNorm2d, Tensor, Tensor, Tensor]:
    """A convolution, a batch norm, its scale and shift, and images."""
    conv, norm = networks.randomize(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)))
    conv.requires_grad_(False)
    norm.requires_grad_(False)
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return conv, norm, scale, norm.bias - norm.running_mean * scale, draw(2, 2, 6, 6)


CONV, NORM, SCALE, SHIFT, IMAGES = normalised()
MERGING_RULES = ["zplus", "gamma", "alpha2beta1", Epsilon(0.1), "epsilon_plus_flat", Gamma(0.25, bias="ignore")]
ALL_RULES = [
    *MERGING_RULES,
    "flat",
    "wsquare",
    "gradient",
    Epsilon(0.1, bias="distribute"),
    AlphaBeta(2, 1, conserve=True),
]


def merged(x: Tensor) -> Tensor:
    return NORM(CONV(x)).relu()


def channels(v: Tensor) -> Tensor:
    return v[:, None, None]


def looked_at(look: Callable[[Tensor], object]) -> Function:
    def same(y: Tensor) -> Tensor:
        look(y)
        return y

    return same


IDENTITIES: dict[str, Function] = {
    "clone": Tensor.clone,
    "clone to channels last": lambda y: y.clone(memory_format=torch.channels_last),
    "contiguous": Tensor.contiguous,
    "channels last": lambda y: y.contiguous(memory_format=torch.channels_last),
    "dropout": lambda y: F.dropout(y, 0.5, False),
    "dropout module": nn.Dropout2d(0.3).eval(),
    "dropout in place": lambda y: F.dropout(y, 0.5, False, True),
    "dropout module in place": nn.Dropout(0.3, inplace=True).eval(),
    "alpha dropout": lambda y: F.alpha_dropout(y, 0.5, False),
    "identity": nn.Identity(),
    "no layers": nn.Sequential(),
    "view": lambda y: y.view(y.shape),
    "reshape": lambda y: y.reshape(y.shape),
    "view_as": lambda y: y.view_as(y),
    "expand_as": lambda y: y.expand_as(y),
    "to": lambda y: y.to(y.dtype),
    "to channels last": lambda y: y.to(memory_format=torch.channels_last),
    "double": Tensor.double,
    "type": lambda y: y.type(y.dtype),
    "type_as": lambda y: y.type_as(y),
    "cpu": Tensor.cpu,
    "positive": lambda y: +y,
    "ellipsis": lambda y: y[...],
    "slices": lambda y: y[:, :, :, :],
    "narrow": lambda y: y.narrow(0, 0, 2),
    "permute": lambda y: y.permute(0, 1, 2, 3),
    "twice transposed": lambda y: y.transpose(1, 3).transpose(1, 3),
    "squeezed": lambda y: y.unsqueeze(0).squeeze(0),
    "flattened": lambda y: y.flatten(2).unflatten(2, (4, 4)),
    "one part": lambda y: y.split(4, 1)[0],
    "no padding": lambda y: F.pad(y, (0, 0)),
    "copied": lambda y: torch.empty_like(y).copy_(y),
    "times 1": lambda y: y * 1,
    "plus 0": lambda y: y + 0,
    "over ones": lambda y: y / torch.ones(4, 1, 1, dtype=torch.float64),
    "checkpoint": lambda y: checkpoint(Tensor.clone, y, use_reentrant=False),
    "printed": looked_at(str),
    "read": looked_at(lambda y: y.sum().item()),
    "read by numpy": looked_at(lambda y: y.detach().numpy().sum()),
    "data": looked_at(lambda y: y.data),
    "retain_grad": looked_at(Tensor.retain_grad),
    "hook": looked_at(lambda y: y.register_hook(lambda R: None)),
    "requires_grad_": lambda y: y.requires_grad_(),
}


@pytest.mark.parametrize("rule", MERGING_RULES, ids=str)
@pytest.mark.parametrize("name", IDENTITIES)
def test_a_layer_stays_a_layer_through_an_identity(name: str, rule: Rule | str) -> None:
    actual = explained(lambda x: NORM(IDENTITIES[name](CONV(x))).relu(), IMAGES, rule)
    assert error(actual, explained(merged, IMAGES, rule)) < 1e-10


HOOKS: dict[str, Callable[[nn.Module], object]] = {
    "forward": lambda m: m.register_forward_hook(lambda module, args, output: None),
    "returns": lambda m: m.register_forward_hook(lambda module, args, output: output),
    "clones": lambda m: m.register_forward_hook(lambda module, args, output: output.clone()),
    "before": lambda m: m.register_forward_pre_hook(lambda module, args: (args[0].clone(),)),
    "backward": lambda m: m.register_full_backward_hook(lambda module, into, out: None),
    "before backward": lambda m: m.register_full_backward_pre_hook(lambda module, out: None),
}


@pytest.mark.parametrize("rule", MERGING_RULES, ids=str)
@pytest.mark.parametrize("hooked", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("name", HOOKS)
def test_a_layer_stays_a_layer_through_module_hooks(name: str, hooked: tuple[int, ...], rule: Rule | str) -> None:
    modules = [CONV, NORM]
    handles = [HOOKS[name](modules[i]) for i in hooked]
    try:
        actual = explained(merged, IMAGES, rule)
    finally:
        for handle in handles:
            handle.remove()
    assert error(actual, explained(merged, IMAGES, rule)) < 1e-10


def augmented(y: Tensor) -> Tensor:
    y *= channels(SCALE)
    y += channels(SHIFT)
    return y


SPELLINGS: dict[str, Function] = {
    "x s + t": lambda y: y * channels(SCALE) + channels(SHIFT),
    "t + s x": lambda y: channels(SHIFT) + channels(SCALE) * y,
    "four dimensions": lambda y: y * channels(SCALE)[None] + channels(SHIFT)[None],
    "expanded": lambda y: y * channels(SCALE).expand(4, 4, 4) + channels(SHIFT).expand_as(y),
    "subtract expanded": lambda y: (y - channels(-SHIFT / SCALE).expand(4, 4, 4)) * channels(SCALE),
    "divided": lambda y: y / channels(1 / SCALE) + channels(SHIFT),
    "divided by expanded": lambda y: y / channels(1 / SCALE).expand_as(y) + channels(SHIFT),
    "t - x s": lambda y: channels(SHIFT) - y * channels(-SCALE),
    "rsub": lambda y: torch.rsub(y * channels(-SCALE), channels(SHIFT)),
    "negative": lambda y: -(y * channels(-SCALE) - channels(SHIFT)),
    "negative first": lambda y: channels(SHIFT) - (-y) * channels(SCALE),
    "shift first": lambda y: (y - channels(-SHIFT / SCALE)) * channels(SCALE),
    "alpha": lambda y: torch.add(y * channels(SCALE), channels(SHIFT / 2), alpha=2),
    "in place": lambda y: y.mul_(channels(SCALE)).add_(channels(SHIFT)),
    "augmented": augmented,
    "numbers between": lambda y: y * 2 * channels(SCALE) / 2 + channels(SHIFT) - 1 + 1,
    "by name": lambda y: torch.mul(other=channels(SCALE), input=y).add(other=channels(SHIFT)),
    "function": lambda y: F.batch_norm(y, NORM.running_mean, NORM.running_var, NORM.weight, NORM.bias),
    "instance norm": lambda y: F.instance_norm(
        y, NORM.running_mean, NORM.running_var, NORM.weight, NORM.bias, use_input_stats=False
    ),
    "norm and scale": lambda y: F.batch_norm(y, NORM.running_mean, NORM.running_var) * channels(NORM.weight)
    + channels(NORM.bias),
    "two norms": lambda y: F.batch_norm(
        F.batch_norm(y, torch.zeros_like(SCALE), torch.ones_like(SCALE), SCALE, eps=0.0),
        -SHIFT, torch.ones_like(SCALE), eps=0.0,
    ),
    "dropout between": lambda y: F.dropout(y * channels(SCALE), 0.1, False) + channels(SHIFT),
    "clone between": lambda y: (y * channels(SCALE)).clone().add_(channels(SHIFT)),
    "channels last": lambda y: y.contiguous(memory_format=torch.channels_last) * channels(SCALE) + channels(SHIFT),
    "permuted": lambda y: (y.permute(0, 2, 3, 1) * SCALE + SHIFT).permute(0, 3, 1, 2),
    "permuted and copied": lambda y: (y.permute(0, 2, 3, 1).contiguous() * SCALE + SHIFT).permute(0, 3, 1, 2),
    "flattened": lambda y: (y.flatten(2) * SCALE[:, None] + SHIFT[:, None]).view(y.shape),
    "rows of channels": lambda y: F.batch_norm(
        y.permute(0, 2, 3, 1).reshape(-1, 4), NORM.running_mean, NORM.running_var, NORM.weight, NORM.bias
    ).view(2, 4, 4, 4).permute(0, 3, 1, 2),
    "parameters": lambda y: (y - NORM.running_mean.view(1, -1, 1, 1))
    / (NORM.running_var + NORM.eps).sqrt().reshape(1, -1, 1, 1)
    * nn.Parameter(NORM.weight).view(1, -1, 1, 1)
    + NORM.bias.view(1, -1, 1, 1),
}  # fmt: skip


@pytest.mark.parametrize("rule", ALL_RULES, ids=str)
@pytest.mark.parametrize("name", SPELLINGS)
def test_a_scale_and_shift_of_each_channel_is_a_batch_norm(name: str, rule: Rule | str) -> None:
    actual = explained(lambda x: SPELLINGS[name](CONV(x)).relu(), IMAGES, rule)
    assert error(actual, explained(merged, IMAGES, rule)) < 1e-9


FEATURES, SHIFTS = draw(5, seed=11), draw(5, seed=12)
OF_LINEAR: dict[str, Function] = {
    "vectors": lambda y: y * FEATURES + SHIFTS,
    "rows": lambda y: y * FEATURES[None] + SHIFTS[None],
    "in place": lambda y: y.mul_(FEATURES).add_(SHIFTS),
    "divided": lambda y: y / (1 / FEATURES) + SHIFTS,
    "transposed": lambda y: (y.mT * FEATURES[:, None] + SHIFTS[:, None]).mT,
    "batch norm": lambda y: F.batch_norm(
        y.reshape(-1, 5), torch.zeros(5).double(), torch.ones(5).double(), FEATURES, SHIFTS, eps=0.0
    ).view(y.shape),
}


@pytest.mark.parametrize("rule", [r for r in ALL_RULES if r not in ("flat", "wsquare")], ids=str)
@pytest.mark.parametrize("shape", [(4, 3), (2, 4, 3)])
@pytest.mark.parametrize("name", OF_LINEAR)
def test_a_scale_and_shift_of_each_feature(name: str, shape: tuple[int, ...], rule: Rule | str) -> None:
    """Against a linear layer with the scaled weight."""
    x = draw(*shape)
    actual = explained(lambda x: F.linear(OF_LINEAR[name](F.linear(x, W, SHIFTS)).relu(), W2), x, rule)
    w, b = W * FEATURES[:, None], SHIFTS * FEATURES + SHIFTS
    x = x.clone().requires_grad_()
    y = lrp.convert(lambda x: F.linear(F.linear(x, w, b).relu(), W2))(x, explain=True, rule=rule)
    assert error(actual, torch.autograd.grad(y, x, y.detach())[0]) < 1e-9


@pytest.mark.parametrize("rule", MERGING_RULES, ids=str)
def test_norms_of_transposed_features(rule: Rule | str) -> None:
    norm = networks.randomize(nn.BatchNorm1d(5)).requires_grad_(False)
    x = draw(2, 4, 3)
    actual = explained(lambda x: norm(F.linear(x, W).transpose(1, 2)).transpose(1, 2).relu(), x, rule)
    expected = explained(lambda x: norm(F.linear(x.reshape(-1, 3), W)).view(2, 4, 5).relu(), x, rule)
    assert error(actual, expected) < 1e-10


@pytest.mark.parametrize("rule", MERGING_RULES, ids=str)
def test_unbatched_outputs(rule: Rule | str) -> None:
    actual = explained(lambda x: (CONV(x) * channels(SCALE) + channels(SHIFT)).relu(), IMAGES[0], rule)
    assert error(actual, explained(lambda x: merged(x[None])[0], IMAGES[0], rule)) < 1e-10


@pytest.mark.parametrize("rule", ["zplus", "gamma", Epsilon(0.1)], ids=str)
def test_a_constant_of_another_dimension_does_not_belong_to_the_layer(rule: Rule | str) -> None:
    """As many positions as channels: which dimension it is decides, not how long it is."""
    conv, row = networks.randomize(nn.Conv1d(2, 5, 2)), draw(5, seed=3)
    x = draw(3, 2, 6)
    actual = explained(lambda x: (conv(x) * row).relu(), x, rule)
    assert error(actual, explained(lambda x: (conv(x) * row.repeat(5, 1)).relu(), x, rule)) < 1e-10


SECOND = networks.randomize(nn.BatchNorm2d(4), seed=1).requires_grad_(False)
MORE = networks.randomize(nn.Conv2d(4, 4, 3, padding=1), seed=2).requires_grad_(False)


def before_the_write(x: Tensor) -> Tensor:
    h = CONV(x).relu()
    y = MORE(h)
    h.mul_(0.5)
    return NORM(y) + h


def written_input(x: Tensor) -> Tensor:
    h = CONV(x).clone()
    y = MORE(h)
    return NORM(y) + h.relu_()


def norm_then_relu_(x: Tensor) -> Tensor:
    y = CONV(x)
    z = NORM(y)
    return z + y.relu_()


def relu_then_norm(x: Tensor) -> Tensor:
    y = CONV(x)
    z = NORM(y)
    y.relu_()
    return z + SECOND(y)


def norm_written(x: Tensor) -> Tensor:
    z = NORM(CONV(x))
    other = z.clone()
    z.relu_()
    return z + other * channels(SCALE)


def part_written(x: Tensor) -> Tensor:
    y = CONV(x)
    z = NORM(y)
    y[:, :2].mul_(3)
    return z + y


def erased(x: Tensor) -> Tensor:
    y = CONV(x)
    z = NORM(y)
    y.detach().zero_()
    return z


def erased_by_numpy(x: Tensor) -> Tensor:
    y = CONV(x)
    array = y.detach().numpy()
    z = NORM(y).relu()
    w = y * 2
    array[...] = 0
    return z + w


WRITES: dict[str, tuple[Function, Function]] = {
    "before the write": (before_the_write, lambda x: NORM(MORE(CONV(x).relu())) + CONV(x).relu() * 0.5),
    "written input": (written_input, lambda x: NORM(MORE(CONV(x))) + CONV(x).relu()),
    "norm, then relu_": (norm_then_relu_, lambda x: NORM(CONV(x)) + CONV(x).relu()),
    "relu_, then norm": (relu_then_norm, lambda x: NORM(CONV(x)) + SECOND(CONV(x).relu())),
    "norm written": (norm_written, lambda x: NORM(CONV(x)).relu() + NORM(CONV(x)) * channels(SCALE)),
    "part written": (
        part_written, lambda x: NORM(CONV(x)) + torch.cat([CONV(x)[:, :2] * 3, CONV(x)[:, 2:]], 1)
    ),
    "erased": (erased, lambda x: NORM(CONV(x))),
    "erased by numpy": (erased_by_numpy, lambda x: NORM(CONV(x)).relu() + CONV(x) * 2),
}  # fmt: skip


@pytest.mark.parametrize("rule", [r for r in ALL_RULES if r != "gradient"], ids=str)
@pytest.mark.parametrize("name", WRITES)
def test_a_layer_remembers_what_it_saw(name: str, rule: Rule | str) -> None:
    """Against the layer called once for each of its uses."""
    network, expected = WRITES[name]
    assert error(explained(network, IMAGES, rule), explained(expected, IMAGES, rule)) < 1e-9


# 4. The data stays data, and a change of its unit is none of the model.

MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)[:, None, None]
STD = torch.tensor([2.0, 0.5], dtype=torch.float64)[:, None, None]
OTHER = networks.randomize(nn.Conv2d(2, 4, 3), seed=3).requires_grad_(False)


def in_place(x: Tensor) -> Tensor:
    t = x.clone()
    t -= MEAN
    t /= STD
    return t


def each_channel(x: Tensor) -> Tensor:
    t = x.clone()
    for c in range(2):
        t[:, c] -= MEAN[c, 0, 0]
        t[:, c] /= STD[c, 0, 0]
    return t


def padded(x: Tensor) -> Tensor:
    batch = torch.zeros(2, 2, 6, 6, dtype=torch.float64)
    for i in range(2):
        batch[i, :, :6, :6].copy_((x[i] - MEAN) / STD)
    return batch


def assigned(x: Tensor) -> Tensor:
    batch = torch.empty(2, 2, 6, 6, dtype=torch.float64)
    for i, image in enumerate(x):
        batch[i] = (image - MEAN) / STD
    return batch


def sliced(x: Tensor) -> Tensor:
    batch = x.new_zeros(2, 2, 6, 6)
    batch[:, :, :6, :6] = (x - MEAN) / STD
    return batch


UNITS: dict[str, Function] = {
    "(x - mean) / std": lambda x: (x - MEAN) / STD,
    "batched": lambda x: (x - MEAN[None]) / STD[None],
    "expanded": lambda x: (x - MEAN.expand(2, 6, 6)) / STD.expand_as(x),
    "factor": lambda x: x * (1 / STD) + (-MEAN / STD),
    "negative": lambda x: -(MEAN - x) / STD,
    "alpha": lambda x: torch.sub(x, MEAN / 2, alpha=2) / STD,
    "numbers": lambda x: (x - 0.3) / 2,
    "integers": lambda x: (x * 2 - 1) / 2,
    "0-d tensors": lambda x: (x - torch.tensor(0.3)) / torch.tensor(2.0),
    "parameters": lambda x: (x - nn.Parameter(MEAN)) / nn.Parameter(STD),
    "functions": lambda x: torch.true_divide(torch.subtract(x, MEAN), STD),
    "batch norm": lambda x: F.batch_norm(x, MEAN.view(-1), STD.view(-1) ** 2, eps=0.0),
    "instance norm": lambda x: F.instance_norm(x, MEAN.view(-1), STD.view(-1) ** 2, use_input_stats=False, eps=0.0),
    "in place": in_place,
    "each channel": each_channel,
    "channels apart": lambda x: torch.stack([(x[:, c] - float(MEAN[c])) / float(STD[c]) for c in range(2)], 1),
    "channels last": lambda x: ((x.permute(0, 2, 3, 1) - MEAN.view(-1)) / STD.view(-1)).permute(0, 3, 1, 2),
    "flattened": lambda x: ((x.flatten(2) - MEAN[:, 0]) / STD[:, 0]).view(x.shape),
    "images apart": lambda x: torch.stack([(image - MEAN) / STD for image in x]),
    "cat": lambda x: torch.cat([((image - MEAN) / STD)[None] for image in x.unbind(0)]),
    "identities": lambda x: F.dropout((x - MEAN).clone() / STD, 0.5, False).contiguous(),
    "padded batch": padded,
    "assigned batch": assigned,
    "sliced batch": sliced,
}
FIRST = lrp.Composite({"first": ZBox(-4.0, 4.0), "conv": "zplus"})
UNIT_RULES = ["zplus", "gamma", "alpha2beta1", Epsilon(0.1), "epsilon_plus_flat", ZBox(-4, 4), FIRST, "wsquare",
              Epsilon(0.1, bias="distribute")]  # fmt: skip


@pytest.mark.parametrize("rule", UNIT_RULES, ids=str)
@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("name", UNITS)
def test_a_change_of_unit_is_preprocessing(name: str, branches: int, rule: Rule | str) -> None:
    def network(x: Tensor) -> Tensor:
        return CONV(x).relu() + (OTHER(x) if branches == 2 else 0)

    actual = explained(lambda x: network(UNITS[name](x)), IMAGES, rule)
    assert error(actual, explained(network, UNITS[name](IMAGES), rule)) < 1e-10


@pytest.mark.parametrize("name", UNITS)
def test_first_reaches_every_branch(name: str) -> None:
    def network(x: Tensor) -> Tensor:
        x = UNITS[name](x)
        return CONV(x) + OTHER(x).relu()

    chosen = lrp.Composite({"first": "flat"}).resolve(network, IMAGES)
    assert [rule for key, rule in chosen.items() if key.startswith("conv")] == [lrp.rules.Flat()] * 2


@pytest.mark.parametrize("name", UNITS)
def test_the_gradient_knows_of_no_unit(name: str) -> None:
    x = IMAGES.clone().requires_grad_()

    def network(x: Tensor) -> Tensor:
        return CONV(UNITS[name](x)).relu()

    y = lrp.convert(network)(x, explain=True, rule="gradient", strict=True)
    (expected,) = torch.autograd.grad(network(x).sum(), x)
    assert error(torch.autograd.grad(y.sum(), x)[0], expected) < 1e-12


@pytest.mark.parametrize("shape", [(2, 6, 6), (1, 2, 6, 6), (6, 6), (2, 2, 6, 1)])
def test_any_other_constant_is_a_term_of_a_sum(shape: tuple[int, ...]) -> None:
    position = draw(*shape, seed=8)
    actual = explained(lambda x: CONV(x + position), IMAGES, Epsilon(1e-14))
    of_sum = explained(CONV, IMAGES + position, Epsilon(1e-14))
    assert error(actual, of_sum * IMAGES / (IMAGES + position)) < 1e-9
