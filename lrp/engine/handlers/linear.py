"""Linear layers, convolutions and products with constant matrices: the chosen rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ..calls import Call
from ..calls.parsing import PARSERS, parse
from ..facts import Layer
from ..streams import Handler, Streams


def linear(streams: Streams, call: Call) -> Any:
    """A linear map: the chosen rule."""
    found = parse(call, streams.is_live)
    if found is None:
        return NotImplemented
    family, f, x, w, b = found
    f = replace(f, signed=not streams.known.is_nonnegative(x))
    name, rule = streams.rule(family, call, x, (w, b))
    z = streams.evaluate(call)
    unbatched = x.dim() < len(f.input_shape)
    if unbatched:
        x, z = streams.follow(Call(torch.unsqueeze, (x, 0))), z.unsqueeze(0)
    bias = None if b is None else streams.value(b)
    layer = Layer(f, rule, name, x, streams.value(x), streams.value(w), bias)
    y = streams.relay_layer(call, layer, z, has_parameters=True, data=False)
    return streams.follow(Call(torch.squeeze, (y, 0))) if unbatched else y


TABLE: dict[Callable[..., Any], Handler] = dict.fromkeys(PARSERS, linear)
