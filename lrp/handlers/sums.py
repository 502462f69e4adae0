"""Sums: in proportion to the terms; products with constants: unchanged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..arithmetic import divide
from ..calls import Call, tensors_in
from ..propagation import computing_dtype
from ..rules import Gradient
from ..streams import Handler, Streams
from .lookup import named


@dataclass(frozen=True)
class SumRelevance:
    """The backward of ``z = p a + q b``: each term's share is in proportion to its value."""

    p: float
    q: float
    epsilon: float

    def __call__(self, R: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        dtype = computing_dtype(R)
        p_a, q_b = self.p * a.to(dtype), self.q * b.to(dtype)
        s = divide(R.to(dtype), p_a + q_b, self.epsilon)
        return (p_a * s).sum_to_size(a.shape).to(R), (q_b * s).sum_to_size(b.shape).to(R)


@dataclass(frozen=True)
class Unchanged:
    """The backward that hands relevance on as it is, to inputs of these shapes."""

    shapes: Sequence[torch.Size]

    def __call__(self, R: Tensor) -> tuple[Tensor, ...]:
        return tuple(R.sum_to_size(shape) for shape in self.shapes)


def total(streams: Streams, call: Call, p: float = 1.0, q: float = 1.0) -> Any:
    """``p a + q b``. A term that is constant counts as a bias."""
    a, b, p, q = _terms(p, q, *call.args, **call.kwargs)
    rule = streams.assignment.rule_for("sum", torch.result_type(a, b))
    if isinstance(rule, Gradient):
        return streams.follow(call)
    constant = not all(isinstance(t, Tensor) and streams.is_live(t) for t in (a, b))
    if constant and getattr(rule, "bias", "absorb") != "absorb":
        return unchanged(streams, call)
    a, b = (t if isinstance(t, Tensor) else torch.tensor(t) for t in (a, b))
    saved = [_before(streams, call, t) for t in (a, b)]
    nonnegative = min(p, q) >= 0 and streams.is_nonnegative(a) and streams.is_nonnegative(b)
    backward = SumRelevance(p, q, getattr(rule, "epsilon", 1e-6))
    carriers = [streams.carrier(t) for t in (a, b)]
    return streams.relay(call, streams.evaluate(call), carriers, backward, saved, nonnegative=nonnegative)


def product(streams: Streams, call: Call) -> Any:
    """``a * b`` with a constant: the constant gets none."""
    live = [t for t in tensors_in((call.args, call.kwargs)) if streams.is_live(t)]
    return unchanged(streams, call) if len(live) == 1 else NotImplemented


def quotient(streams: Streams, call: Call) -> Any:
    """``a / b`` with a constant ``b``."""
    divisors = [t for t in tensors_in((call.args[1:], call.kwargs)) if streams.is_live(t)]
    return NotImplemented if divisors or call.kwargs.get("rounding_mode") else unchanged(streams, call)


def unchanged(streams: Streams, call: Call) -> Any:
    """Relevance passes as it is, unless the rule is the gradient."""
    tensors = list(tensors_in((call.args, call.kwargs)))
    if isinstance(streams.assignment.rule_for("activation", tensors[0].dtype), Gradient):
        return streams.follow(call)
    carriers = [streams.carrier(t) for t in tensors]
    return streams.relay(call, streams.evaluate(call), carriers, Unchanged([t.shape for t in tensors]))


def _before(streams: Streams, call: Call, t: Tensor) -> Tensor:
    """The value of a term before the call, which may overwrite it."""
    if t is not call.target or streams.differentiable:
        return streams.value(t)
    return t.detach().clone() if call.rescued is None else call.rescued


def _terms(p: float, q: float, input: Any, other: Any, *, alpha: float = 1.0) -> tuple[Any, Any, float, float]:
    return input, other, p, q * alpha


TABLE: dict[Callable[..., Any], Handler] = {
    **dict.fromkeys(named("add", "__add__", "__radd__", "__iadd__"), total),
    **dict.fromkeys(named("sub", "subtract", "__sub__", "__isub__"), partial(total, q=-1.0)),
    **dict.fromkeys(named("__rsub__"), partial(total, p=-1.0)),
    **dict.fromkeys(named("mul", "multiply", "__mul__", "__rmul__", "__imul__"), product),
    **dict.fromkeys(named("div", "divide", "true_divide", "__truediv__", "__itruediv__", "__div__"), quotient),
    **dict.fromkeys(named("neg", "negative"), unchanged),
}
