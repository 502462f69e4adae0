"""Where the functions that are merged with a layer put down the relevance that they have for it.

A batch norm after a convolution is one layer with it. Its relevance passes the convolution's output unchanged, where
hooks and other functions see it, and is then shared out with the merged weights; what reaches the same output from
elsewhere is shared out with the convolution's own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..maps.arithmetic import divide

Share = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Part = tuple[Tensor, Share]


class Ledger:
    """What was put down in the backward that is running, for the output of one layer.

    Attributes:
        is_direct: whether the output is also used by something that is not merged with the layer.
    """

    def __init__(self) -> None:
        self.is_direct = False
        self._running = -1
        self._parts: list[Part] = []

    def put(self, R: Tensor, share: Share) -> None:
        """Put down that ``R`` is among the relevance of the output, to be shared out by ``share(R, x, w, b)``."""
        self._renew()
        self._parts.append((R, share))

    def take(self, R: Tensor, own: Share) -> list[Part]:
        """The relevance ``R`` of the output in parts, each with what shares it out: ``own``, if nothing is merged."""
        self._renew()
        parts, self._parts = self._parts, []
        if not parts:
            return [(R, own)]
        if len(parts) == 1 and (R is parts[0][0] or not self.is_direct):
            return [(R, parts[0][1])]
        total = sum((part for part, _ in parts[1:]), parts[0][0])
        if self.is_direct:
            return [*parts, (R - total, own)]
        changed = divide(R, total, 0.0)  # by a hook: alike for all parts
        return [(part * changed, share) for part, share in parts]

    def _renew(self) -> None:
        """Drop what an earlier backward has left that did not reach the layer."""
        running = torch._C._current_graph_task_id()
        if running != self._running:
            self._running, self._parts = running, []
