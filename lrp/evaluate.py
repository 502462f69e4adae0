"""Whether what a map calls relevant matters to the model: it is removed, and the output watched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .explanation import Explanation
from .explanation.outputs import find
from .explanation.targets import is_function, select, values

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BASELINES = ("grey", "blur")


@dataclass(frozen=True, eq=False)
class Flip:
    """The output as features are removed, the mean over the samples; the first value is that of the whole input.

    Attributes:
        most: the most relevant features first.
        least: the least relevant features first.
        random: in random order.
        fractions: which fraction of them is removed at each step.
    """

    most: Tensor
    least: Tensor
    random: Tensor
    fractions: Tensor

    @property
    def gap(self) -> float:
        """By how much the curve of the least relevant is above that of the most relevant, on average."""
        return float((self.least - self.most).mean())

    def plot(self) -> Figure:
        """The three curves. Needs matplotlib."""
        from .plot import curve  # here, for `import lrp` needs torch alone

        lines = {name: getattr(self, name).tolist() for name in ("most", "random", "least")}
        return curve(lines, [f"{fraction:.0%}" for fraction in self.fractions.tolist()], ylabel="output")


def flip(
    model: nn.Module | Callable[..., Any],
    inputs: Tensor,
    e: Explanation,
    *,
    patch: int | None = None,
    baseline: str | float | Tensor = "grey",
    steps: int = 10,
    most: float = 1.0,
    seed: int = 0,
) -> Flip:
    """The output of a model as the most, the least and random features of its input are removed, step by step.

    Args:
        model: the model, called as it is, without gradients.
        inputs: what was explained, ``(N, ...)``.
        e: the explanation, of one target.
        patch: the side of the squares of an image, or the length of the pieces of a signal, that are removed together,
            by the sum of their relevance. Default a fourteenth of the shorter side, 16 of 224 pixels; 1 for features.
        baseline: what stands in the place of what is removed: ``"grey"`` (default), the mean of each channel of the
            sample, of features that of the batch; ``"blur"``, the sample, smoothed over a quarter of its sides; a
            number, or a tensor that broadcasts to the inputs.
        steps: in how many steps.
        most: the largest fraction that is removed, 1 for all of it.
        seed: of the random order.

    Raises:
        ValueError, TypeError: for an explanation of several targets or other inputs, an unknown baseline.

    Source: Samek et al. 2017 (arXiv 1509.06321), region perturbation.

    >>> import torch, lrp
    >>> model, x = torch.nn.Linear(6, 2), torch.rand(4, 6)
    >>> lrp.evaluate.flip(model, x, lrp.explain(model, x), steps=3, baseline=0.0).most.shape
    torch.Size([4])
    """
    if not isinstance(e.relevance, Tensor) or e.initial_relevance.dim() != 1 or e.relevance.shape != inputs.shape:
        raise TypeError("flip(): takes one input, and its explanation of one target")
    if steps < 1 or not 0 < most <= 1:
        raise ValueError(f"steps={steps}, most={most}: must be at least 1, and above 0 and at most 1")
    ids = _patches(inputs.shape, patch)
    relevance = _by_patch(e.relevance, ids)
    generator = torch.Generator().manual_seed(seed)
    orders = {
        "most": relevance.argsort(1, descending=True),
        "least": relevance.argsort(1),
        "random": torch.rand(relevance.shape, generator=generator).argsort(1).to(relevance.device),
    }
    fractions = torch.linspace(0, most, steps + 1)
    counts = [round(fraction * relevance.shape[1]) for fraction in fractions.tolist()]
    blank = _baseline(baseline, inputs)
    with torch.no_grad():
        curves = {
            name: torch.stack(
                [_output(model, x, e).double().mean() for x in _removed(inputs, blank, ids, order, counts)]
            )
            for name, order in orders.items()
        }
    return Flip(**curves, fractions=fractions)


def _removed(x: Tensor, blank: Tensor, ids: Tensor, order: Tensor, counts: Sequence[int]) -> Iterator[Tensor]:
    """The inputs without the first patches of each sample's order, so many of them."""
    rank = order.argsort(1)
    lead = (len(x), *(1 for _ in range(x.dim() - 1 - ids.dim())))
    for count in counts:
        is_removed = (rank < count)[:, ids.flatten()].view(*lead, *ids.shape)
        yield torch.where(is_removed, blank, x)


def _patches(shape: Sequence[int], patch: int | None) -> Tensor:
    """The number of the patch that each place of a sample is in: of a feature, or of what channels have in common."""
    sizes = shape[1:] if len(shape) == 2 else shape[2:]
    side = patch or (1 if len(shape) == 2 else max(1, min(sizes) // 14))
    ids = torch.zeros((), dtype=torch.long)
    for size in sizes:
        ids = ids.unsqueeze(-1) * math.ceil(size / side) + torch.arange(size) // side
    return ids


def _by_patch(R: Tensor, ids: Tensor) -> Tensor:
    """The relevance of each patch, ``(N, patches)``."""
    places = R if R.dim() == 1 + ids.dim() else R.sum(1)
    sums = R.new_zeros(len(R), int(ids.max()) + 1)
    return sums.index_add_(1, ids.flatten().to(R.device), places.flatten(1))


def _baseline(baseline: str | float | Tensor, x: Tensor) -> Tensor:
    if isinstance(baseline, Tensor):
        return baseline.to(x)
    if not isinstance(baseline, str):
        return x.new_tensor(baseline)
    if baseline not in _BASELINES:
        raise ValueError(
            f"baseline={baseline!r}: must be one of {', '.join(map(repr, _BASELINES))}, a number or a tensor"
        )
    if x.dim() == 2:
        return x.mean(0, keepdim=True)
    if baseline == "grey":
        return x.mean(tuple(range(2, x.dim())), keepdim=True)
    return _blurred(x)


def _blurred(x: Tensor) -> Tensor:
    """The mean of what is around each place, twice."""
    for _ in range(2):
        for dim in range(2, x.dim()):
            width = max(1, x.shape[dim] // 8)
            t = x.movedim(dim, -1)
            padded = F.pad(t.reshape(1, -1, t.shape[-1]), (width, width), mode="replicate")
            x = F.avg_pool1d(padded, 2 * width + 1, 1).view(t.shape).movedim(-1, dim)
    return x


def _output(model: Callable[..., Any], x: Tensor, e: Explanation) -> Tensor:
    """The output that was explained, of other inputs: ``(N,)``."""
    output = model(x)
    if is_function(e.target):
        return values(e.target, output, len(x))
    y = find(output)
    target = e.target
    if isinstance(target, Tensor) and target.dim() == 2:  # an index of each sample
        target = [tuple(index) for index in target.tolist()]
    return (select(target, y).weights(y, slice(1))[0] * y).flatten(1).sum(1) if y.dim() > 1 else y
