"""Linear layers, convolutions and transposed convolutions: the chosen rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..calls import Call
from ..linear_maps import Convolution, Linear, same_padding
from ..rule import Family
from ..streams import Handler, Layer, Streams

Ints = int | tuple[int, ...]


class LinearCall(NamedTuple):
    """The call of a linear layer: its family, and what it does to which tensors."""

    family: Family
    f: Linear | Convolution
    x: Tensor
    w: Tensor
    b: Tensor | None


def parse(call: Call) -> LinearCall | None:
    """What the call calls, if it is a linear layer or a convolution."""
    parser = _PARSERS.get(call.function)
    return None if parser is None else parser(*call.args, **call.kwargs)


def layer(streams: Streams, call: Call) -> Any:
    """A linear layer or a convolution: the chosen rule."""
    family, f, x, w, b = _PARSERS[call.function](*call.args, **call.kwargs)
    if not streams.is_live(x) or any(t is not None and streams.is_live(t) for t in (w, b)):
        return NotImplemented
    f = replace(f, signed=not streams.is_nonnegative(x))
    name, rule = streams.rule(family, call, x, (w, b))
    z = streams.evaluate(call)
    unbatched = x.dim() < len(f.input_shape)
    if unbatched:
        x, z = streams.follow(Call(torch.unsqueeze, (x, 0))), z.unsqueeze(0)
    bias = None if b is None else streams.value(b)
    y = streams.relay_layer(call, Layer(f, rule, name, x, streams.value(x), streams.value(w), bias), z, data=False)
    return streams.follow(Call(torch.squeeze, (y, 0))) if unbatched else y


# The parsers have torch's arguments in torch's order, to be bound by Python itself: torch's builtins have no
# signature to ask.


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> LinearCall:
    return LinearCall("linear", Linear(input_shape=tuple(input.shape)), input, weight, bias)


def _convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Ints = 1, padding: Ints | str = 0,
    dilation: Ints = 1, groups: int = 1,
) -> LinearCall:  # fmt: skip
    kernel = tuple(weight.shape[2:])
    extra: tuple[int, ...] = ()
    if padding == "same":
        padding, extra = same_padding(kernel, _each(dilation, len(kernel)))
    padding = 0 if isinstance(padding, str) else padding
    f = _map(input, weight, stride, padding, dilation, groups, extra_padding=extra)
    return LinearCall("conv", f, input, weight, bias)


def _transposed_convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Ints = 1, padding: Ints = 0,
    output_padding: Ints = 0, groups: int = 1, dilation: Ints = 1,
) -> LinearCall:  # fmt: skip
    f = _map(input, weight, stride, padding, dilation, groups, output_padding, transposed=True)
    return LinearCall("conv", f, input, weight, bias)


def _map(
    x: Tensor, w: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int, output_padding: Ints = 0,
    **settings: Any,
) -> Convolution:  # fmt: skip
    n = w.dim() - 2
    return Convolution(
        input_shape=tuple(x.shape) if x.dim() == n + 2 else (1, *x.shape),
        weight_shape=tuple(w.shape),
        stride=_each(stride, n),
        padding=_each(padding, n),
        dilation=_each(dilation, n),
        output_padding=_each(output_padding, n),
        groups=groups,
        **settings,
    )


def _each(value: Ints, n: int) -> tuple[int, ...]:
    """One number for each of ``n`` dimensions."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * n if len(values) == 1 else values


_PARSERS: dict[Callable[..., Any], Callable[..., LinearCall]] = {
    F.linear: _linear,
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), _convolution),
    **dict.fromkeys((torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d), _transposed_convolution),
}

TABLE: dict[Callable[..., Any], Handler] = dict.fromkeys(_PARSERS, layer)
