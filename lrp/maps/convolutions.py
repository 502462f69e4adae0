"""Convolutions of any dimension and geometry, transposed or not, as linear maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from itertools import product
from operator import and_, mul
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .linear_maps import Sampled, summed_in_parts
from .weights import Make

Ints = tuple[int, ...]

_FEW = 32  # channels


@dataclass(frozen=True, kw_only=True)
class Convolution(Sampled):
    """Convolutions and transposed convolutions of any dimension; x ``(N, C, ...)``.

    ``extra_padding`` is what torch puts on the far side of each dimension for ``padding="same"`` with an even kernel.
    """

    weight_shape: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool = False
    output_padding: tuple[int, ...]
    groups: int = 1
    extra_padding: tuple[int, ...] = ()

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return torch.convolution(
            self._pad(x), w, b, self.stride, self.padding, self.dilation, self.transposed, self.output_padding,
            self.groups,
        )  # fmt: skip

    def pullback(self, s: Tensor, w: Tensor) -> Tensor:
        c = self._backward(s, self._pad(s.new_empty(self.input_shape)), w, 0)
        for dim, size in enumerate(self.input_shape[2:], start=2):
            c = c.narrow(dim, 0, size)
        return c

    def weight_pullback(self, x: Tensor, s: Tensor) -> Tensor:
        return self._backward(s, self._pad(x), s.new_empty(self.weight_shape), 1)

    def forward_at(self, at: tuple[Tensor, ...], x: Tensor, make: Make, w: Tensor) -> Tensor:
        if self.transposed:
            return super().forward_at(at, x, make, w)

        def products(samples: Tensor, neurons: Tensor, *places: Tensor) -> Tensor:
            return self._met_at(x, samples, neurons, places) * make(w[neurons])

        return summed_in_parts(products, at, math.prod(self.weight_shape[1:]))

    def _met_at(self, x: Tensor, samples: Tensor, neurons: Tensor, places: Sequence[Tensor]) -> Tensor:
        """The inputs that some outputs meet: their number, then the shape of a neuron's weight."""
        outputs, inputs, *kernel = self.weight_shape
        first = neurons // (outputs // self.groups) * inputs  # the first channel of the group
        index = [samples[:, None], first[:, None] + _range(inputs, x)]
        for place, *geometry in zip(places, self.stride, self.padding, self.dilation, kernel, strict=True):
            stride, padding, dilation, size = geometry
            index.append((place * stride - padding)[:, None] + _range(size, x) * dilation)
        index = [_along(i, dim, self.weight_shape) for dim, i in enumerate(index)]
        inside = [(i >= 0) & (i < n) for i, n in zip(index[2:], x.shape[2:], strict=True)]
        met = x[tuple(i.clamp(0, n - 1) for i, n in zip(index, x.shape, strict=True))]
        return met * reduce(and_, inside)

    def per_output(self, b: Tensor) -> Tensor:
        return b.view(-1, *(1 for _ in self.stride))

    def is_divisible(self) -> bool:
        return True

    def channels(self) -> tuple[int, ...]:
        return (-1 - len(self.stride),)

    def scale_channels(self, w: Tensor, scale: Tensor) -> Tensor:
        kernel = (1 for _ in self.stride)
        if not self.transposed:
            return w * scale.view(-1, 1, *kernel)
        grouped = w.view(self.groups, -1, *w.shape[1:]) * scale.view(self.groups, 1, -1, *kernel)
        return grouped.view(w.shape)

    def centre(self, x: Tensor) -> Tensor:
        """The mean of each input channel.

        Zero where the map is transposed: the places where an output finds no input cannot be shifted.
        """
        ones = [1 for _ in self.stride]
        if self.transposed:
            return x.new_zeros(x.shape[1], 1, *ones)
        return x.transpose(0, 1).flatten(1).mean(1).view(self.groups, -1, *ones)

    def of_samples(self, number: int) -> Convolution:
        return replace(self, input_shape=(number, *self.input_shape[1:]))

    def shifted(self, x: Tensor, centre: Tensor) -> tuple[Convolution, Tensor]:
        """``x - centre``, the zeros that pad it included, and the same map without its padding."""
        if self.transposed:
            return self, x
        x = self._padded(x) - centre.reshape(1, -1, *(1 for _ in self.stride))
        none = tuple(0 for _ in self.stride)
        return replace(self, padding=none, extra_padding=(), input_shape=tuple(x.shape)), x

    def output_sums(self, t: Tensor) -> Tensor:
        return t.flatten(2).sum(2).sum(0, dtype=torch.float64)

    def input_sums(self, x: Tensor, z: Tensor) -> Tensor:
        rows = (self.weight_shape[0], 1) if self.transposed else (self.groups, self.weight_shape[1])
        f = replace(self, weight_shape=(*rows, *self.weight_shape[2:])).of_samples(1)
        return f.weight_pullback(x.sum(0, keepdim=True), z.new_ones(1, self.groups, *z.shape[2:]))

    def weight_pullbacks(self, x: Tensor, several: Sequence[Tensor]) -> Sequence[Tensor]:
        if x.device.type != "cpu":
            return super().weight_pullbacks(x, several)
        return [self._products(s, [x])[0] for s in several] if self.transposed else self._products(x, several)

    def _products(self, x: Tensor, several: Sequence[Tensor]) -> Sequence[Tensor]:
        """The ``weight_pullback`` of several ``s`` by matrix products, one for each place in the kernel.

        On a CPU they are faster than torch's own kernel, and do not lose what is small beside a sum in float32.
        """
        sizes, kernel = several[0].shape[2:], self.weight_shape[2:]
        x, s = self._by_group(self._padded(x)), torch.cat([self._by_group(s) for s in several], dim=1).flatten(2)
        if x.shape[1] < _FEW:  # products of small matrices are running sums
            x, s = x.double(), s.double()
        met = [x[_met(at, self.dilation, self.stride, sizes)] for at in product(*map(range, kernel))]
        together = max(1, _FEW // x.shape[1])
        parts = (torch.cat(met[i : i + together], dim=1).flatten(2) for i in range(0, len(met), together))
        w = torch.cat([s @ part.mT for part in parts], dim=2)
        w = w.view(*w.shape[:2], len(met), -1).transpose(2, 3)
        return [one.reshape(self.weight_shape) for one in w.chunk(len(several), dim=1)]

    def _by_group(self, t: Tensor) -> Tensor:
        """Group by group: (groups, channels of a group, samples, ...)."""
        return t.reshape(len(t), self.groups, -1, *t.shape[2:]).movedim(0, 2)

    def for_all_outputs(self, t: Tensor) -> Tensor:
        if self.transposed or self.groups == 1:
            return t
        return t.repeat_interleave(self.weight_shape[0] // self.groups, dim=0)

    def neuron_sums(self, t: Tensor) -> Tensor:
        if not self.transposed:
            return t.flatten(1).sum(1)
        return t.view(self.groups, -1, *t.shape[1:]).flatten(3).sum((1, 3)).flatten()

    def rows(self, w: Tensor) -> Tensor:
        if not self.transposed:
            return w.reshape(self.groups, -1, w[0].numel())
        by_group = w.view(self.groups, -1, *w.shape[1:]).transpose(1, 2)
        return by_group.flatten(2)

    def patches(self, x: Tensor) -> Tensor:
        inputs = self.weight_shape[0] // self.groups if self.transposed else self.weight_shape[1]
        kernel = self.weight_shape[2:]
        n = inputs * math.prod(kernel)
        units = torch.eye(n, dtype=x.dtype, device=x.device)
        w = units.view(n, inputs, *kernel)
        w = (w.transpose(0, 1) if self.transposed else w).repeat(self.groups, 1, *(1 for _ in kernel))
        met = self.forward(x, w).transpose(0, 1)
        return met.reshape(self.groups, n, -1).transpose(1, 2)

    def _padded(self, x: Tensor) -> Tensor:
        """``x`` with the zeros on both sides of it."""
        far = self.extra_padding or [0 for _ in self.stride]
        sides = [side for n, more in zip(self.padding, far, strict=True) for side in (n + more, n)]
        return F.pad(x, sides[::-1]) if any(sides) else x

    def _pad(self, x: Tensor) -> Tensor:
        if not any(self.extra_padding):
            return x
        return F.pad(x, [side for n in reversed(self.extra_padding) for side in (0, n)])

    def _backward(self, s: Tensor, x: Tensor, w: Tensor, which: int) -> Tensor:
        """The gradient for x (which = 0) or w (1), by the kernel that torch's own gradient uses."""
        gradients = torch.ops.aten.convolution_backward(
            s, x, w, None, self.stride, self.padding, self.dilation, self.transposed, self.output_padding,
            self.groups, [which == 0, which == 1, False],
        )  # fmt: skip
        gradient: Tensor = gradients[which]
        return gradient


def _met(at: Ints, dilation: Ints, stride: Ints, sizes: Ints) -> tuple[Any, ...]:
    """The index of the inputs that a place in the kernel meets."""
    starts = map(mul, at, dilation)
    spans = zip(starts, stride, sizes, strict=True)
    return (..., *(slice(start, start + step * (size - 1) + 1, step) for start, step, size in spans))


def _range(n: int, t: Tensor) -> Tensor:
    return torch.arange(n, device=t.device)


def _along(index: Tensor, dim: int, weight_shape: Ints) -> Tensor:
    """An index for some outputs and for a dimension ``dim`` of a neuron's weight, 0 being none, to be broadcast."""
    return index.view(len(index), *(index.shape[1] if i == dim else 1 for i in range(1, len(weight_shape))))


def same_padding(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What ``padding="same"`` pads: on both sides of each dimension, and on its far side besides."""
    total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple(t // 2 for t in total), tuple(t % 2 for t in total)
