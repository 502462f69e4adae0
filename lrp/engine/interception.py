"""Run a model's own forward, and give every torch function that it calls its relevance.

The mode sees each call of a torch function. A call that touches no live tensor runs as it is; the others go to their
handler (:mod:`lrp.engine.handlers`). No module is edited, hooked or traced: the model's own forward is the truth.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from ..rules import Place, Rule
from .assignment import Assignment, Patterns
from .backward.books import Books, Entry
from .calls import (
    Call,
    in_place_target,
    key_of,
    replaced_within,
    strangeness,
    substitute,
    tensors_in,
    tensors_of,
    tensors_within,
)
from .checkpoints import Checkpoint, arguments_of_checkpoint, running_frame
from .checks import check_form, check_inputs, check_output, check_pattern, run_as_python
from .facts import LiveCall
from .forms import Asked
from .handlers import TABLE, is_head
from .modules.roots import Root
from .modules.untouched import Untouched
from .streams import Streams


class RelevanceWarning(UserWarning):
    """An explanation that may mislead.

    A function has no rule for its relevance, and its plain gradient stands in for one; the model is in training mode,
    where it computes something else; or a softmax comes last, whose relevance vanishes.
    """


_HEAD = (
    "the model's output is a softmax or a log-softmax, whose relevance vanishes where it is confident: explain the "
    "logits instead, by a model without it"
)


class Interception(TorchFunctionMode):
    """While active, torch functions of live tensors carry relevance.

    Args:
        streams: the live tensors.
        untouched: leaves the model as it was.
    """

    def __init__(self, streams: Streams, untouched: Untouched) -> None:
        super().__init__()
        self.streams, self._untouched = streams, untouched
        self._checkpoints: WeakKeyDictionary[Any, Checkpoint] = WeakKeyDictionary()
        self._around = streams.relays.checkpoint
        level = torch._C._functorch.peek_interpreter_stack()
        self.books: Books | None = None
        self._level = 0 if level is None else level.level()
        self._dual_level = forward_ad._current_level

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _QUERIES:
            return func(*args, **kwargs)
        if func in _GRADIENTS:
            _refuse_gradients(Call(func).name)
        transform = self._transform()
        if transform in _DIFFERENTIATING:
            _refuse_gradients("a derivative by torch.func")
        if forward_ad._current_level > self._dual_level:
            _refuse_gradients("forward-mode differentiation, as by torch.func.linearize or make_dual,")
        target = in_place_target(func, args, kwargs)
        if target is not None and target.requires_grad and target.is_leaf:
            return func(*args, **kwargs)  # an error, which torch explains
        tensors = tensors_of(args, kwargs)
        live = [t for t in tensors if self.streams.is_live(t)]
        self._enter_checkpoint()
        written = [target] if target is not None else list(tensors_in(kwargs["out"])) if "out" in kwargs else []
        rescued = [self.streams.rescue(t, func) for t in written]
        if not live or not torch.is_grad_enabled() or kwargs.get("out") is not None:
            return self._run_constant(Call(func, args, kwargs), live, written)
        self.streams.assignment.functions.add(func)
        facts = [self.streams.facts(t) for t in live]
        call = LiveCall(func, args, kwargs, live, facts, target, rescued[0] if rescued else None)
        call = self.streams.forms.levelled(call)
        _check_target(call, self.streams)
        if func in _LENDING:
            self.streams.lend(call.live[0])
        if self.books is not None:
            return self._entered(self.books, call, transform, tensors)
        return self._handled(call, transform, tensors)

    def _handled(self, call: LiveCall, transform: Any, tensors: Sequence[Tensor]) -> Any:
        """What the call returns, by its handler."""
        if transform == _VMAP:
            return self.streams.follow_vmapped(call)
        args, kwargs = call.args, call.kwargs
        strange = "an argument named self" if "self" in kwargs else strangeness(tensors, (*args, *kwargs.values()))
        handler = TABLE.get(key_of(call.function)) if strange is None else None
        result = NotImplemented if handler is None else handler(self.streams, call)
        if result is not NotImplemented:
            return result
        return self.streams.follow_unsupported(call, call.name if strange is None else f"{call.name} of {strange}")

    def _entered(self, books: Books, call: LiveCall, transform: Any, tensors: Sequence[Tensor]) -> Any:
        """What the call returns, noted in the books."""
        inputs = [get_gradient_edge(t).node for t in call.live]
        chosen, n_unsupported = self.streams.assignment.chosen, self.streams.origins.n_unsupported
        before = len(chosen)
        result = self._handled(call, transform, tensors)
        (place, rule), *_ = (*chosen[before:], (None, None))
        has_rule = self.streams.origins.n_unsupported == n_unsupported
        target = call.target
        bases = [] if target is None or target._base is None else [target._base]
        entry = Entry(call.name if place is None else str(place), call.name, rule, has_rule)
        books.enter(entry, [*tensors_in((result, target)), *bases], inputs)
        return result

    def _transform(self) -> Any:
        """The transform of ``torch.func`` within the forward that what is called is under, or None."""
        level = torch._C._functorch.peek_interpreter_stack()
        return level.key() if level is not None and level.level() > self._level else None

    def _enter_checkpoint(self) -> None:
        """Note which checkpoint the model is in; of a new one, see to it that its recomputation is intercepted too."""
        frame = running_frame()
        if frame is not None and frame not in self._checkpoints:
            if self.streams.differentiable:
                raise NotImplementedError("differentiable=True: within torch.utils.checkpoint, relevance has no graph")
            streams, untouched, recompute = self.streams, self._untouched, frame.recompute_fn
            facts = [streams.facts(t) if streams.is_live(t) else None for t in tensors_in(arguments_of_checkpoint())]
            checkpoint = Checkpoint(facts, len(streams.assignment.chosen))

            def intercepted(*arguments: Any) -> None:
                with untouched.again(), Interception(streams.again(checkpoint, arguments), untouched):
                    recompute(*arguments)

            frame.recompute_fn, self._checkpoints[frame] = intercepted, checkpoint
        self.streams.enter(self._around if frame is None else self._checkpoints[frame])

    def _run_constant(self, call: Call, live: Sequence[Tensor], written: Sequence[Tensor]) -> Any:
        """A call whose result does not depend on the explained inputs: nor then on parameters, as far as autograd goes.

        Else a gradient could reach parameters by what is made of them.
        """
        streams = self.streams
        if call.function in _LENDING:
            streams.lend(call.args[0])
        overwritten = [t for t in written if streams.is_live(t)]
        for t in written:
            streams.leave(t)
        result = call.run(lambda t: t.detach() if written and t.requires_grad and not _is_among(t, written) else t)
        for t in written:
            streams.known.forget(t)
            streams.origins.wrote(t)
        for t in overwritten:
            streams.origins.overwritten(f"{call.name} where gradients are switched off", t)
        is_varying = bool(live) or streams.known.is_any_varying((call.args, call.kwargs))
        if live:
            if any(True for _ in tensors_in(result)):
                streams.origins.end(call.name)
            constant = result
        else:
            keeps = streams.differentiable  # by parameters too, whatever a weight was made of them
            constant = substitute(result, lambda t: t if keeps or t.is_leaf or _is_among(t, written) else t.detach())
            streams.assignment.derive((call.args, call.kwargs), constant)
        if is_varying:
            streams.known.vary((constant, written))
        return constant


def _is_among(t: Tensor, tensors: Sequence[Tensor]) -> bool:
    return any(t is other for other in tensors)


def _refuse_gradients(name: str) -> None:
    raise NotImplementedError(
        f"{name} within an explained forward would be given relevance for a gradient: explain what it is taken of, "
        "such as the energy instead of its forces"
    )


def _refuse_transforms() -> None:
    """Raise within ``torch.func.grad`` and its kin: relevance comes by ``backward()``."""
    levels = torch._C._functorch.get_interpreter_stack() or ()
    if any(level.key() in _DIFFERENTIATING for level in levels):
        raise NotImplementedError(
            "explain=True within a derivative by torch.func: call backward() on the output, or torch.autograd.grad()"
        )


def _check_target(call: LiveCall, streams: Streams) -> None:
    """Raise for a write to what relevance would reach parameters by."""
    target = call.target
    if target is not None and target.requires_grad and not streams.is_live(target):
        raise NotImplementedError(
            f"{call.name} writes to a tensor of shape {tuple(target.shape)} that was made of parameters before the "
            "explained forward; make it within the forward, or detach it"
        )


# What hands the memory of a tensor to others than torch.
_LENDING = {
    Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr, Tensor.untyped_storage, Tensor.storage,
    Tensor._typed_storage,
}  # fmt: skip

# What asks for no value: models do so in many places.
_ATTRIBUTES = ("shape", "ndim", "dtype", "device")
_QUERIES = {Tensor.dim, Tensor.size, Tensor.numel, *(getattr(Tensor, name).__get__ for name in _ATTRIBUTES)}

_VMAP = torch._C._functorch.TransformType.Vmap
_DIFFERENTIATING = {torch._C._functorch.TransformType.Grad, torch._C._functorch.TransformType.Jvp}
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
    form: Asked = "relevance",
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
        form: in which relevance is carried; see :mod:`~lrp.engine.forms`.

    Raises:
        ValueError, TypeError: for an input that does not require grad or is not finite, patterns that do not fit,
            an unknown form, and a rule that cannot be carried in it.
        NotImplementedError: if strict, for functions without a rule; all of them are listed. So are, whether strict or
            not, functions that have no gradient form, if that was asked for.
    """
    assignment = Assignment(rule, pattern, module)
    return explained_by(
        assignment, forward, args, kwargs, inputs=inputs, differentiable=differentiable, strict=strict, form=form
    )


def explained_by(
    assignment: Assignment,
    forward: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    *,
    inputs: Sequence[Tensor] | None = None,
    root: Root | None = None,
    books: Books | None = None,
    differentiable: bool = False,
    strict: bool = False,
    form: Asked = "relevance",
) -> Any:
    """:func:`explained`, by an assignment that says afterwards which rule was where.

    Args:
        root: a module of the model whose output is explained, in place of the inputs.
        books: in which relevance is accounted for, in relevance form.
    """
    rule, pattern = assignment.rule, assignment.pattern
    check_form(form, differentiable)
    check_pattern(pattern)
    if rule.needs_pattern and pattern is None:
        raise ValueError(f"rule={rule} needs pattern=: a list with one for each linear layer, or a dict by name")
    return _run(forward, args, kwargs, assignment, inputs, differentiable, strict, form, root, books)


def value_of(t: Tensor) -> Tensor:
    """Within an explained forward: the value of a tensor, with its ordinary autograd graph if that is kept."""
    mode: Any = _get_current_function_mode()  # type: ignore[no-untyped-call]
    assert isinstance(mode, Interception)
    with torch._C.DisableTorchFunction():
        return mode.streams.value(t)


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
    form: Asked = "relevance",
    root: Root | None = None,
    books: Books | None = None,
) -> Any:
    _refuse_transforms()
    given = [*tensors_within((args, kwargs))]
    inputs = [t for t in (given if inputs is None else tensors_within(inputs)) if t.requires_grad]
    if root is None:
        check_inputs(inputs, forward, args, kwargs)
    streams = Streams(inputs, assignment, differentiable, form)
    streams.known.vary([t for t in given if not _is_among(t, inputs)])
    untouched = Untouched(assignment.module, inputs if root is None else given, streams.rescue)
    mode = Interception(streams, untouched)
    mode.books = books
    with untouched, mode, nullcontext() if root is None else root.of(streams):
        output = run_as_python(forward, args, kwargs)
    outputs = list(tensors_within(output))
    check_output(output, outputs)
    untouched.check(outputs)
    assignment.check(outputs)
    streams.origins.check(outputs)
    unsupported = streams.origins.unsupported(outputs)
    head = _HEAD if not unsupported and is_head(outputs, assignment.last_name is not None) else None
    _tell(unsupported, [text for text in (untouched.hint, head) if text is not None], strict)
    streams.settle(outputs)
    if books is not None:
        books.close([t for t in outputs if streams.is_live(t)])
    return output if form == "relevance" else replaced_within(output, streams.started)


def _level() -> int:
    """How many callers up the line is that asked for the explanation, as a warning counts them."""
    frame, level = sys._getframe(1).f_back, 2
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("lrp", "torch"):
        frame, level = frame.f_back, level + 1
    return level


def _tell(functions: Sequence[str], hints: Sequence[str], strict: bool) -> None:
    """One warning for all that is worth one, or an error if strict and a function has no rule."""
    listed = ", ".join(dict.fromkeys(functions))
    if functions and strict:
        raise NotImplementedError("; ".join([f"strict=True: there is no rule for the relevance of {listed}", *hints]))
    lacking = f"there is no rule for the relevance of {listed}: the plain gradient is taken, which may mislead"
    told = [*([lacking] if functions else []), *hints]
    if told:
        warnings.warn("; ".join(told), RelevanceWarning, stacklevel=_level())
