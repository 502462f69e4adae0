"""Batch norms: merged with the linear layer before them, or else an affine map of their own.

Other norms: the standard deviation is a constant, centring and scale are a linear map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...maps import Centred, Elementwise, LinearMap
from ...rules import Gradient, Proportional
from ..calls import Key, named
from ..calls.norms import (
    batch_norm_arguments,
    group_norm_arguments,
    instance_norm_arguments,
    layer_norm_arguments,
    rms_norm_arguments,
)
from ..facts import LiveCall
from ..streams import Handler, Streams
from .affine import change_of_unit, merge

Parameters = Sequence[Tensor | None]


def batch_norm(streams: Streams, call: LiveCall) -> Any:
    """``torch.nn.functional.batch_norm`` in eval mode: ``z = x * scale + shift``, channel by channel."""
    x, mean, var, weight, bias, training, eps = batch_norm_arguments(*call.args, **call.kwargs)
    if not _is_input_alone(call, x):
        return NotImplemented
    if training or mean is None or var is None:
        return streams.follow_unsupported(call, "batch_norm in training mode")
    layer = call.facts_of(x).layer
    if layer is not None and layer.form == "damped" and not layer.rule.damps and layer.has_channels(x):
        return _spared(streams.follow(call, layer=layer))
    scale, shift = _affine(mean, var, *(_value(streams, t) for t in (weight, bias)), eps=eps)
    channels = _channels(x)
    scale, shift = scale.view(channels), shift.view(channels)
    merged = merge(streams, call, x, scale, shift)
    if merged is not NotImplemented:
        return _spared(merged)
    if call.facts_of(x).data:
        _, rule = streams.rule("norm", call, x, (weight, bias, mean))
        return change_of_unit(streams, call, x, rule)
    f = Elementwise(input_shape=tuple(x.shape))
    return _relay(streams, call, x, f, (scale, shift), (weight, bias, mean))


def _spared(z: Tensor) -> Tensor:
    """What a batch norm returns, spared an error of torch's own gradient on a CPU.

    It is wrong, as of torch 2.14, where the gradient that comes lies otherwise in memory than the input.
    """
    if z.device.type == "cpu" and z.grad_fn is not None and not hasattr(z.grad_fn, "redistribute"):
        z.grad_fn.register_prehook(_contiguous)
    return z


def _contiguous(gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    return tuple(g if g is None else g.contiguous() for g in gradients)


def batch_norm_of_torch(streams: Streams, call: LiveCall) -> Any:
    """``torch.batch_norm``, which has its arguments in another order."""
    return batch_norm(streams, _reordered(streams, F.batch_norm, *call.args, **call.kwargs))


def instance_norm_of_torch(streams: Streams, call: LiveCall) -> Any:
    """``torch.instance_norm``, alike."""
    return instance_norm(streams, _reordered(streams, F.instance_norm, *call.args, **call.kwargs))


def layer_norm(streams: Streams, call: LiveCall) -> Any:
    """``torch.nn.functional.layer_norm``."""
    x, shape, weight, bias, eps = layer_norm_arguments(*call.args, **call.kwargs)
    if not _is_input_alone(call, x):
        return NotImplemented
    grouped = (*x.shape[: x.dim() - len(shape)], math.prod(shape))
    return _centred(streams, call, x, grouped, (weight, bias), tuple(shape), eps)


def group_norm(streams: Streams, call: LiveCall) -> Any:
    """``torch.nn.functional.group_norm``."""
    x, groups, weight, bias, eps = group_norm_arguments(*call.args, **call.kwargs)
    if not _is_input_alone(call, x):
        return NotImplemented
    grouped = (len(x), groups, x.shape[1:].numel() // groups)
    return _centred(streams, call, x, grouped, (weight, bias), _channels(x), eps)


def instance_norm(streams: Streams, call: LiveCall) -> Any:
    """``torch.nn.functional.instance_norm``, with the statistics of the input or with running ones."""
    x, mean, var, weight, bias, of_input, eps = instance_norm_arguments(*call.args, **call.kwargs)
    if not _is_input_alone(call, x):
        return NotImplemented
    if not of_input:
        return batch_norm(streams, streams.call(F.batch_norm, x, mean, var, weight, bias, eps=eps))
    grouped = (*x.shape[:2], x.shape[2:].numel())
    return _centred(streams, call, x, grouped, (weight, bias), _channels(x), eps)


def rms_norm(streams: Streams, call: LiveCall) -> Any:
    """``torch.nn.functional.rms_norm``."""
    x, shape, weight, eps = rms_norm_arguments(*call.args, **call.kwargs)
    if not _is_input_alone(call, x):
        return NotImplemented
    squares = _widened(streams.value(x)).square().mean(tuple(range(-len(shape), 0)), keepdim=True)
    scale = torch.rsqrt(squares + (_epsilon_of_rms(x.dtype) if eps is None else eps))
    w = scale if weight is None else scale * streams.value(weight)
    return _relay(streams, call, x, Elementwise(input_shape=tuple(x.shape)), (w, None), (weight,))


def _centred(
    streams: Streams, call: LiveCall, x: Tensor, grouped: tuple[int, ...], parameters: Parameters,
    parameter_shape: tuple[int, ...], eps: float,
) -> Any:  # fmt: skip
    """A norm of each group by its mean and deviation, followed by a weight and a bias."""
    groups = _widened(streams.value(x)).reshape(grouped)
    variance = (groups - groups.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)  # var() takes ten times as long
    scale = torch.rsqrt(variance + eps)
    scale = scale.expand(groups.shape).reshape(x.shape)
    weight, bias = (None if t is None else streams.value(t).view(parameter_shape) for t in parameters)
    w = scale if weight is None else scale * weight
    return _relay(streams, call, x, Centred(input_shape=tuple(x.shape), grouped=grouped), (w, bias), parameters)


def _relay(
    streams: Streams, call: LiveCall, x: Tensor, f: LinearMap, values: tuple[Tensor, Tensor | None],
    parameters: Parameters,
) -> Any:  # fmt: skip
    name, rule = streams.rule("norm", call, x, parameters)
    if isinstance(rule, Gradient):
        return streams.gradient(call)
    if streams.forms.is_gradient(call) and streams.forms.adds_up(rule, call):
        rule = Proportional(epsilon=0)  # nothing is divided
    z = streams.evaluate(call)
    return streams.relay_layer(call, f, rule, name, (streams.value(x), *values), x, z, has_parameters=True)


def _widened(x: Tensor) -> Tensor:
    """As torch computes norms: the square of what float16 and bfloat16 can hold is beyond them, or imprecise."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


@cache
def _epsilon_of_rms(dtype: torch.dtype) -> float:
    """The epsilon that ``rms_norm`` takes where none is given: torch's versions differ, so it is asked."""
    x = torch.full((1,), 1e-3, dtype=dtype, device="cpu")
    z = float(F.rms_norm(x, (1,)))
    candidates = torch.finfo(dtype).eps, torch.finfo(torch.float32).eps
    return min(candidates, key=lambda eps: abs(float(x) / math.sqrt(float(x) ** 2 + eps) - z))


def _reordered(
    streams: Streams, function: Callable[..., Tensor], input: Tensor, weight: Tensor | None, bias: Tensor | None,
    running_mean: Tensor | None, running_var: Tensor | None, flag: bool, momentum: float, eps: float, *_: Any,
    **__: Any,
) -> LiveCall:  # fmt: skip
    """The call of the function of ``torch.nn.functional`` for the arguments of its namesake in ``torch``."""
    return streams.call(function, input, running_mean, running_var, weight, bias, flag, momentum, eps)


def _is_input_alone(call: LiveCall, x: Tensor) -> bool:
    """Whether only the input depends on what is explained, and not the weight, bias or statistics."""
    return all(t is x for t in call.live)


def _value(streams: Streams, t: Tensor | None) -> Tensor | None:
    return None if t is None else streams.value(t)


def _channels(x: Tensor) -> tuple[int, ...]:
    """The shape in which one number a channel broadcasts to ``x``."""
    return (-1, *(1 for _ in x.shape[2:]))


def _affine(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel."""
    scale = torch.rsqrt(var + eps) if weight is None else weight * torch.rsqrt(var + eps)
    shift = -mean * scale if bias is None else bias - mean * scale
    return scale, shift


TABLE: dict[Key, Handler] = {
    **dict.fromkeys(named("batch_norm"), batch_norm_of_torch),
    **dict.fromkeys(named("instance_norm"), instance_norm_of_torch),
    **dict.fromkeys(named("group_norm"), group_norm),
    **dict.fromkeys(named("layer_norm"), layer_norm),
    **dict.fromkeys(named("rms_norm"), rms_norm),
    F.batch_norm: batch_norm,
    F.instance_norm: instance_norm,
}
