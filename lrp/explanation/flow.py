"""With how much relevance an explanation starts and where, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from ..engine.modules.watching import Seen
from ..engine.origins import nodes_behind, withhold
from .targets import Selection

KINDS = ("output", "one", "probability", "contrast")
TOGETHER = 16  # maps that are made by one backward

Concepts = Mapping[str, "int | Sequence[int]"]


class Place(NamedTuple):
    """Where relevance comes to, and the shape that it has there."""

    end: Tensor | GradientEdge
    shape: torch.Size

    @classmethod
    def of(cls, t: Tensor) -> Place:
        """A leaf of the graph."""
        return cls(t, t.shape)


class Start(NamedTuple):
    """What an explanation starts with.

    Attributes:
        initial: as :func:`lrp.explain` takes it.
        selection: which outputs are explained.
        value: the output.
    """

    initial: str | Tensor
    selection: Selection
    value: Tensor


class Passage(NamedTuple):
    """A hidden place, and what of its relevance may pass: a mask."""

    edge: GradientEdge
    mask: Tensor


def check(initial: Any) -> None:
    """Raise unless this is a way to start.

    Raises:
        ValueError, TypeError: they list what there is.
    """
    if isinstance(initial, str) and initial not in KINDS:
        raise ValueError(f"initial_relevance={initial!r}: must be one of {', '.join(map(repr, KINDS))}, or a tensor")
    if not isinstance(initial, (str, Tensor)):
        raise TypeError(f"initial_relevance= is a {type(initial).__name__}: must be a word or a tensor")


def starts(initial: str | Tensor, selection: Selection, y: Tensor, targets: slice) -> Tensor:
    """The relevance at the output that some of the targets start with: ``(targets, *y.shape)``.

    Args:
        initial: ``"output"``, ``"one"``, ``"probability"``, ``"contrast"``, or a tensor.
        selection: which outputs are explained.
        y: the output.
        targets: which of the targets.

    Raises:
        ValueError: where an output has no such relevance.
    """
    if isinstance(initial, Tensor) and selection.number is None and initial.shape == y.shape and y.dim() > 1:
        return initial.to(y).unsqueeze(0)
    weights = selection.weights(y, targets)
    if isinstance(initial, Tensor):
        return weights * _of_targets(initial, selection, y, targets)
    if initial == "output":
        return weights * y
    if initial == "one":
        return weights
    if y.dim() < 2 or y.shape[1] < 2:
        raise ValueError(f"initial_relevance={initial!r}: needs several classes; the output has shape {tuple(y.shape)}")
    if initial == "probability":
        return weights * y.softmax(1)
    others = weights.sum(2, keepdim=True) - weights
    return y * (weights - others / (y.shape[1] - 1))


def _of_targets(initial: Tensor, selection: Selection, y: Tensor, targets: slice) -> Tensor:
    """The relevance of each sample, or of each of its targets, to be multiplied with what the outputs count."""
    shape = y.shape[:1] if selection.number is None else (len(y), selection.number)
    if initial.shape != shape:
        raise ValueError(
            f"initial_relevance= has shape {tuple(initial.shape)}: must be {tuple(shape)}, or that of the output, "
            f"{tuple(y.shape)}"
        )
    rows = initial.to(y).reshape(len(y), -1)[:, targets].mT
    return rows.reshape(*rows.shape, *(1 for _ in y.shape[1:]))


def passages(concepts: Concepts, seen: Mapping[str, Seen]) -> list[Passage]:
    """What of the relevance of hidden layers may pass.

    Raises:
        ValueError: for a module that is called twice or not at all, or a channel that is not there.
    """
    for name in concepts:
        calls = [key for key in seen if key.partition("#")[0].partition("[")[0] == name]
        if calls != [name]:
            raise ValueError(f"concepts={{{name!r}: ...}}: the module must be called once and return one tensor")
    return [Passage(s.edge, _mask(name, concepts[name], s.shape)) for name, s in seen.items()]


def flow(
    y: Tensor, start: Start, places: Sequence[Place], through: Sequence[Passage] = (), differentiable: bool = False,
    together: int = TOGETHER,
) -> tuple[list[Tensor], Tensor]:  # fmt: skip
    """The relevance that comes to some places, ``(N, ...)`` or ``(N, K, ...)``, and what each map started with.

    Args:
        y: the output.
        start: how much relevance there is.
        places: where it is wanted.
        through: what it must pass; relevance that goes round is left out.
        differentiable: whether it may be differentiated.
        together: how many maps are made by one backward, at most.
    """
    number = start.selection.number
    step = max(1, together // max(1, len(y) if y.dim() else 1))
    chunks = [slice(first, first + step) for first in range(0, number or 1, step)]
    reached = _reached(y, places)
    ends = [place.end for place, is_reached in zip(places, reached, strict=True) if is_reached]
    found: list[Sequence[Tensor]] = []
    started: list[Tensor] = []
    for chunk in chunks:
        R = starts(*start, chunk)
        started.append(R.flatten(2).sum(2) if R.dim() > 2 else R)
        with _through(y, through):
            gradients = iter(_gradients(y, ends, R, chunk is not chunks[-1], differentiable))
        came = [next(gradients) if is_reached else None for is_reached in reached]
        found.append([R.new_zeros(len(R), *p.shape) if g is None else g for g, p in zip(came, places, strict=True)])
    return [_by_sample(parts, number) for parts in zip(*found, strict=True)], _by_sample(started, number)


def _reached(y: Tensor, places: Sequence[Place]) -> list[bool]:
    """Whether relevance can come to each place: torch 2.6 ends the process when it is asked for one that it cannot."""
    hidden = [place.end for place in places if not isinstance(place.end, Tensor)]
    behind = {*nodes_behind([y.grad_fn])} if hidden else set()
    return [isinstance(place.end, Tensor) or place.end.node in behind for place in places]


@contextmanager
def _through(y: Tensor, passages: Sequence[Passage]) -> Iterator[None]:
    """While active, relevance flows through these places alone, and what goes round them is withheld."""
    with ExitStack() as stack:
        for edge, mask in passages:
            end, number = edge.node, edge.output_nr
            below = {*nodes_behind([end])}
            stack.callback(end.register_prehook(partial(_pass, number, mask)).remove)
            for node in nodes_behind([y.grad_fn]):
                goes_round = [before in below and before != end for before, _ in node.next_functions]
                if node not in below and any(goes_round):
                    stack.callback(node.register_hook(partial(withhold, goes_round)).remove)
        yield


def _pass(number: int, mask: Tensor, relevances: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """What passes of the relevance that comes to one output of a node: of its other outputs, nothing."""
    return tuple(
        None if R is None else R * mask.to(R) if i == number else torch.zeros_like(R) for i, R in enumerate(relevances)
    )


def _gradients(source: Any, ends: Sequence[Any], start: Tensor, keeps: bool, differentiable: bool) -> Sequence[Any]:
    """What comes to the ends, of all starts at once."""
    settings: dict[str, Any] = {"allow_unused": True, "create_graph": differentiable}
    settings["retain_graph"] = keeps or differentiable
    if len(start) == 1:
        return [None if g is None else g.unsqueeze(0) for g in torch.autograd.grad(source, ends, start[0], **settings)]
    return torch.autograd.grad(source, ends, start, is_grads_batched=True, **settings)


def _mask(name: str, channels: int | Sequence[int], shape: torch.Size) -> Tensor:
    """One at these channels, which dimension 1 counts."""
    index = [channels] if isinstance(channels, int) else [int(channel) for channel in channels]
    size = shape[1] if len(shape) > 1 else 0
    if any(not -size <= channel < size for channel in index):
        raise ValueError(f"concepts={{{name!r}: {index}}}: the module has {size} channels")
    mask = torch.zeros(size).index_fill_(0, torch.tensor(index) % size, 1.0)
    return mask.view(-1, *(1 for _ in shape[2:]))


def _by_sample(parts: Sequence[Tensor], number: int | None) -> Tensor:
    """``(N, ...)``, or ``(N, K, ...)`` of several targets, of what has the targets first."""
    together = torch.cat([*parts]) if len(parts) > 1 else parts[0]
    return together[0] if number is None else together.transpose(0, 1)
