"""Activations and dropout: relevance passes unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from ..calls import Call
from ..rules import Gradient
from ..streams import Handler, Streams
from .lookup import named
from .sums import Unchanged

_NONNEGATIVE = "relu relu6 sigmoid hardsigmoid softplus".split()
_KEEP_SIGN = """
    leaky_relu elu celu selu gelu silu mish hardswish tanh softsign hardtanh prelu rrelu threshold _threshold hardshrink
    softshrink tanhshrink dropout dropout1d dropout2d dropout3d feature_dropout clamp_min
""".split()
_OTHERS = "log_sigmoid logsigmoid alpha_dropout feature_alpha_dropout clamp clip clamp_max".split()


def nonnegative(streams: Streams, call: Call) -> Any:
    """An activation that is nowhere negative."""
    return _activation(streams, call, nonnegative=True)


def keeps_sign(streams: Streams, call: Call) -> Any:
    """An activation that is not negative where its input is not."""
    x = _input(*call.args, **call.kwargs)
    return _activation(streams, call, streams.is_nonnegative(x))


def other(streams: Streams, call: Call) -> Any:
    """Any other activation."""
    return _activation(streams, call, nonnegative=False)


def _activation(streams: Streams, call: Call, nonnegative: bool) -> Any:
    x = _input(*call.args, **call.kwargs)
    if not streams.is_live(x):
        return NotImplemented
    if isinstance(streams.assignment.rule_for("activation", x.dtype), Gradient):
        return streams.follow(call)
    return streams.relay(call, streams.evaluate(call), [x], Unchanged([x.shape]), nonnegative=nonnegative)


def _input(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return input


TABLE: dict[Callable[..., Any], Handler] = {
    **dict.fromkeys(named(*_NONNEGATIVE), nonnegative),
    **dict.fromkeys(named(*_KEEP_SIGN), keeps_sign),
    **dict.fromkeys(named(*_OTHERS), other),
    F.relu6: nonnegative,
}
