"""What can be checked of an explanation of one model, each check by something that it does not share."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..composites import Composite
from ..engine import RelevanceWarning
from ..explanation.explain import explain
from ..explanation.inputs import Arguments, mapped
from ..explanation.outputs import find
from ..explanation.result import Explanation
from ..rules import Epsilon, Rule, ZPlus
from .reference import Detached

EXACT = Composite({family: Epsilon(0.0) for family in ("linear", "conv", "pool", "sum", "norm")}, default=Epsilon(0.0))
POSITIVE = Composite(
    {family: Epsilon(1e-12) for family in ("pool", "sum", "norm")}, default=ZPlus(epsilon=1e-12, bias="ignore")
)
_PRECISE, _EXACT, _ROUGH = 1e-8, 1e-5, 1e-3
_STEPS = (1e-6, 1e-5, 1e-7, 1e-8, 1e-4)


@dataclass(frozen=True)
class Subject:
    """A copy of a model in float64, and what it is called with.

    Attributes:
        model: the copy, whose parameters need no gradient.
        given: the inputs.
        target: which outputs are looked at; None for all.
    """

    model: nn.Module
    given: Arguments
    target: Any

    def explained(self, rule: Rule = EXACT, model: nn.Module | None = None, **settings: Any) -> Explanation:
        """An explanation, of all outputs together unless a target says which."""
        target = self.target if self.target is not None else _everything
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RelevanceWarning)
            return explain(
                model or self.model, self.given.given, target, rule=rule, forward_kwargs=self.given.kwargs,
                initial_relevance="output", **settings,
            )  # fmt: skip

    def value(self, given: Arguments, model: nn.Module | None = None) -> Tensor:
        """What is explained, ``(N,)``."""
        args, kwargs = given.call
        output = (model or self.model)(*args, **kwargs)
        found: Tensor = (self.target or _everything)(output)
        return found


def _everything(output: Any) -> Tensor:
    """All outputs of each sample, each with a weight of its own, for a mistake in one to show."""
    y = find(output)
    y = y.reshape(len(y), -1) if y.dim() else y.reshape(1, 1)
    return y @ torch.linspace(0.5, 1.5, y.shape[1], dtype=y.dtype, device=y.device)


def functions(subject: Subject) -> Iterator[str]:
    """Functions without a rule."""
    try:
        subject.explained(strict=True, form="relevance")
    except NotImplementedError as error:
        yield str(error).removeprefix("strict=True: ").split("; ")[0]


def maps(subject: Subject, notes: list[str]) -> Iterator[str]:
    """Both forms against the gradient of the network whose constants are detached."""
    expected, undecided = reference(subject)
    if undecided:
        notes.append(f"not compared with a detached gradient: {', '.join(dict.fromkeys(undecided))}")
    by_form = {}
    for form, bound in (("gradient", _PRECISE), ("relevance", _EXACT)):
        try:
            by_form[form] = _flat(subject.explained(form=form).relevance)
        except NotImplementedError:
            notes.append("gradient form: a function has none")
            continue
        if not undecided and (off := distance(by_form[form], expected)) > bound:
            yield f"the map in {form} form is not the detached gradient: {off:.1e} of its largest value off"
    if len(by_form) == 2 and (off := distance(*by_form.values())) > _EXACT:
        yield f"the two forms differ by {off:.1e} of the largest value"


def conservation(subject: Subject, notes: list[str]) -> Iterator[str]:
    """Without biases relevance adds up to the output, wherever it does for the detached network."""
    twin = without_biases(subject.model)
    bare = Subject(twin, subject.given, subject.target)
    expected, undecided = reference(bare)
    value = bare.value(bare.given).detach()
    size = float(value.abs().max().clamp(min=1e-30))
    if undecided or distance(expected.sum(1), value) > _PRECISE:
        notes.append("conservation: no theorem promises it here")
        return
    off = float((_flat(bare.explained().relevance).sum(1) - value).abs().max()) / size
    if off > _EXACT:
        yield f"without biases relevance does not add up to the output: {off:.1e} of it is missing"
    for row in bare.explained(POSITIVE).audit().rows:
        if isinstance(row.rule, ZPlus) and abs(row.created) > _EXACT * max(size, abs(row.relevance_out)):
            yield f"{row.name!r} does not hand on by z+ what it gets: {row.created:.2e} of {row.relevance_out:.2e}"


def differences(subject: Subject) -> Iterator[str]:
    """The model's own gradient against differences of its output, by a step that suits one of them."""
    given = subject.given.explained(False)
    xs = [t for t in given.tensors if t.requires_grad]
    value = subject.value(given)
    gradients = torch.autograd.grad(value.sum(), xs, allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    noise = (torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device) for x in xs)
    ways = [t * (x.detach().abs() + 0.1) for t, x in zip(noise, xs, strict=True)]
    terms = [g * way for g, way in zip(gradients, ways, strict=True) if g is not None]
    slope, size = (sum(float(t.sum()) for t in several) for several in (terms, [t.abs() for t in terms]))
    for step in _STEPS:
        with torch.no_grad():
            up, down = (subject.value(_moved(given, xs, ways, sign * step)).sum() for sign in (1, -1))
        if abs(float(up - down) / (2 * step) - slope) <= _ROUGH * max(size, 1e-12 * float(value.detach().abs().sum())):
            return
    yield "the model's gradient is not that of its output, by finite differences: one of its functions is wrong"


def batches(subject: Subject) -> Iterator[str]:
    """A sample by itself, and among others."""
    if len(subject.given) < 2:
        return
    with torch.no_grad():
        whole = subject.value(subject.given)
        alone = torch.cat([subject.value(subject.given.part(slice(i, i + 1))) for i in range(len(subject.given))])
    if distance(alone, whole) > _PRECISE:
        yield "what the model gives for a sample depends on the others in its batch"


def weights(subject: Subject) -> Iterator[str]:
    """Weights that were written to where torch does not count."""
    changed = copy.deepcopy(subject.model)
    rule = POSITIVE.updated({}, default=ZPlus(epsilon=1e-12))
    subject.explained(rule, changed)
    for p in changed.parameters():
        p.data.mul_(torch.linspace(0.5, 1.5, p.numel(), dtype=p.dtype, device=p.device).view(p.shape))
    now, fresh = (subject.explained(rule, model) for model in (changed, copy.deepcopy(changed)))
    if distance(_flat(now.relevance), _flat(fresh.relevance)) > _PRECISE:
        yield "weights that were changed are not seen: an explanation is made of what they were"


def untouched(model: nn.Module, look: Callable[[], Any]) -> Iterator[str]:
    """What explaining changes in a model."""
    before, random = _state(model), torch.get_rng_state()
    look()
    for name, (old, new) in ((name, (before[name], value)) for name, value in _state(model).items()):
        if not (torch.equal(old, new) if isinstance(old, Tensor) else old == new):
            yield f"explaining changed {name}"
    if not torch.equal(torch.get_rng_state(), random):
        yield "explaining drew random numbers"


def reference(subject: Subject) -> tuple[Tensor, list[str]]:
    """The map by the detached network, one row a sample, and what it cannot say."""
    given = subject.given.explained(False)
    xs = [t for t in given.tensors if t.requires_grad]
    mode = Detached()
    with mode:
        value = subject.value(given)
    gradients = torch.autograd.grad(value.sum(), xs, allow_unused=True)
    maps = [torch.zeros_like(x) if g is None else x * g for x, g in zip(xs, gradients, strict=True)]
    return torch.cat([R.detach().flatten(1) for R in maps], dim=1), mode.undecided


def without_biases(model: nn.Module) -> nn.Module:
    """A copy whose biases and means are zero."""
    twin = copy.deepcopy(model)
    for module in twin.modules():
        for name, t in (*module._parameters.items(), *module._buffers.items()):
            if t is not None and ("bias" in name or name == "running_mean"):
                t.data.zero_()
    return twin


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, in units of the largest value."""
    size = max(float(b.abs().max()), 1e-30) if b.numel() else 1.0
    off = (a - b).abs()
    return float("inf") if a.shape != b.shape or bool(off.isnan().any()) else float(off.max()) / size


def _flat(relevance: Any) -> Tensor:
    parts: list[Tensor] = []
    mapped(relevance, parts.append)
    return torch.cat([R.flatten(1) for R in parts], dim=1)


def _moved(given: Arguments, xs: list[Tensor], ways: list[Tensor], step: float) -> Arguments:
    places = {id(x): x.detach() + step * way for x, way in zip(xs, ways, strict=True)}
    return Arguments(mapped(given.given, lambda t: places.get(id(t), t)), given.kwargs)


def _state(model: nn.Module) -> Mapping[str, Any]:
    """What there is to change."""
    state: dict[str, Any] = {f"{name}": t.detach().clone() for name, t in model.state_dict().items()}
    for name, module in model.named_modules():
        state[f"the mode of {name or 'the model'}"] = module.training
        state[f"the hooks of {name or 'the model'}"] = [*module._forward_hooks, *module._forward_pre_hooks]
    for name, p in model.named_parameters():
        state[f"the gradient of {name}"] = None if p.grad is None else p.grad.clone()
        state[f"requires_grad of {name}"] = p.requires_grad
    return state
