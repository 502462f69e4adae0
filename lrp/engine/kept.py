"""Keep what backward needs from being overwritten.

``relu(conv(x), inplace=True)`` overwrites the convolution's output, which its rule divides by. A saved tensor is
therefore held in a :class:`_Kept`, and :meth:`Keeper.rescue` moves it to a copy just before it is overwritten. What
others write between forward and backward is an error: torch counts it, or a :class:`Sample` shows it.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache, partial
from weakref import WeakSet

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Parameter

from ..maps.storage import is_given_back, layout, place_of, storage_of
from ..maps.weights import Made

_SAMPLES = 1024


@dataclass(frozen=True)
class Sample:
    """Some values of a tensor, all of a small one: torch does not count what its own fused optimizers write.

    Nor does it count numpy, ``.data``, other processes. What such a one writes in few places of a large tensor may
    escape, and so does all that is written on an accelerator, which would have to be waited for.
    """

    values: Tensor

    @classmethod
    def of(cls, t: Tensor | None) -> Sample | None:
        """Of a plain tensor on the CPU; None while somebody traces the computation."""
        return cls(_some_of(t)) if t is not None and _can_be_read(t) else None

    def check(self, t: Tensor) -> None:
        """Raise if ``t``, which is the same tensor at another time, does not have these values."""
        if _can_be_read(t) and not torch.equal(self.values, _some_of(t)):
            raise _was_modified(t)


class _Kept:
    """A tensor that backward needs, and what has been made of a weight."""

    def __init__(self, tensor: Tensor, made: Made | None) -> None:
        self.made = made
        self.hold(tensor)

    def hold(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, tensor._version

    def release(self) -> Tensor:
        if self.tensor._version != self.version:
            raise _was_modified(self.tensor)
        if is_given_back(self.tensor):
            raise RuntimeError(
                f"a tensor of shape {tuple(self.tensor.shape)} that this explanation needs has no memory in "
                "backward(): it was given back, as that of a sharded parameter is, and not taken again"
            )
        return self.tensor


class Keeper:
    """The tensors that one explained forward has saved for its backward."""

    def __init__(self) -> None:
        self._by_place: dict[int, WeakSet[_Kept]] = {}

    def saving(self, made: Made | None = None) -> AbstractContextManager[None]:
        """Within this context, saved tensors are kept, and with them what is ``made`` of a weight."""
        return saved_tensors_hooks(partial(self._keep, made=made), _Kept.release)

    def rescue(self, target: Tensor) -> Tensor | None:
        """Copy what is kept in the memory of ``target``, which is about to be overwritten.

        Returns:
            A tensor that goes on having the present values of ``target``, if such a copy was made.
        """
        place = place_of(target)
        copies: dict[Hashable, Tensor] = {}
        for kept in () if place is None else self._by_place.pop(place, ()):
            if place_of(kept.tensor) != place:  # its memory was given back, and is now that of others
                self._note(kept)
                continue
            key = layout(kept.tensor)
            if key not in copies:
                copies[key] = kept.tensor.clone()
            kept.hold(copies[key])
        return copies.get(layout(target))

    def _keep(self, tensor: Tensor, made: Made | None) -> _Kept:
        kept = _Kept(tensor, made)
        self._note(kept)
        return kept

    def _note(self, kept: _Kept) -> None:
        place = place_of(kept.tensor)
        if place is not None:
            self._by_place.setdefault(place, WeakSet()).add(kept)


def _can_be_read(t: Tensor) -> bool:
    is_plain = type(t) in (Tensor, Parameter) and t.device.type == "cpu" and storage_of(t) is not None
    return is_plain and not torch._C._len_torch_dispatch_stack()


def _some_of(t: Tensor) -> Tensor:
    """The bits of some values, which are as good for NaN as for numbers."""
    return t.detach().take(_places(t.numel())).view(torch.uint8)


@lru_cache(maxsize=256)
def _places(number: int) -> Tensor:
    step = max(1, number // _SAMPLES) | 1  # which visits all columns of a matrix
    return torch.arange(0, number, step, device="cpu")


def _was_modified(t: Tensor) -> RuntimeError:
    return RuntimeError(
        f"a tensor of shape {tuple(t.shape)} that this explanation needs was modified in place "
        "between the explained forward and backward()"
    )
