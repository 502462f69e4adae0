"""A call of a torch function, and the tensors in it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from types import FunctionType, MemberDescriptorType, ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from .lookup import is_property, plain_name

_PLAIN = {type(None), bool, int, float, str, torch.Size, torch.dtype, torch.device}  # what most arguments are
_SPARSE = {torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}
_AUGMENTED = {"__iadd__", "__isub__", "__imul__", "__itruediv__", "__idiv__", "__ipow__", "__setitem__"}

_SYMBOLS = {
    "add": "+", "sub": "-", "mul": "*", "matmul": "@", "truediv": "/", "div": "/", "floordiv": "//", "mod": "%",
    "pow": "**", "neg": "-", "getitem": "[]", "setitem": "[] =",
}  # fmt: skip


@dataclass(frozen=True)
class Call:
    """One call of a torch function."""

    function: Callable[..., Any]
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the function, as a message shows it: as the user wrote it."""
        name = plain_name(self.function)
        if is_property(self.function):
            return f".{name}"
        operator = name[2:-2] if name.startswith("__") and name.endswith("__") else ""
        found = _SYMBOLS.get(operator) or _SYMBOLS.get(operator[1:])
        return found or name.replace("special_", "special.", 1).replace("linalg_", "linalg.", 1)

    def run(self, replace: Callable[[Tensor], Tensor]) -> Any:
        """Call the function, with every tensor in its arguments replaced."""
        return self.function(*substitute(self.args, replace), **substitute(self.kwargs, replace))


def tensors_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """All tensors in the arguments of a call, as :func:`tensors_in` finds them: most are arguments themselves."""
    tensors: list[Tensor] = []
    for value in (*args, *kwargs.values()) if kwargs else args:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif type(value) not in _PLAIN:
            tensors.extend(tensors_in(value))
    return tensors


def tensors_in(structure: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dicts, from left to right."""
    if isinstance(structure, Tensor):
        yield structure
    elif isinstance(structure, (tuple, list)):
        for value in structure:
            if isinstance(value, Tensor):
                yield value
            elif type(value) not in _PLAIN:
                yield from tensors_in(value)
    elif type(structure) not in _PLAIN and isinstance(structure, Mapping):
        for value in structure.values():
            yield from tensors_in(value)


def tensors_within(structure: Any) -> Iterator[Tensor]:
    """All tensors in what a model takes or returns: also in sets, dataclasses and objects of its own."""
    return (part for part in parts_within(structure) if isinstance(part, Tensor))


def parts_within(structure: Any) -> Iterator[Any]:
    """What a model takes or returns, and all that is in it, each once; a tensor as often as it is there."""
    seen: set[int] = set()
    ahead = [structure]
    while ahead:
        part = ahead.pop()
        if isinstance(part, Tensor):
            yield part
        elif id(part) not in seen:
            seen.add(id(part))
            yield part
            ahead.extend(reversed(_parts(part)))


def replaced_within(structure: Any, replace: Callable[[Tensor], Tensor]) -> Any:
    """What a model returns, with every tensor replaced that :func:`tensors_within` finds; objects are copied."""
    if isinstance(structure, Tensor):
        return replace(structure)
    if not any(True for _ in tensors_within(structure)):
        return structure
    if isinstance(structure, (tuple, list, set, frozenset)):
        parts = [replaced_within(part, replace) for part in structure]
        return type(structure)(*parts) if hasattr(structure, "_fields") else type(structure)(parts)
    replaced = copy(structure)
    if isinstance(structure, MutableMapping):
        for key, value in structure.items():
            replaced[key] = replaced_within(value, replace)
    attributes = [slot.__name__ for slot in _slots(structure)] + [*getattr(structure, "__dict__", {})]
    for name in attributes:
        with suppress(AttributeError):  # it is not set
            object.__setattr__(replaced, name, replaced_within(getattr(structure, name), replace))
    return replaced


def _parts(structure: Any) -> list[Any]:
    if isinstance(structure, Mapping):
        return [*structure.values()]
    if isinstance(structure, (tuple, list, set, frozenset)):
        return [*structure]
    is_plain = not isinstance(structure, (type, ModuleType, FunctionType, Module))
    return [*getattr(structure, "__dict__", {}).values(), *_in_slots(structure)] if is_plain else []


def _in_slots(structure: Any) -> Iterator[Any]:
    """The attributes that an object has in ``__slots__``, in place of those in ``__dict__``."""
    for slot in _slots(structure):
        with suppress(AttributeError):  # it is not set
            yield slot.__get__(structure)


def _slots(structure: Any) -> Iterator[MemberDescriptorType]:
    for cls in type(structure).__mro__:
        for slot in vars(cls).values() if "__slots__" in vars(cls) else ():
            if isinstance(slot, MemberDescriptorType):
                yield slot


def strangeness(tensors: Iterable[Tensor], arguments: Iterable[Any]) -> str | None:
    """What there is that no rule is made for, in words: complex numbers, sparse and nested tensors; None if nothing.

    Args:
        tensors: those of a call.
        arguments: all its arguments, among which numbers are.
    """
    for t in tensors:
        if t.is_nested:
            return "nested tensors, whose rows can be padded and masked instead"
        if t.layout in _SPARSE:
            return "sparse tensors, which .to_dense() makes dense"
        if t.is_complex():
            return "complex numbers"
    return "complex numbers" if complex in map(type, arguments) else None


def substitute(structure: Any, replace: Callable[[Tensor], Tensor]) -> Any:
    """The same nested tuples, lists and dicts, with every tensor replaced."""
    if isinstance(structure, Tensor):
        return replace(structure)
    if type(structure) in (tuple, list):
        return type(structure)([v if type(v) in _PLAIN else substitute(v, replace) for v in structure])
    if type(structure) in _PLAIN:
        return structure
    if isinstance(structure, Mapping):
        return {key: v if type(v) in _PLAIN else substitute(v, replace) for key, v in structure.items()}
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*(substitute(value, replace) for value in structure))
    return structure


def distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors, each of them once."""
    return list({id(t): t for t in tensors}.values())


def as_function(call: Call, tensors: Sequence[Tensor], target: Tensor | None = None) -> Callable[..., Any]:
    """The call as a function of all its tensors, in this order: it holds none of them, and overwrites a copy."""
    blanks = [torch.empty(0) for _ in tensors]
    places = {id(t): blank for t, blank in zip(tensors, blanks, strict=True)}
    args, kwargs = substitute((call.args, call.kwargs), lambda t: places[id(t)])
    order = {id(blank): i for i, blank in enumerate(blanks)}
    written = next((i for i, t in enumerate(tensors) if t is target), None)

    def function(*values: Tensor) -> Any:
        several = [value.clone() if i == written else value for i, value in enumerate(values)]
        return Call(call.function, args, kwargs).run(lambda blank: several[order[id(blank)]])

    return function


def in_place_target(function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tensor that ``function(*args, **kwargs)`` overwrites, as its name or ``inplace=True`` tells."""
    position = _inplace_position(function)
    flagged = kwargs.get("inplace") or (position is not None and len(args) > position and args[position])
    if not flagged and not _overwrites(function):
        return None
    target = args[0] if args else kwargs.get("input")
    return target if isinstance(target, Tensor) else None


@cache
def _overwrites(function: Callable[..., Any]) -> bool:
    name = plain_name(function)
    return name in _AUGMENTED or (name.endswith("_") and not name.endswith("__"))


@cache
def _inplace_position(function: Callable[..., Any]) -> int | None:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # builtins have no signature, and no argument of that name either
        return None
    return names.index("inplace") if "inplace" in names else None
