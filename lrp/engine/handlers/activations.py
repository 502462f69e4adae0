"""Activations and all other elementwise functions: relevance passes unchanged, unless a composite says otherwise.

``f(x) / x`` is a constant, whatever the function; a step, such as rounding, is no exception.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...maps import Elementwise
from ...rules import Gradient, Pass
from ..backward.kept import unhooked
from ..calls import Key, named, plain_name
from ..facts import LiveCall
from ..streams import Handler, Streams
from .shares import unchanged

# Whether no output is negative: the proof has what is known of the input, and the other arguments of the function.
Proof = Callable[..., bool]

# What no output is above: the bound has that of the input, and the other arguments of the function.
Bound = Callable[..., float]


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


def _elu(nonnegative: bool, alpha: float = 1, scale: float = 1, *_: Any, **__: Any) -> bool:
    return nonnegative and scale >= 0  # in torch.nn.functional this is whether it works in place


def _nan_to_num(nonnegative: bool, nan: float | None = None, posinf: float | None = None, *_: Any, **__: Any) -> bool:
    return nonnegative and (nan or 0) >= 0 and (posinf or 0) >= 0


def _unbounded(top: float, *_: Any, **__: Any) -> float:
    return inf


def _at_six(top: float, *_: Any, **__: Any) -> float:
    return 6.0


def _above_zero(top: float, *_: Any, **__: Any) -> float:
    return max(top, 0.0)


def _clamped(top: float, min: Any = None, max: Any = None) -> float:
    if isinstance(min, Tensor) or isinstance(max, Tensor):
        return inf
    if max is not None:
        return float(max)
    return top if min is None or top > min else float(min)


def _hardtanh_clamped(top: float, min_val: float = -1, max_val: float = 1, inplace: bool = False) -> float:
    return _clamped(top, min_val, max_val)


def _clamped_max(top: float, max: Any) -> float:
    return _clamped(top, max=max)


def activation(
    streams: Streams, call: LiveCall, proof: Proof = never, is_gate: bool = False, bound: Bound = _unbounded
) -> Any:
    """A function of each element of its first argument."""
    x, others = _arguments(*call.args, **call.kwargs)
    if call.live[0] is not x:
        return NotImplemented
    known = call.facts_of(x)
    facts: dict[str, Any] = {"nonnegative": proof(known.nonnegative, *others[0], **others[1])}
    facts["top"] = bound(known.top, *others[0], **others[1])
    if is_gate:
        facts["gate"] = True
    return elementwise(streams, call, **facts)


def exponential(streams: Streams, call: LiveCall) -> Any:
    """``torch.exp``: a gate, of the log of one."""
    return activation(streams, call, always, is_gate=call.facts[0].log_gate)


def power(streams: Streams, call: LiveCall) -> Any:
    """``base ** exponent``, one of which is constant."""
    base, exponent = _operands(*call.args, **call.kwargs)
    if plain_name(call.function) == "__rpow__":
        base, exponent = exponent, base
    is_even = isinstance(exponent, (int, float)) and exponent >= 0 and exponent % 2 == 0
    is_growing = not isinstance(exponent, (int, float)) or exponent >= 0
    nonnegative = is_even or (streams.known.is_nonnegative(base) and is_growing)
    divides = {"gate": True} if isinstance(exponent, (int, float)) and exponent < 0 else {}
    return elementwise(streams, call, nonnegative=nonnegative, **divides)


def elementwise(streams: Streams, call: LiveCall, **facts: Any) -> Any:
    """A function of each element of one live tensor, and of constants."""
    x = call.live[0]
    if len(call.live) > 1:
        return NotImplemented
    _, rule = streams.rule("activation", call, x)
    if isinstance(rule, Gradient):
        return streams.gradient(call, **facts)
    if isinstance(rule, Pass):
        return unchanged(streams, call, x, **facts)
    if call.target is not None and call.target is not x:
        return NotImplemented

    def function(t: Tensor) -> Tensor:
        activated: Tensor = call.run(lambda argument: t.clone() if argument is x else streams.value(argument))
        return activated

    value = streams.value_before(call, x)
    if call.target is not None:
        streams.rescue(call.target)  # whose gradient may be any where a rectifier overwrites it
    with unhooked():
        z, pull, *_ = torch.func.vjp(function, value)
        if z.shape != x.shape:
            return NotImplemented
        slope = pull(torch.ones_like(value))[0]
    f = Elementwise(input_shape=tuple(x.shape))
    return streams.relay_layer(call, f, rule, None, (value, slope, None), x, streams.evaluate(call), **facts)


def _arguments(input: Any, *others: Any, **by_name: Any) -> tuple[Any, tuple[tuple[Any, ...], dict[str, Any]]]:
    return input, (others, by_name)


def _operands(input: Any, other: Any = None, *, exponent: Any = None) -> tuple[Any, Any]:
    return input, other if exponent is None else exponent


_NONNEGATIVE = """
    abs absolute acos acosh arccos arccosh cosh erfc exp2 ndtr relu relu6 sqrt square
""".split()

_KEEP_SIGN = """
    arcsinh arctan arctanh asinh atan atanh ceil celu deg2rad erf expm1 fix floor frac gelu hardshrink hardswish
    leaky_relu log1p mish prelu rad2deg round rrelu selu sgn sign silu sinh softshrink softsign tanh tanhshrink trunc
""".split()

_SIGNED = """
    arcsin arctan2 asin atan2 copysign cos fmod gammaln hypot ldexp lgamma log log10 log2 logaddexp logaddexp2 logit
    remainder __mod__ __rmod__ sin sinc tan xlog1py xlogy
""".split()

_PROOFS: dict[str, Proof] = {
    **dict.fromkeys(_NONNEGATIVE, always),
    **dict.fromkeys(_KEEP_SIGN, as_input),
    **dict.fromkeys(("threshold", "_threshold"), _threshold),
    **dict.fromkeys(("clamp", "clip", "clamp_min"), _clamp),
    "clamp_max": _clamp_max,
    "elu": _elu,
    "hardtanh": _hardtanh,
    "nan_to_num": _nan_to_num,
    "softplus": _softplus,
}

_BOUNDS: dict[str, Bound] = {
    "relu": _above_zero,
    "relu6": _at_six,
    **dict.fromkeys(("clamp", "clip", "clamp_min"), _clamped),
    "clamp_max": _clamped_max,
    "hardtanh": _hardtanh_clamped,
}

TABLE: dict[Key, Handler] = {
    **dict.fromkeys(named(*_SIGNED), elementwise),
    **{
        function: partial(activation, proof=proof, bound=_BOUNDS.get(name, _unbounded))
        for name, proof in _PROOFS.items()
        for function in named(name)
    },
    F.relu6: partial(activation, proof=always, bound=_at_six),
    **dict.fromkeys(named("exp"), exponential),
    **dict.fromkeys(named("logsigmoid", "log_sigmoid"), partial(elementwise, log_gate=True)),
    **dict.fromkeys(named("sigmoid", "hardsigmoid", "expit"), partial(activation, proof=always, is_gate=True)),
    **dict.fromkeys(named("rsqrt"), partial(activation, proof=always, is_gate=True)),
    **dict.fromkeys(named("reciprocal"), partial(activation, proof=as_input, is_gate=True)),
    **dict.fromkeys(named("pow", "float_power", "__pow__", "__rpow__", "__ipow__"), power),
}
