"""What a call of a linear layer or a convolution says of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ...maps import Contraction, Convolution, Linear
from ...maps.convolutions import same_padding
from ...rules import Family
from .lookup import named

Ints = int | tuple[int, ...]


class LinearCall(NamedTuple):
    """The call of a linear map: its family, and what it does to which tensors."""

    family: Family
    f: Linear | Convolution | Contraction
    x: Tensor
    w: Tensor
    b: Tensor | None = None


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


def _either_convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints,
    transposed: bool, output_padding: Ints, groups: int,
) -> LinearCall:  # fmt: skip
    if transposed:
        return _transposed_convolution(input, weight, bias, stride, padding, output_padding, groups, dilation)
    return _convolution(input, weight, bias, stride, padding, dilation, groups)


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


PARSERS: dict[Callable[..., Any], Callable[..., LinearCall]] = {
    **dict.fromkeys(named("linear"), _linear),
    **dict.fromkeys(named("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(named("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed_convolution),
    **dict.fromkeys(named("convolution"), _either_convolution),
}
