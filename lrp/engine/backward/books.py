"""Keep books of an explanation: how much relevance comes to each call of a function, and where it goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isfinite

from torch import Tensor
from torch.autograd.graph import Node
from torch.utils.hooks import RemovableHandle

from ...rules import Rule
from ...rules.accounts import Account


@dataclass(eq=False)
class Entry:
    """One call of a function.

    Attributes:
        name: that of its layer, or of the function.
        function: the function's name.
        rule: its rule, if it has a choice.
        has_rule: whether it has any, or the plain gradient stands in for one.
        out: the relevance of its outputs.
        into: what of it came to its inputs.
        size: the sum of absolute values of what came to its outputs.
        account: what the layer's bias and stabiliser absorbed.
        turned: whether something that is not finite came of what is.
    """

    name: str
    function: str
    rule: Rule | None
    has_rule: bool
    out: float = 0.0
    into: float = 0.0
    size: float = 0.0
    account: Account = field(default_factory=Account)
    turned: bool = False


class Books:
    """The entries of one explained forward, in its order.

    Attributes:
        entries: one for each call that relevance could come to.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._owners: dict[Node, Entry] = {}
        self._handles: list[RemovableHandle] = []

    def enter(self, entry: Entry, outputs: Sequence[Tensor], inputs: Sequence[Node]) -> None:
        """Note a call that has returned these outputs, of which the inputs' places in the graph are known."""
        nodes = [*self._nodes(outputs, {*inputs})]
        if not nodes:
            return
        self.entries.append(entry)
        for node in nodes:
            self._owners[node] = entry
            if hasattr(node, "redistribute"):
                node.account = entry.account  # type: ignore[attr-defined]
            self._handles.append(node.register_hook(partial(self._flow, node)))

    def close(self, outputs: Sequence[Tensor]) -> None:
        """Note what lies behind the outputs and was made where nobody saw it."""
        for node in [*self._nodes(outputs, set(), through=True)]:
            if node.next_functions:
                entry = Entry(node.name(), node.name(), None, False)
                self.entries.append(entry)
                self._owners[node] = entry
                self._handles.append(node.register_hook(partial(self._flow, node)))

    def end(self) -> None:
        """Let go of the graph."""
        for handle in self._handles:
            handle.remove()
        self._owners.clear()

    def _nodes(self, outputs: Sequence[Tensor], ends: set[Node], through: bool = False) -> Iterator[Node]:
        """The nodes of the graph behind these outputs that are in no entry, up to these ends."""
        ahead = [t.grad_fn for t in outputs if t.grad_fn is not None]
        seen = {*ends}
        while ahead:
            node = ahead.pop()
            if node in seen or (node in self._owners and not through):
                continue
            seen.add(node)
            if node not in self._owners:
                yield node
            ahead += [before for before, _ in node.next_functions if before is not None]

    def _flow(self, node: Node, into: Sequence[Tensor | None], out: Sequence[Tensor | None]) -> None:
        """Note what came to a node of the graph, and what came of it."""
        entry = self._owners[node]
        came, went = sum(map(_sum, out)), 0.0
        for g, (before, _) in zip(into, node.next_functions, strict=True):
            if before is None:
                continue
            went += _sum(g)
            if self._owners.get(before) is entry:
                entry.out -= _sum(g)
            else:
                entry.into += _sum(g)
        entry.out += came
        entry.size += sum(map(_size, out))
        entry.turned |= isfinite(came) and not isfinite(went)


def _sum(g: Tensor | None) -> float:
    return 0.0 if g is None else float(_real(g).sum())


def _size(g: Tensor | None) -> float:
    return 0.0 if g is None else float(_real(g).abs().sum())


def _real(g: Tensor) -> Tensor:
    g = g.detach()
    return (g.real if g.is_complex() else g).double()
