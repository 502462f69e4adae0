"""The inputs of a model, in whatever structure it takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..engine.calls import tensors_within

Inputs = Any  # a tensor or array, a tuple of what a model takes, or a mapping of its keyword arguments


@dataclass(frozen=True)
class Arguments:
    """What a model is called with.

    Attributes:
        given: the inputs, all arrays of which are tensors.
        kwargs: what is passed besides, and not explained.
    """

    given: Inputs
    kwargs: Mapping[str, Any]

    @property
    def call(self) -> tuple[Sequence[Any], Mapping[str, Any]]:
        """The arguments and keyword arguments."""
        if isinstance(self.given, Mapping):
            return (), {**self.given, **self.kwargs}
        return self.given if isinstance(self.given, tuple) else (self.given,), self.kwargs

    @property
    def tensors(self) -> list[Tensor]:
        """The tensors among the inputs."""
        return [*_tensors(self.given)]

    def __len__(self) -> int:
        """The number of samples: the size of dimension 0 of the first input that has one."""
        return next((len(t) for t in self.tensors if t.dim() > 0), 1)

    def part(self, samples: slice) -> Arguments:
        """The arguments for some samples."""
        n = len(self)

        def of(t: Tensor) -> Tensor:
            return t[samples] if t.dim() > 0 and len(t) == n else t

        kwargs = {key: mapped(value, of) for key, value in self.kwargs.items()}
        return Arguments(mapped(self.given, of), kwargs)

    def explained(self, keeps_graph: bool) -> Arguments:
        """The same values, whose floating tensors require grad: new leaves, unless their graph shall be kept."""

        def of(t: Tensor) -> Tensor:
            if not t.is_floating_point() and not t.is_complex():
                return t
            if keeps_graph and t.requires_grad:
                return t
            return (t.clone() if t.is_inference() else t.detach()).requires_grad_()

        return Arguments(mapped(self.given, of), self.kwargs)


def arguments(model: Any, inputs: Inputs, kwargs: Mapping[str, Any] | None) -> Arguments:
    """The inputs as tensors, in the structure that they have.

    Raises:
        TypeError: for what is no tensor, array, tuple or mapping.
        ValueError: for inputs on another device than the model.
    """
    if isinstance(inputs, list):
        raise TypeError("inputs= is a list: must be a tensor, an array, a tuple of arguments or a dict of keyword ones")
    dtype = next((p.dtype for p in _parameters(model) if p.is_floating_point()), None)
    found = Arguments(_as_tensors(inputs, dtype), dict(kwargs or {}))
    if not found.tensors:
        raise TypeError(
            f"inputs= is a {type(inputs).__name__} without tensors: must be a tensor, an array, a tuple or a dict"
        )
    _check_device(model, found.tensors)
    return found


def mapped(structure: Any, function: Callable[[Tensor], Any]) -> Any:
    """The structure with this made of each tensor in it."""
    if isinstance(structure, Tensor):
        return function(structure)
    if isinstance(structure, Mapping):
        return {key: mapped(part, function) for key, part in structure.items()}
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*(mapped(part, function) for part in structure))
    if isinstance(structure, (tuple, list)):
        return type(structure)(mapped(part, function) for part in structure)
    return structure


def replaced(structure: Any, tensors: Sequence[Tensor], others: Sequence[Any]) -> Any:
    """The structure of these tensors with others in their places, and without all else."""
    if isinstance(structure, Tensor):
        return next((other for t, other in zip(tensors, others, strict=True) if t is structure), None)
    if isinstance(structure, Mapping):
        parts = {key: replaced(part, tensors, others) for key, part in structure.items()}
        return {key: part for key, part in parts.items() if part is not None} or None
    if isinstance(structure, (tuple, list)):
        several = [replaced(part, tensors, others) for part in structure]
        return (tuple if isinstance(structure, tuple) else list)(part for part in several if part is not None) or None
    return None


def joined(structures: Sequence[Any]) -> Any:
    """One structure of several alike: tensors are joined along dimension 0, and lists of samples one after another.

    Objects of other kinds that have tensors are listed.
    """
    first = structures[0]
    if len(structures) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat([*structures]) if first.dim() else torch.stack([*structures])
    if isinstance(first, Mapping):
        return {key: joined([s[key] for s in structures]) for key in first}
    if isinstance(first, list) and not all(isinstance(part, Tensor) for part in first):
        return [part for s in structures for part in s]
    if isinstance(first, (tuple, list)):
        parts = [joined(several) for several in zip(*structures, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    return [*structures] if any(True for _ in tensors_within(first)) else first


def _tensors(structure: Any) -> Iterator[Tensor]:
    if isinstance(structure, Tensor):
        yield structure
    elif isinstance(structure, (Mapping, tuple, list)):
        for part in structure.values() if isinstance(structure, Mapping) else structure:
            yield from _tensors(part)


def _as_tensors(inputs: Any, dtype: torch.dtype | None) -> Any:
    """Arrays as tensors; those of floating numbers in the dtype of the model."""
    if isinstance(inputs, Tensor):
        return inputs
    if isinstance(inputs, Mapping):
        return {key: _as_tensors(part, dtype) for key, part in inputs.items()}
    if type(inputs) in (tuple, list):
        return type(inputs)(_as_tensors(part, dtype) for part in inputs)
    if hasattr(inputs, "__array__"):
        t = torch.as_tensor(inputs)
        return t.to(dtype) if t.is_floating_point() and dtype is not None else t
    return inputs


def _check_device(model: Any, tensors: Iterable[Tensor]) -> None:
    devices = {p.device for p in _parameters(model)}
    for t in tensors:
        if len(devices) == 1 and t.device not in devices:
            (device,) = devices
            raise ValueError(f"inputs= are on {t.device} and the model on {device}: move them by .to({str(device)!r})")


def _parameters(model: Any) -> Iterator[Tensor]:
    return model.parameters() if isinstance(model, nn.Module) else iter(())
