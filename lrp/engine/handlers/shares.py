"""Relevance that passes as it is: all of it to one input, or to each its share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import Tensor

from ..backward.gradient_form import GradientForm, Unchanged
from ..calls import Call, plain_name, tensors_in
from ..facts import LiveCall
from ..streams import Streams

# f(c x) = c f(x) for all c > 0: the gradient is f(x) / x
_HOMOGENEOUS = {"relu", "leaky_relu", "prelu", "rrelu", "abs", "absolute", "deg2rad", "rad2deg"}

_TINY, _STEEP = 1e-100, 1e6


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


class WeightedSum(Shares, GradientForm):
    """The backward of a sum in gradient form: each term's share is its weight."""


@dataclass(frozen=True)
class ScaledGradient(GradientForm):
    """The backward of a product with a constant, where its gradient is taken: in gradient form, or by a rule."""

    scale: Tensor | float

    def __call__(self, R: Tensor) -> Tensor:
        return R * self.scale


@dataclass(frozen=True)
class ByGate(GradientForm):
    """The backward of a gate that is multiplied in place with a tensor of this shape, which alone gets something."""

    shape: torch.Size

    def __call__(self, g: Tensor, gate: Tensor) -> tuple[None, Tensor]:
        return None, (g * gate).sum_to_size(self.shape)


def passed_on(call: LiveCall, receivers: Sequence[Tensor]) -> tuple[Sequence[Tensor], Shares]:
    """The carriers of a call whose relevance passes in equal parts to these, and its backward.

    What else is overwritten is a carrier, the first, which gets nothing.
    """
    carriers, shares = list(receivers), [1 / len(receivers)] * len(receivers)
    if call.target is not None and all(t is not call.target for t in receivers):
        carriers, shares = [call.target, *carriers], [0.0, *shares]
    return carriers, Shares([t.shape for t in carriers], shares)


def unchanged(streams: Streams, call: LiveCall, x: Tensor, limit: float | None = None, **facts: Any) -> Any:
    """What the call makes of ``x``, whose relevance is that of the result.

    Args:
        limit: of the ratio of the result to ``x`` where that is zero; by default the function is asked.
        facts: what is known of the output.
    """
    if not streams.forms.is_gradient(call):
        return streams.relay(call, streams.evaluate(call), *passed_on(call, [x]), **facts)
    if plain_name(call.function).strip("_") in _HOMOGENEOUS:
        return streams.follow(call, **facts)
    limit = _limit(call, x) if limit is None else limit
    if limit is None or (call.target is not None and call.target is not x):
        return streams.lacks_form(call, **facts)
    before = streams.value_before(call, x)
    z = streams.evaluate(call)
    return streams.relay(call, z, [x], Unchanged(limit), [before, z], **facts)


def given(streams: Streams, call: LiveCall, x: Tensor, z: Tensor, **facts: Any) -> Tensor:
    """``z``, which the call returns in the place of ``x``, that its handler has made: relevance passes unchanged."""
    call = replace(call, live=[x], facts=[streams.facts(x)])
    if streams.forms.is_gradient(call):
        return streams.relay(call, z, [x], Unchanged(0.0), [streams.value(x), z], **facts)
    return streams.relay(call, z, *passed_on(call, [x]), **facts)


def _limit(call: Call, x: Tensor) -> float | None:
    """The limit at zero of the ratio of what an elementwise function makes of ``x`` to it; 0 for an infinite one.

    None where zero is not made zero, or other tensors take part, which may say something else at each element.
    """
    if any(t is not x for t in tensors_in((call.args, call.kwargs))):
        return None

    def value(number: float) -> float:
        return float(call.run(lambda t: torch.tensor(number, dtype=torch.float64)))

    limit = value(_TINY) / _TINY
    if 0 < abs(value(0.0)) < inf:
        return None
    return limit if abs(limit) < _STEEP else 0.0
