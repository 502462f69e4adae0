"""Linear layers, convolutions and transposed convolutions: the chosen rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..calls import Call
from ..linear_maps import Convolution, Linear, LinearMap, same_padding
from ..rule import Family
from ..streams import Handler, Layer, Streams

Ints = int | tuple[int, ...]


def linear(streams: Streams, call: Call) -> Any:
    """``torch.nn.functional.linear``."""
    x, w, b = _linear_arguments(*call.args, **call.kwargs)
    f = Linear(input_shape=tuple(x.shape), signed=not streams.is_nonnegative(x))
    return _handle(streams, call, "linear", x, w, b, f)


def convolution(streams: Streams, call: Call) -> Any:
    """``torch.nn.functional.conv1d`` to ``conv3d``."""
    x, w, b, stride, padding, dilation, groups = _convolution_arguments(*call.args, **call.kwargs)
    kernel = tuple(w.shape[2:])
    extra: tuple[int, ...] = ()
    if padding == "same":
        padding, extra = same_padding(kernel, _each(dilation, len(kernel)))
    f = _map(streams, x, w, stride, 0 if padding == "valid" else padding, dilation, groups, extra_padding=extra)
    return _handle(streams, call, "conv", x, w, b, f)


def transposed_convolution(streams: Streams, call: Call) -> Any:
    """``torch.nn.functional.conv_transpose1d`` to ``conv_transpose3d``."""
    x, w, b, stride, padding, output_padding, groups, dilation = _transposed_arguments(*call.args, **call.kwargs)
    f = _map(streams, x, w, stride, padding, dilation, groups, output_padding, transposed=True)
    return _handle(streams, call, "conv", x, w, b, f)


def _map(
    streams: Streams, x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int,
    output_padding: Ints = 0, **settings: Any,
) -> Convolution:  # fmt: skip
    n = w.dim() - 2
    return Convolution(
        input_shape=tuple(x.shape) if x.dim() == n + 2 else (1, *x.shape),
        signed=not streams.is_nonnegative(x),
        weight_shape=tuple(w.shape),
        stride=_each(stride, n),
        padding=_each(padding, n),
        dilation=_each(dilation, n),
        output_padding=_each(output_padding, n),
        groups=groups,
        **settings,
    )


def _handle(streams: Streams, call: Call, family: Family, x: Tensor, w: Tensor, b: Tensor | None, f: LinearMap) -> Any:
    if not streams.is_live(x) or any(t is not None and streams.is_live(t) for t in (w, b)):
        return NotImplemented
    name, rule = streams.rule(family, call, x, (w, b))
    z = streams.evaluate(call)
    unbatched = x.dim() < len(f.input_shape)
    if unbatched:
        x, z = streams.follow(Call(torch.unsqueeze, (x, 0))), z.unsqueeze(0)
    bias = None if b is None else streams.value(b)
    layer = Layer(f, rule, name, x, streams.value(x), streams.value(w), bias)
    y = streams.relay_layer(call, layer, z, data=False)
    return streams.follow(Call(torch.squeeze, (y, 0))) if unbatched else y


def _each(value: Ints, n: int) -> tuple[int, ...]:
    """One number for each of ``n`` dimensions."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n if len(values) == 1 else values


# The arguments in torch's order, to be bound by Python itself: torch's builtins have no signature to ask.


def _linear_arguments(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Any, ...]:
    return input, weight, bias


def _convolution_arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Ints = 1, padding: Ints | str = 0,
    dilation: Ints = 1, groups: int = 1,
) -> tuple[Any, ...]:  # fmt: skip
    return input, weight, bias, stride, padding, dilation, groups


def _transposed_arguments(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Ints = 1, padding: Ints = 0,
    output_padding: Ints = 0, groups: int = 1, dilation: Ints = 1,
) -> tuple[Any, ...]:  # fmt: skip
    return input, weight, bias, stride, padding, output_padding, groups, dilation


TABLE: dict[Callable[..., Any], Handler] = {
    F.linear: linear,
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), convolution),
    **dict.fromkeys((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), transposed_convolution),
}
