"""What can be explained: numbers of the output, differences and regions of them, and what a function makes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Top:
    """The ``k`` largest outputs of each sample, largest first.

    >>> Top(3)
    Top(k=3)
    """

    k: int

    def __post_init__(self) -> None:
        if not _is_integer(self.k) or self.k < 1:
            raise ValueError(f"Top({self.k!r}): k must be a positive integer")


@dataclass(frozen=True)
class Difference:
    """What speaks for one output rather than another: relevance adds up to ``y[a] - y[b]``.

    Args:
        a, b: each a number, one for each sample, or a tuple that is one index.

    >>> Difference(281, 285)
    Difference(a=281, b=285)
    """

    a: Any
    b: Any


@dataclass(frozen=True, eq=False)
class Region:
    """A part of a segmentation: relevance adds up to the sum of one class' outputs where the mask is.

    Args:
        target: the class: a number, or one for each sample.
        mask: of the shape of the output without its dimension 1, or of one sample's; it may be a weight.
    """

    target: Any
    mask: Tensor


class Selection(ABC):
    """Which outputs are explained.

    Attributes:
        target: what an :class:`Explanation` shows of it.
    """

    target: Any

    @property
    def number(self) -> int | None:
        """How many targets each sample has; None for one, which makes no dimension."""
        return None

    @abstractmethod
    def weights(self, y: Tensor, targets: slice) -> Tensor:
        """How much each output counts, for some of the targets: ``(targets, *y.shape)``."""


@dataclass(frozen=True, eq=False)
class Everything(Selection):
    """All that relevance starts at, one target for each sample."""

    target: Any = None

    def weights(self, y: Tensor, targets: slice) -> Tensor:
        return torch.ones_like(y).unsqueeze(0)


@dataclass(frozen=True, eq=False)
class _Channels(Selection):
    """Places along dimension 1, ``(N,)`` or ``(N, K)``; of what lies behind it all."""

    target: Tensor

    @property
    def number(self) -> int | None:
        return self.target.shape[1] if self.target.dim() == 2 else None

    def weights(self, y: Tensor, targets: slice) -> Tensor:
        index = (self.target if self.target.dim() == 2 else self.target.unsqueeze(1))[:, targets]
        index = index.mT.reshape(-1, len(y), 1, *(1 for _ in y.shape[2:]))
        zeros = y.new_zeros(len(index), *y.shape)
        return zeros.scatter(2, index.expand(-1, -1, 1, *y.shape[2:]), 1.0)


@dataclass(frozen=True, eq=False)
class _Weights(Selection):
    """One target for each sample, by what each output counts."""

    of_outputs: Tensor
    target: Any

    def weights(self, y: Tensor, targets: slice) -> Tensor:
        return self.of_outputs.unsqueeze(0)


def select(target: Any, y: Tensor) -> Selection:
    """The outputs that a target means.

    Args:
        target: as :func:`lrp.explain` takes it, but for functions.
        y: the output.

    Raises:
        ValueError, TypeError: for a target that the output does not have, with the output's shape.
    """
    if y.dim() < 2 and target is None:  # one number for each sample
        return Everything()
    if isinstance(target, Region):
        weights = _channels(target.target, y).weights(y, slice(1))[0]
        return _Weights(weights * _mask(target, y), target)
    if isinstance(target, Difference):
        a, b = (select(of, y) for of in (target.a, target.b))
        if a.number is not None or b.number is not None:
            raise _wrong(target, y, "compares one output of each sample with another")
        return _Weights(a.weights(y, slice(1))[0] - b.weights(y, slice(1))[0], target)
    if target is None and y.dim() > 2:
        index = torch.stack(torch.unravel_index(y.detach().flatten(1).argmax(1), y.shape[1:]), dim=1)
        return _at(index, y)
    if isinstance(target, tuple):
        return _at(_index([target] * len(y), y), y)
    if isinstance(target, Sequence) and not isinstance(target, str) and any(isinstance(t, tuple) for t in target):
        return _at(_index(target, y), y)
    return _channels(target, y)


def fixed(target: Any, y: Tensor) -> Any:
    """The same target, where it is the largest outputs those that they are."""
    if target is not None and not isinstance(target, Top):
        return target
    found = select(target, y).target
    return [tuple(index) for index in found.tolist()] if target is None and y.dim() > 2 else found


def is_function(target: Any) -> bool:
    """Whether the target is a function of the output, or one for each sample."""
    return callable(target) or (isinstance(target, (list, tuple)) and len(target) > 0 and all(map(callable, target)))


def values(target: Any, output: Any, n: int) -> Tensor:
    """What a function, or one for each sample, makes of an output.

    Raises:
        ValueError, TypeError: unless that is one number for each sample.
    """
    if callable(target):
        found = target(output)
    else:
        if len(target) != n:
            raise ValueError(f"target= has {len(target)} functions: must be one for each of {n} samples")
        found = torch.stack([_number(function(_sample(output, i))) for i, function in enumerate(target)])
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise TypeError(f"target=: the function gives a {_kind(found)}: must give a tensor, one number for each sample")
    if found.dim() == 0 and n == 1:
        found = found.reshape(1)
    if found.shape != (n,):
        raise ValueError(f"target=: the function gives shape {tuple(found.shape)}: must be ({n},), one for each sample")
    return found


def part(target: Any, samples: slice, n: int) -> Any:
    """The target for some of ``n`` samples."""
    if isinstance(target, Difference):
        return Difference(part(target.a, samples, n), part(target.b, samples, n))
    if isinstance(target, Region):
        is_each = len(target.mask) == n and target.mask.dim() > 1
        return Region(part(target.target, samples, n), target.mask[samples] if is_each else target.mask)
    if isinstance(target, (tuple, str)) or not hasattr(target, "__len__"):
        return target
    return target[samples] if getattr(target, "ndim", 1) > 0 and len(target) == n else target


def _channels(target: Any, y: Tensor) -> _Channels:
    """The places along dimension 1 that a target means."""
    if y.dim() < 2:
        raise _wrong(target, y, "has one number for each sample: leave target= out")
    n, size = y.shape[:2]
    if target is None:
        return _Channels(y.detach().argmax(1))
    if isinstance(target, Top):
        if target.k > size or y.dim() > 2:
            raise _wrong(target, y, f"has {size} outputs a sample" if y.dim() == 2 else "has outputs at many places")
        return _Channels(y.detach().topk(target.k, dim=1).indices)
    if isinstance(target, str):
        if target != "all":
            raise _wrong(target, y, "the only word is 'all'")
        return _Channels(torch.arange(size, device=y.device).expand(n, size))
    index = _integers(target, y)
    index = index.expand(n) if index.dim() == 0 else index
    if index.dim() > 2 or len(index) != n:
        raise _wrong(target, y, f"must be one number for all samples, (N,) or (N, K) with N = {n}")
    if bool(((index < -size) | (index >= size)).any()):
        raise _wrong(target, y, f"must be from {-size} to {size - 1}")
    return _Channels(torch.where(index < 0, index + size, index))


def _integers(target: Any, y: Tensor) -> Tensor:
    is_number = _is_integer(target) or hasattr(target, "__array__")
    is_sequence = isinstance(target, (list, tuple)) and all(_is_integer(t) or hasattr(t, "__array__") for t in target)
    is_nested = isinstance(target, list) and all(isinstance(t, list) for t in target)
    if not (is_number or is_sequence or is_nested):
        raise _wrong(target, y, "must be a number, one for each sample, Top(), Difference(), Region() or a function")
    try:
        index = torch.as_tensor(target, device=y.device)
    except (TypeError, ValueError) as error:
        raise _wrong(target, y, str(error)) from None
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise _wrong(target, y, f"must be of integers, and is of {index.dtype}")
    return index.long()


def _index(target: Sequence[Any], y: Tensor) -> Tensor:
    """One index for each sample, checked."""
    d = y.dim() - 1
    if len(target) != len(y):
        raise _wrong(target, y, f"must be one index for each of {len(y)} samples")
    for index in target:
        is_index = isinstance(index, tuple) and len(index) == d and all(map(_is_integer, index))
        if not is_index or not all(-size <= i < size for i, size in zip(index, y.shape[1:], strict=True)):
            raise _wrong(index, y, f"an index is a tuple of {d} numbers, within {tuple(y.shape[1:])}")
    return torch.tensor([[int(i) for i in index] for index in target], device=y.device) % torch.tensor(
        y.shape[1:], device=y.device
    )


def _at(index: Tensor, y: Tensor) -> _Weights:
    weights = torch.zeros_like(y)
    places = (torch.arange(len(y), device=y.device), *index.unbind(1))
    weights[places] = 1.0
    return _Weights(weights, index)


def _mask(target: Region, y: Tensor) -> Tensor:
    shape = (len(y), *y.shape[2:])
    mask = torch.as_tensor(target.mask, device=y.device).to(y.dtype)
    if mask.shape not in (shape, shape[1:]):
        raise ValueError(
            f"Region(): the mask has shape {tuple(mask.shape)}: must be {shape} or {shape[1:]}, for an output of shape "
            f"{tuple(y.shape)}"
        )
    return mask.expand(shape).unsqueeze(1)


def _wrong(target: Any, y: Tensor, why: str) -> ValueError:
    shown = f"of shape {tuple(target.shape)}" if isinstance(target, Tensor) and target.numel() > 4 else repr(target)
    return ValueError(f"target={shown}: {why}; the output has shape {tuple(y.shape)}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _number(value: Any) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise TypeError(f"target=: the function of a sample gives a {_kind(value)}: must give one number, as a tensor")
    return value.reshape(())


def _sample(output: Any, i: int) -> Any:
    """What belongs to one sample in the output of a model."""
    if isinstance(output, dict):
        return {key: _sample(part, i) for key, part in output.items()}
    return output[i]


def _kind(value: Any) -> str:
    return f"tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
