"""Linear layers, convolutions and products with constant matrices: the chosen rule."""

from __future__ import annotations

from collections.abc import Sequence
from string import ascii_letters
from typing import Any

import torch
from torch import Tensor

from ...maps.records import changed
from ..calls import Key, named, tensors_in
from ..calls.linear import LinearCall
from ..calls.matrices import einsum_of_several
from ..calls.parsing import PARSERS, parse
from ..facts import SIGNAL, LiveCall
from ..streams import Handler, Streams
from .shape import moves


def linear(streams: Streams, call: LiveCall) -> Any:
    """A linear map: the chosen rule."""
    found = parse(call, streams.is_live)
    return NotImplemented if found is None else _layer(streams, call, found, (found.w, found.b))


def einsum(streams: Streams, call: LiveCall) -> Any:
    """``torch.einsum``: of one live tensor and several constants, by their product."""
    constants = [t for t in tensors_in(call.args) if not any(t is x for x in call.live)]
    if len(call.live) > 1 or len(constants) < 2:
        return linear(streams, call)
    found = einsum_of_several(call.live[0], *call.args)
    if found is None:
        return NotImplemented
    streams.assignment.derive(constants, found.w)
    return _layer(streams, call, found, (found.w,))


def kron(streams: Streams, call: LiveCall) -> Any:
    """``torch.kron``: the products of all elements of two tensors, side by side."""
    factors = _factors(*call.args, **call.kwargs)
    if len(call.live) > 1:
        return NotImplemented
    n = max(t.dim() for t in factors)
    a, b = (_reshaped(streams, t, (*(1 for _ in range(n - t.dim())), *t.shape)) for t in factors)
    of_a, of_b = ascii_letters[:n], ascii_letters[n : 2 * n]
    of_z = "".join(map("".join, zip(of_a, of_b, strict=True)))
    z = linear(streams, streams.call(torch.einsum, f"{of_a},{of_b}->{of_z}", a, b))
    return _reshaped(streams, z, [i * j for i, j in zip(a.shape, b.shape, strict=True)])


def _reshaped(streams: Streams, t: Tensor, shape: Sequence[int]) -> Any:
    return moves(streams, streams.call(torch.reshape, t, shape)) if streams.is_live(t) else t.reshape(shape)


def _factors(input: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    return input, other


def _layer(streams: Streams, call: LiveCall, found: LinearCall, parameters: Sequence[Tensor | None]) -> Any:
    family, f, x, w, b = found
    f = changed(f, signed=not call.facts_of(x).nonnegative)
    name, rule = streams.rule(family, call, x, parameters)
    if streams.forms.follows(rule) and x.dim() == len(f.input_shape):
        return streams.follow_layer(call, f, rule)
    values = streams.value(x), streams.value(w), None if b is None else streams.value(b)
    z = streams.evaluate(call)
    return streams.relay_layer(
        call, f, rule, name, values, x, z,
        padding=call.facts_of(x).padding, has_parameters=True, **SIGNAL,
    )  # fmt: skip


TABLE: dict[Key, Handler] = {**dict.fromkeys(PARSERS, linear), **dict.fromkeys(named("kron"), kron)}
