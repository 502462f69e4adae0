"""Whether a map depends on what the model has learned: the model's weights are drawn anew, and the maps compared."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..rules import Rule
from .inputs import mapped
from .running import Question, Subject, answer, called, differentiating, run
from .targets import fixed, is_function

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Randomization:
    """How like a map is to those of the same model after its layers were drawn anew, one after another from the top.

    A map that stays the same does not show what the model has learned.

    Attributes:
        curve: the rank correlation of the maps, averaged over the samples, after each layer: by name, the last layer of
            the forward first. Those above a layer are drawn anew as well.
        correlation: that of a model with no layer left as it was.

    Source: Adebayo et al. 2018 (arXiv 1810.03292), cascading randomization.
    """

    curve: dict[str, float]

    @property
    def correlation(self) -> float:
        return next(reversed(self.curve.values()))

    def plot(self) -> Figure:
        """The curve. Needs matplotlib."""
        from ..plot import curve  # here, for `import lrp` needs torch alone

        return curve({"": [*self.curve.values()]}, [*self.curve], ylabel="rank correlation with the map")


def randomized(questions: Sequence[Question], rule: Rule, seed: int) -> Randomization:
    """The correlation of the map with those of the model's copies, whose weights are drawn by this seed.

    Maps are started at one: an output that changes its sign would turn all ranks round.

    Raises:
        TypeError: for a model that is no module, or has no layers that ``reset_parameters()`` draws.
    """
    model = questions[0].subject.model
    if not isinstance(model, nn.Module):
        raise TypeError(f"randomized(): the model is a {type(model).__name__}, whose weights cannot be drawn anew")
    copied = copy.deepcopy(model)
    with differentiating():
        asked = [_started_at_one(question, rule) for question in questions]
        before = [_map(question) for question in asked]
        curve: dict[str, float] = {}
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for name in _drawn(copied, ["", *called(asked[0], rule)]):
                copied.get_submodule(name).reset_parameters()  # type: ignore[operator]
                now = [_map(replace(question, subject=Subject.of(copied))) for question in asked]
                curve[name or type(model).__name__] = float(torch.cat([*map(rank_correlation, before, now)]).mean())
    return Randomization(curve)


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation of the values of each sample, ``(N,)``; equal values share the mean of their ranks.

    >>> rank_correlation(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 4.0, 9.0]]))
    tensor([1.], dtype=torch.float64)
    """
    ranks = [torch.stack([_ranks(row) for row in t.detach().flatten(1)]) for t in (a, b)]
    x, y = (r - r.mean(1, keepdim=True) for r in ranks)
    size = (x.square().sum(1) * y.square().sum(1)).sqrt()
    return torch.where(size > 0, (x * y).sum(1) / size.clamp(min=torch.finfo(size.dtype).tiny), 0.0)


def _ranks(values: Tensor) -> Tensor:
    """The rank of each value among all, from 0 up."""
    _, places, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0) - 1
    ranks: Tensor = (last - (counts - 1) / 2).double()[places]
    return ranks


def _started_at_one(question: Question, rule: Rule) -> Question:
    """The same question, of the outputs that are the largest now."""
    request = replace(question.request, rule=rule, initial="one", layers=(), differentiable=False)
    target = question.target
    if not is_function(target):
        target = fixed(target, run(question, rule, "relevance").y)
    return replace(question, request=request, target=target)


def _map(question: Question) -> Tensor:
    """The map of all inputs, channels summed, one row a sample."""
    found = answer(question)
    lead = found.initial_relevance.dim()
    parts: list[Tensor] = []
    mapped(found.relevance, parts.append)
    rows = (R.sum(lead) if R.dim() > lead + 1 else R for R in parts)
    return torch.cat([row.flatten(1) for row in rows], dim=1)


def _drawn(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The layers that can be drawn anew, the last of the forward first."""
    modules = {name: model.get_submodule(name) for name in reversed(names)}
    drawn = [name for name, module in modules.items() if hasattr(module, "reset_parameters") and _has_weights(module)]
    if not drawn:
        raise TypeError("randomized(): no layer of the model has reset_parameters(), by which its weights are drawn")
    return drawn


def _has_weights(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False))
