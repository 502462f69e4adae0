"""Averages: in proportion to the values; maxima: the winner takes all, or as an average."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...maps import Fixed
from ...rules import Epsilon, Gradient, Proportional, Rule
from ..calls import Key, named, tensors_in
from ..facts import LiveCall
from ..streams import Handler, Streams


def average(streams: Streams, call: LiveCall) -> Any:
    """A linear function of one tensor, with weights that are fixed and positive, or all negative."""
    divisor = call.kwargs.get("divisor_override", call.args[6] if len(call.args) > 6 else None)
    return fixed(streams, call, keeps_sign=divisor is None or divisor > 0)


def interpolation(streams: Streams, call: LiveCall) -> Any:
    """``torch.nn.functional.interpolate``: nearest neighbours are copies, all else is a fixed linear function."""
    mode = _mode(*call.args, **call.kwargs)
    if mode.startswith("nearest"):
        return streams.follow(call, is_identity=True, nonnegative=call.facts[0].nonnegative)
    return fixed(streams, call, keeps_sign=mode != "bicubic")


def fixed(streams: Streams, call: LiveCall, keeps_sign: bool = False) -> Any:
    """A linear function of one tensor, whose weights are its own."""
    if len(call.live) != 1:
        return NotImplemented
    (x,) = call.live
    _, rule = streams.rule("pool", call, x)
    facts = {"nonnegative": keeps_sign and call.facts_of(x).nonnegative}
    if isinstance(rule, Gradient):
        return streams.follow(call, **facts)
    if not keeps_sign and not is_plain(rule):
        return NotImplemented

    def function(t: Tensor) -> Tensor:
        averaged: Tensor = call.run(lambda argument: t if argument is x else argument)
        return averaged

    return _relay(streams, call, x, function, rule, streams.evaluate(call), **facts)


def _relay(
    streams: Streams, call: LiveCall, x: Tensor, function: Callable[[Tensor], Tensor], rule: Rule, z: Tensor,
    **settings: Any,
) -> Tensor:  # fmt: skip
    f = Fixed(input_shape=tuple(x.shape), function=function)
    values, padding = (streams.value(x), x.new_ones(()), None), call.facts_of(x).padding
    return streams.relay_layer(call, f, rule, None, values, x, z, padding=padding, **settings)


def is_plain(rule: Rule) -> bool:
    """Whether the rule takes a map's weights as they are; others ask for their signs, which a function hides."""
    return type(rule) is Proportional or (type(rule) is Epsilon and rule.exponent == 1)


def maximum(streams: Streams, call: LiveCall) -> Any:
    """A max pool. The winner's share is its gradient; any other rule shares as in the average of the same window."""
    x = _input(*call.args, **call.kwargs)
    _, rule = streams.rule("max_pool", call, x)
    if isinstance(rule, Gradient):
        return winner_takes_all(streams, call)
    averaged = _AVERAGES_OF.get(call.name, _no_average)(*call.args[1:], **call.kwargs)
    if averaged is None:
        return NotImplemented
    nonnegative = call.facts_of(x).nonnegative
    z, total = streams.evaluate(call), averaged(streams.value(x))
    if not isinstance(z, Tensor):
        return NotImplemented
    return _relay(streams, call, x, averaged, rule, z, total=total, nonnegative=nonnegative)


def maximum_over(streams: Streams, call: LiveCall) -> Any:
    """``torch.max``: of two tensors, whose winner is a value of one of them, or over dimensions, as ``amax``."""
    x, over = _over(*call.args, **call.kwargs)
    if over is None:
        return winner_takes_all(streams, call)
    _, rule = streams.rule("max_pool", call, x)
    if isinstance(rule, Gradient):
        return winner_takes_all(streams, call)
    z = streams.evaluate(call)
    averaged, values = _mean(**over), z if isinstance(z, Tensor) else z.values
    nonnegative, total = call.facts_of(x).nonnegative, averaged(streams.value(x))
    y = _relay(streams, call, x, averaged, rule, values, total=total, nonnegative=nonnegative)
    return y if isinstance(z, Tensor) else torch.return_types.max((y, z.indices))


def winner_takes_all(streams: Streams, call: LiveCall) -> Any:
    """The gradient of a maximum goes to the winner, and so does its relevance."""
    values = tensors_in((call.args, call.kwargs))  # indices among them are for safety's sake taken for values
    return streams.follow(call, nonnegative=all(map(streams.known.is_nonnegative, values)))


def _average_pool(
    pool: Callable[..., Tensor], kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Callable[[Tensor], Tensor] | None:  # fmt: skip
    if return_indices or dilation not in (1, (1,), (1, 1), (1, 1, 1)):
        return None
    return partial(pool, kernel_size=kernel_size, stride=stride, padding=padding, ceil_mode=ceil_mode)


def _adaptive_average_pool(
    pool: Callable[..., Tensor], output_size: Any, return_indices: bool = False
) -> Callable[[Tensor], Tensor] | None:
    return None if return_indices else partial(pool, output_size=output_size)


def _mean(dim: Any = (), keepdim: bool = False) -> Callable[[Tensor], Tensor]:
    return partial(torch.mean, dim=dim, keepdim=keepdim)


def _over(input: Tensor, dim: Any = (), keepdim: bool = False, other: Any = None) -> tuple[Tensor, Any]:
    """The input of ``torch.max``, and what it is over; None for the larger one of two tensors."""
    is_pair = isinstance(dim, Tensor) or other is not None
    return input, None if is_pair else {"dim": dim, "keepdim": keepdim}


def _no_average(*_: Any, **__: Any) -> None:
    return None


def _input(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return input


def _mode(input: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *_: Any, **__: Any) -> str:
    return mode


_DIMENSIONS = ("1d", "2d", "3d")
_AVERAGES = [f"{kind}_pool{d}" for kind in ("avg", "adaptive_avg") for d in _DIMENSIONS]
_MAXIMA = [
    f"{kind}_pool{d}{ending}"
    for kind in ("max", "adaptive_max")
    for d in _DIMENSIONS
    for ending in ("", "_with_indices")
]
_UPSAMPLED = "upsample_linear1d upsample_bilinear2d upsample_trilinear3d _upsample_bilinear2d_aa".split()
_CUBIC = "upsample_bicubic2d _upsample_bicubic2d_aa".split()
_WINNERS = "maximum amin min minimum fmax fmin topk sort msort kthvalue median cummax cummin".split()

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
    **dict.fromkeys((*named("mean", "sum", *_UPSAMPLED), F.fold), partial(fixed, keeps_sign=True)),
    **dict.fromkeys(named(*_CUBIC), fixed),
    **dict.fromkeys(named(*_MAXIMA, "amax"), maximum),
    **dict.fromkeys(named("max"), maximum_over),
    **dict.fromkeys(named(*_WINNERS), winner_takes_all),
}
