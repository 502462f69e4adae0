"""Functions under all their names: elementwise ones pass relevance, others are what another spelling of them is."""

from collections.abc import Callable

import pytest
import torch
from networks import error
from test_handlers import draw, gradient_times_input, relevances
from torch import Tensor, nn
from torch.nn import functional as F

import lrp
from lrp.engine.assignment import Assignment
from lrp.engine.interception import Interception
from lrp.engine.modules.untouched import Untouched
from lrp.engine.streams import Streams
from lrp.rules import AlphaBeta, Epsilon, Gradient, ZPlus

aten = torch.ops.aten
FACTOR = draw(3, seed=8).detach()
WEIGHT = draw(3, 5, seed=3).detach()
BATCH = draw(4, 3, 5, seed=3).detach()
MEAN, VARIANCE = WEIGHT[2], BATCH[0, 0].abs()
AT = torch.tensor([0, 0, 1])


def linear(x: Tensor) -> Tensor:
    return F.linear(x, WEIGHT.mT, WEIGHT[0])


def powered_(x: Tensor) -> Tensor:
    x = x.clone()
    x **= 2
    return x


def halved_(x: Tensor) -> Tensor:
    x = x.clone()
    x /= 2
    return x


# functions of one tensor of positive numbers below 1
ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: getattr(torch, name) for name in (
        "abs absolute acos acosh asin asinh atan atanh ceil cos cosh deg2rad erf erfc exp exp2 expm1 fix floor frac "
        "lgamma log log10 log1p log2 logit nan_to_num neg positive rad2deg reciprocal round rsqrt sgn sigmoid sign "
        "sin sinc sinh sqrt square tan tanh trunc"
    ).split()},
    **{f"special.{name}": getattr(torch.special, name) for name in (
        "erf erfc exp2 expit expm1 gammaln log1p logit ndtr round sinc".split()
    )},
    **{f"aten.{name}": getattr(aten, name) for name in "abs exp gelu log relu rsqrt sigmoid silu sqrt tanh".split()},
    **{f"aten.{name}.default": getattr(aten, name).default for name in "abs exp relu relu_ sin_ square tanh".split()},
    "x ** 2": lambda x: x**2,
    "x ** 0.5": lambda x: x**0.5,
    "x ** -1": lambda x: x**-1,
    "x ** constant": lambda x: x**FACTOR,
    "2 ** x": lambda x: 2**x,
    "constant ** x": lambda x: FACTOR.abs() ** x,
    "x **= 2": powered_,
    "x /= 2": halved_,
    "pow": lambda x: torch.pow(x, 3),
    "pow of a number": lambda x: torch.pow(0.5, x),
    "pow_": lambda x: x.clone().pow_(1.5),
    "float_power": lambda x: torch.float_power(x, 2),
    "aten.pow.Tensor_Scalar": lambda x: aten.pow.Tensor_Scalar(x, 2),
    "1 / x": lambda x: 1 / x,
    "sqrt_": lambda x: x.clone().sqrt_(),
    "abs()": abs,
    "x % 2": lambda x: x % 2,
    "fmod": lambda x: torch.fmod(x, 0.3),
    "atan2": lambda x: torch.atan2(x, FACTOR),
    "atan2 of a constant": lambda x: torch.atan2(FACTOR, x),
    "hypot": lambda x: torch.hypot(x, FACTOR),
    "logaddexp": lambda x: torch.logaddexp(FACTOR, x),
    "xlogy": lambda x: torch.xlogy(FACTOR, x),
    "ldexp": lambda x: torch.ldexp(x, torch.tensor(3)),
    "round to decimals": lambda x: x.round(decimals=2),
    "nan_to_num": lambda x: x.nan_to_num(0.0, posinf=1.0),
    "log_sigmoid": lambda x: torch._C._nn.log_sigmoid(x),
    "normalize": lambda x: F.normalize(x, dim=1),
    "normalize by order 1": lambda x: F.normalize(x, 1.0, dim=0),
    "x / its norm": lambda x: x / x.norm(dim=1, keepdim=True),
    "x * rsqrt of its squares": lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt(),
}  # fmt: skip


def numbers() -> Tensor:
    """From 0.05 to 0.95, for functions of any domain."""
    return (0.5 + 0.45 * draw(4, 3).detach().tanh()).requires_grad_()


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_functions_pass_relevance_unchanged(name: str) -> None:
    x, R = numbers(), draw(4, 3, seed=2).detach()
    function = (lambda x: ELEMENTWISE[name](x.clone())) if name.endswith("_.default") else ELEMENTWISE[name]
    x = (x.detach() + 1.0).requires_grad_() if name == "acosh" else x
    for settings in ({}, {"differentiable": True}):
        (actual,) = relevances(function, x, R=R, **settings)
        assert torch.allclose(actual, R, rtol=1e-12, atol=0), name


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_functions_have_their_gradient_where_it_is_chosen(name: str) -> None:
    if name == "acosh":
        return
    x, R = numbers(), draw(4, 3, seed=2).detach()
    function = (lambda x: ELEMENTWISE[name](x.clone())) if name.endswith("_.default") else ELEMENTWISE[name]
    (expected,) = torch.autograd.grad(function(x), x, R.to(function(x).dtype))
    assert torch.allclose(relevances(function, x, rule=Gradient(), R=R)[0], expected, rtol=1e-10)


def test_an_exponent_that_broadcasts() -> None:
    x = numbers()[:, :1].detach().requires_grad_()
    R = draw(4, 3, seed=2).detach()
    (actual,) = relevances(lambda x: x**FACTOR, x, R=R)
    assert torch.allclose(actual, R.sum(1, keepdim=True))


def test_a_power_of_two_live_tensors_is_named() -> None:
    x, y = numbers(), numbers()
    with pytest.raises(NotImplementedError, match="relevance of pow "):
        lrp.convert(lambda x, y: x**y)(x, y, explain=True, strict=True)


# of x with shape (4, 3) and y with shape (4, 5): a function, and another spelling of it
SPELLINGS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "dot": (lambda x, y: torch.dot(x[0], FACTOR), lambda x, y: x[0] @ FACTOR),
    "dot, second": (lambda x, y: FACTOR.dot(x[0]), lambda x, y: x[0] @ FACTOR),
    "vdot": (lambda x, y: torch.vdot(x[1], FACTOR), lambda x, y: x[1] @ FACTOR),
    "vecdot": (lambda x, y: torch.linalg.vecdot(x, FACTOR), lambda x, y: x @ FACTOR),
    "outer": (lambda x, y: torch.outer(x[0], FACTOR), lambda x, y: torch.einsum("i,j->ij", x[0], FACTOR)),
    "ger": (lambda x, y: FACTOR.ger(x[0]), lambda x, y: torch.einsum("i,j->ji", x[0], FACTOR)),
    "kron": (
        lambda x, y: torch.kron(x, WEIGHT),
        lambda x, y: torch.einsum("ab,cd->acbd", x, WEIGHT).reshape(12, 15),
    ),
    "kron of fewer dimensions": (
        lambda x, y: torch.kron(FACTOR, x),
        lambda x, y: torch.einsum("ab,cd->acbd", FACTOR[None], x).reshape(4, 9),
    ),
    "einsum of three": (
        lambda x, y: torch.einsum("ab,bc,dc->ad", x, WEIGHT, WEIGHT),
        lambda x, y: torch.einsum("ab,bd->ad", x, WEIGHT @ WEIGHT.T),
    ),
    "einsum of three, last": (
        lambda x, y: torch.einsum("b,bc,ab", FACTOR, WEIGHT, x),
        lambda x, y: x @ (FACTOR[:, None] * WEIGHT),
    ),
    "einsum of four": (
        lambda x, y: torch.einsum("b,ab,bc,c->ac", FACTOR, x, WEIGHT, WEIGHT[0]),
        lambda x, y: x @ (FACTOR[:, None] * WEIGHT * WEIGHT[0]),
    ),
    "einsum by numbers": (lambda x, y: torch.einsum(x, [0, 1], WEIGHT, [1, 2], [2, 0]), lambda x, y: (x @ WEIGHT).mT),
    "addmm": (lambda x, y: torch.addmm(y, x, WEIGHT), lambda x, y: y + x @ WEIGHT),
    "addmm, scaled": (
        lambda x, y: y.addmm(x, WEIGHT, beta=0.5, alpha=-2),
        lambda x, y: 0.5 * y + (-2) * (x @ WEIGHT),
    ),
    "addmm_": (lambda x, y: y.clone().addmm_(x, WEIGHT), lambda x, y: y + x @ WEIGHT),
    "addmm of a bias": (lambda x, y: torch.addmm(WEIGHT[0], x, WEIGHT), lambda x, y: linear(x)),
    "aten.addmm": (lambda x, y: aten.addmm.default(WEIGHT[0], x, WEIGHT), lambda x, y: linear(x)),
    "addmm of a bias, scaled": (
        lambda x, y: torch.addmm(WEIGHT[0], x, WEIGHT, beta=3, alpha=0.5),
        lambda x, y: F.linear(x, 0.5 * WEIGHT.mT, 3 * WEIGHT[0]),
    ),
    "addmm of a bias for each sample": (
        lambda x, y: torch.addmm(BATCH[:, 0], x, WEIGHT),
        lambda x, y: BATCH[:, 0] + x @ WEIGHT,
    ),
    "addbmm": (
        lambda x, y: torch.addbmm(y[:2], x[:, :2, None], BATCH[:, :1], alpha=2).sum(1),
        lambda x, y: (y[:2] + 2 * torch.einsum("bij,bjk->ik", x[:, :2, None], BATCH[:, :1])).sum(1),
    ),
    "addmv": (lambda x, y: torch.addmv(y[:, 0], x, FACTOR), lambda x, y: y[:, 0] + x @ FACTOR),
    "addr": (lambda x, y: torch.addr(y, x[:, 0], WEIGHT[0]), lambda x, y: y + torch.outer(x[:, 0], WEIGHT[0])),
    "baddbmm": (
        lambda x, y: torch.baddbmm(y[:, None], x[:, None], BATCH, beta=2),
        lambda x, y: 2 * y[:, None] + x[:, None] @ BATCH,
    ),
    "baddbmm of a constant": (
        lambda x, y: torch.baddbmm(BATCH[:, :1], x[:, None], BATCH),
        lambda x, y: BATCH[:, :1] + x[:, None] @ BATCH,
    ),
    "addcmul after a layer": (
        lambda x, y: torch.addcmul(WEIGHT[0], x @ WEIGHT, WEIGHT[1], value=2),
        lambda x, y: F.linear(x, 2 * WEIGHT.mT * WEIGHT[1][:, None], WEIGHT[0]),
    ),
    "addcmul of two": (
        lambda x, y: torch.addcmul(x, x, y[:, :3], value=-1),
        lambda x, y: x - x * y[:, :3],
    ),
    "addcdiv of two": (lambda x, y: torch.addcdiv(x, x, y[:, :3]), lambda x, y: x + x / y[:, :3]),
    "lerp by a gate": (
        lambda x, y: torch.lerp(x, y[:, :3], x.sigmoid()),
        lambda x, y: (1 - x.sigmoid()) * x + x.sigmoid() * y[:, :3],
    ),
    "softmin": (lambda x, y: F.softmin(x, 1), lambda x, y: F.softmax(-x, 1)),
    "special.softmax": (lambda x, y: torch.special.softmax(x, 1), lambda x, y: x.softmax(1)),
    "aten._softmax": (lambda x, y: aten._softmax.default(x, 1, False), lambda x, y: x.softmax(1)),
    "aten.softmax": (lambda x, y: aten.softmax.int(x, 1), lambda x, y: x.softmax(1)),
    "aten.linear": (lambda x, y: aten.linear.default(x, WEIGHT.T, WEIGHT[0]), lambda x, y: linear(x)),
    "aten.matmul": (lambda x, y: aten.matmul(x, WEIGHT), lambda x, y: x @ WEIGHT),
    "linalg.matmul": (lambda x, y: torch.linalg.matmul(x, WEIGHT), lambda x, y: x @ WEIGHT),
    "aten.add.Tensor": (lambda x, y: aten.add.Tensor(x, y[:, :3], alpha=2), lambda x, y: x + 2 * y[:, :3]),
    "aten.add_": (lambda x, y: aten.add_.Tensor(x.clone(), y[:, :3]), lambda x, y: x + y[:, :3]),
    "aten.mul": (lambda x, y: aten.mul(x, y[:, :3]), lambda x, y: x * y[:, :3]),
    "aten.cat": (lambda x, y: aten.cat.default([x, y], 1).sum(1), lambda x, y: torch.cat([x, y], 1).sum(1)),
    "aten.slice": (lambda x, y: aten.slice.Tensor(y, 1, 0, 3) + x, lambda x, y: y[:, :3] + x),
    "aten.index": (lambda x, y: aten.index.Tensor(y, [None, AT]) + x, lambda x, y: y[:, AT] + x),
    "aten.mean.dim": (lambda x, y: aten.mean.dim(x, [1]), lambda x, y: x.mean(1)),
    "aten.where": (lambda x, y: aten.where.self(x > 0, x, y[:, :3]), lambda x, y: torch.where(x > 0, x, y[:, :3])),
    "aten.layer_norm": (lambda x, y: aten.layer_norm.default(x, [3]), lambda x, y: F.layer_norm(x, [3])),
    "layer_norm": (lambda x, y: torch.layer_norm(x, [3], FACTOR), lambda x, y: F.layer_norm(x, [3], FACTOR)),
    "rms_norm": (lambda x, y: torch.rms_norm(x, [3], FACTOR), lambda x, y: F.rms_norm(x, [3], FACTOR)),
    "group_norm": (
        lambda x, y: torch.group_norm(torch.cat([x, y], 1), 2),
        lambda x, y: F.group_norm(torch.cat([x, y], 1), 2),
    ),
    "instance_norm": (
        lambda x, y: torch.instance_norm(y[:, None], None, None, None, None, True, 0.1, 1e-3, False),
        lambda x, y: F.instance_norm(y[:, None], eps=1e-3),
    ),
    "batch_norm": (
        lambda x, y: torch.batch_norm(x @ WEIGHT, *WEIGHT[:2], MEAN, VARIANCE, False, 0.1, 1e-3, False),
        lambda x, y: F.batch_norm(x @ WEIGHT, MEAN, VARIANCE, *WEIGHT[:2], eps=1e-3),
    ),
    "aten.batch_norm": (
        lambda x, y: aten.batch_norm.default(
            x.relu(), None, None, FACTOR, FACTOR.abs(), False, 0.1, 1e-3, False
        ),
        lambda x, y: F.batch_norm(x.relu(), FACTOR, FACTOR.abs(), eps=1e-3),
    ),
    "conv1d": (
        lambda x, y: aten.conv1d.default(y[:, None], WEIGHT[:, None, :3], FACTOR, [2]),
        lambda x, y: F.conv1d(y[:, None], WEIGHT[:, None, :3], FACTOR, stride=2),
    ),
    "convolution": (
        lambda x, y: torch.convolution(y[:, None], WEIGHT[:, None, :3], FACTOR, [2], [1], [1], False, [0], 1),
        lambda x, y: F.conv1d(y[:, None], WEIGHT[:, None, :3], FACTOR, stride=2, padding=1),
    ),
    "transposed": (
        lambda x, y: aten.convolution.default(y[:, None], WEIGHT[None, :, :3], FACTOR, [2], [1], [1], True, [0], 1),
        lambda x, y: F.conv_transpose1d(y[:, None], WEIGHT[None, :, :3], FACTOR, stride=2, padding=1),
    ),
    "avg_pool1d": (lambda x, y: aten.avg_pool1d.default(y, [2]), lambda x, y: F.avg_pool1d(y, 2)),
    "adaptive_max_pool1d": (
        lambda x, y: torch.adaptive_max_pool1d(y, 2)[0],
        lambda x, y: F.adaptive_max_pool1d(y, 2),
    ),
    "max_pool1d": (lambda x, y: aten.max_pool1d.default(y, [2]), lambda x, y: F.max_pool1d(y, 2)),
    "constant_pad_nd": (lambda x, y: torch.constant_pad_nd(y, [1, 1], -1.0), lambda x, y: F.pad(y, [1, 1], value=-1.0)),
    "reflection_pad1d": (
        lambda x, y: torch._C._nn.reflection_pad1d(y, [1, 2]),
        lambda x, y: F.pad(y, [1, 2], mode="reflect"),
    ),
    "dropout": (lambda x, y: aten.dropout.default(x, 0.5, False) * 1, lambda x, y: x * 1),
    "diag_embed": (lambda x, y: torch.diag_embed(x).flatten(1)[:, ::4], lambda x, y: x),
    "block_diag": (lambda x, y: torch.block_diag(x, y).sum(1), lambda x, y: torch.cat([x.sum(1), y.sum(1)])),
    "meshgrid": (
        lambda x, y: sum(torch.meshgrid(x[0], y[0], indexing="ij")),
        lambda x, y: x[0][:, None] + y[0][None],
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", [Epsilon(0.1), AlphaBeta(2, 1), Gradient()], ids=str)
@pytest.mark.parametrize("name", SPELLINGS)
def test_other_spellings_have_the_same_relevance(name: str, rule: lrp.Rule) -> None:
    function, other = SPELLINGS[name]
    x, y = draw(4, 3), draw(4, 5, seed=1)
    z = function(x, y)
    assert torch.allclose(z, other(x, y))
    R = draw(*z.shape, 1, seed=2).detach().view(z.shape)
    for settings in ({}, {"differentiable": True}):
        actual = relevances(function, x, y, R=R, rule=rule, **settings)
        expected = relevances(other, x, y, R=R, rule=rule)
        for part, whole in zip(actual, expected, strict=True):
            assert (part - whole).abs().max() < 1e-9 * max(1.0, whole.abs().max().item())


def test_what_is_accumulated_of_nonnegative_terms_is_known_to_be() -> None:
    x = draw(4, 3)
    at = torch.tensor([0, 1, 1, 0])
    streams = Streams([x], Assignment(Epsilon()))
    with Interception(streams, Untouched(None, [], streams.rescue)):
        h = x.relu()
        known = [h.index_add(0, at, h), h.cumsum(0), h**2, x**2, 3**x, h.sqrt(), x.norm(dim=1), torch.lerp(h, h, 0.5)]
        unknown = [h.index_add(0, at, h, alpha=-1), h.diff(), torch.lerp(h, h, 2.0), x**3, h.log()]
    assert all(streams.known.is_nonnegative(t) for t in known)
    assert not any(streams.known.is_nonnegative(t) for t in unknown)


@pytest.mark.parametrize(
    "function", [torch.sqrt, lambda g: g**2, lambda g: 2**g, torch.special.exp2, lambda g: g.cumsum(0)]
)
def test_what_is_made_of_a_gate_is_a_gate(function: Callable[[Tensor], Tensor]) -> None:
    x, g = draw(4, 3), draw(4, 3, seed=1)
    R = draw(4, 3, seed=2).detach()
    of_x, of_g = relevances(lambda x, g: x * function(g.sigmoid()), x, g, R=R)
    assert torch.allclose(of_x, R)
    assert not of_g.any()


NAMES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "property": (lambda x: torch.view_as_real(torch.view_as_complex(x)), "view_as_real "),
    "real": (lambda x: torch.complex(x, x).real, r"\.real"),
    "power": (lambda x: x.__rpow__(x), r"\*\* "),
    "pow": (lambda x: x**x, "pow "),
    "both live": (lambda x: (x @ x.mT) * 1, "matmul "),
    "special": (lambda x: torch.special.erfinv(x), r"special\.erfinv "),
    "linalg": (lambda x: torch.linalg.det(x[:2, :2]), r"linalg\.det "),
    "operator": (lambda x: torch.ops.aten.erfinv.default(x), "erfinv "),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_message_has_the_name_that_the_user_wrote(name: str) -> None:
    function, expected = NAMES[name]
    x = draw(4, 2)
    with pytest.raises(NotImplementedError, match=f"relevance of .*{expected}"):
        lrp.convert(function)(x, explain=True, strict=True)


def test_the_product_of_constants_has_the_name_of_their_layer() -> None:
    class Factored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low = nn.Bilinear(3, 2, 5, bias=False).double()

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("ab,cbd,d->ac", x, self.low.weight, FACTOR[:2])

    assert list(lrp.Composite({}).resolve(Factored(), draw(4, 3))) == ["low"]


class Chain(nn.Module):
    """A network in the functions of the table, as a converter writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8).double(), nn.Linear(4, 2).double()
        self.norm = nn.BatchNorm1d(8).double().eval()

    def forward(self, x: Tensor) -> Tensor:
        h = aten.linear.default(x, self.first.weight, self.first.bias)
        norm = self.norm
        h = aten.batch_norm.default(
            h, norm.weight, norm.bias, norm.running_mean, norm.running_var, False, 0.1, 1e-5, False
        )
        h = aten.relu_.default(h)
        h = aten.add.Tensor(aten.slice.Tensor(h, 1, 0, 4), aten.slice.Tensor(h, 1, 4, 8))
        return aten.addmm.default(self.last.bias, h, aten.t.default(self.last.weight))


def test_a_network_of_operators_is_its_module() -> None:
    model, x = Chain(), draw(3, 6)
    model.norm.running_mean.uniform_(-0.3, 0.3)
    halves = nn.Sequential(model.first, model.norm, nn.ReLU())

    def function(x: Tensor) -> Tensor:
        h = halves(x)
        return model.last(h[:, :4] + h[:, 4:])

    for rule in (Epsilon(1e-13), ZPlus(), AlphaBeta(2, 1)):
        R = draw(3, 2, seed=3).detach()
        assert error(relevances(model, x, R=R, rule=rule)[0], relevances(function, x, R=R, rule=rule)[0]) < 1e-10
    assert error(relevances(model, x, rule=Epsilon(1e-15))[0], gradient_times_input(model, x)[0]) < 1e-8


BY_HAND: dict[str, Callable[[Tensor], Tensor]] = {
    "quotient": lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt(),
    "deviation": lambda x: (
        (x - x.mean(-1, keepdim=True)) / (x.std(-1, correction=0, keepdim=True).pow(2) + 1e-5) ** 0.5
    ),
    "moments": lambda x: _by_moments(x),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_models_write_their_norms_by_hand(name: str) -> None:
    """A hand-written norm is torch's own: what it is divided by is a constant."""
    x, R = draw(4, 3) + 0.5, draw(4, 3, seed=2).detach()
    x = x.detach().requires_grad_()
    (expected,) = relevances(lambda x: F.layer_norm(x, (3,)), x, R=R)
    assert error(relevances(BY_HAND[name], x, R=R)[0], expected) < 1e-9


def _by_moments(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5)


WITH_INDICES: dict[str, tuple[Callable[..., tuple[Tensor, Tensor]], Callable[[Tensor], Tensor]]] = {
    "torch": (lambda x: torch.adaptive_max_pool1d(x, 2), lambda x: F.adaptive_max_pool1d(x, 2)),
    "asked for": (
        lambda x: F.max_pool1d(x, 2, padding=1, return_indices=True),
        lambda x: F.max_pool1d(x, 2, padding=1),
    ),
    "by name": (
        lambda x: F.adaptive_max_pool2d(input=x, output_size=(2, 3), return_indices=True),
        lambda x: F.adaptive_max_pool2d(x, (2, 3)),
    ),
    "in another": (
        lambda x: F.max_pool2d_with_indices(x, kernel_size=2),
        lambda x: F.max_pool2d(input=x, kernel_size=2),
    ),
    "operator": (lambda x: aten.max_pool2d_with_indices.default(x, [2, 2]), lambda x: F.max_pool2d(x, 2)),
    "max": (lambda x: aten.max.dim(x, 1), lambda x: x.amax(1)),
}


@pytest.mark.parametrize("rule", [Epsilon(0.1), ZPlus(), Gradient()], ids=str)
@pytest.mark.parametrize("name", WITH_INDICES)
def test_a_maximum_with_indices_is_that_without(name: str, rule: lrp.Rule) -> None:
    function, other = WITH_INDICES[name]
    x, composite = BATCH.clone().requires_grad_(), lrp.Composite({"max_pool": rule})
    values, indices = lrp.convert(function)(x, explain=True, rule=composite, strict=True)
    R = draw(*values.shape, seed=2).detach()
    expected = relevances(other, x, R=R, rule=composite)[0]
    assert torch.equal(indices, function(x)[1])
    assert error(torch.autograd.grad(values, x, R)[0], expected) < 1e-12


INTO_CONSTANTS: dict[str, Callable[[Tensor], Tensor]] = {
    "pow_": lambda x: WEIGHT.abs().pow_(x),
    "atan2_": lambda x: WEIGHT.clone().atan2_(x),
    "fmod_": lambda x: WEIGHT.clone().fmod_(x),
    "xlogy_": lambda x: WEIGHT.clone().xlogy_(x),
    "mul_": lambda x: WEIGHT.clone().mul_(x),
}


@pytest.mark.parametrize("name", INTO_CONSTANTS)
def test_a_constant_that_is_overwritten_gets_nothing(name: str) -> None:
    x, R = (draw(3, 5).detach().abs() + 0.5).requires_grad_(), draw(3, 5, seed=2).detach()
    assert torch.equal(relevances(INTO_CONSTANTS[name], x, R=R)[0], R)
    if name != "mul_":
        with pytest.raises(NotImplementedError, match=name):
            relevances(INTO_CONSTANTS[name], x, rule=lrp.Composite({"activation": Epsilon(0.1)}))


IN_PLACE = {
    "lerp_": lambda a, b: a.clone().lerp_(b, b.sigmoid()),
    "addcmul_": lambda a, b: a.clone().addcmul_(a, b, value=-2),
    "addcdiv_": lambda a, b: a.clone().addcdiv_(b, b.exp()),
    "addmm_": lambda a, b: a.clone().addmm_(b, WEIGHT[:, :3], beta=2, alpha=-0.5),
    "addbmm_": lambda a, b: a.clone().addbmm_(b[None], WEIGHT[None, :, :3], alpha=2),
    "baddbmm_": lambda a, b: a[None].clone().baddbmm_(b[None], WEIGHT[None, :, :3], beta=-1),
    "addmv_": lambda a, b: a[:, 0].clone().addmv_(b, FACTOR),
    "addr_": lambda a, b: a.clone().addr_(b[:, 0], FACTOR),
}


class Without(torch.overrides.TorchFunctionMode):
    """Functions in place, run out of place."""

    def __torch_function__(self, function, types, args=(), kwargs=None) -> Tensor:
        name = function.__name__.rstrip("_")
        return (getattr(torch, name) if function.__name__ in IN_PLACE else function)(*args, **(kwargs or {}))


@pytest.mark.parametrize("rule", [Epsilon(0.1), AlphaBeta(2, 1), Gradient()], ids=str)
@pytest.mark.parametrize("name", IN_PLACE)
def test_a_sum_in_place_is_that_out_of_place(name: str, rule: lrp.Rule) -> None:
    def out_of_place(a: Tensor, b: Tensor) -> Tensor:
        with Without():
            return IN_PLACE[name](a, b)

    a, b = draw(4, 3), draw(4, 3, seed=1)
    R = draw(*IN_PLACE[name](a, b).shape, seed=2).detach()
    for settings in ({}, {"differentiable": True}):
        actual = relevances(IN_PLACE[name], a, b, R=R, rule=rule, **settings)
        expected = relevances(out_of_place, a, b, R=R, rule=rule)
        assert all(torch.allclose(*pair, rtol=1e-10) for pair in zip(actual, expected, strict=True))


def test_an_operator_that_is_called_by_the_name_self_is_named() -> None:
    for function in (lambda x: aten.relu(self=x), lambda x: aten.mul.Tensor(self=x, other=x)):
        with pytest.raises(NotImplementedError, match="of an argument named self"):
            lrp.convert(function)(draw(4, 3), explain=True, strict=True)


def test_nothing_is_left_of_what_was_known_of_what_a_constant_overwrites() -> None:
    x = draw(4, 3)
    streams = Streams([x], Assignment(Epsilon()))
    with Interception(streams, Untouched(None, [], streams.rescue)):
        made = x.relu().clone().copy_(torch.tensor([[-1, -2, -3]])), (x * 1.0)[0].relu_().as_strided((4, 3), (3, 1))
        low = x.relu()[0].as_strided((2, 3), (3, 1)), torch.maximum(x.relu(), torch.tensor(-2))
    assert not any(streams.known.is_nonnegative(t) for t in (*made, *low))
