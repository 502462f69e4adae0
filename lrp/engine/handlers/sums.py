"""Sums: in proportion to the terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...maps import Fixed
from ...maps.arithmetic import divide
from ...rules import Epsilon, Gradient, Proportional, Rule
from ..calls import named
from ..facts import LiveCall
from ..propagation import computing_dtype
from ..streams import Handler, Streams
from .affine import affine
from .products import hand_on


@dataclass(frozen=True)
class SumRelevance:
    """The backward of ``z = p a + q b``: each term's share is in proportion to its value, or as the rule has it."""

    p: float
    q: float
    rule: Rule

    def __call__(self, R: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        dtype = computing_dtype(R)
        p_a, q_b, R = self.p * a.to(dtype), self.q * b.to(dtype), R.to(dtype)
        of_a, of_b = self._shares(p_a, q_b, p_a + q_b, R)
        return of_a.sum_to_size(a.shape).to(a), of_b.sum_to_size(b.shape).to(b)

    def _shares(self, a: Tensor, b: Tensor, z: Tensor, R: Tensor) -> Sequence[Tensor]:
        if type(self.rule) is Proportional or (type(self.rule) is Epsilon and self.rule.exponent == 1):
            s = divide(R, z, self.rule.epsilon)
            return a * s, b * s
        terms = torch.stack([a.expand_as(z), b.expand_as(z)], dim=-1)
        f = Fixed(input_shape=tuple(terms.shape), function=partial(torch.sum, dim=-1))
        return self.rule.redistribute(f, terms, terms.new_ones(()), None, z, R).unbind(-1)


def total(streams: Streams, call: LiveCall, p: float = 1.0, q: float = 1.0) -> Any:
    """``p a + q b``. A term that is constant counts as a bias."""
    a, b, p, q = _terms(p, q, *call.args, **call.kwargs)
    nonnegative = min(p, q) >= 0 and streams.known.is_nonnegative(a) and streams.known.is_nonnegative(b)
    _, rule = streams.rule("sum", call, call.live[0])
    if len(call.live) == 1:
        x, scale, shift, times = (a, p, b, q) if a is call.live[0] else (b, q, a, p)
        found = affine(
            streams, call, x, rule, scale, shift, of_shift=partial(torch.mul, times), nonnegative=nonnegative
        )
        if found is not NotImplemented:
            return found
    if isinstance(rule, Gradient):
        return streams.follow(call, nonnegative=nonnegative)
    if len(call.live) == 1 and getattr(rule, "bias", "absorb") != "absorb":
        return hand_on(streams, call, call.live, nonnegative=nonnegative)
    a, b = (t if isinstance(t, Tensor) else torch.tensor(t, device=call.live[0].device) for t in (a, b))
    saved = [streams.value_before(call, t) for t in (a, b)]
    carriers = [streams.carrier(t) for t in (a, b)]
    return streams.relay(
        call, streams.evaluate(call), carriers, SumRelevance(p, q, rule), saved, nonnegative=nonnegative
    )


def _terms(p: float, q: float, input: Any, other: Any, *, alpha: float = 1.0) -> tuple[Any, Any, float, float]:
    return input, other, p, q * alpha


TABLE: dict[Callable[..., Any], Handler] = {
    **dict.fromkeys(named("add", "__add__", "__radd__", "__iadd__"), total),
    **dict.fromkeys(named("sub", "subtract", "__sub__", "__isub__"), partial(total, q=-1.0)),
    **dict.fromkeys(named("__rsub__", "rsub"), partial(total, p=-1.0)),
}
