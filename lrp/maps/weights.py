"""Modified weights, such as ``w+``: made once for one explained forward, or once while the weights are frozen.

Nothing tells whether a weight is what it was: torch's version counter does not see its own fused optimizers, nor numpy,
``.data``, other processes and sharding. So what is made of a weight is kept for no longer than one explained forward
and its backwards, or for as long as the caller says that the weights stand still.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock, RLock
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from .storage import layout, storage_of

Make = Callable[[Tensor], Tensor]

WHOLE = slice(None)
LARGE = 2**23  # elements; the copies of a larger weight are what would fill the memory
_IN_CACHE = 2**19
_IN_MEMORY = 2**24
_TIMES = 4  # what a storage's modifications may take, in its own size: those of any one rule fit in


class Made:
    """The modifications of what one storage holds, each made once; the latest, up to a few times its size.

    The tensor is held, so that its storage is no other tensor's as long as this lives. What torch's version counter
    sees is made again.
    """

    def __init__(self, w: Tensor) -> None:
        self._of = w.detach()
        self._version = -1
        self._kept: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._lock = RLock()

    def is_of(self, w: Tensor) -> bool:
        """Whether ``w`` lies in the same storage."""
        return storage_of(w) == storage_of(self._of)

    def get(self, make: Make, w: Tensor) -> Tensor:
        """``make(w)``."""
        key = make, layout(w)
        with self._lock:
            if self._version != w._version:
                self._version = w._version
                self._kept.clear()
            if key not in self._kept:
                self._kept[key] = make(w)
                self._make_room()
            self._kept.move_to_end(key)
            return self._kept[key]

    def has_other(self, make: Make, w: Tensor) -> bool:
        """Whether another modification of ``w`` is kept, and this is not."""
        with self._lock:
            return bool(self._kept) and self._version == w._version and (make, layout(w)) not in self._kept

    def clear(self) -> None:
        """Free what is kept."""
        with self._lock:
            self._kept.clear()

    def _make_room(self) -> None:
        room = _TIMES * self._of.untyped_storage().nbytes()
        while len(self._kept) > 1 and sum(t.nbytes for t in self._kept.values()) > room:
            self._kept.popitem(last=False)


class Memory:
    """The modified weights of one explained forward: each lives as long as somebody holds what :meth:`of` returns."""

    def __init__(self) -> None:
        self._by_storage: WeakValueDictionary[int, Made] = WeakValueDictionary()

    def of(self, w: Tensor) -> Made | None:
        """Where modifications of ``w`` are kept; None for a tensor without a storage."""
        storage = storage_of(w)
        if storage is None:
            return None
        made = self._by_storage.get(storage)
        if made is None:
            made = self._by_storage[storage] = Made(w)
        return made


_frozen: list[dict[int, Made]] = []
_lock = Lock()


@contextmanager
def keep(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Within this context, modifications of these tensors are kept; the caller says that they stand still."""
    block = {storage: Made(t) for t in tensors if (storage := storage_of(t)) is not None}
    with _lock:
        _frozen.append(block)
    try:
        yield
    finally:
        with _lock:
            _frozen[:] = [other for other in _frozen if other is not block]


def forget() -> None:
    """Within ``frozen()``, free all modified weights: for after a write that torch does not count.

    Elsewhere nothing is kept that could be forgotten.
    """
    with _lock:
        for made in (made for block in _frozen for made in block.values()):
            made.clear()


def modified(make: Make, w: Tensor, near: Made | None = None) -> Tensor:
    """``make(w)``, from memory where the weight is frozen, or where ``near`` is what has been made of it."""
    if torch.is_grad_enabled():
        return make(w)
    made = _frozen_made(w) or (near if near is not None and near.is_of(w) else None)
    return make(w) if made is None else made.get(make, w)


def modified_in_blocks(make: Make, w: Tensor, near: Made | None = None) -> Iterator[tuple[slice, Tensor]]:
    """``make(w)`` for an elementwise ``make``: whole, and kept, or in blocks of rows that are not.

    A large weight in blocks that fit the cache of the processor costs little more than one that is kept, and no memory.
    """
    if _is_whole(make, w, near):
        yield WHOLE, modified(make, w, near)
        return
    step = max(1, (_IN_CACHE if w.device.type == "cpu" else _IN_MEMORY) // w[0].numel())
    for start in range(0, len(w), step):
        rows = slice(start, start + step)
        yield rows, make(w[rows])


def _is_whole(make: Make, w: Tensor, near: Made | None) -> bool:
    """Of a large weight one modification is kept, where that is worth its memory."""
    if w.numel() <= LARGE or torch.is_grad_enabled():
        return True
    made = _frozen_made(w) or (None if w.device.type == "cpu" else near)
    return made is not None and not made.has_other(make, w)


def _frozen_made(w: Tensor) -> Made | None:
    storage = storage_of(w) if _frozen else None
    return None if storage is None else next((block[storage] for block in _frozen if storage in block), None)
