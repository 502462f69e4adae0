"""``lrp.explain``: one call, from a model and its inputs to an explanation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..composites import Composite, assigned_rules
from ..composites import get as get_rule
from ..conversion import convert
from ..engine import Asked, Assignment, GradientFormError, Layers, Patterns, Root, Watch, explained_by, value_of
from ..engine.checks import check_form
from ..rules import Rule
from . import auto
from .inputs import Arguments, Inputs, arguments, joined, mapped, replaced
from .outputs import find
from .result import Explanation
from .starts import check, starts, totals
from .targets import Everything, Selection, is_function, part, select, values

_TOGETHER = 16  # maps that are made by one backward


def explain(
    model: nn.Module | Callable[..., Any],
    inputs: Inputs,
    target: Any = None,
    *,
    rule: str | Rule = "auto",
    initial_relevance: str | Tensor = "output",
    layers: Layers = (),
    at: str | None = None,
    pattern: Patterns | None = None,
    forward_kwargs: Mapping[str, Any] | None = None,
    batch_size: int | None = None,
    form: Asked | None = None,
    strict: bool = False,
    differentiable: bool = False,
    progress: bool = False,
) -> Explanation:
    """Which of a model's inputs carried its output, and how much of it.

    The relevance of a sample adds up to the output that is explained, but for what biases and stabilisers absorb. The
    model is run once as it is and left as it was, in its own mode; gradients may be switched off outside.

    Args:
        model: any ``torch.nn.Module``, or a function of tensors.
        inputs: a tensor ``(N, ...)``, a numpy array, a tuple of the model's arguments, or a mapping of its keyword
            arguments. What is of integers, such as indices, gets no relevance.
        target: which outputs are explained. Dimension 1 of the output counts the classes. None (default) is the
            largest output of each sample; a number, or one for each sample; a tuple, one index in the outputs of a
            sample, or a list with one for each; ``(N, K)`` numbers, :class:`Top`, or ``"all"``: several targets of one
            forward, with relevance ``(N, K, ...)``; a :class:`Difference` or a :class:`Region`; a function of the
            model's output, which gives one number for each sample, or a list of functions of one sample's output each.
        rule: a key, a rule or a composite. ``"auto"`` (default) is ``"epsilon_plus_flat"`` for a model that calls
            convolutions, else ``Epsilon(0.25, relative=True)``.
        initial_relevance: with how much relevance it starts at the target: ``"output"`` (default), the output itself;
            ``"one"``; ``"probability"``, the softmax of the outputs; ``"contrast"``, the output and, at the K - 1 other
            classes, ``-y / (K - 1)``; or a tensor of one number for each sample (and target), or of the output's shape.
        layers: names or globs of modules, containers included, whose relevance is wanted as well, at their outputs;
            or a dict from these to ``"output"`` or ``"input"``.
        at: the name of a module, called once, whose output is explained in place of the inputs, such as an embedding.
        pattern: for rules that need patterns.
        forward_kwargs: further keyword arguments of the model, which are not explained.
        batch_size: how many samples are explained together; default all.
        form: ``"relevance"`` or ``"gradient"``, see :doc:`forward <layers>`; by default gradient form where the rules
            have one and no ``layers`` are asked for.
        strict: whether a function without a rule is an error.
        differentiable: whether the relevance may be differentiated, by inputs that require grad and by parameters.
        progress: whether to show a bar.

    Raises:
        ValueError, TypeError: for a target that the output does not have, inputs that are on another device than the
            model or not finite, and all else that an explained forward refuses.
        NotImplementedError: for ``rule="auto"`` where the model has attention; if strict, for functions without a rule.

    >>> import torch, lrp
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    >>> e = lrp.explain(model, torch.rand(5, 4), target=2)
    >>> e.relevance.shape, e.output.shape, e.target
    (torch.Size([5, 4]), torch.Size([5, 3]), tensor([2, 2, 2, 2, 2]))
    """
    check(initial_relevance)
    if form is not None:
        check_form(form, differentiable)
    if form == "gradient" and layers:
        raise ValueError("form='gradient' with layers=: only form='relevance' carries the relevance of hidden tensors")
    request = Request(
        get_rule(rule) if rule != "auto" else None, initial_relevance, layers, at, pattern, form, strict, differentiable
    )
    with _differentiating():
        given = arguments(model, inputs, forward_kwargs)
        _check_inputs(model, given, at)
        samples = _batches(len(given), batch_size, progress)
        subject = Subject.of(model)
        found = [_explained(subject, *_of_samples(given, target, request, batch)) for batch in samples]
    return found[0] if len(found) == 1 else _together(found)


@dataclass(frozen=True)
class Request:
    """What was asked for, as :func:`explain` takes it; no rule is ``"auto"``."""

    rule: Rule | None
    initial: str | Tensor
    layers: Layers
    at: str | None
    pattern: Patterns | None
    form: Asked | None
    strict: bool
    differentiable: bool

    def forms(self, rule: Rule) -> Sequence[Asked]:
        """In which forms it can be answered, the best first."""
        if self.form is not None:
            return (self.form,)
        is_seen = bool(self.layers) or self.differentiable
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
class Forward:
    """A forward that was explained.

    Attributes:
        y: what relevance starts at.
        value: its value, which has a graph of its own where relevance may be differentiated.
        output: what the model gave.
        ends: the tensors that relevance comes to.
        watch: the hidden layers that are watched.
        assignment: which rule was where.
        rule, form: those of it.
    """

    y: Tensor
    value: Tensor
    output: Any
    ends: Sequence[Tensor]
    watch: Watch
    assignment: Assignment
    rule: Rule
    form: Asked


def _explained(subject: Subject, given: Arguments, target: Any, request: Request) -> Explanation:
    """The explanation of one batch."""
    explained = given.explained(request.differentiable)
    forward = _forward(subject, explained, target, request)
    selection: Selection = Everything(target) if is_function(target) else select(target, forward.y)
    relevances, started = _backward(forward, selection, request)
    n_ends = len(forward.ends)
    inputs: Any = forward.ends[0].detach() if request.at is not None else given.given
    relevance: Any = relevances[0]
    if request.at is None:
        relevance = replaced(explained.given, forward.ends, relevances[:n_ends])
    return Explanation(
        relevance=relevance,
        output=mapped(forward.output, Tensor.detach) if is_function(target) else forward.y.detach(),
        target=selection.target,
        initial_relevance=started,
        layers=dict(zip(forward.watch.seen, relevances[n_ends:], strict=True)),
        rules=assigned_rules(forward.assignment.chosen),
        form=forward.form,
        inputs=inputs,
        rule=forward.rule,
        _n=len(given),
    )


def _forward(subject: Subject, given: Arguments, target: Any, request: Request) -> Forward:
    """The explained forward, by the rule and in the form that suit."""
    rule = request.rule or auto.likely(subject.model)
    forward = _in_best_form(subject, given, target, request, rule)
    if request.rule is None and type(decided := auto.decided(forward.assignment)) is not type(rule):
        return _in_best_form(subject, given, target, request, decided)
    return forward


def _in_best_form(subject: Subject, given: Arguments, target: Any, request: Request, rule: Rule) -> Forward:
    *better, last = request.forms(rule)
    for form in better:
        try:
            return _run(subject, given, target, request, rule, form)
        except GradientFormError:
            continue
    return _run(subject, given, target, request, rule, last)


def _run(subject: Subject, given: Arguments, target: Any, request: Request, rule: Rule, form: Asked) -> Forward:
    watch = Watch(subject.hooked(), request.layers) if request.layers else Watch(subject.twin, ())
    root = None if request.at is None else Root(request.at, _module(subject.hooked(), request.at))
    assignment = Assignment(rule, request.pattern, subject.twin)
    seen: list[tuple[Tensor, Any]] = []

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        with watch.on():
            output = subject.twin(*args, **kwargs)
        y = values(target, output, len(given)) if is_function(target) else find(output)
        seen.append((value_of(y), output))
        return y

    forward.__signature__ = _signature(subject.model)  # type: ignore[attr-defined]
    args, kwargs = given.call
    y = explained_by(
        assignment, forward, args, kwargs,
        root=root, differentiable=request.differentiable, strict=request.strict, form=form,
    )  # fmt: skip
    ends = [t for t in given.tensors if t.requires_grad] if root is None else [root.output]
    ((value, output),) = seen
    return Forward(y, value, output, ends, watch, assignment, rule, form)


def _backward(forward: Forward, selection: Selection, request: Request) -> tuple[list[Tensor], Tensor]:
    """The relevance of all ends and watched layers, and what each map started with."""
    y, number, seen = forward.y, selection.number, [*forward.watch.seen.values()]
    ends = [*forward.ends, *(s.edge for s in seen)]
    shapes = [*(t.shape for t in forward.ends), *(s.shape for s in seen)]
    step = max(1, _TOGETHER // max(1, len(y) if y.dim() else 1))
    chunks = [slice(first, first + step) for first in range(0, number or 1, step)]
    found: list[Sequence[Tensor]] = []
    started: list[Tensor] = []
    for chunk in chunks:
        start = starts(request.initial, selection, forward.value, chunk)
        started.append(totals(start))
        gradients = _gradients(y, ends, start, chunk is not chunks[-1], request.differentiable)
        full = [y.new_zeros(len(start), *s) if g is None else g for g, s in zip(gradients, shapes, strict=True)]
        found.append(full)
    return [_by_sample(parts, number) for parts in zip(*found, strict=True)], _by_sample(started, number)


def _gradients(y: Tensor, ends: Sequence[Any], start: Tensor, keeps: bool, differentiable: bool) -> Sequence[Any]:
    """What comes to the ends, of all starts at once."""
    settings: dict[str, Any] = {"allow_unused": True, "create_graph": differentiable}
    settings["retain_graph"] = keeps or differentiable
    if len(start) == 1:
        return [None if g is None else g.unsqueeze(0) for g in torch.autograd.grad(y, ends, start[0], **settings)]
    return torch.autograd.grad(y, ends, start, is_grads_batched=True, **settings)


def _by_sample(parts: Sequence[Tensor], number: int | None) -> Tensor:
    """``(N, ...)``, or ``(N, K, ...)`` of several targets, of what has the targets first."""
    together = torch.cat([*parts]) if len(parts) > 1 else parts[0]
    return together[0] if number is None else together.transpose(0, 1)


def _of_samples(
    given: Arguments, target: Any, request: Request, samples: slice | None
) -> tuple[Arguments, Any, Request]:
    """What there is for some samples; None for all."""
    if samples is None:
        return given, target, request
    n, initial = len(given), request.initial
    if isinstance(initial, Tensor) and len(initial) == n:
        request = Request(**{**vars(request), "initial": initial[samples]})
    return given.part(samples), part(target, samples, n), request


def _batches(n: int, batch_size: int | None, progress: bool) -> Iterator[slice | None]:
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    size = n if batch_size is None else batch_size
    batches = [slice(first, first + size) for first in range(0, n, size)] if size < n else [None]
    if progress:
        from tqdm import tqdm  # here, for `import lrp` needs torch alone

        return iter(tqdm(batches, desc="explain", unit="batch"))
    return iter(batches)


def _together(parts: Sequence[Explanation]) -> Explanation:
    """One explanation of several batches."""
    first = parts[0]
    names = ("relevance", "output", "target", "initial_relevance", "layers", "inputs")
    fields = {name: joined([getattr(e, name) for e in parts]) for name in names}
    return Explanation(**fields, rules=first.rules, form=first.form, rule=first.rule, _n=sum(map(len, parts)))


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        names = ", ".join(repr(found) for found, _ in model.named_children()) or "none"
        raise ValueError(f"at={name!r}: the model has no such module; its children are {names}") from None


def _check_inputs(model: Any, given: Arguments, at: str | None) -> None:
    if at is not None or any(t.is_floating_point() or t.is_complex() for t in given.tensors):
        return
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    embeddings = [name for name, module in modules if isinstance(module, (nn.Embedding, nn.EmbeddingBag))]
    example = repr(embeddings[0]) if embeddings else "'the layer that embeds them'"
    raise TypeError(f"inputs= are of integers, which carry no relevance: explain what is made of them, by at={example}")


def _signature(model: Any) -> inspect.Signature:
    """The signature of a model's forward, by which an error names an argument."""
    try:
        return inspect.signature(model.forward if isinstance(model, nn.Module) else model)
    except (TypeError, ValueError):
        return inspect.Signature()


@contextmanager
def _differentiating() -> Iterator[None]:
    """Within this context autograd is on, whatever is outside."""
    inference = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()
    with inference, torch.enable_grad():
        yield
