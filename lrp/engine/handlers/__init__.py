"""What each torch function does to relevance: one table, function -> handler.

A handler takes the streams and the call, and returns what the call returns, or ``NotImplemented`` where the arguments
are of a kind that it does not know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..streams import Handler
from . import activations, linear, normalization, pooling, products, shape, softmax, sums

TABLE: dict[Callable[..., Any], Handler] = {
    **linear.TABLE,
    **normalization.TABLE,
    **pooling.TABLE,
    **sums.TABLE,
    **products.TABLE,
    **activations.TABLE,
    **softmax.TABLE,
    **shape.TABLE,
}
