"""Where relevance went: a table of all calls, which adds up at every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..engine import Books
from ..engine.backward.books import Entry
from ..engine.calls import replaced_within, tensors_within
from ..rules import Rule
from .inputs import joined
from .running import Question, differentiating, relevance_of, run, selected
from .targets import is_function

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Row:
    """One call of a function; sums over the batch, in the unit of the relevance.

    ``relevance_out = relevance_in + absorbed_by_bias + absorbed_by_stabiliser + lost - created``.

    Attributes:
        name: of the layer, or of the function.
        function: the function's name.
        rule: its rule; None where it has no choice.
        relevance_out: what came to its outputs.
        relevance_in: what of that came to its inputs.
        absorbed_by_bias: what the bias would have got, were it an input; constant terms of sums are biases.
        absorbed_by_stabiliser: what an epsilon in the denominators took.
        created: what was added by a rule that does not share out what it gets: gradients, patterns, a softmax.
        lost: the rest, where a function has no rule.
    """

    name: str
    function: str
    rule: Rule | None
    relevance_out: float
    relevance_in: float
    absorbed_by_bias: float
    absorbed_by_stabiliser: float
    created: float
    lost: float


@dataclass(frozen=True, repr=False)
class Audit:
    """Where the relevance of an explanation went.

    Attributes:
        rows: in the order of the forward; functions that only move values about are left out.
        started: the relevance at the output, summed over the batch.
        absolute: the relevance that reached the inputs.
        nonfinite: the call that made something not finite of what was, the last of them in the forward, where it came
            about first; None if there is none.
    """

    rows: Sequence[Row]
    started: float
    absolute: float
    nonfinite: str | None

    @property
    def share(self) -> float:
        """The share of the relevance at the output that reached the inputs."""
        return self.absolute / self.started if self.started else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """All numbers; rules by their names."""
        rows = [{**asdict(row), "rule": None if row.rule is None else repr(row.rule)} for row in self.rows]
        return {"rows": rows, "share": self.share, "absolute": self.absolute}

    def plot(self) -> Figure:
        """A bar a call: what came to its inputs, and what was absorbed, created or lost there. Needs matplotlib."""
        from ..plot import audit  # here, for `import lrp` needs torch alone

        return audit(self.to_dict())

    def __repr__(self) -> str:
        lines = [_line("name", "rule", [title for title, _ in _COLUMNS])]
        for row in self.rows:
            rule = "" if row.rule is None else str(row.rule)
            lines.append(_line(row.name, rule, [f"{getattr(row, name):.4g}" for _, name in _COLUMNS]))
        lines.append(f"{self.absolute:.4g} of {self.started:.4g} reached the inputs: {self.share:.1%}")
        if self.nonfinite is not None:
            lines.append(f"not finite from {self.nonfinite} on")
        return "\n".join(lines)


_COLUMNS = [
    ("R out", "relevance_out"), ("R in", "relevance_in"), ("bias", "absorbed_by_bias"),
    ("stabiliser", "absorbed_by_stabiliser"), ("created", "created"), ("lost", "lost"),
]  # fmt: skip


def audit(questions: Sequence[Question], rule: Rule, output: Any) -> Audit:
    """The audit of an explanation.

    Args:
        questions: its batches.
        rule: that by which it was explained.
        output: what the model gave.

    Raises:
        RuntimeError: where the model no longer gives this output.
    """
    with differentiating():
        batches = [_audited(question, rule) for question in questions]
    if not _is_same(output, joined([replaced_within(batch.output, Tensor.detach) for batch in batches])):
        raise RuntimeError("audit(): the model no longer gives the output that was explained: explain it again")
    calls = [*zip(*(batch.entries for batch in batches), strict=True)]
    rows = [row for entries in calls if _counts(row := _summed(entries), sum(entry.size for entry in entries))]
    turned = [entry.name for entry in batches[0].entries if entry.turned]
    started, reached = sum(batch.started for batch in batches), sum(batch.reached for batch in batches)
    return Audit(rows, started, reached, turned[-1] if turned else None)


class _Batch(NamedTuple):
    """The entries of one batch, what started and what reached the inputs, and the output."""

    entries: Sequence[Entry]
    started: float
    reached: float
    output: Any


def _audited(question: Question, rule: Rule) -> _Batch:
    books = Books()
    forward = run(question, rule, "relevance", books)
    try:
        relevances, started = relevance_of(forward, selected(question, forward), question.request, together=1)
    finally:
        books.end()
    reached = sum(float(R.detach().double().sum()) for R in relevances[: len(forward.ends)])
    output = forward.output if is_function(question.target) else forward.y
    return _Batch(books.entries, float(started.detach().double().sum()), reached, output)


def _summed(entries: Sequence[Entry]) -> Row:
    """The row of one call, of its entries in all batches."""
    first = entries[0]
    out, into = sum(e.out for e in entries), sum(e.into for e in entries)
    bias, stabiliser = sum(e.account.bias for e in entries), sum(e.account.stabiliser for e in entries)
    rest = out - into - bias - stabiliser
    created, lost = (0.0 - rest, 0.0) if first.has_rule else (0.0, rest)
    return Row(first.name, first.function, first.rule, out, into, bias, stabiliser, created, lost)


def _counts(row: Row, size: float) -> bool:
    """Whether a row says anything: a function that moves values about takes and adds nothing."""
    return row.rule is not None or row.lost != 0 or not abs(row.created) <= _ROUNDING * size


_ROUNDING = 1e-6


def _is_same(before: Any, now: Any) -> bool:
    """Whether these have the same tensors."""
    a, b = [*tensors_within(before)], [*tensors_within(now)]
    return len(a) == len(b) and all(map(_is_equal, a, b))


def _is_equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)


def _line(name: str, rule: str, cells: Sequence[str]) -> str:
    return f"{name[:28]:28} {rule[:34]:34}" + "".join(f"{cell:>12}" for cell in cells)
