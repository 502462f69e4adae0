"""Activations: relevance passes unchanged, unless a composite says otherwise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...maps import Elementwise
from ...rules import Gradient, Pass
from ..calls import named
from ..facts import LiveCall
from ..kept import unhooked
from ..streams import Handler, Streams
from .shares import Shares

# Whether no output is negative: the proof has what is known of the input, and the other arguments of the function.
Proof = Callable[..., bool]


def always(nonnegative: bool, *_: Any, **__: Any) -> bool:
    """Whatever the input is."""
    return True


def never(nonnegative: bool, *_: Any, **__: Any) -> bool:
    """There is no proof."""
    return False


def as_input(nonnegative: bool, *_: Any, **__: Any) -> bool:
    """Where the input is not negative."""
    return nonnegative


def _softplus(nonnegative: bool, beta: float = 1, threshold: float = 20) -> bool:
    return beta > 0 and (nonnegative or threshold >= 0)  # above its threshold it is the identity


def _threshold(nonnegative: bool, threshold: float, value: float, inplace: bool = False) -> bool:
    return value >= 0 and (nonnegative or threshold >= 0)


def _hardtanh(nonnegative: bool, min_val: float = -1, max_val: float = 1, inplace: bool = False) -> bool:
    return _clamp(nonnegative, min_val, max_val)


def _clamp(nonnegative: bool, min: Any = None, max: Any = None) -> bool:
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        return False
    return (nonnegative or (min is not None and min >= 0)) and (max is None or max >= 0)


def _clamp_max(nonnegative: bool, max: Any) -> bool:
    return _clamp(nonnegative, max=max)


def activation(streams: Streams, call: LiveCall, proof: Proof = never, is_gate: bool = False) -> Any:
    """A function of each element of one tensor."""
    x, others = _arguments(*call.args, **call.kwargs)
    if len(call.live) > 1 or call.live[0] is not x:
        return NotImplemented
    facts: dict[str, Any] = {"nonnegative": proof(call.facts_of(x).nonnegative, *others[0], **others[1])}
    if is_gate:
        facts["gate"] = True
    _, rule = streams.rule("activation", call, x)
    if isinstance(rule, Gradient):
        return streams.gradient(call, **facts)
    if isinstance(rule, Pass):
        return streams.relay(call, streams.evaluate(call), [x], Shares([x.shape]), **facts)

    def function(t: Tensor) -> Tensor:
        activated: Tensor = call.run(lambda argument: t.clone() if argument is x else streams.value(argument))
        return activated

    value = streams.value_before(call, x)
    with unhooked():
        slope = torch.func.vjp(function, value)[1](torch.ones_like(value))[0]
    f = Elementwise(input_shape=tuple(x.shape))
    return streams.relay_layer(call, f, rule, None, (value, slope, None), x, streams.evaluate(call), **facts)


def _arguments(input: Any, *others: Any, **by_name: Any) -> tuple[Any, tuple[tuple[Any, ...], dict[str, Any]]]:
    return input, (others, by_name)


_KEEP_SIGN = """
    leaky_relu elu celu selu gelu silu mish hardswish tanh softsign prelu rrelu hardshrink softshrink tanhshrink
""".split()

_PROOFS: dict[str, Proof] = {
    **dict.fromkeys(("relu", "relu6"), always),
    **dict.fromkeys(_KEEP_SIGN, as_input),
    **dict.fromkeys(("log_sigmoid", "logsigmoid"), never),
    **dict.fromkeys(("threshold", "_threshold"), _threshold),
    **dict.fromkeys(("clamp", "clip", "clamp_min"), _clamp),
    "clamp_max": _clamp_max,
    "hardtanh": _hardtanh,
    "softplus": _softplus,
}

TABLE: dict[Callable[..., Any], Handler] = {
    **{function: partial(activation, proof=proof) for name, proof in _PROOFS.items() for function in named(name)},
    F.relu6: partial(activation, proof=always),
    **dict.fromkeys(named("sigmoid", "hardsigmoid", "expit"), partial(activation, proof=always, is_gate=True)),
}
