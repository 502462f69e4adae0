"""Linear layers, convolutions and products with constant matrices: the chosen rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..calls import linear as linear_calls
from ..calls import matrices
from ..calls.call import Call
from ..calls.linear import LinearCall
from ..streams import Handler, Layer, Streams


def parse(call: Call, is_live: Callable[[Tensor], bool]) -> LinearCall | None:
    """What the call calls, if it is a linear map of one live tensor by constant ones."""
    parser = _PARSERS.get(call.function)
    layer = None if parser is None else parser(*call.args, **call.kwargs)
    if layer is not None and is_live(layer.w):
        layer = matrices.swapped(layer)
    if layer is None or not is_live(layer.x):
        return None
    constants = (t for t in (layer.w, layer.b) if t is not None)
    return None if any(map(is_live, constants)) else layer


def linear(streams: Streams, call: Call) -> Any:
    """A linear map: the chosen rule."""
    found = parse(call, streams.is_live)
    if found is None:
        return NotImplemented
    family, f, x, w, b = found
    f = replace(f, signed=not streams.is_nonnegative(x))
    name, rule = streams.rule(family, call, x, (w, b))
    z = streams.evaluate(call)
    unbatched = x.dim() < len(f.input_shape)
    if unbatched:
        x, z = streams.follow(Call(torch.unsqueeze, (x, 0))), z.unsqueeze(0)
    bias = None if b is None else streams.value(b)
    y = streams.relay_layer(call, Layer(f, rule, name, x, streams.value(x), streams.value(w), bias), z, data=False)
    return streams.follow(Call(torch.squeeze, (y, 0))) if unbatched else y


_PARSERS: dict[Callable[..., Any], Callable[..., LinearCall | None]] = {**linear_calls.PARSERS, **matrices.PARSERS}

TABLE: dict[Callable[..., Any], Handler] = dict.fromkeys(_PARSERS, linear)
