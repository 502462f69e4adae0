"""Where a tensor's values lie."""

from __future__ import annotations

from collections.abc import Hashable

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
    storage = storage_of(t)
    if storage is None:
        return None
    try:
        return t.untyped_storage().data_ptr() or -storage
    except RuntimeError:  # of a subclass, whose values lie in other tensors
        return -storage


def is_given_back(t: Tensor) -> bool:
    """Whether the memory of ``t`` was given back, as that of a sharded weight is when its layer has run."""
    return t.numel() > 0 and storage_of(t) is not None and t.untyped_storage().nbytes() == 0


def layout(t: Tensor) -> Hashable:
    """Which elements of its storage ``t`` has, in which order, and how it reads them; a nested one is like no other."""
    if t.is_nested:  # has no shape
        return object()
    return t.dtype, t.storage_offset(), t.shape, t.stride()
