"""Which tensors depend on the explained inputs, and by which functions that have no rule."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node, get_gradient_edge

from ..maps.storage import place_of
from .assignment import Assignment
from .calls import tensors_in
from .facts import UNKNOWN, Facts, Known

_REENTRANT = (
    "torch.utils.checkpoint with use_reentrant=True runs its function where no gradient is kept, and cannot be "
    "explained; write use_reentrant=False"
)


_HAND_ON = {
    "BackwardHookFunctionBackward", "RegisterPreBackwardFunctionBackward", "RegisterPostBackwardFunctionBackward",
}  # fmt: skip


class Origins:
    """What is live, and what lies between the explained inputs and it that has no rule.

    Args:
        inputs: the explained inputs.
        known: the facts of the live tensors.
        assignment: which layer comes last so far.
    """

    def __init__(self, inputs: Sequence[Tensor], known: Known, assignment: Assignment) -> None:
        self._known, self._assignment = known, assignment
        self._roots = {get_gradient_edge(x).node for x in inputs}
        self._unsupported: list[tuple[str, Node | None]] = []
        self._ends: list[str] = []
        self._written: dict[int | None, int] = {}
        self._latest: Tensor | None = None

    def note(self, t: Tensor, facts: Facts) -> None:
        """Note what is known of a live tensor that a handler has made."""
        self._known.note(t, facts)
        self._latest = t  # module hooks may wrap it before the next function is called

    def is_live(self, t: Tensor) -> bool:
        """Whether ``t`` depends on the explained inputs."""
        if not t.requires_grad:
            return False
        if t in self._known:
            self._check_writes(t)
            return True
        return not t.is_leaf and self._was_made_unseen(t)

    def wrote(self, target: Tensor) -> None:
        """Note that a function that was seen has written to ``target``."""
        self._written[place_of(target)] = target._version

    def take_gradient(self, function: str, t: Tensor) -> None:
        """Note that the plain gradient stands in for the relevance of the function that made ``t``."""
        self._unsupported.append((f"{function} ({self._place()})", t.grad_fn))

    def end(self, function: str) -> None:
        """Note that what this function makes of live tensors depends on them no more."""
        self._ends.append(f"{function} ({self._place()})")

    def unsupported(self, output: Any) -> list[str]:
        """The functions without a rule that relevance reaches from the outputs."""
        live = [t for t in tensors_in(output) if self.is_live(t)]
        if not self._unsupported:
            return []
        reached = set(_nodes_behind(live))
        return [function for function, node in self._unsupported if node in reached]

    def check(self, output: Any) -> None:
        """Raise unless an output depends on the explained inputs.

        Raises:
            ValueError: it says where the way from the inputs ends.
        """
        tensors = list(tensors_in(output))
        if not tensors or any(map(self.is_live, tensors)):
            return
        ends = ", ".join(dict.fromkeys(self._ends[-3:])) or "no function takes them"
        raise ValueError(f"no output depends on the explained inputs: what is made of them ends at {ends}")

    def _place(self) -> str:
        last = self._assignment.last_name
        return "before the first layer" if last is None else f"after layer {last!r}"

    def _check_writes(self, t: Tensor) -> None:
        """Name a write that went round torch's functions: nothing is known of the tensor as it is now."""
        if t._version not in (self._known.version(t), self._written.get(place_of(t))):
            self.take_gradient("a write that lrp does not see", t)
            self._known.note(t, UNKNOWN)

    def _was_made_unseen(self, t: Tensor) -> bool:
        """Whether a tensor that no handler has made depends on the inputs."""
        node = t.grad_fn
        is_custom = isinstance(node, BackwardCFunction)
        if t._base is not None and t._base in self._known and not is_custom:  # made before its base was written to
            self.note(t, UNKNOWN)
            return True
        if node is None or not any(behind in self._roots for behind in _nodes_behind([t])):
            return False
        if node.name().startswith("CheckpointFunction"):
            raise NotImplementedError(_REENTRANT)
        wrapped = self._wrapped(t)
        if wrapped is None:
            self.take_gradient(f"the autograd function {node.name()}", t)
        self.note(t, wrapped or UNKNOWN)
        return True

    def _wrapped(self, t: Tensor) -> Facts | None:
        """The facts of what the hooks of a module, or of one that is sharded, have handed on as it is."""
        node, number = t.grad_fn, t.output_nr
        while node is not None and node.name() in _HAND_ON:
            node, number = node.next_functions[number]
        if node is t.grad_fn or node is None:
            return None
        return self._known.of_edge(node, number)


def _nodes_behind(tensors: Iterable[Tensor]) -> Iterator[Node]:
    """All nodes of the autograd graph from these tensors back."""
    seen: set[Node] = set()
    ahead: list[Node | None] = [t.grad_fn for t in tensors]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            ahead.extend(before for before, _ in node.next_functions)
