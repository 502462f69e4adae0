"""A constant scale and shift of each channel: part of the layer before it, or a change of unit of the data."""

from __future__ import annotations

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ...maps.arithmetic import identity
from ...maps.weights import Make
from ...rules import Gradient, Rule
from ..facts import LiveCall
from ..streams import Streams
from .shares import ScaledGradient, Shares


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
    of_samples = [c for c in (scale, shift) if _is_of_samples(streams, c, x)]
    if call.facts_of(x).layer is not None and not of_samples and _broadcasts(scale, x) and _broadcasts(shift, x):
        by = None if _is_number(scale, 1) else of_scale(_constant(streams, scale, x))
        by_shift = None if _is_number(shift, 0) else of_shift(_constant(streams, shift, x))
        merged = merge(streams, call, x, by, by_shift, **facts)
        if merged is not NotImplemented:
            return merged
    if any(c.numel() > len(c) for c in of_samples):
        return NotImplemented
    if call.facts_of(x).data and _is_unit(scale, x) and _is_unit(shift, x):
        return change_of_unit(streams, call, x, rule, **facts)
    return NotImplemented


def merge(streams: Streams, call: LiveCall, x: Tensor, scale: Tensor | None, shift: Tensor | None, **facts: Any) -> Any:
    """``x * scale + shift``, merged with the layer whose output ``x`` is.

    Args:
        scale: a tensor that broadcasts to ``x``, or None for 1.
        shift: alike, or None for 0.

    Returns:
        NotImplemented where ``x`` is no layer's output, or these are not one number for each of its neurons.
    """
    layer = call.facts_of(x).layer
    neurons = None if layer is None else layer.neurons
    if layer is None or neurons is None:
        return NotImplemented
    scales, shifts = (
        None if scale is None else neurons.of(scale, 1.0),
        None if shift is None else neurons.of(shift, 0.0),
    )
    if (scales is None) != (scale is None) or (shifts is None) != (shift is None):
        return NotImplemented
    is_gradient = streams.forms.is_gradient(call)
    if is_gradient and layer.rule.is_gradient and not layer.rule.damps:
        return streams.follow(call, layer=layer, **facts)
    z = streams.evaluate(call)
    if isinstance(layer.rule, Gradient) and not is_gradient:
        return streams.relay(call, z, [x], ScaledGradient(1.0 if scale is None else scale), layer=layer, **facts)
    return streams.merge(call, x, scales, shifts, z, **facts)


def change_of_unit(streams: Streams, call: LiveCall, x: Tensor, rule: Rule, **facts: Any) -> Any:
    """The data in another unit: relevance passes unchanged, as if they had been measured so."""
    if isinstance(rule, Gradient):
        return streams.gradient(call, **facts)
    return streams.relay(call, streams.evaluate(call), [x], Shares([x.shape]), **facts)


def _constant(streams: Streams, c: Any, x: Tensor) -> Tensor:
    """A number, or a tensor before it was expanded, as a tensor of the dtype of ``x``."""
    return x.new_full((), float(c)) if isinstance(c, Real) else streams.value(_unexpanded(c)).to(x.dtype)


def _is_number(c: Any, number: float) -> bool:
    return isinstance(c, Real) and c == number


def _is_unit(c: Any, x: Tensor) -> bool:
    """Whether this is a number, or varies along one dimension of ``x`` alone."""
    if isinstance(c, Real):
        return True
    return _broadcasts(c, x) and max((c := _unexpanded(c)).shape, default=1) == c.numel()


def _is_of_samples(streams: Streams, c: Any, x: Tensor) -> bool:
    """Whether a constant was made for the samples at hand, of which there may be but one, and not for all alike."""
    return isinstance(c, Tensor) and c.dim() == x.dim() > 0 and streams.known.is_any_varying(c)


def _unexpanded(c: Tensor) -> Tensor:
    """The constant before it was expanded, which it broadcasts from."""
    return c[tuple(slice(1) if stride == 0 else slice(None) for stride in c.stride())]


def _broadcasts(c: Any, x: Tensor) -> bool:
    """Whether a constant broadcasts to ``x`` and leaves its shape and dtype as they are."""
    if isinstance(c, Real):
        return True
    if not isinstance(c, Tensor) or c.layout != torch.strided or c.dim() > x.dim():
        return False
    sizes = zip(reversed(c.shape), reversed(x.shape), strict=False)
    return all(size in (1, target) for size, target in sizes) and torch.result_type(x, c) == x.dtype
