"""``torch.nn.functional`` with a ``rule=``: the values are torch's, backward carries relevance.

>>> import torch, lrp
>>> x = torch.tensor([[1.0, 2.0]], requires_grad=True)
>>> lrp.functional.linear(x, torch.tensor([[3.0, -1.0]]), rule="zplus").backward()
>>> x.grad
tensor([[1.0000, 0.0000]])
"""

from __future__ import annotations

from functools import wraps
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .composites import get
from .engine import Patterns, explained
from .rules import Rule


class Explained(Protocol):
    """A function of torch, with the rule of its relevance."""

    def __call__(
        self, input: Tensor, *args: Any, rule: str | Rule = "epsilon", pattern: Patterns | None = None, **kwargs: Any
    ) -> Tensor: ...


def _with_rule(name: str) -> Explained:
    function = getattr(F, name)

    @wraps(function, assigned=("__name__",), updated=())
    def with_rule(
        input: Tensor, *args: Any, rule: str | Rule = "epsilon", pattern: Patterns | None = None, **kwargs: Any
    ) -> Tensor:
        rule = get(rule)
        if not (isinstance(input, Tensor) and input.requires_grad and torch.is_grad_enabled()):
            return function(input, *args, **kwargs)  # type: ignore[no-any-return]
        arguments = (input, *args)
        return explained(function, arguments, kwargs, inputs=[input], rule=rule, pattern=pattern)  # type: ignore[no-any-return]

    with_rule.__doc__ = f"""``torch.nn.functional.{name}``, whose backward carries relevance by ``rule``.

    Args:
        input: the explained input. One that does not require grad gets torch's plain function.
        args, kwargs: as torch takes them, in torch's order. Weights are constants: they get no gradient.
        rule: a key or a :class:`lrp.Rule`, default ``"epsilon"``. What has no weights takes the rule's companion.
        pattern: a list with the layer's pattern, for the rules that need one.

    Raises:
        ValueError, TypeError: for an unknown rule, a pattern that does not fit, an input that is not finite.
    """
    return with_rule


linear = _with_rule("linear")
conv1d = _with_rule("conv1d")
conv2d = _with_rule("conv2d")
conv3d = _with_rule("conv3d")
conv_transpose1d = _with_rule("conv_transpose1d")
conv_transpose2d = _with_rule("conv_transpose2d")
conv_transpose3d = _with_rule("conv_transpose3d")
max_pool1d = _with_rule("max_pool1d")
max_pool2d = _with_rule("max_pool2d")
max_pool3d = _with_rule("max_pool3d")
avg_pool1d = _with_rule("avg_pool1d")
avg_pool2d = _with_rule("avg_pool2d")
avg_pool3d = _with_rule("avg_pool3d")
adaptive_avg_pool1d = _with_rule("adaptive_avg_pool1d")
adaptive_avg_pool2d = _with_rule("adaptive_avg_pool2d")
adaptive_avg_pool3d = _with_rule("adaptive_avg_pool3d")
batch_norm = _with_rule("batch_norm")
relu = _with_rule("relu")
