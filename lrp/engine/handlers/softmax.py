"""Softmax: its input times its gradient; log-softmax: unchanged, for the log of the sum is a constant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from torch.autograd.graph import Node

from ...rules import Gradient
from ..backward.gradient_form import Unchanged
from ..backward.propagation import computing_dtype
from ..calls import Key, named, tensors_in
from ..facts import LiveCall
from ..streams import Handler, Streams
from .shares import Shares

# The names in the autograd graph of what moves values about or picks some, and of a log.
_MOVES = re.compile(
    "(Alias|Amax|Amin|AsStrided|Cat|Clone|ConstantPadNd|CopyBackwards|CopySlices|Expand|Flip|Gather|Index|IndexSelect|"
    "Log|Max|Min|Narrow|Permute|Repeat|ReshapeAlias|Roll|Select|Slice|Sort|Split|SplitWithSizes|Squeeze|Stack|T|ToCopy|"
    "Topk|Transpose|Unbind|Unfold|UnsafeView|Unsqueeze|View)(Backward(AutogradNestedTensor)?\\d*)?"
)


@dataclass(frozen=True)
class SoftmaxRelevance:
    """The backward of ``softmax(sign * x)``: ``sign * x (R - z sum R)``.

    Source: Achtibat et al. 2024 (AttnLRP, arXiv 2402.05602), proposition 3.1.
    """

    dim: int
    sign: float = 1.0

    def __call__(self, R: Tensor, x: Tensor, z: Tensor) -> Tensor:
        dtype = computing_dtype(R)
        passed = R.to(dtype) - z.to(dtype) * R.to(dtype).sum(self.dim, keepdim=True)
        return (self.sign * x.to(dtype) * passed).masked_fill(z == 0, 0.0).to(x)  # a masked score is -inf


class LogSoftmaxRelevance(Shares):
    """The backward of a log-softmax, ``x`` minus a constant: the relevance of the logits is that of the output."""


def softmax(streams: Streams, call: LiveCall, sign: float = 1.0) -> Any:
    """``torch.softmax``, which makes a gate."""
    x, dim = _arguments(*call.args, **call.kwargs)
    if dim is None:
        return NotImplemented
    _, rule = streams.rule("product", call, x)
    if isinstance(rule, Gradient) or streams.forms.is_gradient(call):
        return streams.gradient(call, nonnegative=True, gate=True)
    z = streams.evaluate(call)
    saved = [streams.value(x), z]
    return streams.relay(call, z, [x], SoftmaxRelevance(dim, sign), saved, nonnegative=True, gate=True)


def log_softmax(streams: Streams, call: LiveCall) -> Any:
    """``torch.log_softmax``."""
    (x,) = call.live
    _, rule = streams.rule("product", call, x)
    if isinstance(rule, Gradient):
        return streams.gradient(call, log_gate=True)
    return streams.relay(call, streams.evaluate(call), [x], LogSoftmaxRelevance([x.shape]), log_gate=True)


def is_head(output: Any, has_layers: bool) -> bool:
    """Whether all that a model gives is a softmax of its layers or the log of one, perhaps moved about."""
    ends = [t.grad_fn for t in tensors_in(output) if t.grad_fn is not None]
    is_log = any(isinstance(getattr(node, "redistribute", None), LogSoftmaxRelevance) for node in ends)
    return bool(ends) and (has_layers or is_log) and _are_softmaxes(ends)


def _are_softmaxes(nodes: Sequence[Node]) -> bool:
    """Whether these nodes of the autograd graph are softmaxes, or what only moves the values of such."""
    ahead, seen = [*nodes], set(nodes)
    while ahead:
        node = ahead.pop()
        backward = getattr(node, "redistribute", None)
        if isinstance(backward, (SoftmaxRelevance, LogSoftmaxRelevance)) or "SoftmaxBackward" in node.name():
            continue
        is_passed = isinstance(backward, Unchanged) or (isinstance(backward, Shares) and 1.0 in backward.shares)
        before = [n for n, _ in node.next_functions if n is not None]
        if not before or not (is_passed or _MOVES.fullmatch(node.name())):
            return False
        ahead += [n for n in before if n not in seen]
        seen.update(before)
    return True


def _arguments(input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> tuple[Any, ...]:
    return input, dim


TABLE: dict[Key, Handler] = {
    **dict.fromkeys(named("softmax", "_softmax"), softmax),
    **dict.fromkeys(named("softmin"), partial(softmax, sign=-1.0)),
    **dict.fromkeys(named("log_softmax", "_log_softmax"), log_softmax),
}
