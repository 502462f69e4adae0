"""What channels stand for: the inputs that they are most relevant for (Achtibat et al. 2023, arXiv 2206.03208).

The map of a concept is ``lrp.explain(model, x, concepts={"layer": [channel]})``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .conversion import convert
from .explanation.explain import explain
from .rules import Rule


@dataclass(frozen=True, eq=False)
class References:
    """The samples with the highest scores.

    Attributes:
        indices: their numbers in the data, ``(k,)``, or ``(channels, k)``; the best first.
        scores: their scores, alike.
        k: how many were asked for.
    """

    indices: Tensor
    scores: Tensor
    k: int

    def merge(self, other: References) -> References:
        """The best of both, as of several processes, each with samples of its own.

        >>> a, b = (References(torch.tensor([i]), torch.tensor([float(i)]), 1) for i in (3, 5))
        >>> a.merge(b).indices
        tensor([5])
        """
        scores, indices = torch.cat([self.scores, other.scores], -1), torch.cat([self.indices, other.indices], -1)
        best = scores.topk(min(self.k, scores.shape[-1]), dim=-1)
        return References(indices.gather(-1, best.indices), best.values, self.k)


def reference(
    model: nn.Module,
    loader: Iterable[Any],
    layer: str,
    channel: int | Sequence[int],
    k: int = 8,
    *,
    by: Literal["relevance", "activation"] = "relevance",
    rule: str | Rule = "auto",
    target: Any = None,
    indices: Iterable[int] | None = None,
) -> References:
    """The samples in which a channel of a layer matters most, in one pass over the data.

    Args:
        model: the model.
        loader: batches: tensors, or tuples whose first is one.
        layer: the name of a module whose outputs have channels along dimension 1.
        channel: the channel, or several.
        k: how many samples.
        by: ``"relevance"`` (default), that of the channel, summed over space, for the target; or ``"activation"``, its
            largest value.
        rule: as for :func:`lrp.explain`.
        target: as for :func:`lrp.explain`; by default the largest output of each sample.
        indices: the numbers of the samples in the data, in the order of the loader; by default 0, 1, 2, ...

    Raises:
        ValueError: for a layer or a channel that is not there, a ``k`` below 1, an empty loader, another ``by``.

    >>> layers = torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(48, 2)
    >>> reference(torch.nn.Sequential(*layers), torch.rand(5, 4, 1, 6, 6), "0", channel=2, k=3).indices.shape
    torch.Size([3])
    """
    if k < 1 or by not in ("relevance", "activation"):
        raise ValueError(f"k={k}, by={by!r}: must be at least 1, and 'relevance' or 'activation'")
    numbers = iter(indices) if indices is not None else iter(range(2**62))
    found: References | None = None
    for batch in loader:
        x = batch if isinstance(batch, Tensor) else batch[0]
        scores = _relevance(model, x, layer, rule, target) if by == "relevance" else _activation(model, x, layer)
        part = _best(scores, channel, [next(numbers) for _ in range(len(x))], k, layer)
        found = part if found is None else found.merge(part)
    if found is None:
        raise ValueError("loader: gives no batches")
    return found


def _best(scores: Tensor, channel: int | Sequence[int], numbers: Sequence[int], k: int, layer: str) -> References:
    """The best of one batch, of whose samples and channels these are the scores."""
    index = torch.tensor(channel, device=scores.device)
    size = scores.shape[1]
    if bool(((index < -size) | (index >= size)).any()):
        raise ValueError(f"channel={channel}: the outputs of {layer!r} have {size} channels")
    rows = scores[:, index].movedim(0, -1).detach().cpu()
    best = rows.topk(min(k, rows.shape[-1]), dim=-1)
    return References(torch.tensor(numbers)[best.indices], best.values, k)


def _relevance(model: nn.Module, x: Tensor, layer: str, rule: str | Rule, target: Any) -> Tensor:
    R = explain(model, x, target, rule=rule, layers=[layer]).layers[layer]
    return R.flatten(2).sum(2) if R.dim() > 2 else R


def _activation(model: nn.Module, x: Tensor, layer: str) -> Tensor:
    twin: nn.Module = convert(model)  # whose modules nobody else calls
    seen: list[Tensor] = []

    def see(module: nn.Module, args: Any, output: Tensor) -> None:
        seen.append(output)

    _submodule(twin, layer).register_forward_hook(see)
    with torch.no_grad():
        twin(x)
    return seen[0].flatten(2).amax(2) if seen[0].dim() > 2 else seen[0]


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"layer={name!r}: the model has no such module") from None
