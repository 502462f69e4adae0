"""Which tensors depend on the explained inputs, and by which functions that have no rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from ..maps.storage import layout, place_of
from .assignment import Assignment
from .backward.kept import Keeper
from .calls.by_tensor import ByTensor
from .checks import FunctionFormError
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
        known: the facts of the live tensors.
        assignment: which layer comes last so far.
        keeper: keeps the outputs of layers that are used by what is not merged with them.
    """

    def __init__(self, known: Known, assignment: Assignment, keeper: Keeper) -> None:
        self._known, self._assignment, self._keeper = known, assignment, keeper
        self._roots: set[Node] = set()
        self._unsupported: list[tuple[str, Node | None]] = []
        self._without_form: list[tuple[str, Node | None]] = []
        self._ends: list[str] = []
        self._written: ByTensor[int] = ByTensor()
        self._latest: Tensor | None = None

    def begin(self, x: Tensor) -> None:
        """Note an explained input."""
        self._roots.add(get_gradient_edge(x).node)

    @property
    def n_unsupported(self) -> int:
        """How many functions without a rule there have been."""
        return len(self._unsupported)

    def note(self, t: Tensor, facts: Facts) -> None:
        """Note what is known of a live tensor that a handler has made."""
        self._known.note(t, facts)
        self._latest = t  # module hooks may wrap it before the next function is called

    def is_live(self, t: Tensor) -> bool:
        """Whether ``t`` depends on the explained inputs."""
        if not t.requires_grad:
            return False
        noted = self._known.version(t)
        if noted is not None:
            if noted != t._version:
                self._check_writes(t)
            return True
        return not t.is_leaf and self._was_made_unseen(t)

    def wrote(self, target: Tensor) -> None:
        """Note that a function that was seen has written to ``target``."""
        self._written[_owner(target)] = target._version

    def take_gradient(self, function: str, t: Tensor) -> None:
        """Note that the plain gradient stands in for the relevance of the function that made ``t``."""
        self._unsupported.append((f"{function} ({self._place()})", t.grad_fn))

    def lacks_form(self, function: str, t: Tensor) -> None:
        """Note that the function that made ``t`` has no gradient form."""
        self._without_form.append((f"{function} ({self._place()})", t.grad_fn))

    def overwritten(self, function: str, t: Tensor) -> None:
        """Note that this has written to a live tensor, of which nothing is known any more."""
        self.take_gradient(function, t)
        self._known.note(t, UNKNOWN)

    def end(self, function: str) -> None:
        """Note that what this function makes of live tensors depends on them no more."""
        self._ends.append(f"{function} ({self._place()})")

    def unsupported(self, outputs: Sequence[Tensor]) -> list[str]:
        """The functions without a rule that relevance reaches from the outputs."""
        live = [t for t in outputs if self.is_live(t)]
        return self._reached(self._unsupported, live)

    def check(self, outputs: Sequence[Tensor]) -> None:
        """Raise unless an output depends on the explained inputs, in the form that was asked for.

        Raises:
            ValueError: it says where the way from the inputs ends.
            NotImplementedError: it lists the functions that have no gradient form.
        """
        lacking = self._reached(self._without_form, outputs)
        if lacking:
            raise FunctionFormError(
                f"form='gradient': there is none for {', '.join(dict.fromkeys(lacking))}, whose value at zero is not "
                "zero, or which works in place; take form='relevance'"
            )
        if not outputs or any(map(self.is_live, outputs)):
            return
        ends = ", ".join(dict.fromkeys(self._ends[-3:])) or self._unseen_end()
        raise ValueError(f"no output depends on the explained inputs: what is made of them ends at {ends}")

    def _reached(self, functions: Sequence[tuple[str, Node | None]], outputs: Sequence[Tensor]) -> list[str]:
        """Those of the functions that relevance reaches from the outputs."""
        if not functions:
            return []
        reached = set(nodes_behind(t.grad_fn for t in outputs))
        return [function for function, node in functions if node in reached]

    def _unseen_end(self) -> str:
        if self._latest is None or get_gradient_edge(self._latest).node in self._roots:
            return "no function takes them"
        return f"what copies values alone, such as torch.nested.nested_tensor() ({self._place()})"

    def _place(self) -> str:
        last = self._assignment.last_name
        return "before the first layer" if last is None else f"after layer {last!r}"

    def _check_writes(self, t: Tensor) -> None:
        """Name a write that went round torch's functions: nothing is known of the tensor as it is now."""
        if t._version != self._known.version(t) and t._version != self._written.get(_owner(t)):
            self.overwritten("a write that lrp does not see", t)

    def _was_made_unseen(self, t: Tensor) -> bool:
        """Whether a tensor that no handler has made depends on the inputs."""
        node = t.grad_fn
        if t._base is not None and t._base in self._known and not any(map(_is_custom, self._nodes_since(node))):
            self._note_view(t, t._base)
            return True
        if node is None or not any(behind in self._roots for behind in nodes_behind([node])):
            return False
        if node.name().startswith("CheckpointFunction"):
            raise NotImplementedError(_REENTRANT)
        wrapped = self._wrapped(t)
        if wrapped is None:
            self.take_gradient(f"the autograd function {node.name()}", t)
            self._spare_parameters(node)
        self.note(t, wrapped or UNKNOWN)
        return True

    def _note_view(self, t: Tensor, base: Tensor) -> None:
        """Note what is known of a view that was made where nobody saw it, or of a constant that has become live since.

        A view of all of a tensor, in its order, is that tensor.
        """
        self._check_writes(base)
        source = self._source(t)
        facts = UNKNOWN if source is None else self._known.of(source) or UNKNOWN
        if source is not None and place_of(source) == place_of(t) and layout(source) == layout(t):
            self.note(t, facts)
            return
        if source is not None and facts.layer is not None:
            facts.layer.use(source, self._keeper)
        self.note(t, UNKNOWN)

    def _source(self, t: Tensor) -> Tensor | None:
        """The tensor that an unseen view was made of, if something is known of it."""
        node, number = t.grad_fn, t.output_nr
        while node is not None and not self._is_explained(node) and node.next_functions:
            node, number = node.next_functions[0]
            source = None if node is None else self._known.at_edge(node, number)
            if source is not None:
                return source
        return None

    def _spare_parameters(self, node: Node) -> None:
        """See to it that what was made unseen gives nothing to the parameters that it was made of."""
        for behind in self._nodes_since(node):
            of_leaves = [hasattr(b, "variable") and b not in self._roots for b, _ in behind.next_functions]
            if any(of_leaves):
                behind.register_hook(partial(withhold, of_leaves))

    def _nodes_since(self, node: Node | None) -> Iterator[Node]:
        """The nodes of the autograd graph from this back to where relevance was seen last."""
        return nodes_behind([node], self._is_explained)

    def _is_explained(self, node: Node) -> bool:
        return node in self._roots or hasattr(node, "redistribute")

    def _wrapped(self, t: Tensor) -> Facts | None:
        """The facts of what the hooks of a module, or of one that is sharded, have handed on as it is."""
        node, number = t.grad_fn, t.output_nr
        while node is not None and node.name() in _HAND_ON:
            node, number = node.next_functions[number]
            source = None if node is None else self._known.at_edge(node, number)
            facts = None if source is None else self._known.of(source)
            if facts is not None:
                return facts
        return None


def nodes_behind(nodes: Iterable[Node | None], is_end: Callable[[Node], bool] = lambda node: False) -> Iterator[Node]:
    """All nodes of the autograd graph from these back, those that are an end left out."""
    seen: set[Node] = set()
    ahead = [*nodes]
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen and not is_end(node):
            seen.add(node)
            yield node
            ahead.extend(before for before, _ in node.next_functions)


def sources_of(output: Tensor, edges: Sequence[GradientEdge]) -> list[int]:
    """Which of several tensors have values that enter the output: its autograd graph tells, where shapes do not.

    Args:
        edges: where they are in the graph; the only one has values that enter.
    """
    if len(edges) < 2:
        return [0]
    places = {(edge.node, edge.output_nr): i for i, edge in enumerate(edges)}
    found, seen = set(), set()
    ahead = [output.grad_fn]
    while ahead:
        node = ahead.pop()
        for edge in node.next_functions if node is not None else ():
            if edge in places:
                found.add(places[edge])
            elif edge not in seen:
                seen.add(edge)
                ahead.append(edge[0])
    return sorted(found)


def _is_custom(node: Node) -> bool:
    """Whether this is the backward of a function that somebody wrote, which may do anything to relevance."""
    return isinstance(node, BackwardCFunction) and node.name() not in _HAND_ON


def withhold(which: Sequence[bool], gradients: Sequence[Tensor | None], _: Any) -> tuple[Tensor | None, ...]:
    """The gradients that a node of the autograd graph gives, without some of them."""
    return tuple(None if is_withheld else g for is_withheld, g in zip(which, gradients, strict=True))


def _owner(t: Tensor) -> Tensor:
    """The tensor with which ``t`` shares its version."""
    return t if t._base is None else t._base
