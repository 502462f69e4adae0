"""Transforms, operators that run compiled, and nested tensors: named, and their gradient is that of the model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import error
from test_origins import Forward, Model, X, check_parameters_stay
from test_views import Normalized
from torch import Tensor
from torch._higher_order_ops import map as map_rows
from torch._higher_order_ops import while_loop
from torch.autograd import forward_ad
from torch.nn import functional as F

import lrp

W = torch.randn(6, 5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
VMAPPED: dict[str, Callable[[Tensor], Tensor]] = {
    "argument": lambda h: torch.vmap(lambda w, t: t @ w, in_dims=(0, None))(W, h),
    "closure": lambda h: torch.vmap(lambda w: (h * 2) @ w)(W),
    "in place": lambda h: torch.vmap(lambda w: h.clone().mul_(2) @ w)(W),
    "both mapped": lambda h: torch.vmap(lambda w, row: row @ w)(W[:4], h),
    "not mapped at all": lambda h: torch.vmap(lambda w, t: t.sin(), in_dims=(0, None), out_dims=None)(W, h),
    "nested": lambda h: torch.vmap(lambda w: torch.vmap(lambda row: row @ w)(h))(W),
    "of a module": lambda h: torch.vmap(lambda w, t: F.linear(t, w.T).square(), in_dims=(0, None))(W, h),
}


@pytest.mark.parametrize("name", VMAPPED)
def test_vmap_over_constants_is_named_and_gives_its_gradient(name: str) -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        return VMAPPED[name](m.a(x))

    model, x = Model(forward), X.clone().requires_grad_()
    with pytest.warns(lrp.RelevanceWarning, match="there is no rule for the relevance of"):
        y = lrp.convert(model)(x, explain=True, rule="gradient")
    assert torch.equal(y, model(x))
    actual, expected = (torch.autograd.grad(out.sum(), x)[0] for out in (y, model(x)))
    assert error(actual, expected) < 1e-12
    assert model.gradients() == []
    with pytest.raises(NotImplementedError, match="there is no rule for the relevance of"):
        lrp.convert(model)(x, explain=True, strict=True)


@pytest.mark.parametrize("rule", ["epsilon", "zplus"])
@pytest.mark.parametrize("is_late", [False, True])
def test_vmap_beside_a_merged_norm(rule: str, is_late: bool) -> None:
    """What is merged with a layer has to know of all that uses the layer besides: the two maps add up."""
    w = W[:, 0, 0]

    def forward(m: Normalized, x: Tensor) -> Any:
        h = m.conv(x)
        early = None if is_late else m.norm(h)
        weighed = torch.vmap(lambda v, t: t * v, in_dims=(0, None))(w, h)
        return early if early is not None else m.norm(h), weighed

    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    with pytest.warns(lrp.RelevanceWarning, match="the autograd function"):
        both = lrp.convert(Normalized(forward))(x, explain=True, rule=rule)
    (actual,) = torch.autograd.grad([t.sum() for t in both], x)
    normed, h = (
        lrp.convert(Normalized(part))(x, explain=True, rule=rule)
        for part in (lambda m, x: m.norm(m.conv(x)), lambda m, x: m.conv(x))
    )
    expected = torch.autograd.grad(normed.sum(), x)[0] + torch.autograd.grad(h.sum() * w.sum(), x)[0]
    assert error(actual, expected) < 1e-10


def dual(m: Model, h: Tensor, get: str) -> Any:
    with forward_ad.dual_level():
        y = m.b(forward_ad.make_dual(h, torch.ones_like(h)))
        return getattr(forward_ad.unpack_dual(y), get)


FORWARD_MODE: dict[str, Forward] = {
    "tangent": lambda m, x: dual(m, m.a(x), "tangent"),
    "primal": lambda m, x: dual(m, m.a(x), "primal"),
    "constant": lambda m, x: m.b(m.a(x)) + dual(m, torch.ones(4, 5, dtype=torch.float64), "tangent"),
    "linearize": lambda m, x: torch.func.linearize(m.b, m.a(x))[0],
    "linearized": lambda m, x: torch.func.linearize(m.b, m.a(x))[1](torch.ones(4, 5, dtype=torch.float64)),
    "jacfwd": lambda m, x: torch.func.jacfwd(m.b)(m.a(x)[0]),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", FORWARD_MODE)
def test_forward_mode_differentiation_is_refused_by_name(name: str) -> None:
    message = "(forward-mode differentiation|torch.func).* would be given relevance .*: explain what it is taken of"
    with pytest.raises(NotImplementedError, match=message):
        lrp.convert(Model(FORWARD_MODE[name]))(X.clone().requires_grad_(), explain=True)


def test_within_a_dual_level_of_ones_own_a_model_can_be_explained() -> None:
    model, x = Model(lambda m, x: m.b(m.a(x))), X.clone().requires_grad_()
    with forward_ad.dual_level():
        lrp.convert(model)(x, explain=True).sum().backward()
    assert torch.equal(x.grad, check_parameters_stay(model))


def twice(h: Tensor) -> Tensor:
    return h * 2


OPERATORS: dict[str, tuple[Forward, str]] = {
    "cond": (lambda m, x: m.b(torch.cond(x.sum() > 0, torch.relu, twice, (m.a(x),))), "torch.cond"),
    "cond of layers": (lambda m, x: torch.cond(x.sum() > 0, m.a, lambda t: m.a(-t), (x,)), "torch.cond"),
    "while_loop": (
        lambda m, x: while_loop(lambda i, h: i < 3, lambda i, h: (i + 1, h * 2), (torch.tensor(0), m.a(x)))[1],
        "while_loop",
    ),
    "map": (lambda m, x: map_rows(twice, m.a(x)), "map"),
}


@pytest.mark.skipif(not callable(map_rows), reason="torch 2.6 has other operators")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by torch, on the way
@pytest.mark.parametrize("name", OPERATORS)
def test_operators_that_run_compiled_are_refused_by_name(name: str) -> None:
    forward, operator = OPERATORS[name]
    with pytest.raises(
        NotImplementedError, match=rf"{operator}.* runs compiled.*write the branch or the loop in Python"
    ):
        lrp.convert(Model(forward))(X.clone().requires_grad_(), explain=True)


def test_a_branch_that_python_picks_is_explained() -> None:
    branching = Model(lambda m, x: m.b(torch.cond(bool(x.numel() > 3), torch.relu, twice, (m.a(x),))))
    assert torch.equal(
        check_parameters_stay(branching, strict=True), check_parameters_stay(Model(lambda m, x: m.b(m.a(x).relu())))
    )


NESTED: dict[str, Callable[[Model, Tensor], Tensor]] = {
    "padded": lambda m, n: n.to_padded_tensor(0.0),
    "layer": lambda m, n: torch.cat(m.b(n).unbind()),
    "norm": lambda m, n: torch.cat(m.norm(n).unbind()),
    "in place": lambda m, n: torch.cat(n.relu_().unbind()),
    "identities": lambda m, n: torch.cat(n.clone().contiguous().unbind()),
    "output": lambda m, n: n,
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("form", [torch.strided, torch.jagged])
@pytest.mark.parametrize("name", NESTED)
def test_nested_tensors_are_named(name: str, form: torch.layout) -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        h = m.a(x)
        return NESTED[name](m, torch.nested.as_nested_tensor([h[:1], h[1:]], layout=form))

    with pytest.raises(NotImplementedError, match=r"there is no rule for the relevance of .*nested"):
        lrp.convert(Model(forward))(X.clone().requires_grad_(), explain=True, strict=True)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_copies_values_alone_is_said() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        h = m.a(x)
        return torch.nested.nested_tensor([h[0], h[1]]).to_padded_tensor(0.0)

    message = r"ends at what copies values alone, such as torch.nested.nested_tensor\(\) \(after layer 'a'\)"
    with pytest.raises(ValueError, match=message):
        lrp.convert(Model(forward))(X.clone().requires_grad_(), explain=True)
