"""Pools and means: in proportion to the values; maxima: the winner takes all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..calls import Call, tensors_in
from ..linear_maps import Fixed
from ..rules import Gradient
from ..streams import Handler, Layer, Streams
from .lookup import named


def average(streams: Streams, call: Call) -> Any:
    """A linear function of one tensor, with weights that are fixed and positive."""
    live = [t for t in tensors_in((call.args, call.kwargs)) if streams.is_live(t)]
    if len(live) != 1:
        return NotImplemented
    (x,) = live
    rule = streams.assignment.rule_for("pool", x.dtype)
    if isinstance(rule, Gradient):
        return streams.follow(call)

    def function(t: Tensor) -> Tensor:
        averaged: Tensor = call.run(lambda argument: t if argument is x else argument)
        return averaged

    f = Fixed(input_shape=tuple(x.shape), function=function)
    layer = Layer(f, rule, None, x, streams.value(x), x.new_ones(()), None)
    return streams.relay_layer(call, layer, streams.evaluate(call), nonnegative=streams.is_nonnegative(x))


def winner_takes_all(streams: Streams, call: Call) -> Any:
    """The gradient of a maximum goes to the winner, and so does its relevance."""
    return streams.follow(call, keeps_sign=True)


_DIMENSIONS = ("1d", "2d", "3d")
_AVERAGES = [f"{kind}_pool{d}" for kind in ("avg", "adaptive_avg") for d in _DIMENSIONS]
_MAXIMA = [
    f"{kind}_pool{d}{ending}"
    for kind in ("max", "adaptive_max")
    for d in _DIMENSIONS
    for ending in ("", "_with_indices")
]

TABLE: dict[Callable[..., Any], Handler] = {
    **dict.fromkeys(named(*_AVERAGES, "mean", "sum"), average),
    **dict.fromkeys(named(*_MAXIMA, "amax"), winner_takes_all),
}
