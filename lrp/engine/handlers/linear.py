"""Linear layers, convolutions and products with constant matrices: the chosen rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..calls.parsing import PARSERS, parse
from ..facts import LiveCall
from ..streams import Handler, Streams


def linear(streams: Streams, call: LiveCall) -> Any:
    """A linear map: the chosen rule."""
    found = parse(call, streams.is_live)
    if found is None:
        return NotImplemented
    family, f, x, w, b = found
    f = replace(f, signed=not call.facts_of(x).nonnegative)
    name, rule = streams.rule(family, call, x, (w, b))
    values = streams.value(x), streams.value(w), None if b is None else streams.value(b)
    z = streams.evaluate(call)
    return streams.relay_layer(call, f, rule, name, values, x, z, has_parameters=True, data=False, gate=False)


TABLE: dict[Callable[..., Any], Handler] = dict.fromkeys(PARSERS, linear)
