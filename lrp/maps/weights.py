"""Modified weights, such as ``w+``, made once for each version of a weight and not once for each call."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from threading import Lock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

Make = Callable[[Tensor], Tensor]

WHOLE = slice(None)
LARGE = 2**23  # elements; the copies of a larger weight are what would fill the memory
_BLOCK = 2**22


@dataclass
class _Kept:
    """The modifications of one version of a weight."""

    storage: StorageWeakRef
    version: int
    made: dict[Make, Tensor] = field(default_factory=dict)


_kept: dict[Hashable, _Kept] = {}
_lock = Lock()


def modified(make: Make, w: Tensor) -> Tensor:
    """``make(w)``, from memory if ``w`` has not changed since it was last made.

    The memory belongs to the weight's storage, so that it serves every alias of a parameter, ends with the
    parameter and leaves the model alone. A change is seen by torch's version counter, as autograd sees it;
    a write through ``.data`` goes round that counter: call :func:`forget` after one.
    """
    if not _can_be_kept(w):
        return make(w)
    made = _modifications(w)
    if make not in made:
        made[make] = make(w)
    return made[make]


def modified_in_blocks(make: Make, w: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """``make(w)`` for an elementwise ``make``, in blocks of rows: one that is kept, or several that are not.

    One modification of a large weight is kept. Further ones cost little more in blocks that fit the cache of the
    processor, and no memory.
    """
    if w.numel() <= LARGE or not _can_be_kept(w) or not (_modifications(w).keys() - {make}):
        yield WHOLE, modified(make, w)
        return
    step = max(1, _BLOCK // w[0].numel())
    for start in range(0, len(w), step):
        rows = slice(start, start + step)
        yield rows, make(w[rows])


def forget() -> None:
    """Free all modified weights. They are made again when a rule next needs them."""
    with _lock:
        _kept.clear()


def _can_be_kept(w: Tensor) -> bool:
    return not (torch.is_grad_enabled() or torch._C._functorch.is_functorch_wrapped_tensor(w))


def _modifications(w: Tensor) -> dict[Make, Tensor]:
    """What is kept of this version of the weight; nothing yet, if it has changed."""
    storage = StorageWeakRef(w.untyped_storage())  # type: ignore[no-untyped-call]
    key = (storage.cdata, w.storage_offset(), w.shape, w.stride(), w.dtype, w.device)
    kept = _kept.get(key)
    if kept is None or _expired(kept) or kept.version != w._version:
        kept = _Kept(storage, w._version)
        with _lock:
            _kept[key] = kept
            for other in [key for key, kept in _kept.items() if _expired(kept)]:
                del _kept[other]
    return kept.made


def _expired(kept: _Kept) -> bool:
    return bool(kept.storage.expired())  # type: ignore[no-untyped-call]
