"""What divides is a constant, what is made of a weight is a weight, and fused functions are what they are made of."""

from collections.abc import Callable

import pytest
import torch
from networks import error
from spellings import Function, draw, explained
from torch import Tensor
from torch.nn import functional as F

import lrp
from lrp import Composite
from lrp.rules import Epsilon, Rule

X, W, V, B = draw(4, 5), draw(6, 5, seed=1), draw(5, 6, seed=2), draw(6, seed=3)
T, U = draw(4, 6, seed=4), draw(6, 6, seed=5)
RULES = [Epsilon(0.1), "zplus", "gamma", "alpha2beta1"]


def hidden(x: Tensor) -> Tensor:
    return F.linear(x, W)


def squares(h: Tensor) -> Tensor:
    return h.pow(2).mean(-1, keepdim=True) + 1e-6


def centred(h: Tensor) -> Tensor:
    return h - h.mean(-1, keepdim=True)


# each norm as a quotient, and as a product with what divides
NORMS: dict[str, tuple[Function, Function]] = {
    "rsqrt": (lambda h: h / squares(h).sqrt(), lambda h: h * torch.rsqrt(squares(h))),
    "method": (lambda h: h / squares(h).sqrt(), lambda h: squares(h).rsqrt() * h),
    "power": (lambda h: h / squares(h).sqrt(), lambda h: h * squares(h) ** -0.5),
    "torch.pow": (lambda h: h / squares(h).sqrt(), lambda h: h * torch.pow(squares(h), -0.5)),
    "reciprocal": (lambda h: h / h.norm(dim=-1, keepdim=True), lambda h: h * h.norm(dim=-1, keepdim=True).reciprocal()),
    "number over": (lambda h: h / h.norm(dim=-1, keepdim=True), lambda h: h * (1 / h.norm(dim=-1, keepdim=True))),
    "moved": (lambda h: h / squares(h).sqrt(), lambda h: h * squares(h).rsqrt().expand_as(h).clone()),
    "layer norm": (
        lambda h: centred(h) / centred(h).pow(2).mean(-1, keepdim=True).sqrt(),
        lambda h: centred(h) * centred(h).pow(2).mean(-1, keepdim=True).rsqrt(),
    ),
}


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_what_divides_gets_nothing_however_it_is_spelled(name: str, rule: Rule | str) -> None:
    divided, multiplied = (lambda x, f=f: F.linear(f(hidden(x)), V) for f in NORMS[name])
    expected = explained_alike(divided, rule)
    assert error(explained_alike(multiplied, rule), expected) < 1e-10


def explained_alike(f: Function, rule: Rule | str) -> Tensor:
    x = X.clone().requires_grad_()
    y = lrp.convert(f)(x, explain=True, rule=rule, strict=True)
    return torch.autograd.grad(y, x, draw(*y.shape, seed=9))[0]


# fused functions, and what they are made of
FUSED: dict[str, tuple[Function, Function]] = {
    "addcmul": (lambda h: torch.addcmul(h, h, T), lambda h: h + h * T),
    "addcdiv": (lambda h: torch.addcdiv(h, h, T.abs() + 1), lambda h: h + h / (T.abs() + 1)),
    "lerp": (lambda h: torch.lerp(h, h.relu(), 0.25), lambda h: 0.75 * h + 0.25 * h.relu()),
    "addmm": (lambda h: torch.addmm(h.relu(), h, U), lambda h: h.relu() + h @ U),
    "baddbmm": (
        lambda h: torch.baddbmm(h.relu()[None], h[None], U[None])[0],
        lambda h: h.relu() + torch.bmm(h[None], U[None])[0],
    ),
    "addmv": (lambda h: torch.addmv(h[:, 0], h, U[0]), lambda h: h[:, 0] + torch.mv(h, U[0])),
}  # fmt: skip
COMPOSITES: list[Rule | str] = [
    "epsilon", "zplus", Composite({"sum": "gradient"}, default=Epsilon(0.1)),
    Composite({"linear": "zplus", "sum": "gradient"}, default=Epsilon(0.1)),
]  # fmt: skip


@pytest.mark.parametrize("rule", COMPOSITES, ids=["epsilon", "zplus", "sums by gradient", "z+ and sums by gradient"])
@pytest.mark.parametrize("name", FUSED)
def test_a_fused_function_is_what_it_is_made_of(name: str, rule: Rule | str) -> None:
    fused, apart = (lambda x, f=f: f(hidden(x)) for f in FUSED[name])
    assert error(explained_alike(fused, rule), explained_alike(apart, rule)) < 1e-10


MADE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "transposed": lambda x, w: x @ w.t(),
    "normalised": lambda x, w: F.linear(x, w / w.norm(dim=1, keepdim=True)),
    "product": lambda x, w: F.linear(x, w @ U[:5, :5]),
    "einsum": lambda x, w: torch.einsum("ni,oi,i->no", x, w, X[0].exp()),
}


@pytest.mark.parametrize("rule", [Epsilon(0.1), "zplus", "alpha2beta1"], ids=str)
@pytest.mark.parametrize("name", MADE)
def test_a_relevance_has_derivatives_by_what_weights_are_made_of(name: str, rule: Rule | str) -> None:
    w = W.clone().requires_grad_()

    def relevance(w: Tensor) -> Tensor:
        x = X.clone().requires_grad_()
        y = lrp.convert(lambda x: MADE[name](x, w))(x, explain=True, rule=rule, differentiable=True)
        return torch.autograd.grad(y[:, :3].sum(), x, create_graph=True)[0]

    assert torch.autograd.gradcheck(relevance, (w,), atol=1e-5)


@pytest.mark.parametrize("rule", [Epsilon(0.1), "zplus", "flat"], ids=str)
@pytest.mark.parametrize("shape", [(2, 0, 5), (0, 5), (0, 3, 5)])
def test_an_input_without_elements(shape: tuple[int, ...], rule: Rule | str) -> None:
    x = torch.empty(shape, dtype=torch.float64, requires_grad=True)
    lrp.convert(hidden)(x, explain=True, rule=rule).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == shape


def test_an_ignored_bias_below_epsilon_keeps_its_sign() -> None:
    """Where the totals are small beside epsilon, the sign that it takes counts."""
    x, w, b = 1e-6 * draw(64, 5).float(), W.float(), 0.1 * draw(6, seed=7).float()
    rule = Epsilon(0.1, bias="ignore")
    single = explained(lambda x: F.linear(x, w, b), x, rule)
    double = explained(lambda x: F.linear(x, w.double(), b.double()), x.double(), rule)
    assert error(single.double(), double) < 1e-3
