"""What each function of the table does to relevance, in all its spellings."""

from collections.abc import Callable

import pytest
import torch
from networks import error
from oracles.detached import detached
from torch import Tensor, nn
from torch.nn import functional as F

import lrp
from lrp import Composite
from lrp.rules import AlphaBeta, Epsilon, Flat, Gradient, ZPlus

ZERO = Epsilon(0)
ONES = torch.ones(3, 3, dtype=torch.float64)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def relevances(
    function: Callable[..., Tensor],
    *inputs: Tensor,
    rule: lrp.Rule = ZERO,
    R: Tensor | None = None,
    **settings: object,
) -> tuple[Tensor, ...]:
    """The relevance of each input, and R = the output's value where it is not given."""
    y = lrp.convert(function)(*inputs, explain=True, rule=rule, strict=True, **settings)
    assert torch.equal(y, function(*inputs))
    return torch.autograd.grad(y, inputs, y.detach() if R is None else R, materialize_grads=True)


def gradient_times_input(function: Callable[..., Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
    gradients = torch.autograd.grad(function(*inputs).sum(), inputs)
    return tuple(x.detach() * g for x, g in zip(inputs, gradients, strict=True))


def plus_(a: Tensor, b: Tensor) -> Tensor:
    a = a * 1.0
    a += b
    return a


EYE = torch.eye(3, dtype=torch.float64)
SUMS = {
    "+": lambda a, b: a + b,
    "+=": plus_,
    "add": lambda a, b: torch.add(a, b),
    "alpha": lambda a, b: torch.add(a, b, alpha=0.5),
    "method": lambda a, b: a.add(b, alpha=-2),
    "add_": lambda a, b: (a * 1.0).add_(b, alpha=2),
    "-": lambda a, b: a - b,
    "sub": lambda a, b: torch.sub(a, b, alpha=3),
    "sum": lambda a, b: sum([a, b]),
    "stack": lambda a, b: torch.stack([a, b.expand_as(a)]).sum(0),
    "constant": lambda a, b: 1.5 - a @ EYE + (b @ EYE) / 2 + 0.25,
    "lora": lambda a, b: F.linear(a, ONES[:2]) + F.linear(F.linear(b.expand_as(a), ONES[:1]), ONES[:2, :1]),
}


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("shape", [(4, 3), (3,)])
def test_sums_share_in_proportion(name: str, shape: tuple[int, ...]) -> None:
    a, b = draw(4, 3), draw(*shape, seed=1)
    for actual, expected in zip(relevances(SUMS[name], a, b), gradient_times_input(SUMS[name], a, b), strict=True):
        assert error(actual, expected) < 1e-10


@pytest.mark.parametrize("name", ["+", "+=", "add_"])
def test_sums_take_any_rule(name: str) -> None:
    a, b = draw(4, 3), draw(4, 3, seed=1)
    R = torch.ones(4, 3, dtype=torch.float64)
    for part in relevances(SUMS[name], a, b, rule=Composite({"sum": Flat(epsilon=0)}), R=R):
        assert torch.allclose(part, R / 2)
    p = (a.detach().clamp(min=0), (b.detach() * (2 if name == "add_" else 1)).clamp(min=0))
    expected = [part / (p[0] + p[1]).masked_fill(p[0] + p[1] == 0, 1.0) for part in p]
    for rule in (ZPlus(epsilon=1e-13), AlphaBeta(1, 0, epsilon=1e-13)):
        actual = relevances(SUMS[name], a, b, rule=Composite({"sum": rule}), R=R)
        assert all(torch.allclose(x, y) for x, y in zip(actual, expected, strict=True)), rule


GATES = {
    "sigmoid": lambda x, g: x * torch.sigmoid(g),
    "before": lambda x, g: g.sigmoid() * x,
    "hardsigmoid": lambda x, g: x.mul(F.hardsigmoid(g)),
    "softmax": lambda x, g: x * F.softmax(g, 1),
    "moved": lambda x, g: x.unsqueeze(2) * torch.sigmoid(g).view(4, 3, 1).expand(4, 3, 5),
    "joined": lambda x, g: torch.cat([x, x], 1) * torch.cat([g.sigmoid(), g.sigmoid()], 1),
    "scaled": lambda x, g: x * (2 * torch.sigmoid(g)),
    "in place": lambda x, g: (x * 1.0).mul_(g.sigmoid()),
    "gate overwritten": lambda x, g: g.sigmoid().clone().mul_(x),
    "activation in place": lambda x, g: x * (g * 1.0).sigmoid_(),
}


@pytest.mark.parametrize("name", GATES)
def test_gates_get_nothing(name: str) -> None:
    x, g = draw(4, 3), draw(4, 3, seed=1)
    of_x, of_g = relevances(GATES[name], x, g)
    assert error(of_x, gradient_times_input(GATES[name], x, g)[0]) < 1e-10
    assert not of_g.any()


PRODUCTS = {
    "*": lambda a, b: a * b,
    "*=": lambda a, b: (a * 1.0).mul_(b),
    "mul": lambda a, b: torch.mul(a, b),
    "of gates": lambda a, b: a.sigmoid() * b.sigmoid(),
    "no gate": lambda a, b: a * (b.sigmoid() @ EYE),
}


@pytest.mark.parametrize("name", ["*", "*=", "mul"])
@pytest.mark.parametrize("shape", [(4, 3), (4, 1)])
def test_products_share_in_halves(name: str, shape: tuple[int, ...]) -> None:
    a, b, R = draw(4, 3), draw(*shape, seed=1), draw(4, 3, seed=2).detach()
    of_a, of_b = relevances(PRODUCTS[name], a, b, R=R)
    assert torch.allclose(of_a, R / 2)
    assert torch.allclose(of_b, R.sum_to_size(shape) / 2)


def test_products_of_gates_and_squares() -> None:
    a, b, R = draw(4, 3), draw(4, 3, seed=1), draw(4, 3, seed=2).detach()
    assert all(torch.allclose(part, R / 2) for part in relevances(PRODUCTS["of gates"], a, b, R=R))
    assert torch.allclose(relevances(lambda x: x * x, a, R=R)[0], R)
    assert relevances(PRODUCTS["no gate"], a, b, R=R)[1].any()


@pytest.mark.parametrize("function", [*SUMS.values(), *GATES.values(), *PRODUCTS.values()])
def test_the_gradient_rule_is_the_gradient_everywhere(function: Callable[..., Tensor]) -> None:
    a, b = draw(4, 3), draw(4, 3, seed=1)
    R = torch.ones_like(function(a, b))
    expected = torch.autograd.grad(function(a, b).sum(), (a, b))
    actual = relevances(function, a, b, rule=Gradient(), R=R)
    assert all(torch.allclose(*pair) for pair in zip(actual, expected, strict=True))


def test_softmax() -> None:
    x, R = draw(4, 3), draw(4, 3, seed=2).detach()
    z = x.detach().softmax(1)
    for softmax in (torch.softmax, F.softmax, Tensor.softmax):
        (actual,) = relevances(lambda x, softmax=softmax: softmax(x, dim=1), x, R=R)
        assert error(actual, x.detach() * (R - z * R.sum(1, keepdim=True))) < 1e-12
    mask = torch.tensor([True, False, True])
    (actual,) = relevances(lambda x: x.masked_fill(~mask, -torch.inf).softmax(1), x, R=R)
    assert actual.isfinite().all()
    assert not actual[:, 1].any()


LINEAR_FUNCTIONS = {
    "mean": lambda x: x.mean((2, 3)),
    "sum": lambda x: x.sum(1),
    "sum of all": lambda x: x.sum(),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 3, 2, padding=1, count_include_pad=False),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, (2, 3)),
    "fold": lambda x: F.fold(x.flatten(2)[:, :, :6], (3, 3), (2, 1)),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
    "corners": lambda x: F.interpolate(x, size=(7, 3), mode="bilinear", align_corners=True),
    "bicubic": lambda x: F.interpolate(x, size=(7, 9), mode="bicubic", antialias=True),
    "area": lambda x: F.interpolate(x, size=(2, 2), mode="area"),
    "nearest": lambda x: F.interpolate(x, size=(7, 9)),
    "nearest-exact": lambda x: F.interpolate(x, size=(7, 9), mode="nearest-exact"),
    "linear": lambda x: F.interpolate(x.flatten(2), size=9, mode="linear"),
    "trilinear": lambda x: F.interpolate(x.unsqueeze(2), scale_factor=2, mode="trilinear"),
    "upsample": nn.Upsample(scale_factor=2, mode="bilinear"),
    "upsample nearest": nn.UpsamplingNearest2d(scale_factor=2),
    "matmul": lambda x: x @ torch.arange(10.0).double().view(5, 2),
    "matmul from the left": lambda x: torch.matmul(torch.arange(12.0).double().view(3, 4), x),
    "einsum": lambda x: torch.einsum("nchw,dc->ndhw", x, torch.arange(6.0).double().view(3, 2)),
    "bmm": lambda x: torch.bmm(x[:, 0], torch.ones(3, 5, 2).double()),
    "reflect": lambda x: F.pad(x, (1, 2, 0, 1), mode="reflect"),
    "replicate": lambda x: F.pad(x, (1, 2, 0, 1), mode="replicate"),
    "circular": lambda x: F.pad(x, (1, 2, 0, 1), mode="circular"),
    "shuffle": lambda x: F.channel_shuffle(x, 2),
    "roll": lambda x: x.roll((1, 2), (2, 3)).flip(1),
    "pixel_unshuffle": lambda x: F.pixel_unshuffle(x[..., :4], 2),
    "dropout": lambda x: F.dropout(x, 0.5, training=False) + F.dropout2d(x, training=False),
    "split": lambda x: torch.cat([part * (i + 1) for i, part in enumerate(x.split([2, 3], -1))], -1),
    "chunk": lambda x: torch.stack([part[:, 0] for part in x.chunk(2, 2)]),
    "winners": lambda x: torch.stack([x.amax(1), x.max(1)[0], x.min(1).values, torch.maximum(x[:, 0], x[:, 1])]),
}


@pytest.mark.parametrize("name", LINEAR_FUNCTIONS)
def test_linear_functions(name: str) -> None:
    function, x = LINEAR_FUNCTIONS[name], draw(3, 2, 4, 5)
    (actual,) = relevances(function, x)
    assert error(actual, gradient_times_input(function, x)[0]) < 1e-10
    assert error(relevances(function, x, differentiable=True)[0], actual) < 1e-10


@pytest.mark.parametrize("name", ["matmul", "matmul from the left", "einsum", "bmm"])
def test_products_of_matrices_take_any_rule(name: str) -> None:
    function, x = LINEAR_FUNCTIONS[name], draw(3, 2, 4, 5)
    y = function(x)
    jacobian = torch.autograd.functional.jacobian(function, x.detach()).flatten(0, y.dim() - 1).flatten(1)
    R = torch.ones_like(y)
    for rule in (ZPlus(epsilon=1e-12), AlphaBeta(2, 1, epsilon=1e-12)):
        contributions = jacobian * x.detach().flatten()
        plus, minus = contributions.clamp(min=0), contributions.clamp(max=0)
        beta = getattr(rule, "beta", 0)
        agreeing = plus / (plus.sum(1, keepdim=True) + 1e-12)
        opposing = minus / (minus.sum(1, keepdim=True) - 1e-12)
        expected = ((1 + beta) * agreeing - beta * opposing).sum(0)
        assert error(relevances(function, x, rule=rule, R=R)[0].flatten(), expected) < 1e-8


NORMS = {
    "layer_norm": nn.LayerNorm(5),
    "group_norm": nn.GroupNorm(2, 4),
    "one group": nn.GroupNorm(1, 4),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_have_a_constant_deviation(name: str) -> None:
    norm = NORMS[name].double()
    for parameter in norm.parameters():
        parameter.data = draw(*parameter.shape, seed=3).detach()
    x = draw(3, 4, 5, 5) + 0.3
    x = x.detach().requires_grad_()
    assert error(relevances(norm, x)[0], gradient_times_input(detached(norm), x)[0]) < 1e-9
    R = torch.ones_like(x)
    gradient = torch.autograd.grad(norm(x).square().sum(), x)[0]
    by_rule = relevances(norm, x, rule=Gradient(), R=2 * norm(x).detach())[0]
    assert error(by_rule, gradient) < 1e-10
    assert error(relevances(norm, x, differentiable=True, R=R)[0], relevances(norm, x, R=R)[0]) < 1e-10


def test_instance_norm_is_a_group_norm_of_each_channel() -> None:
    x, w, b = draw(2, 3, 4, 5), draw(3, seed=1).detach(), draw(3, seed=2).detach()
    R = draw(2, 3, 4, 5, seed=4).detach()
    expected = relevances(lambda x: F.group_norm(x, 3, w, b), x, R=R)[0]
    assert error(relevances(lambda x: F.instance_norm(x, None, None, w, b), x, R=R)[0], expected) < 1e-10
    running = nn.InstanceNorm2d(3, affine=True, track_running_stats=True).double().eval()
    running.running_mean.copy_(torch.tensor([0.1, 0.2, 0.3]))
    hidden = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), running).double()
    assert error(relevances(hidden, x)[0], gradient_times_input(hidden, x)[0]) < 1e-10


def test_rms_norm() -> None:
    norm = nn.RMSNorm(5, eps=1e-3).double()
    norm.weight.data = draw(5, seed=1).detach()
    x = draw(3, 4, 5)
    scale = (x.detach().square().mean(-1, keepdim=True) + 1e-3).rsqrt() * norm.weight.detach()
    assert error(relevances(norm, x)[0], gradient_times_input(lambda x: x * scale, x)[0]) < 1e-10


def test_batch_norm_merges_with_its_layer_alone() -> None:
    """A batch norm that follows another view of the layer's output, or an in-place change, is a map of its own."""
    conv, norm = nn.Conv2d(2, 2, 3).double(), nn.BatchNorm2d(2).double().eval()
    norm.running_mean.fill_(0.5)
    x = draw(2, 2, 6, 6)
    for between in (
        lambda t: t,
        lambda t: t.flip(2),
        lambda t: t.mul_(2),
        lambda t: t.view(2, 2, 2, 8).view(2, 2, 4, 4),
    ):

        def function(x: Tensor, between: Callable[[Tensor], Tensor] = between) -> Tensor:
            return norm(between(conv(x)))

        assert error(relevances(function, x)[0], gradient_times_input(function, x)[0]) < 1e-10
    assert list(Composite({}).resolve(lambda x: norm(conv(x)), x)) == ["conv2d"]
    assert list(Composite({}).resolve(lambda x: norm(conv(x).flip(2)), x)) == ["conv2d", "batch_norm"]
