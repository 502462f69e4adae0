"""Find a torch function under all the names that it goes by."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket
from torch.nn import functional as F

Key = Callable[..., Any] | str

_PLACES = (torch, Tensor, F, torch._C._nn, torch.special, torch.linalg)
_OPERATORS = ("aten::", "aten::special_", "aten::linalg_")


def named(*names: str) -> Iterator[Key]:
    """Every torch function of these names, as a function, a method, a property, an operator of aten, and in place."""
    for name in names:
        for spelling in (name, f"{name}_"):
            yield from (f"{prefix}{spelling}" for prefix in _OPERATORS)
            for place in _PLACES:
                found: Any = getattr(place, spelling, None)
                if callable(found):
                    yield found
                elif hasattr(found, "__get__"):  # a property
                    yield found.__get__


def key_of(function: Callable[..., Any]) -> Key:
    """What tables of functions know this one by: an operator, with all its overloads, by its qualified name."""
    packet = function.overloadpacket if isinstance(function, OpOverload) else function
    return packet._qualified_op_name if isinstance(packet, OpOverloadPacket) else packet


def plain_name(function: Key) -> str:
    """The name of a function, without the overload of an operator; of what gets a property that of the property."""
    if is_property(function):
        return str(function.__self__.__name__)  # type: ignore[union-attr]
    name: str = getattr(function, "__name__", str(function))
    return name.rpartition("::")[2].partition(".")[0]


def is_property(function: Key) -> bool:
    """Whether this gets or sets an attribute of a tensor."""
    return getattr(function, "__name__", "") in ("__get__", "__set__", "__delete__")
