"""What each torch function does to relevance: one table, function -> handler.

A handler takes the streams and the call, and returns what the call returns, or ``NotImplemented`` where the arguments
are of a kind that it does not know: the function then has no rule, and the user is told.

* :mod:`~lrp.engine.handlers.linear` - linear layers, convolutions, products with constants: the chosen rule
* :mod:`~lrp.engine.handlers.normalization` - batch norms, which merge with the layer before them, and other norms
* :mod:`~lrp.engine.handlers.pooling` - averages, interpolation, maxima
* :mod:`~lrp.engine.handlers.sums`, :mod:`~lrp.engine.handlers.products` - of two tensors, or one and a constant
* :mod:`~lrp.engine.handlers.accumulation` - sums of many tensors by one function, in places that an index names
* :mod:`~lrp.engine.handlers.affine` - a constant scale and shift: part of the layer before it, or a change of unit
* :mod:`~lrp.engine.handlers.activations`, :mod:`~lrp.engine.handlers.softmax` - elementwise functions; softmax
* :mod:`~lrp.engine.handlers.shape` - functions that only move values about
* :mod:`~lrp.engine.handlers.shares` - relevance that passes as it is, to one input or in shares

A new function is a name in the ``TABLE`` of the file whose idea it shares, which finds all its spellings. A new
handler has one of three ends: ``streams.follow`` where the function's gradient is its relevance,
``streams.relay_layer`` where it is a linear map, ``streams.relay`` with a backward of its own.
"""

from __future__ import annotations

from ..calls import Key
from ..streams import Handler
from . import accumulation, activations, linear, normalization, pooling, products, shape, softmax, sums
from .softmax import is_head

__all__ = ["TABLE", "is_head"]

TABLE: dict[Key, Handler] = {
    **linear.TABLE,
    **normalization.TABLE,
    **pooling.TABLE,
    **accumulation.TABLE,
    **sums.TABLE,
    **products.TABLE,
    **activations.TABLE,
    **softmax.TABLE,
    **shape.TABLE,
}
