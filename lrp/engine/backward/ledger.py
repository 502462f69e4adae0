"""Where the functions that are merged with a layer put down the relevance that they have for it.

A batch norm after a convolution is one layer with it. Its relevance passes the convolution's output unchanged, where
hooks and other functions see it, and is then shared out with the merged weights; what reaches the same output from
elsewhere is shared out with the convolution's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from ...maps.arithmetic import divide

Share = Callable[..., Tensor]
Part = tuple[Tensor, Share]


class Ledger:
    """What was put down in the backward that is running, for the output of one layer.

    Attributes:
        is_direct: whether the output is also used by something that is not merged with the layer.
        is_parted: whether parts of the output were taken, each of which may be.
    """

    def __init__(self) -> None:
        self.is_direct = self.is_parted = False
        self._n_merged = 0
        self._running = -1
        self._parts: list[Part] = []
        self._whole: Tensor | None = None
        self._output: tuple[ReferenceType[Tensor], int] | None = None
        self._is_watched = False

    @property
    def is_alone(self) -> bool:
        """Whether nothing uses the output yet."""
        return not (self.is_direct or self.is_parted or self._n_merged)

    def belongs_to(self, output: Tensor) -> None:
        """Note that this is the ledger of the layer with that output."""
        self._output = ref(output), output._version

    def output(self) -> Tensor | None:
        """The layer's output, if it is still there and was not written to."""
        output = None if self._output is None else self._output[0]()
        return output if output is not None and self._output[1] == output._version else None  # type: ignore[index]

    def merge(self) -> None:
        """Note that one more function is merged with the layer."""
        self._n_merged += 1
        if self.is_direct or self._n_merged > 1:
            self._watch()

    def use(self) -> None:
        """Note that something that is not merged with the layer uses its output."""
        self.is_direct = True
        if self._n_merged:
            self._watch()

    def put(self, R: Tensor, share: Share) -> None:
        """Put down that ``R`` is among the relevance of the output, to be shared out by ``share(R, f, x, w, b)``."""
        self._renew()
        self._parts.append((R, share))

    def take(self, R: Tensor, own: Share) -> list[Part]:
        """The relevance ``R`` of the output in parts, each with what shares it out: ``own``, if nothing is merged."""
        self._renew()
        parts, self._parts = self._parts, []
        whole, self._whole = self._whole, None
        if not parts:
            return [(R, own)]
        if len(parts) == 1 and not self.is_direct:
            return [(R, parts[0][1])]
        total = sum((part for part, _ in parts[1:]), parts[0][0])
        if self.is_direct:
            parts = [*parts, ((R if whole is None else whole) - total, own)]
        if whole is R or (whole is None and self.is_direct):
            return parts
        # by a hook: alike for all parts
        changed = _ratio_of_sums(R, total, [part for part, _ in parts]) if whole is None else divide(R, whole, 0.0)
        return [(part * changed, share) for part, share in parts]

    def _watch(self) -> None:
        """See the output's relevance as it comes, before the hooks of others change it."""
        output = self.output()
        if output is not None and not self._is_watched:
            self._is_watched = True
            others = dict(output._backward_hooks or {})
            output.register_hook(self._see)  # type: ignore[no-untyped-call]
            hooks: Any = output._backward_hooks
            for number, hook in others.items():  # to the end: autograd calls them in the order of their insertion
                del hooks[number]
                hooks[number] = hook

    def _see(self, R: Tensor) -> None:
        self._renew()
        self._whole = R

    def _renew(self) -> None:
        """Drop what an earlier backward has left that did not reach the layer."""
        running = torch._C._current_graph_task_id()
        if running != self._running:
            self._running, self._parts, self._whole = running, [], None


def _ratio_of_sums(R: Tensor, total: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """``R / total``, and 1 where they differ by no more than rounding: the parts may cancel."""
    size = sum((part.abs() for part in parts[1:]), parts[0].abs())
    is_same = (R - total).abs() <= len(parts) * torch.finfo(R.dtype).eps * size
    return torch.where(is_same, 1.0, divide(R, total, 0.0))
