"""Batch norms: merged with the linear layer before them, or else an affine map of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..calls import Call
from ..linear_maps import Elementwise
from ..streams import Handler, Layer, Streams


def batch_norm(streams: Streams, call: Call) -> Any:
    """``torch.nn.functional.batch_norm`` in eval mode: ``z = x * scale + shift``, channel by channel."""
    x, mean, var, weight, bias, training, eps = _arguments(*call.args, **call.kwargs)
    if not streams.is_live(x):
        return NotImplemented
    if training or mean is None or var is None:
        streams.take_gradient("batch_norm in training mode")
        return streams.follow(call)
    z = streams.evaluate(call)
    scale, shift = _affine(mean, var, *(None if t is None else streams.value(t) for t in (weight, bias)), eps=eps)
    before = streams.facts(x).layer
    if before is not None and before.f.has_channels(z):
        b = shift if before.b is None else before.b * scale + shift
        w = before.f.scale_channels(before.w, scale)
        return streams.relay_layer(call, before._replace(w=w, b=b), z)
    name = streams.assignment.name((weight, bias, mean), "batch_norm")
    rule = streams.assignment.rule_for("norm", z.dtype)
    f = Elementwise(input_shape=tuple(x.shape))
    channels = (-1, *(1 for _ in x.shape[2:]))
    values = streams.value(x), scale.view(channels), shift.view(channels)
    return streams.relay_layer(call, Layer(f, rule, streams.assignment.numbered(name), x, *values), z)


def _affine(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, *, eps: float
) -> tuple[Tensor, Tensor]:
    """Scale and shift of each channel."""
    scale = torch.rsqrt(var + eps) if weight is None else weight * torch.rsqrt(var + eps)
    shift = -mean * scale if bias is None else bias - mean * scale
    return scale, shift


def _arguments(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> tuple[Any, ...]:  # fmt: skip
    return input, running_mean, running_var, weight, bias, training, eps


TABLE: dict[Callable[..., Any], Handler] = {F.batch_norm: batch_norm}
