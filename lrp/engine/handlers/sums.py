"""Sums: in proportion to the terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...maps import Fixed
from ...maps.arithmetic import divide
from ...rules import Gradient, Proportional, Rule
from ..backward.propagation import computing_dtype
from ..calls import Key, named, tensors_in
from ..facts import LiveCall
from ..streams import Handler, Streams
from .affine import affine
from .linear import linear
from .pooling import is_plain
from .products import hand_on, product, quotient
from .shape import fills, moves


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
        if isinstance(self.rule, Proportional) and is_plain(self.rule):
            s = divide(R, z, self.rule.epsilon)
            return a * s, b * s
        terms = torch.stack([a.expand_as(z), b.expand_as(z)], dim=-1)
        f = Fixed(input_shape=tuple(terms.shape), function=partial(torch.sum, dim=-1))
        return self.rule.redistribute(f, terms, terms.new_ones(()), None, z, R).unbind(-1)


def total(streams: Streams, call: LiveCall, p: float = 1.0, q: float = 1.0) -> Any:
    """``p a + q b``. A term that is constant counts as a bias."""
    return _total(streams, call, *_terms(p, q, *call.args, **call.kwargs))


def _total(streams: Streams, call: LiveCall, a: Any, b: Any, p: float, q: float) -> Any:
    nonnegative = min(p, q) >= 0 and streams.known.is_nonnegative(a) and streams.known.is_nonnegative(b)
    facts: dict[str, Any] = {"nonnegative": nonnegative}
    if _is_shift(a) or _is_shift(b):
        facts["shifted"] = True
    _, rule = streams.rule("sum", call, call.live[0])
    if len(call.live) == 1:
        x, scale, shift, times = (a, p, b, q) if a is call.live[0] else (b, q, a, p)
        found = affine(streams, call, x, rule, scale, shift, of_shift=partial(torch.mul, times), **facts)
        if found is not NotImplemented:
            return found
    if isinstance(rule, Gradient):
        return streams.follow(call, **facts)
    if _is_of_layer(call, a, p) or _is_of_layer(call, b, q):
        a, b = _times(streams, a, p), _times(streams, b, q)
        return _total(streams, _of_terms(streams, call, a, b), a, b, 1.0, 1.0)
    if len(call.live) == 1 and getattr(rule, "bias", "absorb") != "absorb":
        return hand_on(streams, call, call.live, **facts)
    a, b = (t if isinstance(t, Tensor) else call.live[0].new_tensor(t) for t in (a, b))
    saved = [streams.value_before(call, t) for t in (a, b)]
    carriers = [streams.carrier(t) for t in (a, b)]
    return streams.relay(call, streams.evaluate(call), carriers, SumRelevance(p, q, rule), saved, **facts)


def _is_shift(term: Any) -> bool:
    """Whether this is one number for all elements, and none that is learned, as a bias is."""
    if isinstance(term, Tensor):
        return term.numel() == 1 and not term.requires_grad
    return isinstance(term, (int, float)) and term != 0


def total_with_product(streams: Streams, call: LiveCall, of: Callable[..., Any], handler: Handler) -> Any:
    """``p input + q of(first, second)``, as ``torch.addcmul``: a product, and a sum."""
    found = linear(streams, call)  # a layer, whose bias the input is
    if found is not NotImplemented:
        return found
    term, factors, p, q = _fused(*call.args, **call.kwargs)
    made = _applied(streams, handler, of, *factors)
    if made is NotImplemented:
        return NotImplemented
    return _total(streams, _of_terms(streams, call, term, made), term, made, p, q)


def interpolated(streams: Streams, call: LiveCall) -> Any:
    """``torch.lerp``: the sum of ``(1 - weight) start`` and ``weight end``."""
    if call.target is not None:
        return _written(streams, call.target, interpolated(streams, replace(call, function=torch.lerp, target=None)))
    start, end, weight = _interpolated(*call.args, **call.kwargs)
    rest = (
        _applied(streams, partial(total, p=-1.0), torch.rsub, weight, 1) if isinstance(weight, Tensor) else 1 - weight
    )
    a, b = _applied(streams, product, torch.mul, start, rest), _applied(streams, product, torch.mul, end, weight)
    return _total(streams, _of_terms(streams, call, a, b), a, b, 1.0, 1.0)


def difference(streams: Streams, call: LiveCall) -> Any:
    """``torch.diff``: its neighbours' differences."""
    n, dim, parts = _differences(*call.args, **call.kwargs)
    x = parts[0] if len(parts) == 1 else moves(streams, streams.call(torch.cat, parts, dim))
    for _ in range(n):
        size = x.shape[dim] - 1
        later, earlier = (moves(streams, streams.call(torch.narrow, x, dim, start, size)) for start in (1, 0))
        x = total(streams, streams.call(torch.sub, later, earlier), q=-1.0)
    return x


def _applied(streams: Streams, handler: Handler, function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns, by its handler where an argument is live."""
    call = streams.call(function, *args)
    return handler(streams, call) if call.live else function(*args)


def _is_of_layer(call: LiveCall, t: Any, factor: float) -> bool:
    """Whether a factor other than 1 stands before the output of a layer, which it belongs to."""
    return factor != 1 and isinstance(t, Tensor) and call.facts_of(t).layer is not None


def _times(streams: Streams, t: Any, factor: float) -> Any:
    return t if factor == 1 else _applied(streams, product, torch.mul, t, factor)


def _of_terms(streams: Streams, call: LiveCall, *terms: Any) -> LiveCall:
    """The call as a sum of these terms, of which those that are live were made by other handlers."""
    live = [t for t in tensors_in(terms) if streams.is_live(t)]
    return replace(call, live=live, facts=[streams.facts(t) for t in live])


def _written(streams: Streams, target: Tensor, source: Tensor) -> Any:
    """What ``target.copy_(source)`` returns."""
    streams.rescue(target)
    return fills(streams, replace(streams.call(Tensor.copy_, target, source), target=target))


def _terms(p: float, q: float, input: Any, other: Any, *, alpha: float = 1.0) -> tuple[Any, Any, float, float]:
    return input, other, p, q * alpha


def _fused(
    input: Any, *factors: Any, beta: float = 1, alpha: float = 1, value: float = 1, **by_name: Any
) -> tuple[Any, tuple[Any, ...], float, float]:
    return input, (*factors, *by_name.values()), beta, alpha * value


def _interpolated(input: Any, end: Any, weight: Any) -> tuple[Any, Any, Any]:
    return input, end, weight


def _differences(
    input: Tensor, n: int = 1, dim: int = -1, prepend: Tensor | None = None, append: Tensor | None = None
) -> tuple[int, int, list[Tensor]]:
    return n, dim, [t for t in (prepend, input, append) if t is not None]


_FUSED: dict[str, tuple[Callable[..., Any], Handler]] = {
    "addcmul": (torch.mul, product),
    "addcdiv": (torch.div, quotient),
    "addmm": (torch.mm, linear),
    "addmv": (torch.mv, linear),
    "addr": (torch.outer, linear),
    "baddbmm": (torch.bmm, linear),
}

TABLE: dict[Key, Handler] = {
    **dict.fromkeys(named("add", "__add__", "__radd__", "__iadd__"), total),
    **dict.fromkeys(named("sub", "subtract", "__sub__", "__isub__"), partial(total, q=-1.0)),
    **dict.fromkeys(named("__rsub__", "rsub"), partial(total, p=-1.0)),
    **dict.fromkeys(named("lerp"), interpolated),
    **dict.fromkeys(named("diff"), difference),
    **{
        function: partial(total_with_product, of=of, handler=handler)
        for name, (of, handler) in _FUSED.items()
        for function in named(name)
    },
}
