"""Softmax: its input times its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...rules import Gradient
from ..calls import named
from ..facts import LiveCall
from ..propagation import computing_dtype
from ..streams import Handler, Streams


@dataclass(frozen=True)
class SoftmaxRelevance:
    """The backward of a softmax: ``x (R - z sum R)``.

    Source: Achtibat et al. 2024 (AttnLRP, arXiv 2402.05602), proposition 3.1.
    """

    dim: int

    def __call__(self, R: Tensor, x: Tensor, z: Tensor) -> Tensor:
        dtype = computing_dtype(R)
        passed = R.to(dtype) - z.to(dtype) * R.to(dtype).sum(self.dim, keepdim=True)
        return (x.to(dtype) * passed).masked_fill(z == 0, 0.0).to(x)  # a masked score is -inf


def softmax(streams: Streams, call: LiveCall) -> Any:
    """``torch.softmax``, which makes a gate."""
    x, dim = _arguments(*call.args, **call.kwargs)
    if dim is None:
        return NotImplemented
    _, rule = streams.rule("product", call, x)
    if isinstance(rule, Gradient):
        return streams.gradient(call, nonnegative=True, gate=True)
    z = streams.evaluate(call)
    saved = [streams.value(x), z]
    return streams.relay(call, z, [x], SoftmaxRelevance(dim), saved, nonnegative=True, gate=True)


def _arguments(input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> tuple[Any, ...]:
    return input, dim


TABLE: dict[Callable[..., Any], Handler] = dict.fromkeys(named("softmax"), softmax)
