"""Run a model so that relevance can be asked for, and let it flow."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..composites import Composite, assigned_rules, auto
from ..conversion import convert
from ..engine import Asked, Assignment, Books, GradientFormError, Layers, Patterns, Root, Watch, explained_by, value_of
from ..engine.calls import replaced_within
from ..rules import Rule
from .flow import TOGETHER, Concepts, Place, Start, flow, passages
from .inputs import Arguments, replaced
from .outputs import find
from .targets import Everything, Selection, is_function, select, values


@dataclass(frozen=True)
class Request:
    """What was asked for, as :func:`explain` takes it; no rule is ``"auto"``."""

    rule: Rule | None
    initial: str | Tensor
    layers: Layers
    at: str | None
    concepts: Concepts
    pattern: Patterns | None
    form: Asked | None
    strict: bool
    differentiable: bool

    def forms(self, rule: Rule) -> Sequence[Asked]:
        """In which forms it can be answered, the best first."""
        if self.form is not None:
            return (self.form,)
        is_seen = bool(self.layers) or bool(self.concepts) or self.differentiable
        has_form = isinstance(rule, Composite) or rule.has_gradient_form
        return ("gradient", "relevance") if has_form and not is_seen else ("relevance",)


@dataclass(frozen=True)
class Subject:
    """A model that is explained.

    Attributes:
        model: as it was given.
        twin: its twin, whose modules may be hooked; or itself, where it has none.
    """

    model: Any
    twin: nn.Module

    @classmethod
    def of(cls, model: Any) -> Subject:
        """A model, or a function of tensors."""
        is_own = isinstance(model, nn.Module) and "forward" in vars(model)  # it cannot be another's
        return cls(model, model if is_own else convert(model))

    def hooked(self) -> nn.Module:
        """What may be hooked.

        Raises:
            TypeError: for a model whose modules are its own alone.
        """
        if self.twin is self.model:
            raise TypeError(f"layers=, at=: forward was replaced on this {type(self.model).__name__} itself")
        return self.twin


@dataclass(frozen=True)
class Question:
    """What is to be explained of which model."""

    subject: Subject
    given: Arguments
    target: Any
    request: Request


class Answer(NamedTuple):
    """What there is to say of one batch: the fields of an explanation."""

    relevance: Any
    output: Any
    target: Any
    initial_relevance: Tensor
    layers: Mapping[str, Tensor]
    rules: Mapping[str, Rule | str]
    form: Asked
    inputs: Any
    rule: Rule | str


@dataclass(frozen=True)
class Forward:
    """A forward that was explained.

    Attributes:
        y: what relevance starts at.
        value: its value, which has a graph of its own where relevance may be differentiated.
        output: what the model gave.
        given: its arguments.
        ends: the tensors that relevance comes to.
        watch: the hidden layers that are watched.
        concepts: those of which some channels are asked for.
        assignment: which rule was where.
        rule, form: those of it.
    """

    y: Tensor
    value: Tensor
    output: Any
    given: Arguments
    ends: Sequence[Tensor]
    watch: Watch
    concepts: Watch
    assignment: Assignment
    rule: Rule
    form: Asked


def answer(question: Question) -> Answer:
    """The explanation of one batch."""
    target, request = question.target, question.request
    forward = _forward(question)
    selection = selected(question, forward)
    relevances, started = relevance_of(forward, selection, request)
    n = len(forward.ends)
    if request.at is None:
        relevance, inputs = replaced(forward.given.given, forward.ends, relevances[:n]), question.given.given
    else:
        relevance, inputs = relevances[0], forward.ends[0].detach()
    return Answer(
        relevance=relevance,
        output=replaced_within(forward.output, Tensor.detach) if is_function(target) else forward.y.detach(),
        target=selection.target,
        initial_relevance=started,
        layers=dict(zip(forward.watch.seen, relevances[n:], strict=True)),
        rules=assigned_rules(forward.assignment.chosen),
        form=forward.form,
        inputs=inputs,
        rule=forward.rule,
    )


def relevance_of(
    forward: Forward, selection: Selection, request: Request, together: int = TOGETHER
) -> tuple[list[Tensor], Tensor]:
    """The relevance of all ends and watched layers of a forward, and what each map started with."""
    through = passages(request.concepts, forward.concepts.seen)
    start = Start(request.initial, selection, forward.value)
    places = [*map(Place.of, forward.ends), *(Place(s.edge, s.shape) for s in forward.watch.seen.values())]
    return flow(forward.y, start, places, through, request.differentiable, together)


def selected(question: Question, forward: Forward) -> Selection:
    """Which outputs of a forward are explained."""
    target = question.target
    return Everything(target) if is_function(target) else select(target, forward.y)


def called(question: Question, rule: Rule) -> list[str]:
    """The names of the modules that make live tensors, in the order in which they are called first."""
    watched = replace(question, request=replace(question.request, layers="*"))
    names = (name.partition("#")[0].partition("[")[0] for name in run(watched, rule, "relevance").watch.seen)
    return [*dict.fromkeys(names)]


def run(question: Question, rule: Rule, form: Asked, books: Books | None = None) -> Forward:
    """The explained forward.

    Args:
        question: what is asked.
        rule, form: by which rule, and in which form.
        books: in which relevance is accounted for.
    """
    subject, target, request = question.subject, question.target, question.request
    given = question.given.explained(request.differentiable)
    watch = Watch(subject.hooked() if request.layers else subject.twin, request.layers)
    concepts = Watch(subject.hooked() if request.concepts else subject.twin, [*request.concepts], "concepts")
    root = None if request.at is None else Root(request.at, _module(subject.hooked(), request.at))
    assignment = Assignment(rule, request.pattern, subject.twin)
    seen: list[tuple[Tensor, Any]] = []

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        with watch.on(), concepts.on():
            output = subject.twin(*args, **kwargs)
        y = values(target, output, len(given)) if is_function(target) else find(output)
        seen.append((value_of(y), output))
        return y

    forward.__signature__ = _signature(subject.model)  # type: ignore[attr-defined]
    args, kwargs = given.call
    y = explained_by(
        assignment, forward, args, kwargs, root=root, books=books,
        differentiable=request.differentiable, strict=request.strict, form=form,
    )  # fmt: skip
    ends = [t for t in given.tensors if t.requires_grad] if root is None else [root.output]
    ((value, output),) = seen
    return Forward(y, value, output, given, ends, watch, concepts, assignment, rule, form)


def _forward(question: Question) -> Forward:
    """The explained forward, by the rule and in the form that suit."""
    rule = question.request.rule or auto.likely(question.subject.model)
    forward = _in_best_form(question, rule)
    if question.request.rule is None and type(decided := auto.decided(forward.assignment)) is not type(rule):
        return _in_best_form(question, decided)
    return forward


def _in_best_form(question: Question, rule: Rule) -> Forward:
    *better, last = question.request.forms(rule)
    for form in better:
        try:
            return run(question, rule, form)
        except GradientFormError:
            continue
    return run(question, rule, last)


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        names = ", ".join(repr(found) for found, _ in model.named_children()) or "none"
        raise ValueError(f"at={name!r}: the model has no such module; its children are {names}") from None


def _signature(model: Any) -> inspect.Signature:
    """The signature of a model's forward, by which an error names an argument."""
    try:
        return inspect.signature(model.forward if isinstance(model, nn.Module) else model)
    except (TypeError, ValueError):
        return inspect.Signature()


@contextmanager
def differentiating() -> Iterator[None]:
    """Within this context autograd is on, whatever is outside."""
    inference = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    with inference, torch.enable_grad():
        yield
