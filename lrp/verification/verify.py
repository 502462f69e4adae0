"""``lrp.verify``: whether lrp is right on one model."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from ..explanation.explain import explain
from ..explanation.inputs import Arguments, Inputs, arguments, mapped
from ..explanation.running import differentiating
from . import checks
from .checks import Subject


@dataclass(frozen=True)
class Verification:
    """What was found of a model.

    Attributes:
        problems: what is wrong, a sentence each.
        notes: what could not be checked, and why.
        checked: what was checked.
    """

    problems: Sequence[str]
    notes: Sequence[str]
    checked: Sequence[str]

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def __str__(self) -> str:
        lines = [f"checked: {', '.join(self.checked)}"]
        lines += [f"note: {note}" for note in self.notes] + [f"problem: {problem}" for problem in self.problems]
        last = "lrp is right on this model, as far as was checked." if self.ok else "Do not trust its maps yet."
        return "\n".join([*lines, last])


def verify(
    model: nn.Module,
    inputs: Inputs,
    target: Callable[[Any], Any] | None = None,
    *,
    forward_kwargs: Mapping[str, Any] | None = None,
) -> Verification:
    """Whether lrp is right on a model, by all that can be said of it without lrp.

    A copy of the model in float64 is explained by epsilon 0, in both forms, and compared with the gradient of the same
    network whose gates, deviations and slopes are constants; without its biases relevance must add up to the output;
    its own gradient is compared with differences of its output; functions without a rule are listed, and values that
    depend on how a sample is batched. What is raised on the way is a problem, too.

    Args:
        model: any ``torch.nn.Module``, in eval mode. It is left as it is.
        inputs: as for :func:`lrp.explain`; two samples or more, to see what a batch does.
        target: a function of the model's output that gives one number for each sample; default all outputs together.
        forward_kwargs: further arguments of the model.

    >>> import torch, lrp
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    >>> lrp.verify(model, torch.randn(2, 4)).ok
    True
    """
    problems: list[str] = []
    notes: list[str] = []
    checked: list[str] = []
    with differentiating():
        given = arguments(model, inputs, forward_kwargs)
        look = partial(_looked, model, given, target, problems)
        _checked("the model is left as it is", checks.untouched(model, look), problems, checked)
        subject = _subject(model, given, target)
        several: dict[str, Iterator[str]] = {
            "functions": checks.functions(subject),
            "map": checks.maps(subject, notes),
            "conservation": checks.conservation(subject, notes),
            "finite differences": checks.differences(subject),
            "batches": checks.batches(subject),
            "changed weights": checks.weights(subject),
        }
        for name, found in several.items():
            _checked(name, found, problems, checked)
    return Verification([*dict.fromkeys(problems)], [*dict.fromkeys(notes)], checked)


def _checked(name: str, found: Iterator[str], problems: list[str], checked: list[str]) -> None:
    """Run one check; an error in it is a problem of its own."""
    checked.append(name)
    try:
        problems.extend(found)
    except Exception as error:  # whatever it is, the other checks go on
        problems.append(f"{name}: {_shown(error)}")


def _looked(model: nn.Module, given: Arguments, target: Any, problems: list[str]) -> None:
    """Explain the model itself once, as a user would."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            explain(model, given.given, target or checks._everything, rule="epsilon", forward_kwargs=given.kwargs)
        except Exception as error:
            problems.append(f"explaining raises {_shown(error)}")


def _shown(error: Exception) -> str:
    """An error in one line."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def _subject(model: nn.Module, given: Arguments, target: Any) -> Subject:
    """The copy in float64 that is looked at."""
    twin = copy.deepcopy(model).double().requires_grad_(False)

    def double(t: Any) -> Any:
        return t.detach().double() if t.is_floating_point() else t

    kwargs = mapped(dict(given.kwargs), double)
    return Subject(twin, Arguments(mapped(given.given, double), kwargs), target)
