"""Views that were made where nobody saw it: of all of a tensor they are that tensor, of a part nothing is known."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import error
from test_origins import Model, Reversed, X
from torch import Tensor, nn
from torchvision import tv_tensors

import lrp


class Subclass(Tensor):
    pass


class Normalized(nn.Module):
    """A convolution, and something between it and its batch norm."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3)
        self.norm = nn.BatchNorm2d(4)
        nn.init.uniform_(self.norm.weight, 0.5, 2.0)
        nn.init.normal_(self.norm.bias)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2.0)
        self.double().eval()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def unseen(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return function(t)


def in_a_thread(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """The mode is of the thread that has entered it."""
    results: list[Tensor] = []
    thread = threading.Thread(target=lambda: results.append(function(t)))
    thread.start()
    thread.join()
    return results[0]


RULES = ["epsilon", "zplus", "gamma", "epsilon_plus_flat"]
IDENTITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "as_subclass": lambda h: h.as_subclass(Subclass),
    "as_subclass of a view": lambda h: h.flatten(2).as_subclass(Subclass).unflatten(2, h.shape[2:]),
    "twice": lambda h: h.as_subclass(Subclass).as_subclass(Tensor),
    "view_as": lambda h: unseen(lambda t: t.view_as(t), h),
    "slice": lambda h: unseen(lambda t: t[:], h),
    "in a thread": lambda h: in_a_thread(lambda t: t.view(t.shape), h),
    "image": tv_tensors.Image,
    "as_tensor": torch.as_tensor,
    "as_tensor by name": lambda h: torch.as_tensor(data=h),
    "as_tensor of its dtype": lambda h: torch.as_tensor(h, dtype=torch.float64),
}


def normalized_relevance(function: Callable[[Any, Tensor], Tensor], rule: str) -> Tensor:
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()
    y = lrp.convert(Normalized(function))(x, explain=True, rule=rule, strict=True)
    (R,) = torch.autograd.grad(y.sum(), x)
    return R


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", IDENTITIES)
def test_a_view_of_all_of_a_tensor_is_that_tensor(name: str, rule: str, place: int) -> None:
    """Before the first layer, between a layer and its norm, and before a rule that asks for the sign."""

    def forward(m: Normalized, x: Tensor, identity: Callable[[int, Tensor], Tensor]) -> Tensor:
        return m.last(identity(2, m.norm(identity(1, m.conv(identity(0, x)))).relu()))

    actual = normalized_relevance(
        lambda m, x: forward(m, x, lambda i, t: IDENTITIES[name](t) if i == place else t), rule
    )
    assert error(actual, normalized_relevance(lambda m, x: forward(m, x, lambda i, t: t), rule)) < 1e-12


def with_part(m: Normalized, x: Tensor, take: Callable[[Tensor], Tensor], is_late: bool) -> Tensor:
    h = m.conv(x)
    parts = [lambda: m.norm(h), lambda: take(h).relu()]
    both = [part() for part in (parts if is_late else reversed(parts))]
    return both[0] + both[1]


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_a_part_that_is_taken_unseen_uses_the_layer_beside_its_norm(rule: str, is_late: bool) -> None:
    actual = normalized_relevance(lambda m, x: with_part(m, x, lambda h: unseen(lambda t: t[:1], h), is_late), rule)
    expected = normalized_relevance(lambda m, x: with_part(m, x, lambda h: h[:1], is_late), rule)
    assert error(actual, expected) < 1e-12


def scaled(h: Tensor) -> Tensor:
    return h[:].mul_(3).add_(1)


def scaled_in_part(h: Tensor) -> Tensor:
    return h[:1].mul_(3)


def flat_and_scaled(h: Tensor) -> Tensor:
    return h.view(-1).mul_(3)


def beside(write: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The view is made before what it is a view of is written to."""

    def function(h: Tensor) -> Tensor:
        view = h[:]
        write(h)
        return view

    return function


@pytest.mark.parametrize("run", [unseen, in_a_thread])
@pytest.mark.parametrize("write", [scaled, scaled_in_part, flat_and_scaled, beside(scaled)])
@pytest.mark.parametrize("base", ["layer", "relu"])
def test_a_write_to_a_view_that_was_made_unseen_is_named(
    run: Any, write: Callable[[Tensor], Tensor], base: str
) -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        return run(write, m.a(x) if base == "layer" else m.a(x).relu())

    with pytest.raises(NotImplementedError, match="a write that lrp does not see"):
        lrp.convert(Model(forward))(X.clone().requires_grad_(), explain=True, rule="zplus", strict=True)


@pytest.mark.parametrize("take", [lambda t: t.as_subclass(Subclass), lambda t: unseen(lambda u: u[:2], t)])
def test_a_view_does_not_hide_the_function_behind_it(take: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(NotImplementedError, match="there is no rule for the relevance of the autograd function"):
        lrp.convert(Model(lambda m, x: m.b(take(Reversed.apply(m.a(x))))))(
            X.clone().requires_grad_(), explain=True, strict=True
        )
