"""Run a model's own forward, and give every torch function that it calls its relevance.

The mode sees each call of a torch function. A call that touches no live tensor runs as it is; the others go to their
handler (:mod:`lrp.engine.handlers`). No module is edited, hooked or traced: the model's own forward is the truth.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..rules import Place, Rule
from .assignment import Assignment, Patterns
from .calls import Call, in_place_target, key_of, substitute, tensors_in
from .checkpoints import Checkpoint, running_frame
from .facts import LiveCall
from .handlers import TABLE, is_head
from .streams import Streams


class RelevanceWarning(UserWarning):
    """A map may mislead: a function has no rule, and its gradient stands in for one, or a softmax comes last."""


_HEAD = (
    "the model's output is a softmax or a log-softmax, whose relevance vanishes where it is confident: explain the "
    "logits instead, by a model without it"
)


class Interception(TorchFunctionMode):
    """While active, torch functions of live tensors carry relevance.

    Args:
        streams: the live tensors.
    """

    def __init__(self, streams: Streams) -> None:
        super().__init__()
        self.streams = streams
        self._checkpoints: WeakKeyDictionary[Any, Checkpoint] = WeakKeyDictionary()
        self._around = streams.checkpoint

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        target = in_place_target(func, args, kwargs)
        if target is not None and target.requires_grad and target.is_leaf:
            return func(*args, **kwargs)  # an error, which torch explains
        live = [t for t in tensors_in((args, kwargs)) if self.streams.is_live(t)]
        self._enter_checkpoint()
        written = [target] if target is not None else list(tensors_in(kwargs.get("out")))
        rescued = [self.streams.rescue(t) for t in written]
        if not live or not torch.is_grad_enabled() or kwargs.get("out") is not None:
            return self._run_constant(Call(func, args, kwargs), live, written)
        facts = [self.streams.facts(t) for t in live]
        call = LiveCall(func, args, kwargs, live, facts, target, rescued[0] if rescued else None)
        _refuse(call, self.streams)
        handler = TABLE.get(key_of(func))
        result = NotImplemented if handler is None else handler(self.streams, call)
        return self.streams.follow_unsupported(call, call.name) if result is NotImplemented else result

    def _enter_checkpoint(self) -> None:
        """Note which checkpoint the model is in; of a new one, see to it that its recomputation is intercepted too."""
        frame = running_frame()
        if frame is not None and frame not in self._checkpoints:
            if self.streams.differentiable:
                raise NotImplementedError("differentiable=True: within torch.utils.checkpoint, relevance has no graph")
            streams, recompute = self.streams, frame.recompute_fn
            checkpoint = Checkpoint(frame, streams.known, len(streams.assignment.chosen))

            def intercepted(*arguments: Any) -> None:
                with Interception(streams.again(checkpoint, arguments)):
                    recompute(*arguments)

            frame.recompute_fn, self._checkpoints[frame] = intercepted, checkpoint
        self.streams.checkpoint = self._around if frame is None else self._checkpoints[frame]

    def _run_constant(self, call: Call, live: Sequence[Tensor], written: Sequence[Tensor]) -> Any:
        """A call whose result does not depend on the explained inputs: nor then on parameters, as far as autograd goes.

        Else a gradient could reach parameters by what is made of them.
        """
        streams = self.streams
        result = call.function(*call.args, **call.kwargs)
        for t in written:
            streams.known.forget(t)
            if streams.is_live(t):
                streams.origins.take_gradient(f"{call.name} where gradients are switched off", t)
        if live:
            if any(True for _ in tensors_in(result)):
                streams.origins.end(call.name)
            return result
        constant = substitute(result, lambda t: t if t.is_leaf or any(t is w for w in written) else t.detach())
        streams.assignment.derive((call.args, call.kwargs), constant)
        return constant


def _refuse(call: LiveCall, streams: Streams) -> None:
    """Raise for what would be given relevance where the model wants something else."""
    if call.function in _GRADIENTS:
        raise NotImplementedError(
            f"{call.name} within an explained forward would be given relevance for a gradient: explain what it is "
            "taken of, such as the energy instead of its forces"
        )
    target = call.target
    if target is not None and target.requires_grad and not streams.is_live(target):
        raise NotImplementedError(
            f"{call.name} writes to a tensor of shape {tuple(target.shape)} that was made of parameters before the "
            "explained forward; make it within the forward, or detach it"
        )


_GRADIENTS = {torch.autograd.grad, torch.autograd.backward, Tensor.backward}


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
        ValueError, TypeError: for an input that does not require grad, patterns that do not fit.
        NotImplementedError: if strict, for functions without a rule; all of them are listed.
    """
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
    _check(inputs)
    mode = Interception(Streams(inputs, assignment, differentiable))
    with _untouched(assignment.module, inputs), mode:
        output = forward(*args, **kwargs)
    assignment.check(output)
    mode.streams.origins.check(output)
    unsupported = mode.streams.origins.unsupported(output)
    _tell(unsupported, strict)
    if not unsupported and assignment.last_name is not None and is_head(output):
        warnings.warn(_HEAD, RelevanceWarning, stacklevel=6)  # the line that called the model
    mode.streams.settle(output)
    return output


def _check(inputs: Sequence[Tensor]) -> None:
    if not torch.is_grad_enabled():
        raise ValueError("explain=True under torch.no_grad(): relevance needs autograd; leave no_grad() to explain")
    if not inputs:
        raise ValueError("explain=True needs an input that requires grad: call x.requires_grad_() before")


@contextmanager
def _untouched(module: nn.Module | None, inputs: Sequence[Tensor]) -> Iterator[None]:
    """Leave buffers and random numbers as they were: in training mode, a forward changes them."""
    training = [m for m in ([] if module is None else module.modules()) if m.training]
    if not training:
        yield
        return
    buffers = [(m._buffers, name, b, b.clone()) for m in training for name, b in m._buffers.items() if b is not None]
    devices = {t.device.index for t in inputs if t.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for owner, name, buffer, before in buffers:
            buffer.data.copy_(before)  # not seen by autograd: a backward that is still to come may need the buffer
            owner[name] = buffer


def _tell(functions: Sequence[str], strict: bool) -> None:
    if not functions:
        return
    listed = ", ".join(dict.fromkeys(functions))
    if strict:
        raise NotImplementedError(f"strict=True: there is no rule for the relevance of {listed}")
    warnings.warn(
        f"there is no rule for the relevance of {listed}: the plain gradient is taken, which may mislead",
        RelevanceWarning,
        stacklevel=7,  # the line that called the model
    )
