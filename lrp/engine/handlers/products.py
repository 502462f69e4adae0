"""Products and quotients: unchanged by constants and gates, in halves between two tensors that carry relevance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ...rules import Gradient
from ..calls import named
from ..facts import LiveCall
from ..streams import Handler, Streams
from .affine import affine
from .shares import Shares


def product(streams: Streams, call: LiveCall) -> Any:
    """``a * b``: half each; a constant gets none, and neither does a gate beside something that is none."""
    a, b = _operands(*call.args, **call.kwargs)
    nonnegative = streams.known.is_nonnegative(a) and streams.known.is_nonnegative(b)
    if len(call.live) == 1:
        x, c = (a, b) if a is call.live[0] else (b, a)
        found = affine(streams, call, x, scale=c, nonnegative=nonnegative)
        return found if found is not NotImplemented else hand_on(streams, call, [x], nonnegative=nonnegative)
    signals = [t for t, facts in zip(call.live, call.facts, strict=True) if not facts.gate]
    return hand_on(streams, call, signals or call.live, nonnegative=nonnegative)


def quotient(streams: Streams, call: LiveCall) -> Any:
    """``a / b``: all to the numerator, for what it is divided by is a constant; to a divisor that is alone."""
    a, b = _operands(*call.args, **{key: t for key, t in call.kwargs.items() if key != "rounding_mode"})
    if call.kwargs.get("rounding_mode"):
        return NotImplemented
    nonnegative = streams.known.is_nonnegative(a) and streams.known.is_nonnegative(b)
    is_numerator = any(a is t for t in call.live)
    if len(call.live) == 1 and is_numerator:
        scale = 1.0 / b if isinstance(b, Tensor) or b else None
        found = affine(streams, call, a, scale=scale, nonnegative=nonnegative)
        if found is not NotImplemented:
            return found
    return hand_on(streams, call, [a if is_numerator else b], nonnegative=nonnegative)


def negative(streams: Streams, call: LiveCall) -> Any:
    """``-a``."""
    found = affine(streams, call, call.live[0], scale=-1.0)
    return found if found is not NotImplemented else hand_on(streams, call, call.live)


def dropout(streams: Streams, call: LiveCall) -> Any:
    """In eval mode the identity, in training mode a product with random constants."""
    (x,) = call.live
    p, training = _dropout(*call.args, **call.kwargs)
    if not training or p == 0:
        return streams.follow(call, is_identity=True)
    is_shifted = "alpha" in call.name
    return hand_on(streams, call, [x], nonnegative=not is_shifted and call.facts_of(x).nonnegative)


def hand_on(streams: Streams, call: LiveCall, receivers: Sequence[Tensor], **facts: Any) -> Any:
    """Relevance passes as it is, in equal parts, to these of the live tensors."""
    _, rule = streams.rule("product", call, receivers[0])
    if isinstance(rule, Gradient):
        return streams.gradient(call, **facts)
    carriers, shares = list(receivers), [1 / len(receivers)] * len(receivers)
    if call.target is not None and all(t is not call.target for t in receivers):  # a gate that is overwritten
        carriers, shares = [call.target, *carriers], [0.0, *shares]
    backward = Shares([t.shape for t in carriers], shares)
    return streams.relay(call, streams.evaluate(call), carriers, backward, **facts)


def _operands(input: Any, other: Any) -> tuple[Any, Any]:
    return input, other


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, **by_name: Any) -> Any:
    return p, by_name.get("train", training)


_DROPOUTS = "dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout feature_alpha_dropout".split()

TABLE: dict[Callable[..., Any], Handler] = {
    **dict.fromkeys(named("mul", "multiply", "__mul__", "__rmul__", "__imul__"), product),
    **dict.fromkeys(named("div", "divide", "true_divide", "__truediv__", "__itruediv__", "__div__"), quotient),
    **dict.fromkeys(named("neg", "negative", "__neg__"), negative),
    **dict.fromkeys(named(*_DROPOUTS), dropout),
}
