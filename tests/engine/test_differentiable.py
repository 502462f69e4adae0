"""Relevance that is differentiated: equal to finite differences, or an error."""

import networks
import pytest
import torch
import torchvision
from networks import error
from torch import Tensor, nn
from torch.func import functional_call

import lrp
from lrp.rules import AlphaBeta, Epsilon, Flat, Gamma, Rule, WSquare, ZBox, ZPlus

RULES = [
    Epsilon(0.1),
    Epsilon(0.1, bias="ignore"),
    Gamma(0.25),
    Gamma(0.25, bias="distribute"),
    ZPlus(),
    AlphaBeta(2, 1),
    AlphaBeta(2, 1, bias="absorb"),
    AlphaBeta(2, 1, conserve=True),
    ZBox(-3, 3),
    WSquare(),
    Flat(),
]


def smooth(inplace: bool = False) -> lrp.Sequential:
    """A small convolutional net with a batch norm, a residual block, pools and nothing that is not smooth."""
    return networks.randomize(
        lrp.Sequential(
            lrp.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Softplus(), lrp.Conv2d(3, 4, 2, stride=2), nn.ReLU(inplace),
            networks.Residual(4, inplace), nn.AvgPool2d(2), nn.Flatten(), lrp.Linear(8, 2),
        )
    )  # fmt: skip


def loss_of_relevance(model: nn.Module, parameters: dict[str, Tensor], x: Tensor, rule: Rule) -> Tensor:
    """A number that depends on every pixel's relevance in a way of its own."""
    y = functional_call(model, parameters, (x,), {"explain": True, "rule": rule, "differentiable": True})
    (relevance,) = torch.autograd.grad(y[:, 0].sum(), x, create_graph=True)
    return (relevance * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sum()


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("inplace", [False, True])
def test_derivatives_of_relevance_equal_finite_differences(rule: Rule, inplace: bool) -> None:
    model, x = smooth(inplace), networks.images(1, 1, 6)
    parameters = dict(model.named_parameters())
    loss = loss_of_relevance(model, parameters, x, rule)
    gradients = torch.autograd.grad(loss, [x, *parameters.values()], allow_unused=True)
    for name, gradient in zip(["x", *parameters], gradients, strict=True):
        tensor = x if name == "x" else parameters[name]
        gradient = torch.zeros_like(tensor) if gradient is None else gradient
        direction = torch.randn(tensor.shape, dtype=tensor.dtype, generator=torch.Generator().manual_seed(0))
        step = 1e-6 * direction
        sides = []
        for sign in (1, -1):
            moved = {**parameters, name: (parameters[name] + sign * step).detach()} if name != "x" else parameters
            at = (x + sign * step).detach().requires_grad_() if name == "x" else x
            sides.append(loss_of_relevance(model, moved, at, rule).item())
        numeric = (sides[0] - sides[1]) / 2e-6
        analytic = (gradient * direction).sum().item()
        assert abs(analytic - numeric) < 1e-6 * max(1.0, abs(loss.item()), abs(numeric)), name


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_relevance_that_can_be_differentiated_is_the_same_relevance(rule: Rule) -> None:
    for inplace in (False, True):
        model, x = smooth(inplace), networks.images(2, 1, 6)
        y = model(x, explain=True, rule=rule, differentiable=True)
        assert torch.equal(y, model(x))
        start = networks.first_output(y)
        (explained,) = torch.autograd.grad(y, x, start, create_graph=True)
        assert error(explained, networks.relevance(model, x, rule)) < 1e-12


def test_create_graph_without_differentiable_is_an_error() -> None:
    model, x = smooth(), networks.images(1, 1, 6)
    y = model(x, explain=True)
    with pytest.raises(RuntimeError, match=r"create_graph=True.*differentiable=True"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


def test_training_on_relevance() -> None:
    """A loss of the relevance reaches the parameters through backward() too."""
    model, x = smooth(), networks.images(1, 1, 6)
    loss_of_relevance(model, dict(model.named_parameters()), x, Epsilon()).backward()
    assert model[0].weight.grad.abs().max() > 0


class Assigning(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x.detach())
        y[:, :2] = x[:, 1:]
        return y


class Alias(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        part = x[:, :2]
        x.relu_()
        return part


def test_item_assignment_in_a_differentiable_explanation() -> None:
    model = networks.randomize(lrp.Sequential(nn.Linear(4, 3), Assigning(), nn.Linear(3, 2)))
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    parameters = dict(model.named_parameters())

    def loss(x: Tensor) -> Tensor:
        return loss_of_relevance(model, parameters, x, Epsilon())

    assert torch.autograd.gradcheck(loss, (x,))


def test_a_stale_view_in_a_differentiable_explanation_is_an_error() -> None:
    model = networks.randomize(lrp.Sequential(nn.Linear(4, 3), Alias(), nn.Linear(2, 2)))
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="modified in place through another view"):
        model(x, explain=True, differentiable=True)


def layers() -> nn.ModuleList:
    modules = nn.ModuleList([nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 4)])
    return networks.randomize(modules)


FIRST, NORM, LAST = layers()
SCALE = torch.linspace(-1, 2, 5, dtype=torch.float64)


def accumulated(x: Tensor) -> Tensor:
    h = torch.zeros(2, 5, dtype=torch.float64)
    for i in range(3):
        h += FIRST(x * (i + 1)).tanh()
    return LAST(h)


def linear_accumulated(x: Tensor) -> Tensor:
    h = torch.zeros(2, 5, dtype=torch.float64) + 0
    h += FIRST(x)
    h += FIRST(2 * x)
    return h.tanh()


def several_in_place(x: Tensor) -> Tensor:
    h = FIRST(x)
    h.add_(FIRST(x * 2), alpha=2).mul_(SCALE).sub_(SCALE)
    return LAST(h.sigmoid_())


def copied(x: Tensor) -> Tensor:
    out = torch.empty(2, 5, dtype=torch.float64)
    out.copy_(FIRST(x))
    return LAST(out.mul_(2).tanh())


def clone_before(x: Tensor) -> Tensor:
    h = FIRST(x)
    before = h.clone()
    h.tanh_()
    return LAST(h * before)


def column_set(x: Tensor) -> Tensor:
    h = FIRST(x)
    h[:, 0] = FIRST(x * 2)[:, 0]
    return LAST(h)


def hooked(x: Tensor) -> Tensor:
    h = FIRST(x)
    h.register_hook(lambda R: R * 2)
    return LAST(NORM(h).tanh() + h)


SMALL = {
    "accumulated": accumulated,
    "linear layers accumulated": linear_accumulated,
    "several in place": several_in_place,
    "copied": copied,
    "clone before": clone_before,
    "column set": column_set,
    "norm": lambda x: LAST(NORM(FIRST(x)).tanh()),
    "norm and itself": lambda x: (lambda y: LAST(NORM(y).tanh() + y))(FIRST(x)),
    "two norms": lambda x: (lambda y: LAST(NORM(y).tanh() + NORM(y * 2)))(FIRST(x)),
    "norm of a transposed layer": lambda x: LAST(
        NORM(FIRST(x[None]).transpose(1, 2).contiguous().transpose(1, 2).reshape(-1, 5)).tanh()
    ),
    "scale": lambda x: LAST((FIRST(x).mT * SCALE[:, None] + 1).mT.tanh()),
    "scale in place": lambda x: LAST(FIRST(x).mul_(SCALE).add_(SCALE).tanh()),
    "hooked": hooked,
    "gate": lambda x: LAST(FIRST(x) * FIRST(x).sigmoid()),
    "product": lambda x: LAST(FIRST(x) * FIRST(x * 2)),
    "quotient": lambda x: LAST(FIRST(x) / (FIRST(x).sigmoid() + 1)),
    "softmax": lambda x: LAST(FIRST(x).softmax(1)),
    "unit": lambda x: LAST(FIRST((x - 0.3) / 2).tanh()),
    "unit in place": lambda x: LAST(FIRST((x * 1).sub_(0.3).div_(2)).tanh()),
    "gelu": lambda x: LAST(nn.functional.gelu(FIRST(x))),
    "silu in place": lambda x: LAST(nn.functional.silu(FIRST(x), inplace=True)),
    "hardswish": lambda x: LAST(nn.functional.hardswish(FIRST(x))),
    "dropout": lambda x: LAST(nn.functional.dropout(FIRST(x), 0.5, False, True).tanh()),
    "maximum": lambda x: LAST(torch.maximum(FIRST(x), FIRST(2 * x))),
    "cat": lambda x: LAST(torch.cat([FIRST(x)[:, :2], FIRST(2 * x)[:, 2:]], 1).tanh()),
    "mean": lambda x: LAST(FIRST(x).mean(0, keepdim=True).expand(2, 5).tanh()),
}
SMALL_RULES = {
    "epsilon": Epsilon(0.1),
    "zplus": ZPlus(),
    "gamma": Gamma(0.25),
    "alpha2beta1": AlphaBeta(2, 1),
    "gradient": lrp.rules.Gradient(),
    "gradient of activations": lrp.Composite({"activation": "gradient"}, default=Epsilon(0.1)),
    "gradient of norms and sums": lrp.Composite({"norm": "gradient", "sum": "gradient"}, default=Epsilon(0.1)),
    "gradient of the first": lrp.Composite({"first": "gradient"}, default=Epsilon(0.1)),
    "guided": lrp.composites.GuidedBackprop(),
    "epsilon_plus_flat": lrp.composites.EpsilonPlusFlat(),
}


@pytest.mark.parametrize("rule", SMALL_RULES)
@pytest.mark.parametrize("name", SMALL)
def test_derivatives_through_writes_norms_and_functions(name: str, rule: str) -> None:
    """Of the relevance as the input moves, and as the weights move, against finite differences."""
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weights = [p for layer in (FIRST, NORM, LAST) for p in layer.parameters()]
    weigh = torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)

    def total(differentiable: bool) -> tuple[Tensor, Tensor, Tensor]:
        at = x.clone().requires_grad_()
        settings = {"explain": True, "rule": SMALL_RULES[rule], "differentiable": differentiable}
        y = lrp.convert(SMALL[name])(at, **settings)
        start = torch.linspace(1, 2, y.numel(), dtype=x.dtype).view_as(y)
        (relevance,) = torch.autograd.grad(y, at, start, create_graph=differentiable)
        return (relevance * weigh).sum(), relevance, at

    loss, relevance, at = total(differentiable=True)
    assert error(relevance.detach(), total(differentiable=False)[1]) < 1e-10
    tensors = [at, *weights]
    gradients = torch.autograd.grad(loss, tensors, allow_unused=True) if loss.requires_grad else [None] * len(tensors)
    for tensor, gradient in zip([x, *weights], gradients, strict=True):
        direction = torch.randn(tensor.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
        before, sides = tensor.detach().clone(), []
        for step in (1e-6, -1e-6, 0.0):
            with torch.no_grad():
                tensor.copy_(before + step * direction)
            sides.append(total(differentiable=False)[0].item())
        numeric = (sides[0] - sides[1]) / 2e-6
        analytic = 0.0 if gradient is None else (gradient * direction).sum().item()
        assert abs(analytic - numeric) < 1e-5 * max(1.0, abs(numeric))


def part_written(x: Tensor) -> Tensor:
    h = FIRST(x)
    h[:, :2].mul_(3)
    return LAST(h)


def parts_accumulated(x: Tensor) -> Tensor:
    h = torch.zeros(2, 5, dtype=torch.float64)
    h[:, :3] += FIRST(x)[:, :3]
    h[:, 2:] += FIRST(2 * x)[:, 2:]
    return LAST(h)


@pytest.mark.parametrize("network", [part_written, parts_accumulated])
def test_writes_to_parts_are_refused_by_name(network: object) -> None:
    with pytest.raises(RuntimeError, match="differentiable=True: a tensor was modified in place through another view"):
        lrp.convert(network)(torch.randn(2, 3).double().requires_grad_(), explain=True, differentiable=True)


def test_what_has_no_second_derivative_is_refused_by_name() -> None:
    boxes = torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]])
    model = lrp.convert(lambda x: torchvision.ops.roi_align(x, boxes, 2))
    with pytest.raises(NotImplementedError, match="roi_align has no second derivative"):
        model(torch.rand(1, 2, 6, 6, requires_grad=True), explain=True, differentiable=True)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize("transform", [
    torch.func.grad, torch.func.jacrev, torch.func.hessian, lambda f: torch.vmap(torch.func.grad(f)),
    lambda f: lambda x: torch.func.jvp(f, (x,), (x,)),
], ids=["grad", "jacrev", "hessian", "vmap of grad", "jvp"])  # fmt: skip
def test_transforms_that_differentiate_are_refused_by_name(transform: object) -> None:
    layer = lrp.Linear(3, 1)
    with pytest.raises(NotImplementedError, match=r"within a derivative by torch\.func"):
        transform(lambda x: layer(x, explain=True).sum())(torch.rand(2, 3))
