"""With how much relevance an explanation starts, and where."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .targets import Selection

KINDS = ("output", "one", "probability", "contrast")


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


def totals(start: Tensor) -> Tensor:
    """The relevance that each map starts with: ``(targets, N)``."""
    return start.flatten(2).sum(2) if start.dim() > 2 else start
