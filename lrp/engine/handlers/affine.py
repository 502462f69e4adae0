"""A constant scale and shift of each channel: part of the layer before it, or a change of unit of the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...maps.arithmetic import identity
from ...maps.weights import Make
from ...rules import Gradient, Rule
from ..facts import LiveCall
from ..streams import Streams
from .shares import Shares


@dataclass(frozen=True)
class Scaled:
    """The backward of a product with a constant, where a rule takes its gradient."""

    scale: Tensor | float

    def __call__(self, R: Tensor) -> Tensor:
        return R * self.scale


def affine(
    streams: Streams, call: LiveCall, x: Tensor, rule: Rule, scale: Any = 1.0, shift: Any = 0.0,
    of_scale: Make = identity, of_shift: Make = identity, **facts: Any,
) -> Any:  # fmt: skip
    """What ``x * of_scale(scale) + of_shift(shift)`` returns by constants.

    Args:
        rule: that of the function.
        scale: a number or a tensor that broadcasts to ``x``, as the call spells it.
        shift: alike.
        of_scale: an elementwise function.
        of_shift: alike.
        facts: what is known of the output.

    Returns:
        NotImplemented where this is neither of the layer before it nor of the data.
    """
    if call.target is not None and call.target is not x:  # the constant is overwritten, and has memory of its own
        return NotImplemented
    layer = call.facts_of(x).layer
    channel = None if layer is None else layer.channel
    if channel is not None:
        constants = None if _is_number(scale, 1) else scale, None if _is_number(shift, 0) else shift
        vectors = [None if c is None else _of_channels(streams, c, x, channel) for c in constants]
        if all(c is None or vector is not None for c, vector in zip(constants, vectors, strict=True)):
            scales, shifts = vectors
            scales = None if scales is None else of_scale(scales)
            return merge(streams, call, x, scales, None if shifts is None else of_shift(shifts), **facts)
    if call.facts_of(x).data and _is_unit(scale, x) and _is_unit(shift, x):
        return change_of_unit(streams, call, x, rule, **facts)
    return NotImplemented


def merge(streams: Streams, call: LiveCall, x: Tensor, scale: Tensor | None, shift: Tensor | None, **facts: Any) -> Any:
    """``x * scale + shift``, one number a channel, merged with the layer whose output ``x`` is."""
    layer = call.facts_of(x).layer
    z = streams.evaluate(call)
    if layer is not None and isinstance(layer.rule, Gradient):
        channel = layer.channel
        shape = [-1 if dim == channel else 1 for dim in range(-x.dim(), 0)]
        return streams.relay(call, z, [x], Scaled(1.0 if scale is None else scale.view(shape)), layer=layer, **facts)
    return streams.merge(call, x, scale, shift, z, **facts)


def change_of_unit(streams: Streams, call: LiveCall, x: Tensor, rule: Rule, **facts: Any) -> Any:
    """The data in another unit: relevance passes unchanged, as if they had been measured so."""
    if isinstance(rule, Gradient):
        return streams.follow(call, **facts)
    return streams.relay(call, streams.evaluate(call), [x], Shares([x.shape]), **facts)


def _of_channels(streams: Streams, c: Any, x: Tensor, channel: int) -> Tensor | None:
    """A constant as one number for each channel of ``x``, if that is what it is."""
    n = x.shape[channel]
    if isinstance(c, (int, float)):
        return x.new_full((n,), c)
    if not _broadcasts(c, x):
        return None
    c = _unexpanded(c)
    value = streams.value(c).to(x.dtype)
    if c.numel() == 1:
        return value.reshape(1).expand(n)
    return value.reshape(-1) if c.dim() >= -channel and c.shape[channel] == n == c.numel() else None


def _is_number(c: Any, number: float) -> bool:
    return isinstance(c, (int, float)) and c == number


def _is_unit(c: Any, x: Tensor) -> bool:
    """Whether this is a number, or varies along one dimension of ``x`` alone."""
    if isinstance(c, (int, float)):
        return True
    return _broadcasts(c, x) and max((c := _unexpanded(c)).shape, default=1) == c.numel()


def _unexpanded(c: Tensor) -> Tensor:
    """The constant before it was expanded, which it broadcasts from."""
    return c[tuple(slice(1) if stride == 0 else slice(None) for stride in c.stride())]


def _broadcasts(c: Any, x: Tensor) -> bool:
    """Whether a constant broadcasts to ``x`` and leaves its shape and dtype as they are."""
    if not isinstance(c, Tensor) or c.layout != torch.strided or c.dim() > x.dim():
        return False
    sizes = zip(reversed(c.shape), reversed(x.shape), strict=False)
    return all(size in (1, target) for size, target in sizes) and torch.result_type(x, c) == x.dtype
