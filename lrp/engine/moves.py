"""How a layer's output was rearranged since: transposed, flattened, reshaped.

A batch norm or a scale of each channel belongs to the layer before it also where the channels lie in another dimension
by then.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .backward.kept import unhooked
from .calls import Call, substitute

_MOVED = torch.empty(0, device="meta")  # stands for what is rearranged, which need not be held


class Moves(NamedTuple):
    """Calls in turn, each of which puts all the elements of a tensor in another order or shape.

    Attributes:
        shape: that of the layer's output.
        calls: the calls.
    """

    shape: tuple[int, ...]
    calls: tuple[Call, ...] = ()

    def then(self, call: Call, moved: Tensor) -> Moves:
        """These, and then the call, which rearranges ``moved``."""
        args, kwargs = (substitute(a, lambda t: _MOVED if t is moved else t) for a in (call.args, call.kwargs))
        return Moves(self.shape, (*self.calls, Call(call.function, args, kwargs)))

    def channel(self, channel: int) -> int | None:
        """The dimension, from the last one back, that the layer's dimension ``channel`` has become, if it is one."""
        strides = [int(dim == channel) for dim in range(-len(self.shape), 0)]
        probe = torch.empty_strided(self.shape, strides, device="meta")
        moved = self._run(probe)
        if moved is not probe and moved._base is not probe:
            return None  # the channels were mixed with other dimensions, which no view can show
        sizes = zip(range(-moved.dim(), 0), moved.shape, moved.stride(), strict=True)
        dims = [dim for dim, size, stride in sizes if size > 1 and stride != 0]
        return dims[0] if len(dims) == 1 and moved.shape[dims[0]] == self.shape[channel] else None

    def back(self, t: Tensor) -> Tensor:
        """What was rearranged, as it lay in the layer's output."""
        if not self.calls:
            return t
        with unhooked():
            back: Tensor = torch.func.vjp(self._run, t.new_empty(self.shape))[1](t)[0]
        return back

    def _run(self, t: Tensor) -> Tensor:
        for call in self.calls:
            t = _run_on(call, t)
        return t


def _run_on(call: Call, t: Tensor) -> Tensor:
    moved: Tensor = call.run(lambda argument: t if argument is _MOVED else argument)
    return moved
