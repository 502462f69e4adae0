"""Activations: relevance passes unchanged, unless a composite says otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...maps import Elementwise
from ...rules import Gradient, Pass
from ..calls import Call, named, tensors_in
from ..facts import Layer
from ..streams import Handler, Streams
from .products import Shares

_NONNEGATIVE = "relu relu6 softplus".split()
_GATES = "sigmoid hardsigmoid".split()
_KEEP_SIGN = """
    leaky_relu elu celu selu gelu silu mish hardswish tanh softsign hardtanh prelu rrelu threshold _threshold hardshrink
    softshrink tanhshrink clamp_min
""".split()
_OTHERS = "log_sigmoid logsigmoid clamp clip clamp_max".split()


def nonnegative(streams: Streams, call: Call) -> Any:
    """An activation that is nowhere negative."""
    return _activation(streams, call, nonnegative=True)


def gate(streams: Streams, call: Call) -> Any:
    """An activation between 0 and 1, that other tensors are multiplied with."""
    return _activation(streams, call, nonnegative=True, gate=True)


def keeps_sign(streams: Streams, call: Call) -> Any:
    """An activation that is not negative where its input is not."""
    return _activation(streams, call, nonnegative=streams.known.is_nonnegative(_input(*call.args, **call.kwargs)))


def other(streams: Streams, call: Call) -> Any:
    """Any other activation."""
    return _activation(streams, call)


def _activation(streams: Streams, call: Call, **facts: Any) -> Any:
    x = _input(*call.args, **call.kwargs)
    live = [t for t in tensors_in((call.args, call.kwargs)) if streams.is_live(t)]
    if len(live) != 1 or live[0] is not x:  # a bound or a slope that depends on the input
        return NotImplemented
    _, rule = streams.rule("activation", call, x)
    if isinstance(rule, Gradient):
        return streams.follow(call, **facts)
    if isinstance(rule, Pass):
        return streams.relay(call, streams.evaluate(call), [x], Shares([x.shape]), **facts)

    def function(t: Tensor) -> Tensor:
        activated: Tensor = call.run(lambda argument: t.clone() if argument is x else streams.value(argument))
        return activated

    value = streams.value(x) if call.target is None or streams.differentiable else streams.value(x).clone()
    slope = torch.func.vjp(function, value)[1](torch.ones_like(value))[0]
    layer = Layer(Elementwise(input_shape=tuple(x.shape)), rule, None, x, value, slope, None)
    return streams.relay_layer(call, layer, streams.evaluate(call), **facts)


def _input(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return input


TABLE: dict[Callable[..., Any], Handler] = {
    **dict.fromkeys(named(*_NONNEGATIVE), nonnegative),
    **dict.fromkeys(named(*_GATES), gate),
    **dict.fromkeys(named(*_KEEP_SIGN), keeps_sign),
    **dict.fromkeys(named(*_OTHERS), other),
    F.relu6: nonnegative,
}
