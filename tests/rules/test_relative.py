"""Epsilon in units of the standard deviation of the outputs of each sample."""

import pytest
import torch
from networks import error, randomize
from torch import Tensor, nn

import lrp
from lrp.rules import Epsilon, Proportional

FORMS = ("relevance", "gradient")


def explained(model: nn.Module, x: Tensor, rule: lrp.Rule, **settings: object) -> Tensor:
    x = x.detach().requires_grad_()
    y = lrp.convert(model)(x, explain=True, rule=rule, **settings)
    y.backward(y.detach())
    return x.grad


def shares(z: Tensor, epsilon: float) -> Tensor:
    """What an output hands on of itself: ``|z| / (|z| + epsilon * deviation)``."""
    dims = tuple(range(1, z.dim()))
    return z.abs() / (z.abs() + epsilon * z.std(dims, correction=0, keepdim=True))


def expected(layers: nn.Sequential, x: Tensor, epsilon: float) -> Tensor:
    """The map of two merged layers around a rectifier: gradient times input, of a gradient that shrinks at each."""
    x = x.detach().requires_grad_()
    z = layers[:2](x)
    z.register_hook(lambda g: g * shares(z.detach(), epsilon))
    y = layers[3:](z.relu())
    return x.detach() * torch.autograd.grad(y, x, shares(y.detach(), epsilon))[0]


CONVOLUTIONAL = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))
DENSE = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3), nn.BatchNorm1d(3))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("epsilon", [0.0, 0.25, 3.0])
@pytest.mark.parametrize("kind", ["convolutional", "dense"])
def test_the_formula_with_the_norm_included(kind: str, epsilon: float, form: str) -> None:
    model = randomize(CONVOLUTIONAL if kind == "convolutional" else DENSE)
    x = torch.randn(4, 2, 6, 6).double() if kind == "convolutional" else torch.randn(4, 5).double()
    x = x * torch.tensor([1.0, 10.0, 100.0, 0.1]).double().view(4, *(1 for _ in x.shape[1:]))  # samples of other sizes
    actual = explained(model, x, Epsilon(epsilon, relative=True), form=form)
    for one, other in zip(actual, expected(model, x, epsilon), strict=True):
        assert error(one, other) < 1e-10


@pytest.mark.parametrize("form", FORMS)
def test_a_change_of_unit_changes_nothing(form: str) -> None:
    """Without biases the map of the data in another unit is the same, in the unit of the output."""
    model = randomize(nn.Sequential(nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False)))
    x = torch.randn(4, 5).double()
    rule = Epsilon(0.25, relative=True)
    assert error(explained(model, 1000 * x, rule, form=form) / 1000, explained(model, x, rule, form=form)) < 1e-10


@pytest.mark.parametrize("form", FORMS)
def test_one_sample_is_explained_as_it_is_in_a_batch(form: str) -> None:
    model, x = randomize(CONVOLUTIONAL), torch.randn(3, 2, 6, 6).double()
    rule = Epsilon(0.25, relative=True)
    together = explained(model, x, rule, form=form)
    assert error(explained(model, x[1:2], rule, form=form), together[1:2]) < 1e-12


def test_a_sample_without_a_batch() -> None:
    conv, x = randomize(nn.Conv2d(2, 3, 3)), torch.randn(2, 6, 6).double()
    rule = Epsilon(0.25, relative=True)
    for form in FORMS:
        assert error(explained(conv, x, rule, form=form), explained(conv, x[None], rule)[0]) < 1e-12
    fc, x = randomize(nn.Linear(4, 3)), torch.randn(4).double()
    for form in FORMS:
        assert error(explained(fc, x, rule, form=form), explained(fc, x[None], rule)[0]) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_outputs_that_are_all_alike_have_no_deviation(form: str) -> None:
    """One output alone is divided by itself; one that is zero gives nothing."""
    fc = nn.Linear(2, 1, bias=False).double()
    nn.init.ones_(fc.weight)
    x = torch.tensor([[1.0, 2.0], [1.0, -1.0]]).double()
    actual = explained(nn.Sequential(fc), x, Epsilon(0.25, relative=True), form=form)
    assert torch.equal(actual[0], x[0])
    assert actual[1].sum() == 0
    assert actual.isfinite().all()


def test_sums_keep_an_absolute_stabiliser() -> None:
    rule = Epsilon(0.25, relative=True)
    assert rule.companion("sum") == Proportional(epsilon=1e-6)
    assert rule.companion("conv") is rule


def test_as_the_rule_of_sums_it_is_relative_to_them() -> None:
    a, b = torch.randn(2, 3, 4).double()
    x = torch.stack([a, b]).requires_grad_()
    rule = lrp.Composite({"sum": Epsilon(0.5, relative=True)}, default=Epsilon(0.0))
    y = lrp.convert(lambda t: t[0] * 2.0 + t[1])(x, explain=True, rule=rule)
    y.backward(torch.ones_like(y))
    z = 2 * a + b
    R = 1 / (z + 0.5 * z.std(1, correction=0, keepdim=True) * z.sign())
    assert error(x.grad, torch.stack([2 * a * R, b * R])) < 1e-12


def test_it_can_be_differentiated() -> None:
    fc = randomize(nn.Linear(3, 4))

    def relevance(x: Tensor) -> Tensor:
        y = lrp.convert(fc)(x, explain=True, rule=Epsilon(0.25, relative=True), differentiable=True)
        return torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)[0]

    assert torch.autograd.gradcheck(relevance, torch.randn(2, 3).double().requires_grad_())


def test_what_it_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match="exponent=2: must be 1 with relative=True"):
        Epsilon(0.1, exponent=2, relative=True)
    with pytest.raises(ValueError, match="relative=1: must be True or False"):
        Epsilon(0.1, relative=1)
    assert repr(Epsilon(0.25, relative=True)) == "Epsilon(epsilon=0.25, exponent=1, relative=True)"
