"""What is known of a live tensor, and what of it is inherited by what is made of the tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge
from torch.utils.weak import WeakTensorKeyDictionary

from ..maps import LinearMap
from ..rules import Rule


class Layer(NamedTuple):
    """A call of a linear layer: its map, rule and name, its input's carrier, and the values of x, w and b."""

    f: LinearMap
    rule: Rule
    name: str | None
    carrier: Tensor
    x: Tensor
    w: Tensor
    b: Tensor | None


@dataclass(frozen=True)
class Facts:
    """What is known of a live tensor.

    Attributes:
        version: the version of the tensor of which this is known.
        value: the value with its ordinary autograd graph, where relevance shall be differentiable.
        nonnegative: True if no element is below zero.
        gate: True if this weighs what it is multiplied with: a sigmoid or a softmax.
        data: True if no linear layer lies between the explained inputs and this.
        layer: the linear layer whose output this is.
    """

    version: int
    value: Tensor | None = None
    nonnegative: bool = False
    gate: bool = False
    data: bool = False
    layer: Layer | None = None


class Known:
    """The facts of the live tensors of one explained forward. What was overwritten since is not known any more."""

    def __init__(self) -> None:
        self._facts = WeakTensorKeyDictionary()

    def __contains__(self, t: Tensor) -> bool:
        """Whether anything was ever noted of ``t``."""
        return t in self._facts

    def note(self, t: Tensor, value: Tensor | None, **facts: Any) -> None:
        """Note the facts of ``t`` as it is now, instead of what was known before."""
        self._facts[t] = Facts(t._version, value, **facts)

    def of(self, t: Tensor) -> Facts | None:
        """The facts of ``t`` as it is now; None if nothing is known of it."""
        facts: Facts | None = self._facts.get(t)  # type: ignore[no-untyped-call]
        return facts if facts is not None and facts.version == t._version else None

    def inherits(self, t: Tensor) -> bool:
        """Whether ``t`` is a known tensor that was only handed on; then the same is known of it."""
        origin = _origin(t)
        known = (s for s in self._facts if s.requires_grad and tuple(get_gradient_edge(s)[:2]) == origin)
        source = None if origin is None else next(known, None)
        if source is None:
            return False
        facts = self.of(source)
        self._facts[t] = Facts(t._version) if facts is None else replace(facts, version=t._version)
        return True

    def is_nonnegative(self, t: Tensor) -> bool:
        """Whether no element is known to be below zero; true of indices as well."""
        facts = self.of(t)
        return facts.nonnegative if facts is not None else not t.is_floating_point()

    def is_gate(self, t: Tensor) -> bool:
        """Whether this is known to weigh what it is multiplied with; true of indices as well."""
        facts = self.of(t)
        return facts.gate if facts is not None else not t.is_floating_point()

    def kept(self, tensors: Sequence[Tensor]) -> dict[str, bool]:
        """What a function that keeps the values of these tensors as they are makes known of its output."""
        return {"nonnegative": all(map(self.is_nonnegative, tensors)), "gate": all(map(self.is_gate, tensors))}


def _origin(t: Tensor) -> tuple[Node | None, int] | None:
    """Where ``t`` comes from, if the last function hands it on as it is: one with which torch shards a model."""
    node: Node | None
    node, number = last = get_gradient_edge(t)[:2]
    while node is not None and _hands_on(node):
        node, number = node.next_functions[number]
    return None if node is last[0] else (node, number)


def _hands_on(node: Node) -> bool:
    function = getattr(node, "_forward_cls", type(node))
    return function.__name__ in _HAND_ON and function.__module__.startswith("torch.distributed.")


_HAND_ON = {"RegisterPreBackwardFunction", "RegisterPostBackwardFunction"}
