"""What is noted of tensors, for as long as they live."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar
from weakref import ref

from torch import Tensor

T = TypeVar("T")


class _Ref(ref):  # type: ignore[type-arg]
    __slots__ = ("key",)
    key: int


class ByTensor(Generic[T]):
    """A dictionary whose keys are tensors, by identity, and held weakly: torch's own takes several times as long."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[_Ref, T]] = {}
        own = ref(self)  # so that nothing refers to itself, and all is freed at once

        def remove(dead: _Ref) -> None:
            entries = {} if (owner := own()) is None else owner._entries
            if (entry := entries.get(dead.key)) is not None and entry[0] is dead:
                del entries[dead.key]

        self._remove = remove

    def get(self, t: Tensor) -> T | None:
        """What is noted of ``t``, or None."""
        entry = self._entries.get(id(t))
        return entry[1] if entry is not None and entry[0]() is t else None

    def __bool__(self) -> bool:
        return bool(self._entries)

    def __contains__(self, t: Tensor) -> bool:
        return self.get(t) is not None

    def __setitem__(self, t: Tensor, value: T) -> None:
        key = _Ref(t, self._remove)
        key.key = id(t)
        self._entries[key.key] = key, value

    def __iter__(self) -> Iterator[Tensor]:
        for key, _ in list(self._entries.values()):
            t = key()
            if t is not None:
                yield t
