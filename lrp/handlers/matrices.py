"""Products of matrices: with a constant, a linear layer whose weight the constant is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..calls import Call, tensors_in
from ..linear_maps import Product
from ..streams import Handler, Layer, Streams
from .lookup import named


def matrix_product(streams: Streams, call: Call) -> Any:
    """``torch.matmul``, ``torch.einsum`` and their kin, of a tensor that carries relevance and one that is constant."""
    operands = list(tensors_in((call.args, call.kwargs)))
    live = [t for t in operands if streams.is_live(t)]
    if len(operands) != 2 or len(live) != 1:
        return NotImplemented
    (x,) = live
    (w,) = (t for t in operands if t is not x)

    def function(x_: Tensor, w_: Tensor) -> Tensor:
        product: Tensor = call.run(lambda t: x_ if t is x else w_)
        return product

    name, rule = streams.rule("linear", call, x, (w,))
    f = Product(
        input_shape=tuple(x.shape), signed=not streams.is_nonnegative(x), weight_shape=tuple(w.shape), function=function
    )
    layer = Layer(f, rule, name, x, streams.value(x), streams.value(w), None)
    return streams.relay_layer(call, layer, streams.evaluate(call), data=False)


_NAMES = "matmul mm bmm mv einsum inner tensordot __matmul__ __rmatmul__".split()

TABLE: dict[Callable[..., Any], Handler] = dict.fromkeys(named(*_NAMES), matrix_product)
