"""Keep what backward needs from being overwritten.

``relu(conv(x), inplace=True)`` overwrites the convolution's output, which its rule divides by. A saved tensor is
therefore held in a :class:`Kept`, and :meth:`Keeper.rescue` moves it to a copy just before it is overwritten. What
others write between forward and backward is an error.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from ...maps.storage import is_given_back, layout, place_of, storage_of
from ...maps.weights import Made

TELLS_HOOKS = hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks")


class Kept:
    """A tensor that backward needs, and what has been made of a weight."""

    __slots__ = ("__weakref__", "is_dropped", "made", "tensor", "version")

    def __init__(self, tensor: Tensor, made: Made | None = None) -> None:
        self.tensor, self.version, self.is_dropped, self.made = tensor, tensor._version, False, made

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
            raise was_modified(self.tensor)
        if is_given_back(self.tensor):
            raise RuntimeError(
                f"a tensor of shape {tuple(self.tensor.shape)} that this explanation needs has no memory in "
                "backward(): it was given back, as that of a sharded parameter is, and not taken again"
            )
        return self.tensor


class Keeper:
    """The tensors that one explained forward has saved for its backward."""

    def __init__(self) -> None:
        self._by_place: dict[int, list[ReferenceType[Kept]]] = {}
        self._lent: set[int | None] = set()

    def saving(self, made: Made | None = None, is_mine: bool = True) -> Saving:
        """Within this context, saved tensors are kept, and with them what is ``made`` of a weight.

        It gives what it keeps, in order: nothing, where others keep what is saved.
        """
        return Saving(self, made, is_mine)

    def lend(self, t: Tensor) -> None:
        """Keep copies of what is in the memory of ``t`` from now on: others than torch may write to it."""
        self.rescue(t)
        self._lent.add(place_of(t))

    def taken_again(self, t: Tensor) -> None:
        """Note that the memory of ``t`` was given back and is about to be taken again, perhaps at the same address.

        What is written there next puts the values back that were kept: before that, there is nothing to copy.
        """
        storage = storage_of(t)
        for place, noted in self._by_place.items():
            living = [(reference, kept) for reference in noted if (kept := reference()) is not None]
            self._by_place[place] = [reference for reference, kept in living if storage_of(kept.tensor) != storage]

    def rescue(self, target: Tensor, spared: Kept | None = None) -> Tensor | None:
        """Copy what is kept in the memory of ``target``, which is about to be overwritten.

        Args:
            target: the tensor.
            spared: what backward may find overwritten, by the one operation that is about to be.

        Returns:
            A tensor that goes on having the present values of ``target``, if such a copy was made.
        """
        place = place_of(target)
        copies: dict[Hashable, Tensor] = {}
        noted = () if place is None else self._by_place.pop(place, ())
        for kept in (kept for reference in noted if (kept := reference()) is not None):
            if place_of(kept.tensor) != place:  # its memory was given back, and is now that of others
                self._note(kept)
                continue
            if kept is spared:
                kept.version += 1
                self._note(kept)
                continue
            key = layout(kept.tensor)
            if key not in copies:
                copies[key] = kept.tensor.clone()
            kept.hold(copies[key])
        return copies.get(layout(target))

    def hold(self, kept: Kept, tensor: Tensor) -> None:
        """Let ``kept`` keep this tensor from now on, wherever it lies."""
        kept.hold(tensor)
        self._note(kept)

    def keep(self, tensor: Tensor, made: Made | None = None) -> Kept:
        """Keep a tensor as it is now."""
        if self._lent and place_of(tensor) in self._lent:
            return Kept(tensor.clone(), made)
        kept = Kept(tensor, made)
        self._note(kept)
        return kept

    def _note(self, kept: Kept) -> None:
        place = place_of(kept.tensor)
        if place is not None:
            self._by_place.setdefault(place, []).append(ref(kept))


class Saving:
    """A context that is entered for each function: a class, for a generator takes longer."""

    def __init__(self, keeper: Keeper, made: Made | None, is_mine: bool) -> None:
        self._keeper, self._made, self._is_mine = keeper, made, is_mine
        self._kept: list[Kept] = []

    def __enter__(self) -> list[Kept]:
        if self._is_mine:
            torch._C._autograd._push_saved_tensors_default_hooks(self._keep, Kept.release)
        return self._kept

    def __exit__(self, *error: Any) -> None:
        if self._is_mine:
            torch._C._autograd._pop_saved_tensors_default_hooks()

    def _keep(self, tensor: Tensor) -> Kept:
        self._kept.append(self._keeper.keep(tensor, self._made))
        return self._kept[-1]


def hooks_for_saving() -> Any:
    """The innermost hooks for saved tensors, or None; None as well where torch, before 2.7, does not tell."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) if TELLS_HOOKS else None


@contextmanager
def unhooked() -> Iterator[None]:
    """Within this context no hooks for saved tensors are active, which ``torch.func`` would refuse to work under."""
    hooks = []
    while (top := hooks_for_saving()) is not None:
        torch._C._autograd._pop_saved_tensors_default_hooks()
        hooks.append(top)
    try:
        yield
    finally:
        for pack, unpack in reversed(hooks):
            torch._C._autograd._push_saved_tensors_default_hooks(pack, unpack)


def was_modified(t: Tensor) -> RuntimeError:
    """The error for a tensor that is not what it was when it was saved."""
    return RuntimeError(
        f"a tensor of shape {tuple(t.shape)} that this explanation needs was modified in place "
        "between the explained forward and backward()"
    )
