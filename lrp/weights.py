"""Modified weights, such as ``w+``, made once for each version of a weight and not once for each call."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import Lock
from typing import overload

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

_Key = tuple[Hashable, ...]
_made: dict[_Key, tuple[StorageWeakRef, int, Tensor]] = {}
_lock = Lock()


@overload
def modified(make: Callable[..., Tensor], w: Tensor, *settings: float) -> Tensor: ...
@overload
def modified(make: Callable[..., Tensor], w: None, *settings: float) -> None: ...
def modified(make: Callable[..., Tensor], w: Tensor | None, *settings: float) -> Tensor | None:
    """``make(w, *settings)``, from memory if ``w`` has not changed since it was last made; None for None.

    The memory belongs to the weight's storage, so that it serves every alias of a parameter, ends with the
    parameter and leaves the model alone. A change is seen by torch's version counter, as autograd sees it;
    a write through ``.data`` goes round that counter: call :func:`forget` after one.
    """
    if w is None:
        return None
    if torch.is_grad_enabled() or torch._C._functorch.is_functorch_wrapped_tensor(w):
        return make(w, *settings)
    storage = StorageWeakRef(w.untyped_storage())  # type: ignore[no-untyped-call]
    key = (make, settings, storage.cdata, w.storage_offset(), w.shape, w.stride(), w.dtype, w.device)
    known = _made.get(key)
    if known is None or _expired(known[0]) or known[1] != w._version:
        known = storage, w._version, make(w, *settings)
        with _lock:
            _made[key] = known
            _drop_expired()
    return known[2]


def forget() -> None:
    """Free all modified weights. They are made again when a rule next needs them."""
    with _lock:
        _made.clear()


def _drop_expired() -> None:
    for key in [key for key, (storage, _, _) in _made.items() if _expired(storage)]:
        del _made[key]


def _expired(storage: StorageWeakRef) -> bool:
    return bool(storage.expired())  # type: ignore[no-untyped-call]
