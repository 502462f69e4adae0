"""How a layer's output was rearranged since: transposed, reshaped, cut.

A batch norm or a scale of each neuron belongs to the layer before it also where the neurons lie in other dimensions by
then, or only some of the output is left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..calls import Call, substitute
from .kept import unhooked

_MOVED = torch.empty(0, device="meta")  # stands for what is rearranged, which need not be held


class Neurons(NamedTuple):
    """Where a tensor has the values of each of a layer's neurons.

    Attributes:
        number: of the neurons.
        shape: that of the tensor.
        strides: by how many neurons a step along each dimension leads on; 0 where it stays with one. None where the
            neurons were mixed with other dimensions, which no view can show.
        first: the neuron at the tensor's beginning.
    """

    number: int
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    first: int = 0

    def of(self, c: Tensor, otherwise: float) -> Tensor | None:
        """A constant that broadcasts to the tensor as one number for each neuron, or None if it is not that.

        Args:
            c: the constant.
            otherwise: the number of neurons that the tensor has nothing of.
        """
        if c.numel() == 1:
            return c.reshape(1).expand(self.number)
        if c.numel() == self.number and self._is_one_dimension(c.shape):
            return c.reshape(-1)
        c = c[(None,) * (len(self.shape) - c.dim())]
        strides = self.strides
        if strides is None or any(stride == 0 and size > 1 for stride, size in zip(strides, c.shape, strict=True)):
            return None
        dims = sorted((dim for dim, stride in enumerate(strides) if stride > 0), key=lambda dim: -strides[dim])
        sizes = [self.shape[dim] for dim in dims]
        one = tuple(slice(None) if stride > 0 else 0 for stride in strides)  # of what stays with one neuron
        values = c[one].permute(*(sum(d < dim for d in dims) for dim in dims)).expand(sizes).reshape(-1)
        if len(values) == self.number:
            return values
        places = (
            torch.arange(self.number, device=c.device)
            .as_strided(sizes, [strides[dim] for dim in dims], self.first)
            .reshape(-1)
        )
        return c.new_full((self.number,), otherwise).index_copy(0, places, values)

    def _is_one_dimension(self, shape: torch.Size) -> bool:
        """Whether a constant of this shape varies along that dimension alone which counts all neurons, one by one."""
        if self.strides is None or self.number not in shape:
            return False
        dim = shape.index(self.number) - len(shape)
        return self.shape[dim] == self.number and self.strides[dim] == 1


class Moves(NamedTuple):
    """Calls in turn, each of which puts the elements of a tensor in another order or shape, or leaves some of them out.

    Attributes:
        shape: that of the layer's output.
        calls: the calls, each with the number of its output where it has several.
        is_whole: whether no element was left out.
    """

    shape: tuple[int, ...]
    calls: tuple[tuple[Call, int | None], ...] = ()
    is_whole: bool = True

    def then(self, call: Call, moved: Tensor, number: int | None, is_whole: bool) -> Moves:
        """These, and then the call, which rearranges ``moved``."""
        args, kwargs = (substitute(a, lambda t: _MOVED if t is moved else t) for a in (call.args, call.kwargs))
        bare = Call(call.function, args, kwargs)
        return Moves(self.shape, (*self.calls, (bare, number)), self.is_whole and is_whole)

    def neurons(self, channels: Sequence[int]) -> Neurons:
        """Where the rearranged tensor has the layer's neurons, which its output has in these dimensions."""
        sizes = [self.shape[dim] for dim in channels]
        strides = [0] * len(self.shape)
        for i, dim in enumerate(channels):
            strides[dim] = math.prod(sizes[i + 1 :])
        if not self.calls:
            return Neurons(math.prod(sizes), self.shape, tuple(strides))
        probe = torch.empty_strided(self.shape, strides, device="meta")
        try:
            moved = self._run(probe)
        except RuntimeError:  # a view of other strides cannot be made
            return Neurons(math.prod(sizes), (), None)
        number, shape = math.prod(sizes), tuple(moved.shape)
        if moved is not probe and moved._base is not probe:
            return Neurons(number, shape, None)
        return Neurons(number, shape, moved.stride(), int(moved.storage_offset()))

    def back(self, t: Tensor) -> Tensor:
        """What was rearranged, as it lay in the layer's output; zero where that was left out."""
        if not self.calls:
            return t
        with unhooked():
            back: Tensor = torch.func.vjp(self._run, t.new_empty(self.shape))[1](t)[0]
        return back

    def _run(self, t: Tensor) -> Tensor:
        for call, number in self.calls:
            t = _run_on(call, t, number)
        return t


def _run_on(call: Call, t: Tensor, number: int | None) -> Tensor:
    moved = call.run(lambda argument: t if argument is _MOVED else argument)
    found: Tensor = moved if number is None else moved[number]
    return found
