"""The backward that hands each input its share of the relevance as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..facts import LiveCall


@dataclass(frozen=True)
class Shares:
    """The backward that hands a share of the relevance to each input, of these shapes; to a share of 0 nothing."""

    shapes: Sequence[torch.Size]
    shares: Sequence[float] = (1.0,)

    def __call__(self, R: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(
            None if share == 0 else (R if share == 1 else share * R).sum_to_size(shape)
            for shape, share in zip(self.shapes, self.shares, strict=True)
        )


def passed_on(call: LiveCall, receivers: Sequence[Tensor]) -> tuple[Sequence[Tensor], Shares]:
    """The carriers of a call whose relevance passes in equal parts to these, and its backward.

    What else is overwritten is a carrier, the first, which gets nothing.
    """
    carriers, shares = list(receivers), [1 / len(receivers)] * len(receivers)
    if call.target is not None and all(t is not call.target for t in receivers):
        carriers, shares = [call.target, *carriers], [0.0, *shares]
    return carriers, Shares([t.shape for t in carriers], shares)
