"""Keep what backward needs from being overwritten by the model's own in-place operations.

``relu(conv(x), inplace=True)`` overwrites the convolution's output, which its rule divides by. A saved tensor is
therefore held in a :class:`Kept`, and :meth:`Keeper.rescue` moves it to a copy just before it is overwritten.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


class Kept:
    """A tensor that backward needs."""

    def __init__(self, tensor: Tensor) -> None:
        self.hold(tensor)

    def hold(self, tensor: Tensor) -> None:
        """Keep this tensor from now on."""
        self.tensor, self.version, self.is_dropped = tensor, tensor._version, False

    def drop(self) -> None:
        """Keep it no longer: an empty tensor stands in for it."""
        self.hold(self.tensor.new_empty(0))
        self.is_dropped = True

    def release(self) -> Tensor:
        """The tensor, as it was when it was kept."""
        if self.tensor._version != self.version:
            raise RuntimeError(
                f"a tensor of shape {tuple(self.tensor.shape)} that this explanation needs was modified in place "
                "between the explained forward and backward()"
            )
        return self.tensor


class Keeper:
    """The tensors that one explained forward has saved for its backward."""

    def __init__(self) -> None:
        self._by_memory: dict[int | None, WeakSet[Kept]] = {}
        self._lent: set[int | None] = set()

    @contextmanager
    def saving(self, is_mine: bool = True) -> Iterator[list[Kept]]:
        """Within this context, saved tensors are kept, unless others keep them; it gives those that are, in order."""
        kept: list[Kept] = []
        if not is_mine:
            yield kept
            return

        def keep(tensor: Tensor) -> Kept:
            kept.append(self.keep(tensor))
            return kept[-1]

        with saved_tensors_hooks(keep, Kept.release):
            yield kept

    def keep(self, tensor: Tensor) -> Kept:
        """Keep a tensor as it is now."""
        if self._lent and memory(tensor) in self._lent:
            return Kept(tensor.clone())
        kept = Kept(tensor)
        self._by_memory.setdefault(memory(tensor), WeakSet()).add(kept)
        return kept

    def lend(self, t: Tensor) -> None:
        """Keep copies of what is in the memory of ``t`` from now on: others than torch may write to it."""
        self.rescue(t)
        self._lent.add(memory(t))

    def rescue(self, target: Tensor) -> Tensor | None:
        """Copy what is kept in the memory of ``target``, which is about to be overwritten.

        Returns:
            A tensor that goes on having the present values of ``target``, if such a copy was made.
        """
        copies: dict[tuple[int, ...], Tensor] = {}
        for kept in self._by_memory.pop(memory(target), ()):
            place = layout(kept.tensor)
            copies.setdefault(place, kept.tensor.clone())
            kept.hold(copies[place])
        return copies.get(layout(target))


@contextmanager
def unhooked() -> Iterator[None]:
    """Within this context no hooks for saved tensors are active, which ``torch.func`` would refuse to work under."""
    hooks = []
    while (top := torch._C._autograd._top_saved_tensors_default_hooks(True)) is not None:
        torch._C._autograd._pop_saved_tensors_default_hooks()
        hooks.append(top)
    try:
        yield
    finally:
        for pack, unpack in reversed(hooks):
            torch._C._autograd._push_saved_tensors_default_hooks(pack, unpack)


def memory(t: Tensor) -> int | None:
    """What tells one piece of memory from another, as long as a tensor holds it; None for a tensor that has none."""
    try:
        return t.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return None


def layout(t: Tensor) -> tuple[int, ...]:
    """Where in its memory the elements of a tensor are."""
    return (t.storage_offset(), *t.shape, *t.stride())
