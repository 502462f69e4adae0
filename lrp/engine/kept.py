"""Keep what backward needs from being overwritten by the model's own in-place operations.

``relu(conv(x), inplace=True)`` overwrites the convolution's output, which its rule divides by. A saved tensor is
therefore held in a :class:`_Kept`, and :meth:`Keeper.rescue` moves it to a copy just before it is overwritten.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from weakref import WeakSet

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class _Kept:
    """A tensor that backward needs."""

    def __init__(self, tensor: Tensor) -> None:
        self.hold(tensor)

    def hold(self, tensor: Tensor) -> None:
        self.tensor, self.version = tensor, tensor._version

    def release(self) -> Tensor:
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a tensor of shape {tuple(self.tensor.shape)} that this explanation needs was modified in place "
                "between the explained forward and backward()"
            )
        return self.tensor


class Keeper:
    """The tensors that one explained forward has saved for its backward."""

    def __init__(self) -> None:
        self._by_storage: dict[int, WeakSet[_Kept]] = {}

    def saving(self) -> AbstractContextManager[None]:
        """Within this context, saved tensors are kept."""
        return saved_tensors_hooks(self._keep, _Kept.release)

    def rescue(self, target: Tensor) -> Tensor | None:
        """Copy what is kept in the memory of ``target``, which is about to be overwritten.

        Returns:
            A tensor that goes on having the present values of ``target``, if such a copy was made.
        """
        copies: dict[tuple[int, ...], Tensor] = {}
        for kept in self._by_storage.pop(target.untyped_storage().data_ptr(), ()):
            layout = _layout(kept.tensor)
            copies.setdefault(layout, kept.tensor.clone())
            kept.hold(copies[layout])
        return copies.get(_layout(target))

    def _keep(self, tensor: Tensor) -> _Kept:
        kept = _Kept(tensor)
        self._by_storage.setdefault(tensor.untyped_storage().data_ptr(), WeakSet()).add(kept)
        return kept


def _layout(t: Tensor) -> tuple[int, ...]:
    return (t.storage_offset(), *t.shape, *t.stride())
