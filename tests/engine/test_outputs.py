"""What a model may return: what holds tensors where they are found, and nothing that runs later."""

import dataclasses
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_origins import Double, Forward, Model, X, check_parameters_stay
from torch import Tensor, nn

import lrp


@dataclasses.dataclass(slots=True)
class Slots:
    y: Any


class Named(Slots):
    """Adds an attribute of its own to those in slots."""

    __slots__ = ("__more", "unset")

    def __init__(self, y: Any) -> None:
        super().__init__(None)
        self.__more = y

    @property
    def y_of_it(self) -> Any:
        return self.__more


SLOTS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "dataclass": (Slots, lambda o: o.y),
    "nested": (lambda y: [Slots({"y": Slots(y)})], lambda o: o[0].y["y"].y),
    "of two classes": (Named, lambda o: o.y_of_it),
    "in an object": (lambda y: SimpleNamespace(y=Named(y)), lambda o: o.y.y_of_it),
}


@pytest.mark.parametrize("name", SLOTS)
def test_what_is_in_slots_is_found(name: str) -> None:
    wrap, get = SLOTS[name]
    actual = check_parameters_stay(Model(lambda m, x: wrap(m.b(m.a(x)))), get, strict=True)
    assert torch.equal(actual, check_parameters_stay(Model(lambda m, x: m.b(m.a(x)))))
    for forward, kind, message in (
        (lambda m, x: wrap(Double.apply(m.b(m.a(x)))), NotImplementedError, "DoubleBackward"),
        (lambda m, x: wrap(m.b(m.a(x)).detach()), ValueError, "no output depends on the explained inputs"),
    ):
        with pytest.raises(kind, match=message):
            lrp.convert(Model(forward))(X.clone().requires_grad_(), explain=True, strict=True)


def generator(m: Model, x: Tensor) -> Any:
    h = m.a(x)
    for _ in range(2):
        yield m.b(h)


async def coroutine(m: Model, x: Tensor) -> Tensor:
    return m.b(m.a(x))


async def asynchronous(m: Model, x: Tensor) -> Any:
    yield m.b(m.a(x))


class Late(nn.Module):
    """What a caller lets do the rest of the work, or has hidden from it."""

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.held = [y]


LATER: dict[str, tuple[Forward, str]] = {
    "generator": (generator, "returns a generator, which runs when the forward is over.*such as list"),
    "generator expression": (lambda m, x: (m.b(h) for h in [m.a(x)]), "returns a generator, which runs"),
    "coroutine": (coroutine, "returns a coroutine, which runs"),
    "asynchronous generator": (asynchronous, "returns a async_generator, which runs"),
    "map": (lambda m, x: map(m.b, [m.a(x)]), "returns a map, which runs"),
    "iterator": (lambda m, x: iter([m.b(m.a(x))]), "returns a list_iterator, which runs"),
    "in a dict": (lambda m, x: {"y": generator(m, x)}, "returns a generator, which runs"),
    "beside a tensor": (lambda m, x: (m.b(m.a(x)), [generator(m, x)]), "returns a generator, which runs"),
    "in an object": (lambda m, x: Slots(generator(m, x)), "returns a generator, which runs"),
    "closure": (lambda m, x: (lambda h: lambda: m.b(h))(m.a(x)), "no tensors are found in the output, a function"),
    "partial": (lambda m, x: functools.partial(m.b, m.a(x)), "no tensors are found in the output, a functools.partial"),
    "module": (lambda m, x: Late(m.b(m.a(x))), r"no tensors are found in the output, a test_outputs\.Late"),
    "number": (lambda m, x: m.b(m.a(x)).sum().item(), "no tensors are found in the output, a float"),
    "array": (lambda m, x: m.b(m.a(x)).detach().numpy(), r"no tensors are found in the output, a numpy\.ndarray"),
    "text": (lambda m, x: str(m.b(m.a(x))), "no tensors are found in the output, a str: return tensors"),
    "nothing": (lambda m, x: None, "no tensors are found in the output, a NoneType"),
    "empty": (lambda m, x: [], "no tensors are found in the output, a list"),
}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", LATER)
def test_an_output_in_which_no_tensors_are_found_is_refused(name: str, strict: bool) -> None:
    forward, message = LATER[name]
    with pytest.raises(ValueError, match=message):
        lrp.convert(Model(forward))(X.clone().requires_grad_(), explain=True, strict=strict)
