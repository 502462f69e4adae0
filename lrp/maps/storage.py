"""Where a tensor's values lie."""

from __future__ import annotations

from collections.abc import Hashable
from math import prod

import torch
from torch import Tensor


def storage_of(t: Tensor) -> int | None:
    """The identity of the storage of ``t``: no other has it, as long as a tensor holds the storage.

    None for a tensor that has none: a sparse one, or one that stands for others, as under ``torch.vmap``.
    """
    try:
        storage: int = t.untyped_storage()._cdata
    except NotImplementedError:
        return None
    return storage


def place_of(t: Tensor) -> int | None:
    """Where the storage of ``t`` lies at present: its address; one without memory is a place of its own.

    None for a tensor that has no storage. The address of memory that was given back may be that of others since.
    """
    try:
        storage = t.untyped_storage()
    except NotImplementedError:
        return None
    try:
        return storage.data_ptr() or -storage._cdata
    except RuntimeError:  # of a subclass, whose values lie in other tensors
        return -int(storage._cdata)


def is_given_back(t: Tensor) -> bool:
    """Whether the memory of ``t`` was given back, as that of a sharded weight is when its layer has run."""
    return t.numel() > 0 and storage_of(t) is not None and t.untyped_storage().nbytes() == 0


def layout(t: Tensor) -> Hashable:
    """Which elements of its storage ``t`` has, in which order, and how it reads them; a nested one is like no other."""
    if t.is_nested:  # has no shape
        return object()
    return t.dtype, t.storage_offset(), t.shape, t.stride()


def covers(view: Tensor, base: Tensor) -> bool:
    """Whether a view of ``base`` has each of its elements once, in whatever order."""
    is_of_size = (view.dtype, view.numel(), view.storage_offset()) == (base.dtype, base.numel(), base.storage_offset())
    return is_of_size and all(map(torch.ops.aten.is_non_overlapping_and_dense, (view, base)))


class Box(tuple[tuple[int, int], ...]):
    """A part of a tensor: the first and the last index along each of its dimensions."""

    __slots__ = ()

    @classmethod
    def of(cls, view: Tensor, base: Tensor) -> Box:
        """The box of ``base`` that has all elements of a view of it: all of it, where the dimensions do not tell."""
        if base.is_nested:
            return cls()
        whole = cls((0, max(size, 1) - 1) for size in base.shape)
        if view.is_nested or view.dtype != base.dtype or 0 in base.stride():
            return whole
        steps = [(step, size) for step, size in zip(view.stride(), view.shape, strict=True) if size > 1]
        ahead, box = int(view.storage_offset() - base.storage_offset()), [(0, 0)] * base.dim()
        for stride, size, dim in sorted(zip(base.stride(), base.shape, range(base.dim()), strict=True), reverse=True):
            if size < 2:
                continue
            first, ahead = divmod(ahead, stride)
            last = first + sum(step // stride * (n - 1) for step, n in steps if step % stride == 0)
            if first < 0 or last >= size:
                return whole  # it goes on in the next dimension, as flattened rows do
            steps = [(step, n) for step, n in steps if step % stride]
            box[dim] = first, last
        return whole if steps else cls(box)

    @property
    def numel(self) -> int:
        """The number of its elements."""
        return prod(last - first + 1 for first, last in self)

    def has(self, other: Box) -> bool:
        """Whether the other lies within this."""
        return all(a[0] <= b[0] and b[1] <= a[1] for a, b in zip(self, other, strict=True))

    def meets(self, other: Box) -> bool:
        """Whether they have elements in common."""
        return all(a[0] <= b[1] and b[0] <= a[1] for a, b in zip(self, other, strict=True))
