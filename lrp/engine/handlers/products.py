"""Products: unchanged by constants and gates, in halves between two tensors that both carry relevance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...rules import Gradient
from ..calls import Call, named, tensors_in
from ..streams import Handler, Streams

_DROPOUTS = "dropout dropout1d dropout2d dropout3d feature_dropout alpha_dropout feature_alpha_dropout".split()


@dataclass(frozen=True)
class Shares:
    """The backward that hands a share of the relevance to each input, of these shapes; to a share of 0 nothing."""

    shapes: Sequence[torch.Size]
    shares: Sequence[float] = (1.0,)

    def __call__(self, R: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(
            None if share == 0 else (R if share == 1 else share * R).sum_to_size(shape)
            for shape, share in zip(self.shapes, self.shares, strict=True)
        )


def product(streams: Streams, call: Call) -> Any:
    """``a * b``: half each; a constant gets none, and neither does a gate beside something that is none."""
    live = [t for t in tensors_in((call.args, call.kwargs)) if streams.is_live(t)]
    if len(live) == 1:
        return unchanged(streams, call, gate=streams.known.is_gate(live[0]))
    gates = [t for t in live if streams.known.is_gate(t)]
    nonnegative = all(map(streams.known.is_nonnegative, live))
    receivers = [t for t in live if not streams.known.is_gate(t)] or gates
    return _hand_on(streams, call, receivers, nonnegative=nonnegative, gate=len(gates) == len(live))


def quotient(streams: Streams, call: Call) -> Any:
    """``a / b`` with a constant ``b``."""
    divisors = [t for t in tensors_in((call.args[1:], call.kwargs)) if streams.is_live(t)]
    return NotImplemented if divisors or call.kwargs.get("rounding_mode") else unchanged(streams, call)


def dropout(streams: Streams, call: Call) -> Any:
    """In eval mode the identity, in training mode a product with random constants."""
    return unchanged(
        streams, call, nonnegative=all(map(streams.known.is_nonnegative, tensors_in((call.args, call.kwargs))))
    )


def unchanged(streams: Streams, call: Call, **facts: Any) -> Any:
    """Relevance passes as it is to the tensor that carries it."""
    return _hand_on(streams, call, [t for t in tensors_in((call.args, call.kwargs)) if streams.is_live(t)], **facts)


def _hand_on(streams: Streams, call: Call, receivers: Sequence[Tensor], **facts: Any) -> Any:
    _, rule = streams.rule("product", call, receivers[0])
    if isinstance(rule, Gradient):
        return streams.follow(call, **facts)
    carriers, shares = list(receivers), [1 / len(receivers)] * len(receivers)
    if call.target is not None and all(t is not call.target for t in receivers):  # a gate that is overwritten
        carriers, shares = [call.target, *carriers], [0.0, *shares]
    backward = Shares([t.shape for t in carriers], shares)
    return streams.relay(call, streams.evaluate(call), carriers, backward, **facts)


TABLE: dict[Callable[..., Any], Handler] = {
    **dict.fromkeys(named("mul", "multiply", "__mul__", "__rmul__", "__imul__"), product),
    **dict.fromkeys(named("div", "divide", "true_divide", "__truediv__", "__itruediv__", "__div__"), quotient),
    **dict.fromkeys(named("neg", "negative"), unchanged),
    **dict.fromkeys(named(*_DROPOUTS), dropout),
}
