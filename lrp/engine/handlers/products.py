"""Products and quotients: unchanged by constants and gates, in halves between two tensors that carry relevance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Any

import torch
from torch import Tensor

from ...maps.arithmetic import identity
from ...maps.weights import Make
from ...rules import Gradient, Rule
from ..calls import Key, named, substitute
from ..facts import LiveCall
from ..streams import Handler, Streams
from .affine import affine
from .shares import ByGate, ScaledGradient, passed_on, unchanged


def product(streams: Streams, call: LiveCall) -> Any:
    """``a * b``: half each; a constant gets none, and neither does a gate beside something that is none."""
    a, b = _operands(*call.args, **call.kwargs)
    nonnegative = streams.known.is_nonnegative(a) and streams.known.is_nonnegative(b)
    if len(call.live) == 1:
        x, c = (a, b) if a is call.live[0] else (b, a)
        return _scaled(streams, call, x, c, nonnegative=nonnegative, top=_top(call.facts_of(x).top, c))
    signals = [t for t, facts in zip(call.live, call.facts, strict=True) if not facts.weighs]
    return hand_on(streams, call, signals or call.live, nonnegative=nonnegative)


def quotient(streams: Streams, call: LiveCall) -> Any:
    """``a / b``: all to the numerator, for what it is divided by is a constant; to a divisor that is alone."""
    a, b, is_rounded = _divided(*call.args, **call.kwargs)
    if is_rounded:
        return NotImplemented
    nonnegative = streams.known.is_nonnegative(a) and streams.known.is_nonnegative(b)
    if a is b or not any(a is t for t in call.live):
        return passed(streams, call, b, 0.0, nonnegative=nonnegative, gate=True)
    if len(call.live) > 1:
        return hand_on(streams, call, [a], nonnegative=nonnegative)
    top = _top(call.facts_of(a).top, 1 / b) if isinstance(b, (int, float)) and b else inf
    return _scaled(streams, call, a, b, torch.reciprocal, nonnegative=nonnegative, top=top)


def divided_by(streams: Streams, call: LiveCall) -> Any:
    """``b.__rdiv__(a)``, which is ``a / b`` for a number ``a``."""
    return passed(streams, call, call.live[0], 0.0, gate=True)


def normalized(streams: Streams, call: LiveCall) -> Any:
    """``torch.nn.functional.normalize``: the norm that divides is a constant."""
    return passed(streams, call, call.live[0], 0.0, nonnegative=call.facts[0].nonnegative)


def negative(streams: Streams, call: LiveCall) -> Any:
    """``-a``."""
    return _scaled(streams, call, call.live[0], -1.0)


def _scaled(streams: Streams, call: LiveCall, x: Tensor, scale: Any, of_scale: Make = identity, **facts: Any) -> Any:
    """``x * of_scale(scale)``, by a constant."""
    _, rule = streams.rule("product", call, x)
    found = affine(streams, call, x, rule, scale, of_scale=of_scale, **facts)
    return _hand_on(streams, call, [x], rule, **facts) if found is NotImplemented else found


def dropout(streams: Streams, call: LiveCall) -> Any:
    """In eval mode the identity, in training mode a product with random constants."""
    (x,) = call.live
    p, training = _dropout(*call.args, **call.kwargs)
    if not training or p == 0:
        return streams.follow(call, is_identity=True)
    if "alpha" in call.name:  # which adds a constant, too
        return streams.lacks_form(call) if streams.forms.is_gradient(call) else hand_on(streams, call, [x])
    return hand_on(streams, call, [x], nonnegative=call.facts_of(x).nonnegative)


def hand_on(streams: Streams, call: LiveCall, receivers: Sequence[Tensor], **facts: Any) -> Any:
    """Relevance passes as it is, in equal parts, to these of the live tensors."""
    _, rule = streams.rule("product", call, receivers[0])
    return _hand_on(streams, call, receivers, rule, **facts)


def passed(streams: Streams, call: LiveCall, x: Tensor, limit: float | None = None, **facts: Any) -> Any:
    """A function of ``x`` that is no product, and passes relevance unchanged all the same; ``limit`` as elsewhere."""
    _, rule = streams.rule("product", call, x)
    if isinstance(rule, Gradient):
        return streams.gradient(call, **facts)
    return unchanged(streams, call, x, limit, **facts)


def _hand_on(streams: Streams, call: LiveCall, receivers: Sequence[Tensor], rule: Rule, **facts: Any) -> Any:
    if streams.forms.is_gradient(call):
        return _weigh(streams, call, receivers, **facts)
    if isinstance(rule, Gradient):
        return streams.gradient(call, **facts)
    return streams.relay(call, streams.evaluate(call), *passed_on(call, receivers), **facts)


def _weigh(streams: Streams, call: LiveCall, receivers: Sequence[Tensor], **facts: Any) -> Any:
    """In gradient form: the plain gradient in equal parts to these, where the other factors are constants."""
    if call.target is not None and any(t is call.target for t in call.live) and call.target is not receivers[0]:
        gate, z = streams.value_before(call, call.target), streams.evaluate(call)
        return streams.relay(call, z, [call.target, *receivers], ByGate(receivers[0].shape), [gate], **facts)

    def before(t: Tensor) -> Tensor:
        return t if t is call.target else streams.value_before(call, t)

    args, kwargs = (
        substitute(part, lambda t: t if any(t is receiver for receiver in receivers) else before(t))
        for part in (call.args, call.kwargs)
    )
    known = [call.facts_of(t) for t in receivers]
    z = streams.follow(replace(call, args=args, kwargs=kwargs, live=receivers, facts=known), **facts)
    if len(receivers) == 1:
        return z
    halved = replace(call, live=[z], facts=[streams.facts(z)])
    return streams.relay(halved, z.detach(), [z], ScaledGradient(1 / len(receivers)), **facts)


def _top(top: float, scale: Any) -> float:
    """What no element is above, where none was above ``top`` before the scale."""
    return top * scale if isinstance(scale, (int, float)) and scale > 0 else inf


def _operands(input: Any, other: Any) -> tuple[Any, Any]:
    return input, other


def _divided(input: Any, other: Any, *, rounding_mode: str | None = None) -> tuple[Any, Any, bool]:
    return input, other, rounding_mode is not None


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, **by_name: Any) -> Any:
    return p, by_name.get("train", training)


_DROPOUTS = "dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout feature_alpha_dropout".split()

TABLE: dict[Key, Handler] = {
    **dict.fromkeys(named("mul", "multiply", "__mul__", "__rmul__", "__imul__"), product),
    **dict.fromkeys(named("div", "divide", "true_divide", "__truediv__", "__itruediv__", "__div__"), quotient),
    **dict.fromkeys(named("__rdiv__", "__rtruediv__"), divided_by),
    **dict.fromkeys(named("normalize"), normalized),
    **dict.fromkeys(named("neg", "negative", "__neg__"), negative),
    **dict.fromkeys(named(*_DROPOUTS), dropout),
}
