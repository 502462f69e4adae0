"""``lrp.explain``: one call, from a model and its inputs to an explanation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..composites import get as get_rule
from ..engine import Asked, Layers, Patterns
from ..engine.checks import check_form
from ..rules import Rule
from .flow import Concepts, check
from .inputs import Arguments, Inputs, arguments, joined
from .result import Explanation
from .running import Answer, Question, Request, Subject, answer, differentiating
from .targets import part


def explain(
    model: nn.Module | Callable[..., Any],
    inputs: Inputs,
    target: Any = None,
    *,
    rule: str | Rule = "auto",
    initial_relevance: str | Tensor = "output",
    layers: Layers = (),
    at: str | None = None,
    concepts: Concepts | None = None,
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
        concepts: a dict from a module's name to channels of its output: the map is that of the relevance that passes
            through these. The maps of all channels of a layer that every path crosses add up to the whole.
        pattern: for rules that need patterns.
        forward_kwargs: further keyword arguments of the model, which are not explained.
        batch_size: how many samples are explained together; default all. Tensors among the arguments that are as long
            as the first input are divided with it.
        form: ``"relevance"`` or ``"gradient"``, as in an explained forward; by default gradient form where the rules
            have one and no ``layers`` or ``concepts`` are asked for.
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
    if form == "gradient" and (layers or concepts):
        raise ValueError(
            "form='gradient' with layers= or concepts=: the relevance of hidden tensors is in form='relevance'"
        )
    request = Request(
        rule=get_rule(rule) if rule != "auto" else None, initial=initial_relevance, layers=layers, at=at,
        concepts=concepts or {}, pattern=pattern, form=form, strict=strict, differentiable=differentiable,
    )  # fmt: skip
    with differentiating():
        given = arguments(model, inputs, forward_kwargs)
        _check_inputs(model, given, at)
        samples = _batches(len(given), batch_size, progress)
        whole = Question(Subject.of(model), given, target, request)
        questions = [whole if batch is None else _of_samples(whole, batch) for batch in samples]
        answers = [answer(question) for question in questions]
    fields = answers[0]._asdict() if len(answers) == 1 else _together(answers)
    return Explanation(**fields, _n=len(given), _questions=questions)


def _of_samples(question: Question, samples: slice) -> Question:
    """What is asked of some samples."""
    n, request = len(question.given), question.request
    if isinstance(request.initial, Tensor) and len(request.initial) == n:
        request = replace(request, initial=request.initial[samples])
    given, target = question.given.part(samples), part(question.target, samples, n)
    return Question(question.subject, given, target, request)


def _batches(n: int, batch_size: int | None, progress: bool) -> Iterator[slice | None]:
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1")
    size = n if batch_size is None else batch_size
    batches = [slice(first, first + size) for first in range(0, n, size)] if size < n else [None]
    if progress:
        from tqdm import tqdm  # here, for `import lrp` needs torch alone

        return iter(tqdm(batches, desc="explain", unit="batch"))
    return iter(batches)


def _together(answers: Sequence[Answer]) -> dict[str, Any]:
    """One answer of several batches."""
    names = ("relevance", "output", "target", "initial_relevance", "layers", "inputs")
    return {**answers[0]._asdict(), **{name: joined([getattr(a, name) for a in answers]) for name in names}}


def _check_inputs(model: Any, given: Arguments, at: str | None) -> None:
    if at is not None or any(t.is_floating_point() or t.is_complex() for t in given.tensors):
        return
    modules = model.named_modules() if isinstance(model, nn.Module) else ()
    embeddings = [name for name, module in modules if isinstance(module, (nn.Embedding, nn.EmbeddingBag))]
    example = repr(embeddings[0]) if embeddings else "'the layer that embeds them'"
    raise TypeError(f"inputs= are of integers, which carry no relevance: explain what is made of them, by at={example}")
