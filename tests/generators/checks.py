"""What must hold of an explained program: the values, the map, and who gets relevance."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import lrp

from .program import Program
from .readings import CASES, Case, Relevance

TOLERANCE = 1e-10  # relative to the largest relevance
NOISE = 1e-14  # relative to the inputs
STABLE = 2e-12  # what the noise may change of the reference, for a program to be judged


@dataclass(frozen=True)
class Verdict:
    """What was found: a failure with its error, or none."""

    kind: str
    error: float = 0.0
    detail: str = ""

    def __bool__(self) -> bool:
        return self.kind in ("right", "unstable")


RIGHT = Verdict("right")
_HEAD = "the model's output is a softmax"


def judge(program: Program, case_name: str) -> Verdict:
    """Explain a program, and compare with its meaning."""
    return Expectation(program, case_name).verdict()


class Expectation:
    """What a program means under a rule, which does not ask the library, and whether the library finds it.

    Args:
        program: the program.
        case_name: the key of the rule in :data:`~generators.readings.CASES`.
    """

    def __init__(self, program: Program, case_name: str) -> None:
        self.program, self.case = program, CASES[case_name]
        self.model, self.inputs = program.build(), program.inputs()
        self.plain = self.model.requires_grad_(False)(*self.inputs).detach()  # weights that want grad take other paths
        self.has_gradient = has_gradient(self.model, self.inputs)
        self.model.requires_grad_(True)
        self.reading = Relevance(program, self.model, self.inputs, self.case)
        output = self.reading.output.detach()
        is_same = torch.allclose(output, self.plain, rtol=1e-9, atol=1e-9, equal_nan=True)
        assert is_same, f"the meaning is not what the lines say:\n{program}"
        self.maps = reference(program, self.model, self.inputs, self.case, self.reading)

    def verdict(self) -> Verdict:
        """What the library makes of the program."""
        if self.reading.is_cut:
            return self._refused_for_its_end()
        if self.maps is None:
            return Verdict("unstable")
        try:
            actual = explained(self.model, self.inputs, self.case.rule, self.plain)
        except (Exception, lrp.RelevanceWarning) as error:
            if self.reading.met_unseen or self.reading.may_refuse or not self.has_gradient or _HEAD in str(error):
                return RIGHT
            return Verdict("refused", 1.0, f"{type(error).__name__}: {str(error)[:300]}")
        if self.reading.met_unseen:
            return Verdict("not refused", 1.0)
        if isinstance(actual, str):
            return Verdict(actual, 1.0)
        error = distance(actual, self.maps)
        return self._alone(actual, self.maps) if error < TOLERANCE else Verdict("wrong map", error)

    def _alone(self, together: list[Tensor], expected: list[Tensor]) -> Verdict:
        """One sample by itself has the map that it has in a batch."""
        alone = explained(self.model, [x[:1].detach().requires_grad_() for x in self.inputs], self.case.rule)
        if isinstance(alone, str):
            return Verdict(alone, 1.0)
        error = distance([t[:1] for t in together], alone, largest(expected))
        return RIGHT if error < TOLERANCE else Verdict("one sample alone", error)

    def _refused_for_its_end(self) -> Verdict:
        """What depends on no input is refused, by the name of where the way ends."""
        try:
            explained(self.model, self.inputs, self.case.rule)
        except ValueError as error:
            is_named = "depends on the explained inputs" in str(error) and " ends at " in str(error)
            if is_named or any(label.startswith("unseen:") for label in self.program.labels):  # which is named first
                return RIGHT
        return Verdict("end not named", 1.0)


def explained(
    model: nn.Module, inputs: list[Tensor], rule: lrp.Rule, plain: Tensor | None = None, form: str = "relevance"
) -> list[Tensor] | str:
    """The map of each input, of a relevance that starts at the output; or what is wrong with it."""
    for parameter in model.parameters():
        parameter.grad = None
    inputs = [x.detach().requires_grad_() for x in inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = lrp.convert(model)(*inputs, explain=True, rule=rule, strict=True, form=form)
        if plain is not None and not torch.equal(y, plain):
            return "other values"
        y.backward(y.detach().clone())
    if any(parameter.grad is not None for parameter in model.parameters()):
        return "a parameter got relevance"
    return [torch.zeros_like(x) if x.grad is None else x.grad for x in inputs]


def has_gradient(model: nn.Module, inputs: list[Tensor]) -> bool:
    """Whether torch itself can differentiate: not where something is overwritten that its gradient needs."""
    try:
        torch.autograd.grad(model.requires_grad_(False)(*inputs).sum(), inputs, allow_unused=True)
    except RuntimeError:
        return False
    return True


def reference(
    program: Program, model: nn.Module, inputs: list[Tensor], case: Case, reading: Relevance
) -> list[Tensor] | None:
    """The map by the formulas; None where rounding changes it, or where there is none."""
    expected = reading.relevance(inputs)
    moved = [(x * (1 + NOISE * torch.cos(100 * x))).detach().requires_grad_() for x in inputs]
    again = Relevance(program, model, moved, case).relevance(moved)
    if expected is None or again is None or largest(expected) < 1e-9:
        return None
    return expected if distance(again, expected) < STABLE else None


def distance(actual: list[Tensor], expected: list[Tensor], scale: float | None = None) -> float:
    """The largest difference, relative to ``scale``: by default, to the largest value."""
    scale = largest(expected) if scale is None else scale
    return largest([a - e for a, e in zip(actual, expected, strict=True)]) / scale


def largest(maps: list[Tensor]) -> float:
    return max(t.abs().max().item() for t in maps)
