"""Find a torch function under all the names that it goes by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.nn import functional as F

# A function, or the name of an operator of another library.
Key = Callable[..., Any] | str

_PLACES = (torch, Tensor, F, torch._C._nn, torch.special, torch.linalg)
_PREFIXES = {"special_": torch.special, "linalg_": torch.linalg}


def named(*names: str) -> Iterator[Callable[..., Any]]:
    """Every torch function of these names, as a function, a method, a property, and in place; or else an operator."""
    for name in names:
        found = [*_found(name), *_found(f"{name}_")]
        operator = None if found else getattr(torch.ops.aten, name, None)
        yield from found if operator is None else [operator]


def key_of(function: Callable[..., Any]) -> Key:
    """What tables of functions know this one by: an operator, with all its overloads, by its namesake."""
    packet = function.overloadpacket if isinstance(function, OpOverload) else function
    return _namesake(packet) if isinstance(packet, OpOverloadPacket) else packet


def plain_name(function: Callable[..., Any]) -> str:
    """The name of a function, without the overload of an operator; of what gets a property that of the property."""
    if is_property(function):
        return str(function.__self__.__name__)  # type: ignore[attr-defined]
    name: str = getattr(function, "__name__", str(function))
    return name.partition(".")[0]


def is_property(function: Callable[..., Any]) -> bool:
    """Whether this gets or sets an attribute of a tensor."""
    return getattr(function, "__name__", "") in ("__get__", "__set__", "__delete__")


def _found(name: str) -> Iterator[Callable[..., Any]]:
    for place in _PLACES:
        found: Any = getattr(place, name, None)
        if callable(found):
            yield found
        elif hasattr(found, "__get__"):  # a property
            yield found.__get__


@cache
def _namesake(packet: OpOverloadPacket) -> Key:
    """The torch function of an operator's name, which has its arguments in the same order, or else the operator."""
    library, name = packet._qualified_op_name.split("::")
    if library != "aten":
        return packet._qualified_op_name
    for prefix, place in _PREFIXES.items():
        if name.startswith(prefix) and hasattr(place, name.removeprefix(prefix)):
            namesake: Callable[..., Any] = getattr(place, name.removeprefix(prefix))
            return namesake
    return next(_found(name), packet)
