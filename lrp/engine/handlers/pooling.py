"""Averages: in proportion to the values; maxima: the winner takes all, or as an average."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...maps import Fixed
from ...rules import AlphaBeta, Gamma, Gradient, Rule, ZBox, ZPlus
from ..calls import Key, named, tensors_in
from ..facts import LiveCall
from ..streams import Handler, Streams
from .shares import given


class Weights(Enum):
    """What is known of the weights that a function hides from rules."""

    EVEN = auto()  # those of an output are all the same, and positive: each is as good as 1
    POSITIVE = auto()
    SIGNED = auto()

    def suit(self, rule: Rule) -> bool:
        """Whether the rule does not ask for what it would not be told: the signs of weights, or their sizes."""
        asks_for_signs = type(rule) in (AlphaBeta, Gamma, ZBox, ZPlus)
        return self is Weights.EVEN or rule.is_plain() or (self is Weights.POSITIVE and asks_for_signs)


def average(streams: Streams, call: LiveCall) -> Any:
    """A linear function of one tensor, with weights that are fixed and positive, or all negative."""
    divisor = call.kwargs.get("divisor_override", call.args[6] if len(call.args) > 6 else None)
    return fixed(streams, call, Weights.EVEN if divisor is None or divisor > 0 else Weights.SIGNED)


def interpolation(streams: Streams, call: LiveCall) -> Any:
    """``torch.nn.functional.interpolate``: nearest neighbours are copies, all else is a fixed linear function."""
    mode, is_identity = _mode(*call.args, **call.kwargs)
    if mode.startswith("nearest"):
        return streams.follow(call, is_identity=is_identity, nonnegative=call.facts[0].nonnegative)
    return fixed(streams, call, _MODES.get(mode, Weights.SIGNED))


def fixed(streams: Streams, call: LiveCall, weights: Weights = Weights.SIGNED) -> Any:
    """A linear function of one tensor, whose weights are its own."""
    if len(call.live) != 1:
        return NotImplemented
    (x,) = call.live
    _, rule = streams.rule("pool", call, x)
    facts = {"nonnegative": weights is not Weights.SIGNED and call.facts_of(x).nonnegative}
    if streams.forms.adds_up(rule, call):
        return streams.follow(call, **facts)
    if not weights.suit(rule):
        return NotImplemented

    def function(t: Tensor) -> Tensor:
        averaged: Tensor = call.run(lambda argument: t if argument is x else argument)
        return averaged

    return _relay(streams, call, x, function, rule, streams.evaluate(call), **facts)


def _relay(
    streams: Streams, call: LiveCall, x: Tensor, function: Callable[[Tensor], Tensor], rule: Rule, z: Tensor,
    **facts: Any,
) -> Tensor:  # fmt: skip
    f = Fixed(input_shape=tuple(x.shape), function=function)
    values, padding = (streams.value(x), x.new_ones(()), None), call.facts_of(x).padding
    return streams.relay_layer(call, f, rule, None, values, x, z, padding=padding, **facts)


def maximum(streams: Streams, call: LiveCall) -> Any:
    """A max pool. The winner's share is its gradient; any other rule shares as in the average of the same window."""
    x = _input(*call.args, **call.kwargs)
    _, rule = streams.rule("max_pool", call, x)
    if isinstance(rule, Gradient):
        return winner_takes_all(streams, call)
    averaged = _AVERAGES_OF[call.name.removesuffix("_with_indices")](*call.args, **call.kwargs)
    return NotImplemented if averaged is None else _as_average(streams, call, x, averaged, rule)


def maximum_over(streams: Streams, call: LiveCall) -> Any:
    """``torch.max``: of two tensors, whose winner is a value of one of them, or over dimensions, as ``amax``."""
    x, over = _over(*call.args, **call.kwargs)
    if over is None:
        return winner_takes_all(streams, call)
    _, rule = streams.rule("max_pool", call, x)
    if isinstance(rule, Gradient):
        return winner_takes_all(streams, call)
    return _as_average(streams, call, x, _mean(x, **over), rule)


def _as_average(
    streams: Streams, call: LiveCall, x: Tensor, averaged: Callable[[Tensor], Tensor], rule: Rule
) -> Any:  # fmt: skip
    """A maximum, with its indices or without, which shares as an average does."""
    z = streams.evaluate(call)
    values, *indices = (z,) if isinstance(z, Tensor) else z
    average = _relay(streams, call, x, averaged, rule, averaged(streams.value(x)))
    y = given(streams, call, average, values, nonnegative=call.facts_of(x).nonnegative)
    if isinstance(z, torch.return_types.max):
        return torch.return_types.max((y, *indices))
    return (y, *indices) if indices else y


def winner_takes_all(streams: Streams, call: LiveCall) -> Any:
    """The gradient of a maximum goes to the winner, and so does its relevance."""
    values = tensors_in((call.args, call.kwargs))  # indices among them are for safety's sake taken for values
    return streams.follow(call, nonnegative=all(map(streams.known.is_nonnegative, values)))


def _average_pool(
    pool: Callable[..., Tensor], input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0,
    dilation: Any = 1, ceil_mode: bool = False, return_indices: bool = False,
) -> Callable[[Tensor], Tensor] | None:  # fmt: skip
    if any(step != 1 for step in (dilation if isinstance(dilation, (tuple, list)) else (dilation,))):
        return None
    return partial(pool, kernel_size=kernel_size, stride=stride, padding=padding, ceil_mode=ceil_mode)


def _adaptive_average_pool(
    pool: Callable[..., Tensor], input: Tensor, output_size: Any, return_indices: bool = False
) -> Callable[[Tensor], Tensor]:
    return partial(pool, output_size=output_size)


def _mean(input: Tensor, dim: Any = (), keepdim: bool = False) -> Callable[[Tensor], Tensor]:
    return partial(torch.mean, dim=dim, keepdim=keepdim)


def _over(input: Tensor, dim: Any = (), keepdim: bool = False, other: Any = None) -> tuple[Tensor, Any]:
    """The input of ``torch.max``, and what it is over; None for the larger one of two tensors."""
    is_pair = isinstance(dim, Tensor) or other is not None
    return input, None if is_pair else {"dim": dim, "keepdim": keepdim}


def _input(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return input


def _mode(
    input: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *_: Any, **__: Any
) -> tuple[str, bool]:
    """The mode, and whether an output of the input's size is the input: a factor such as 1.05 may leave the size."""
    return mode, size is not None or scale_factor == 1


_DIMENSIONS = ("1d", "2d", "3d")
_AVERAGES = [f"{kind}_pool{d}" for kind in ("avg", "adaptive_avg") for d in _DIMENSIONS]
_MAXIMA = [
    f"{kind}_pool{d}{ending}"
    for kind in ("max", "adaptive_max")
    for d in _DIMENSIONS
    for ending in ("", "_with_indices")
]
_UPSAMPLED = "upsample_linear1d upsample_bilinear2d upsample_trilinear3d _upsample_bilinear2d_aa".split()
_SIGNED = "upsample_bicubic2d _upsample_bicubic2d_aa _upsample_lanczos2d_aa".split()
_WINNERS = "maximum amin min minimum fmax fmin topk sort msort kthvalue median cummax cummin".split()

_MODES = {"area": Weights.EVEN, **dict.fromkeys(("linear", "bilinear", "trilinear"), Weights.POSITIVE)}

_AVERAGES_OF: dict[str, Callable[..., Callable[[Tensor], Tensor] | None]] = {
    "amax": _mean,
    **{f"max_pool{d}": partial(_average_pool, getattr(F, f"avg_pool{d}")) for d in _DIMENSIONS},
    **{
        f"adaptive_max_pool{d}": partial(_adaptive_average_pool, getattr(F, f"adaptive_avg_pool{d}"))
        for d in _DIMENSIONS
    },
}

TABLE: dict[Key, Handler] = {
    F.interpolate: interpolation,
    **dict.fromkeys(named(*_AVERAGES), average),
    **dict.fromkeys((*named("mean", "sum", "col2im"), F.fold), partial(fixed, weights=Weights.EVEN)),
    **dict.fromkeys(named(*_UPSAMPLED), partial(fixed, weights=Weights.POSITIVE)),
    **dict.fromkeys(named(*_SIGNED), fixed),
    **dict.fromkeys(named(*_MAXIMA, "amax"), maximum),
    **dict.fromkeys(named("max"), maximum_over),
    **dict.fromkeys(named(*_WINNERS), winner_takes_all),
}
