"""The relevance that flows through each weight of a layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..engine import Books
from ..rules import Rule
from .running import Question, differentiating, relevance_of, run, selected


def weights(questions: Sequence[Question], rule: Rule, layer: str) -> Tensor:
    """The relevance that flows through each weight, summed over the batches.

    Raises:
        ValueError: for a layer that is not there, and a rule that shares nothing out by weights.
    """
    with differentiating():
        parts = [part for question in questions for part in _of_batch(question, rule, layer)]
    if len({part.shape for part in parts}) > 1:
        raise ValueError(f"weights({layer!r}): its weight is used in several shapes")
    found = sum(parts[1:], parts[0])
    own = getattr(dict(questions[0].subject.twin.named_modules()).get(layer), "weight", None)
    return found.view(own.shape) if isinstance(own, Tensor) and own.numel() == found.numel() else found


def _of_batch(question: Question, rule: Rule, layer: str) -> list[Tensor]:
    """What flows through the weights in each call of the layer."""
    books = Books()
    forward = run(question, rule, "relevance", books)
    entries = [entry for entry in books.entries if entry.name.partition("#")[0] == layer and entry.rule is not None]
    if not entries:
        names = ", ".join(dict.fromkeys(repr(entry.name) for entry in books.entries if entry.name != entry.function))
        raise ValueError(f"weights({layer!r}): no layer has that name; there are {names}")
    for entry in entries:
        entry.account.follows_weights = True
    try:
        relevance_of(forward, selected(question, forward), question.request, together=1)
    finally:
        books.end()
    found = [entry.account.weights for entry in entries]
    if any(part is None for part in found):
        raise ValueError(f"weights({layer!r}): its rule, {entries[0].rule}, does not share out by weights")
    return [part for part in found if part is not None]
