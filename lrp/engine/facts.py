"""What is known of a live tensor: proved of its values as they are now, or unknown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from ..maps import LinearMap
from ..maps.padding import Widths
from ..maps.records import changed
from ..maps.storage import Box, covers, layout, place_of
from ..rules import Rule
from .backward.gradient_form import Form
from .backward.kept import Keeper, Kept
from .backward.ledger import Ledger
from .backward.moves import Moves, Neurons
from .calls import Call, tensors_in
from .calls.by_tensor import ByTensor


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
        form: what its backward takes and gives.
    """

    f: LinearMap
    rule: Rule
    scale: Tensor | None
    shift: Tensor | None
    ledger: Ledger
    z: Kept | None
    moves: Moves
    form: Form = "relevance"

    @property
    def neurons(self) -> Neurons | None:
        """Where the tensor has the layer's neurons."""
        channels = self.f.channels()
        return None if channels is None else self.moves.neurons(channels)

    def has_channels(self, t: Tensor) -> bool:
        """Whether the tensor is the output as it was, and its dimension 1 counts the neurons."""
        return not self.moves.calls and self.f.has_channels(t)

    def use(self, t: Tensor, keeper: Keeper) -> None:
        """Note that the output, ``t`` as it was rearranged, is used by something that is not merged with the layer."""
        self.ledger.use()
        self.hold(t, keeper)

    def hold(self, t: Tensor, keeper: Keeper) -> None:
        """Keep the output again, which is ``t`` as it was rearranged."""
        if self.z is not None and self.z.is_dropped:
            keeper.hold(self.z, self.moves.back(t.detach()))


@dataclass(frozen=True)
class Facts:
    """What is known of a live tensor.

    Attributes:
        value: the value with its ordinary autograd graph, where relevance shall be differentiable.
        nonnegative: True if no element is below zero.
        top: what no element is above.
        gate: True if this is made of gates alone, as sigmoids and softmaxes are, and what divides, as a reciprocal.
        log_gate: True if this is made of logs of gates alone.
        shifted: True if a number was added since the last linear layer.
        data: True if no linear layer lies between the explained inputs and this.
        layer: the linear layer whose output this is.
        padding: the widths of the zeros around it, which no input is in; as torch.nn.functional.pad takes them.
        parts: what was written to parts of it, the latest last; the first is all of it as it was before.
    """

    value: Tensor | None = None
    nonnegative: bool = False
    top: float = inf
    gate: bool = False
    log_gate: bool = False
    shifted: bool = False
    data: bool = False
    layer: Layer | None = None
    padding: Widths = ()
    parts: tuple[Part, ...] = ()

    def of_part(self, box: Box) -> Facts:
        """What is known of a part of it, by all that was written there."""
        there = []
        for part in reversed(self.parts):
            if part.box.meets(box):
                there.append(part.facts)
                if part.is_full and part.box.has(box):
                    break
        return Facts(**inherited(there or [self]))

    @property
    def weighs(self) -> bool:
        """Whether this weighs what it is multiplied with: a gate, or what is within bounds as a hard sigmoid is.

        ``relu6(a + 3)`` weighs before it is divided by 6, and ``relu6(a)`` is an activation: the shift tells.
        """
        is_bounded = self.top <= 1 or (self.shifted and self.top < inf)
        return self.gate or (is_bounded and self.nonnegative and not self.data)


UNKNOWN = Facts()
Stamp = tuple[
    int, "int | None", int
]  # the version of a tensor, where it lies, and how often that was written to unseen
_MOST_PARTS = 64


class Part(NamedTuple):
    """What was written to a part of a tensor.

    Attributes:
        box: where it lies in the tensor.
        is_full: whether all of the box was written to.
        facts: what was known of what was written.
    """

    box: Box
    is_full: bool
    facts: Facts


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

    @property
    def is_data(self) -> bool:
        """Whether all that is live is data."""
        return False not in [facts.data for facts in self.facts]

    def facts_of(self, t: Tensor) -> Facts:
        """What was known of a tensor before the call."""
        for other, facts in zip(self.live, self.facts, strict=True):
            if other is t:
                return facts
        return UNKNOWN


def inherited(facts: Sequence[Facts]) -> dict[str, Any]:
    """What any function but a linear layer makes known of its output, from the live tensors whose values enter it.

    What is made of gates alone is a gate, and what is made of data alone is data. That it is not negative has to be
    proved function by function.
    """
    gate = log_gate = shifted = data = True
    for f in facts:
        gate, log_gate = gate and f.weighs, log_gate and f.log_gate
        shifted, data = shifted and f.shifted, data and f.data
    return {"gate": gate, "log_gate": log_gate, "shifted": shifted, "data": data}


SIGNAL: dict[str, Any] = dict.fromkeys(inherited([UNKNOWN]), False)  # what a linear layer makes, whatever it is made of
CONSTANT = Facts(gate=True, log_gate=True, shifted=True, data=True)  # changes nothing of what it becomes a part of


def written(t: Tensor, before: Facts | None, part: Tensor, facts: Facts) -> Facts:
    """What is known of a tensor after a write to a view of it.

    Args:
        t: the tensor.
        before: what was known of it; None for a constant.
        part: the view.
        facts: what is known of the view now.
    """
    if covers(part, t):
        return changed(facts, value=None, parts=(), layer=facts.layer if layout(part) == layout(t) else None)
    whole, box = Box.of(t, t), Box.of(part, t)
    now = Part(box, part.dtype == t.dtype and box.numel == part.numel(), Facts(**inherited([facts])))
    earlier = () if before is None else before.parts
    if before is not None and not 0 < len(earlier) < _MOST_PARTS:
        earlier = (Part(whole, True, before.of_part(whole)),)
    seen = tuple(p for p in earlier if not (now.is_full and box.has(p.box)))
    return Facts(**inherited([facts] if before is None else [facts, before]), parts=(*seen, now))


def assigned_part(call: LiveCall) -> tuple[Tensor, Facts] | None:
    """The part of its target that an assignment to slices wrote to, and what is known of it."""
    if call.target is None or call.function is not Tensor.__setitem__:
        return None
    _, index, source = call.args
    indices = index if isinstance(index, tuple) else (index,)
    if any(type(i) not in (int, slice, type(None), type(...)) for i in indices):
        return None  # the elements of no view
    facts = call.facts_of(source) if any(source is t for t in call.live) else CONSTANT
    return call.target.detach()[index], Facts(**inherited([facts]))


class Known:
    """The facts of the live tensors of one explained forward. What was written over since is not known any more."""

    def __init__(self) -> None:
        self._facts: ByTensor[tuple[Stamp, Facts]] = ByTensor()
        self._writes: Counter[int | None] = Counter()
        self._lent: dict[int | None, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._varying: ByTensor[bool] = ByTensor()

    def __contains__(self, t: Tensor) -> bool:
        """Whether anything was ever noted of ``t``."""
        return t in self._facts

    def note(self, t: Tensor, facts: Facts) -> None:
        """Note the facts of ``t`` as it is now, instead of what was known before."""
        self._facts[t] = self._stamp(t), facts

    def of(self, t: Tensor) -> Facts | None:
        """The facts of ``t`` as it is now; None if nothing is known of it."""
        noted = self._facts.get(t)
        return noted[1] if noted is not None and noted[0] == self._stamp(t) else None

    def at_edge(self, node: Node, number: int) -> Tensor | None:
        """The tensor that is this output of this node of the autograd graph, if something is known of it as it is."""
        tensors = (t for t in self._facts if tuple(get_gradient_edge(t)[:2]) == (node, number))
        return next((t for t in tensors if self.of(t) is not None), None)

    def last(self, t: Tensor) -> Facts | None:
        """What was last noted of ``t``, though it may have changed since."""
        noted = self._facts.get(t)
        return None if noted is None else noted[1]

    def version(self, t: Tensor) -> int | None:
        """The version of ``t`` when it was last noted."""
        noted = self._facts.get(t)
        return None if noted is None else noted[0][0]

    def forget(self, t: Tensor) -> None:
        """Note that the memory of ``t`` was written to, which torch may not have counted."""
        self._writes[place_of(t)] += 1

    def lend(self, t: Tensor) -> None:
        """Note that others than torch may write to the memory of ``t`` from now on: it is compared with what it was."""
        now = t.untyped_storage()
        self._lent[place_of(t)] = now, torch.UntypedStorage(now.nbytes(), device=now.device).copy_(now)  # type: ignore[no-untyped-call]

    def vary(self, constants: Any) -> None:
        """Note that these constants are made of what the model was given, and not of its weights alone."""
        for t in tensors_in(constants):
            self._varying[t] = True

    def is_any_varying(self, constants: Any) -> bool:
        """Whether one of these constants is made of what the model was given."""
        return bool(self._varying) and any(t in self._varying for t in tensors_in(constants))

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

    def _stamp(self, t: Tensor) -> Stamp:
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
