"""Sums: in proportion to the terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...maps import Fixed
from ...rules import Gradient, Proportional, Rule
from ..backward.propagation import computing_dtype
from ..calls import Key, named, plain_name, substitute
from ..facts import LiveCall
from ..streams import Handler, Streams
from .affine import affine
from .linear import linear
from .products import passed, product, quotient
from .shape import copies, moves, overwrites
from .shares import WeightedSum


@dataclass(frozen=True)
class SumRelevance:
    """The backward of ``z = p a + q b``: each term's share is in proportion to its value, or as the rule has it.

    Attributes:
        p: the weight of a.
        q: the weight of b.
        rule: how relevance is shared out.
        live: which of the two get relevance; one that is constant is a bias.
    """

    p: float
    q: float
    rule: Rule
    live: tuple[bool, bool]

    @property
    def is_multiplicative(self) -> bool:
        """Whether each term's share has its value as a factor."""
        return self.rule.has_gradient_form

    def __call__(self, R: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        dtype = computing_dtype(R)
        of_a, of_b = self._shares(a.to(dtype), b.to(dtype), R.to(dtype))
        return of_a.sum_to_size(a.shape).to(a), of_b.sum_to_size(b.shape).to(b)

    def _shares(self, a: Tensor, b: Tensor, R: Tensor) -> Sequence[Tensor]:
        p_a, q_b = self.p * a, self.q * b
        z = p_a + q_b
        if isinstance(self.rule, Proportional) and self.rule.is_plain():
            constants = [t for t, is_live in zip((p_a, q_b), self.live, strict=True) if not is_live]
            s = self.rule.divided(R, z, self.rule.stabiliser(z), constants[0] if constants else None)
            return p_a * s, q_b * s
        x = torch.stack([a.expand_as(z), b.expand_as(z)], dim=-1)
        live, w = x.new_tensor(self.live), x.new_tensor((self.p, self.q))
        bias = None if all(self.live) else ((1 - live) * w * x).sum(-1)
        f = Fixed(input_shape=tuple(x.shape), function=lambda t: (t * live).sum(-1))
        return self.rule.redistribute(f, x, w, bias, z, R).unbind(-1)


def total(streams: Streams, call: LiveCall, q: float = 1.0) -> Any:
    """``a + q alpha b``. A term that is constant counts as a bias."""
    a, b, alpha = _terms(*call.args, **call.kwargs)
    return _total(streams, call, a, b, 1.0, q * alpha)


def taken_from(streams: Streams, call: LiveCall) -> Any:
    """``torch.rsub(a, b)``: ``b - alpha a``."""
    a, b, alpha = _terms(*call.args, **call.kwargs)
    return _total(streams, call, a, b, -alpha, 1.0)


def _total(
    streams: Streams, call: LiveCall, a: Any, b: Any, p: float, q: float, is_of_made: bool = False
) -> Any:  # fmt: skip
    """``p a + q b``, which the call returns; ``is_of_made`` where these are not its arguments, but made of them."""
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
    takes_gradient = streams.forms.adds_up(rule, call)
    is_of_layer = _is_of_layer(call, a, p) or _is_of_layer(call, b, q)
    if takes_gradient and not is_of_made and (isinstance(rule, Gradient) or not is_of_layer):
        return streams.follow(call, **facts)
    if is_of_layer:
        return _sum_of(streams, call, _scaled(streams, a, p), _scaled(streams, b, q))
    if len(call.live) == 1 and getattr(rule, "bias", "absorb") != "absorb":
        return passed(streams, call, call.live[0], **facts)
    a, b = (t if isinstance(t, Tensor) else call.live[0].new_tensor(t) for t in (a, b))
    carriers = [streams.carrier(t) for t in (a, b)]
    if takes_gradient and streams.forms.is_gradient(call):
        return streams.relay(call, streams.evaluate(call), carriers, WeightedSum([a.shape, b.shape], (p, q)), **facts)
    saved = [streams.value_before(call, t) for t in (a, b)]
    backward = SumRelevance(p, q, rule, (streams.is_live(a), streams.is_live(b)))
    return streams.relay(call, streams.evaluate(call), carriers, backward, saved, **facts)


def _is_shift(term: Any) -> bool:
    """Whether this is one number for all elements, and none that is learned, as a bias is."""
    if isinstance(term, Tensor):
        return term.numel() == 1 and not term.requires_grad
    return isinstance(term, (int, float)) and term != 0


def total_with_product(
    streams: Streams, call: LiveCall, of: Callable[..., Any], handler: Handler, equation: Sequence[str] = ()
) -> Any:
    """``p input + q of(first, second)``, as ``torch.addcmul``: a product, and a sum."""
    if call.target is not None:
        return _out_of_place(streams, call, partial(total_with_product, of=of, handler=handler, equation=equation))
    found = linear(streams, call)  # a layer, whose bias the input is
    if found is not NotImplemented:
        return found
    term, factors, p, q = _fused(*call.args, **call.kwargs)
    made = _applied(streams, handler, of, *equation, *factors)
    if made is NotImplemented:
        return NotImplemented
    return _sum_of(streams, call, _scaled(streams, term, p), _scaled(streams, made, q))


def interpolated(streams: Streams, call: LiveCall) -> Any:
    """``torch.lerp``: the sum of ``(1 - weight) start`` and ``weight end``."""
    if call.target is not None:
        return _out_of_place(streams, call, interpolated)
    start, end, weight = _interpolated(*call.args, **call.kwargs)
    rest = _applied(streams, taken_from, torch.rsub, weight, 1) if isinstance(weight, Tensor) else 1 - weight
    return _sum_of(streams, call, _scaled(streams, start, rest), _scaled(streams, end, weight))


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


def _scaled(streams: Streams, t: Any, factor: Any) -> Any:
    is_one = isinstance(factor, (int, float)) and factor == 1
    return t if is_one else _applied(streams, product, torch.mul, t, factor)


def _is_of_layer(call: LiveCall, t: Any, factor: float) -> bool:
    """Whether a factor other than 1 stands before the output of a layer, which it belongs to."""
    return factor != 1 and isinstance(t, Tensor) and call.facts_of(t).layer is not None


def _sum_of(streams: Streams, call: LiveCall, a: Any, b: Any) -> Any:
    """What the call returns, as the sum of two tensors that other handlers have made."""
    terms = streams.call(torch.add, a, b)
    a, b = terms.args
    return _total(streams, replace(call, live=terms.live, facts=terms.facts), a, b, 1.0, 1.0, True)


def _out_of_place(streams: Streams, call: LiveCall, handler: Handler) -> Any:
    """A call that overwrites its target: that which does not, and a copy."""
    function, target = getattr(torch, plain_name(call.function).rstrip("_")), call.target
    before = _applied(streams, copies, torch.clone, target)
    args, kwargs = substitute((call.args, call.kwargs), lambda t: before if t is target else t)
    result = handler(streams, streams.call(function, *args, **kwargs))
    if result is NotImplemented or target is None:
        return NotImplemented
    return overwrites(streams, streams.call(Tensor.copy_, target, result, overwritten=target))


def _terms(input: Any, other: Any, alpha: Any = 1.0) -> tuple[Any, Any, Any]:
    return (input, alpha, other) if isinstance(alpha, Tensor) else (input, other, alpha)  # torch has both orders


def _fused(
    input: Any, *factors: Any, beta: float = 1, alpha: float = 1, value: float = 1, **by_name: Any
) -> tuple[Any, tuple[Any, ...], float, float]:
    if len(factors) == 3:  # torch also has the number before the factors
        value, *factors = factors  # type: ignore[assignment]
    return input, (*factors, *by_name.values()), beta, alpha * value


def _interpolated(input: Any, end: Any, weight: Any) -> tuple[Any, Any, Any]:
    return input, end, weight


def _differences(
    input: Tensor, n: int = 1, dim: int = -1, prepend: Tensor | None = None, append: Tensor | None = None
) -> tuple[int, int, list[Tensor]]:
    return n, dim, [t for t in (prepend, input, append) if t is not None]


_FUSED: dict[str, Handler] = {
    "addbmm": partial(total_with_product, of=torch.einsum, handler=linear, equation=("bij,bjk->ik",)),
    "addcmul": partial(total_with_product, of=torch.mul, handler=product),
    "addcdiv": partial(total_with_product, of=torch.div, handler=quotient),
    "addmm": partial(total_with_product, of=torch.mm, handler=linear),
    "addmv": partial(total_with_product, of=torch.mv, handler=linear),
    "addr": partial(total_with_product, of=torch.outer, handler=linear),
    "baddbmm": partial(total_with_product, of=torch.bmm, handler=linear),
}

TABLE: dict[Key, Handler] = {
    **dict.fromkeys(named("add", "__add__", "__radd__", "__iadd__"), total),
    **dict.fromkeys(named("sub", "subtract", "__sub__", "__isub__"), partial(total, q=-1.0)),
    **dict.fromkeys(named("__rsub__", "rsub"), taken_from),
    **dict.fromkeys(named("lerp"), interpolated),
    **dict.fromkeys(named("diff"), difference),
    **{function: handler for name, handler in _FUSED.items() for function in named(name)},
}
