"""What is known of a live tensor: proved of its values as they are now, or unknown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.weak import WeakTensorKeyDictionary

from ..maps import LinearMap
from ..maps.storage import place_of
from ..rules import Rule
from .backward.kept import Kept
from .backward.ledger import Ledger
from .calls import Call
from .moves import Moves


class Layer(NamedTuple):
    """A linear layer whose output a tensor is, with what was merged with it since.

    Attributes:
        f: its map.
        rule: its rule.
        scale: what was merged with it, one number a channel; None for nothing.
        shift: alike.
        ledger: where what is merged with it next puts its relevance down.
        z: the output, as backward keeps it.
        moves: how the output was rearranged since.
    """

    f: LinearMap
    rule: Rule
    scale: Tensor | None
    shift: Tensor | None
    ledger: Ledger
    z: Kept | None
    moves: Moves

    @property
    def channel(self) -> int | None:
        """The dimension of the tensor that counts the layer's neurons, from the last one (-1) back."""
        channel = self.f.channel()
        return channel if channel is None or not self.moves.calls else self.moves.channel(channel)

    def has_channels(self, t: Tensor) -> bool:
        """Whether dimension 1 of the tensor counts the layer's neurons, as a batch norm that follows takes it."""
        channel = self.channel
        return channel is not None and t.dim() + channel == 1


@dataclass(frozen=True)
class Facts:
    """What is known of a live tensor.

    Attributes:
        value: the value with its ordinary autograd graph, where relevance shall be differentiable.
        nonnegative: True if no element is below zero.
        gate: True if this weighs what it is multiplied with: made of sigmoids and softmaxes alone.
        data: True if no linear layer lies between the explained inputs and this.
        layer: the linear layer whose output this is.
    """

    value: Tensor | None = None
    nonnegative: bool = False
    gate: bool = False
    data: bool = False
    layer: Layer | None = None


UNKNOWN = Facts()


@dataclass(frozen=True)
class LiveCall(Call):
    """A call of a torch function that live tensors take part in.

    Attributes:
        live: those tensors.
        facts: what was known of each of them before the call.
        target: the tensor that the call overwrites, if it works in place.
        rescued: a copy of what the target was before, if one had to be made.
    """

    live: Sequence[Tensor] = ()
    facts: Sequence[Facts] = ()
    target: Tensor | None = None
    rescued: Tensor | None = None

    def facts_of(self, t: Tensor) -> Facts:
        """What was known of a tensor before the call."""
        return next((facts for other, facts in zip(self.live, self.facts, strict=True) if other is t), UNKNOWN)


def inherited(facts: Sequence[Facts]) -> dict[str, Any]:
    """What any function but a linear layer makes known of its output, from the live tensors whose values enter it.

    What is made of gates alone is a gate, and what is made of data alone is data. That it is not negative has to be
    proved function by function.
    """
    return {"gate": all(f.gate for f in facts), "data": all(f.data for f in facts)}


class Known:
    """The facts of the live tensors of one explained forward. What was written over since is not known any more."""

    def __init__(self) -> None:
        self._facts = WeakTensorKeyDictionary()
        self._writes: Counter[int | None] = Counter()
        self._lent: dict[int | None, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __contains__(self, t: Tensor) -> bool:
        """Whether anything was ever noted of ``t``."""
        return t in self._facts

    def note(self, t: Tensor, facts: Facts) -> None:
        """Note the facts of ``t`` as it is now, instead of what was known before."""
        self._facts[t] = self._stamp(t), facts

    def of(self, t: Tensor) -> Facts | None:
        """The facts of ``t`` as it is now; None if nothing is known of it."""
        noted = self._facts.get(t)  # type: ignore[no-untyped-call]
        return noted[1] if noted is not None and noted[0] == self._stamp(t) else None

    def at_edge(self, node: Node, number: int) -> Tensor | None:
        """The tensor that is this output of this node of the autograd graph, if something is known of it as it is."""
        tensors = (t for t in self._facts if tuple(get_gradient_edge(t)[:2]) == (node, number))
        return next((t for t in tensors if self.of(t) is not None), None)

    def last(self, t: Tensor) -> Facts | None:
        """What was last noted of ``t``, though it may have changed since."""
        facts: Facts | None = self._facts.get(t, (None, None))[1]  # type: ignore[no-untyped-call]
        return facts

    def version(self, t: Tensor) -> int | None:
        """The version of ``t`` when it was last noted."""
        stamp = self._facts.get(t, (None, None))[0]  # type: ignore[no-untyped-call]
        return None if stamp is None else stamp[0]

    def forget(self, t: Tensor) -> None:
        """Note that the memory of ``t`` was written to, which torch may not have counted."""
        self._writes[place_of(t)] += 1

    def lend(self, t: Tensor) -> None:
        """Note that others than torch may write to the memory of ``t`` from now on: it is compared with what it was."""
        now = t.untyped_storage()
        self._lent[place_of(t)] = now, torch.UntypedStorage(now.nbytes(), device=now.device).copy_(now)  # type: ignore[no-untyped-call]

    def has_memory(self, t: Tensor) -> bool:
        """Whether a live tensor is in the memory of ``t``."""
        where = place_of(t)
        return where is not None and any(place_of(other) == where for other in self._facts)

    def is_nonnegative(self, value: Any) -> bool:
        """Whether no element of a tensor or number is below zero, as far as is proved without looking at tensors."""
        if isinstance(value, Tensor):
            facts = self.of(value)
            return facts.nonnegative if facts is not None else value.dtype in (torch.bool, torch.uint8)
        return isinstance(value, (int, float)) and value >= 0

    def _stamp(self, t: Tensor) -> tuple[int | None, ...]:
        where = place_of(t)
        if where in self._lent:
            self._compare(where)
        return t._version, where, self._writes[where] if self._writes else 0

    def _compare(self, where: int | None) -> None:
        now, before = self._lent[where]
        if not torch.equal(_bytes(now), _bytes(before)):
            before.copy_(now)
            self._writes[where] += 1


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
