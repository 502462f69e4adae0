"""Run a model's own forward, and give every torch function that it calls its relevance.

The mode sees each call of a torch function. A call that touches no live tensor runs as it is; the others go to their
handler (:mod:`lrp.engine.handlers`). No module is edited, hooked or traced: the model's own forward is the truth.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..rules import Place, Rule
from .assignment import Assignment, Patterns
from .calls import Call, in_place_target, strangeness, tensors_in
from .checks import check_inputs, check_pattern
from .handlers import TABLE
from .streams import Streams
from .untouched import Untouched


class RelevanceWarning(UserWarning):
    """An explanation that may mislead.

    A function has no rule for its relevance, and its plain gradient stands in for one; or the model is in training
    mode, where it computes something else.
    """


class Interception(TorchFunctionMode):
    """While active, torch functions of live tensors carry relevance.

    Args:
        streams: the live tensors.
    """

    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self.streams = streams

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        target = in_place_target(func, args, kwargs)
        if target is not None and target.requires_grad and target.is_leaf:
            return func(*args, **kwargs)  # an error, which torch explains
        rescued = None if target is None else self.streams.keeper.rescue(target)
        if not torch.is_grad_enabled() or kwargs.get("out") is not None or not self._is_live((args, kwargs)):
            constant = func(*args, **kwargs)
            self.streams.assignment.derive((args, kwargs), constant)
            return constant
        call = Call(func, args, kwargs, target, rescued)
        strange = strangeness((args, kwargs))
        handler = TABLE.get(func) if strange is None else None
        result = NotImplemented if handler is None else handler(self.streams, call)
        return self._take_gradient(call, strange) if result is NotImplemented else result

    def _is_live(self, arguments: Any) -> bool:
        return any(map(self.streams.is_live, tensors_in(arguments)))

    def _take_gradient(self, call: Call, strange: str | None) -> Any:
        """The call without a rule. Where its output carries relevance, that is worth a warning."""
        result = self.streams.follow(call)
        if self._is_live(result if call.target is None else call.target):
            name = getattr(call.function, "__name__", str(call.function))
            self.streams.take_gradient(name if strange is None else f"{name} of {strange}")
        return result


def explained(
    forward: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    inputs: Sequence[Tensor] | None = None,
    rule: Rule,
    pattern: Patterns | None = None,
    module: nn.Module | None = None,
    differentiable: bool = False,
    strict: bool = False,
) -> Any:
    """``forward(*args, **kwargs)``, with the same values, whose backward carries relevance.

    Args:
        forward: a model's forward.
        args: its arguments.
        kwargs: its keyword arguments.
        inputs: the explained inputs; by default all tensors among the arguments that require grad.
        rule: a rule, or a composite.
        pattern: patterns of the layers, for rules that need them.
        module: the model, if there is one: its layers have names, and it is left as it was.
        differentiable: whether the relevance may itself be differentiated.
        strict: whether a function without a rule is an error.

    Raises:
        ValueError, TypeError: for an input that does not require grad or is not finite, patterns that do not fit.
        NotImplementedError: if strict, for functions without a rule; all of them are listed.
    """
    check_pattern(pattern)
    if rule.needs_pattern and pattern is None:
        raise ValueError(f"rule={rule} needs pattern=: a list with one for each linear layer, or a dict by name")
    return _run(forward, args, kwargs, Assignment(rule, pattern, module), inputs, differentiable, strict)


def assigned(
    forward: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    rule: Rule,
    module: nn.Module | None,
) -> list[tuple[Place, Rule]]:
    """The rule of each place that ``forward(*args, **kwargs)`` comes to; see :func:`explained`."""
    assignment = Assignment(rule, None, module)
    _run(forward, args, kwargs, assignment)
    return assignment.chosen


def _run(
    forward: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    assignment: Assignment,
    inputs: Sequence[Tensor] | None = None,
    differentiable: bool = False,
    strict: bool = False,
) -> Any:
    inputs = [t for t in tensors_in((args, kwargs) if inputs is None else inputs) if t.requires_grad]
    check_inputs(inputs, forward, args, kwargs)
    mode = Interception(Streams(inputs, assignment, differentiable))
    untouched = Untouched(assignment.module, inputs)
    with untouched, mode:
        output = forward(*args, **kwargs)
    assignment.check(output)
    _tell(mode.streams.unsupported, untouched.hint, strict)
    for t in tensors_in(output):  # what the caller does to the output in place must not reach what backward needs
        mode.streams.keeper.rescue(t)
    return output


def _tell(functions: Sequence[str], hint: str | None, strict: bool) -> None:
    """One warning for all that is worth one, or an error if strict."""
    listed = ", ".join(dict.fromkeys(functions))
    if functions and strict:
        raise NotImplementedError(
            "; ".join([f"strict=True: there is no rule for the relevance of {listed}", *filter(None, [hint])])
        )
    lacking = f"there is no rule for the relevance of {listed}: the plain gradient is taken, which may mislead"
    told = [text for text in (lacking if functions else None, hint) if text is not None]
    if told:
        warnings.warn("; ".join(told), RelevanceWarning, stacklevel=7)  # the line that called the model
