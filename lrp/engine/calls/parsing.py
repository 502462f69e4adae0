"""What linear map a call is, if it is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import linear, matrices
from .call import Call
from .linear import LinearCall
from .lookup import key_of

PARSERS: dict[Any, Callable[..., LinearCall | None]] = {**linear.PARSERS, **matrices.PARSERS}


def parse(call: Call, is_live: Callable[[Tensor], bool]) -> LinearCall | None:
    """What the call calls, if it is a linear map of one live tensor by constant ones."""
    parser = PARSERS.get(key_of(call.function))
    layer = None if parser is None else parser(*call.args, **call.kwargs)
    if layer is not None and is_live(layer.w):
        layer = matrices.swapped(layer)
    if layer is None or not is_live(layer.x):
        return None
    constants = (t for t in (layer.w, layer.b) if t is not None)
    return None if any(map(is_live, constants)) else layer
