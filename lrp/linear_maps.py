"""Linear maps: a layer as data, ``z = f(x, w, b)``, with the three passes that rules are written in.

``forward`` is the layer; ``pullback`` its transpose, which is a layer's input gradient; ``weight_pullback`` its
weight gradient. A rule calls them with inputs and weights of its own making, so one definition of a rule
serves every layer, and one definition of a map serves every rule.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from operator import mul

import torch
from torch import Tensor
from torch.nn import functional as F

from .arithmetic import identity, sum_up
from .weights import WHOLE, Make, modified, modified_in_blocks


@dataclass(frozen=True, kw_only=True)
class LinearMap(ABC):
    """One use of a layer that is linear in its input.

    Attributes:
        input_shape: shape of the input ``x``.
        signed: False where the input is known to be >= 0, so that rules can skip its negative part.
    """

    input_shape: tuple[int, ...]
    signed: bool = field(default=True, compare=False)

    @abstractmethod
    def forward(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """``z = f(x, w, b)``, exactly as torch computes it."""

    @abstractmethod
    def pullback(self, s: Tensor, w: Tensor) -> Tensor:
        """``c = W^T s``: from the shape of the output to the shape of the input."""

    @abstractmethod
    def weight_pullback(self, x: Tensor, s: Tensor) -> Tensor:
        """The sum of ``x s`` over all the uses of a weight: the shape of the weight."""

    def forward_modified(self, x: Tensor, make: Make, w: Tensor, b: Tensor | None = None) -> Tensor:
        """``f(x, make(w), b)``, for an elementwise ``make``."""
        return self.forward(x, modified(make, w), b)

    def pullback_modified(self, s: Tensor, make: Make, w: Tensor) -> Tensor:
        """``make(w)^T s``, for an elementwise ``make``."""
        return self.pullback(s, modified(make, w))

    def per_output(self, b: Tensor) -> Tensor:
        """The bias ``b``, shaped to broadcast against the output."""
        return b

    def is_divisible(self) -> bool:
        """Whether each sample of the batch, which is dimension 0, goes through the map by itself."""
        return False

    def lowest(self, x: Tensor) -> Tensor:
        """The smallest input of each sample, shaped to broadcast against the output."""
        return x.amin(dim=tuple(range(1, x.dim())), keepdim=True) if x.dim() > 1 else x

    def without_bias(self, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor) -> Tensor:
        """``f(x, w)``, from the output ``z`` that is already there."""
        return z if b is None else z - self.per_output(b)

    def has_channels(self, z: Tensor) -> bool:
        """Whether dimension 1 of the output counts the rows of the weight, as a batch norm that follows takes it."""
        return False

    def scale_channels(self, w: Tensor, scale: Tensor) -> Tensor:
        """The weight of the same map with each output channel multiplied by its ``scale``."""
        raise TypeError(f"{type(self).__name__} has no channels")

    def spread(self, share: Tensor, w: Tensor) -> Tensor:
        """Spread ``share``, of the shape of the output, evenly over the inputs that each output is connected to."""
        ones = None if w is None else torch.ones_like(w)
        connections = self.forward(share.new_ones(self.input_shape), ones)
        return self.pullback(share / connections.clamp(min=1), ones)


@dataclass(frozen=True, kw_only=True)
class Linear(LinearMap):
    """``torch.nn.functional.linear``: x ``(..., in)``, w ``(out, in)``, z ``(..., out)``."""

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return F.linear(x, w, b)

    def pullback(self, s: Tensor, w: Tensor) -> Tensor:
        return s @ w

    def weight_pullback(self, x: Tensor, s: Tensor) -> Tensor:
        return s.reshape(-1, s.shape[-1]).T @ x.reshape(-1, x.shape[-1])

    def forward_modified(self, x: Tensor, make: Make, w: Tensor, b: Tensor | None = None) -> Tensor:
        blocks = modified_in_blocks(make, w)
        z = [F.linear(x, block, None if b is None else b[rows]) for rows, block in blocks]
        return z[0] if len(z) == 1 else torch.cat(z, dim=-1)

    def pullback_modified(self, s: Tensor, make: Make, w: Tensor) -> Tensor:
        return sum_up((s if rows is WHOLE else s[..., rows]) @ block for rows, block in modified_in_blocks(make, w))

    def lowest(self, x: Tensor) -> Tensor:
        return x.amin(dim=-1, keepdim=True)

    def is_divisible(self) -> bool:
        return len(self.input_shape) > 1

    def has_channels(self, z: Tensor) -> bool:
        return z.dim() == 2

    def scale_channels(self, w: Tensor, scale: Tensor) -> Tensor:
        return w * scale[:, None]

    def centre(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1]).mean(0, keepdim=True)

    def shifted(self, x: Tensor, centre: Tensor) -> tuple[Linear, Tensor]:
        return self, x - centre

    def output_sums(self, t: Tensor) -> Tensor:
        return t.reshape(-1, t.shape[-1]).sum(0, dtype=torch.float64)

    def input_sums(self, x: Tensor, z: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[-1]).sum(0, keepdim=True, dtype=torch.float64)

    def weight_pullbacks(self, x: Tensor, several: Sequence[Tensor]) -> Sequence[Tensor]:
        return self.weight_pullback(x, torch.cat([*several], dim=-1)).chunk(len(several))

    def for_all_outputs(self, t: Tensor) -> Tensor:
        return t

    def neuron_sums(self, t: Tensor) -> Tensor:
        return t.sum(1)

    def of_samples(self, number: int) -> Linear:
        return self

    def rows(self, w: Tensor) -> Tensor:
        return w.unsqueeze(0)

    def patches(self, x: Tensor) -> Tensor:
        return x.reshape(1, -1, x.shape[-1])


@dataclass(frozen=True, kw_only=True)
class Convolution(LinearMap):
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

    def per_output(self, b: Tensor) -> Tensor:
        return b.view(-1, *(1 for _ in self.stride))

    def is_divisible(self) -> bool:
        return True

    def has_channels(self, z: Tensor) -> bool:
        return True

    def scale_channels(self, w: Tensor, scale: Tensor) -> Tensor:
        kernel = (1 for _ in self.stride)
        if not self.transposed:
            return w * scale.view(-1, 1, *kernel)
        grouped = w.view(self.groups, -1, *w.shape[1:]) * scale.view(self.groups, 1, -1, *kernel)
        return grouped.view(w.shape)

    def centre(self, x: Tensor) -> Tensor:
        """The mean of each input channel, in the shape of the weight of one output channel.

        Zero where the map is transposed: the places where an output finds no input cannot be shifted.
        """
        ones = [1 for _ in self.stride]
        if self.transposed:
            return x.new_zeros(x.shape[1], 1, *ones)
        return x.transpose(0, 1).flatten(1).mean(1).view(self.groups, -1, *ones)

    def of_samples(self, number: int) -> Convolution:
        """The same map for a batch of another size."""
        return replace(self, input_shape=(number, *self.input_shape[1:]))

    def shifted(self, x: Tensor, centre: Tensor) -> tuple[Convolution, Tensor]:
        """``x - centre``, the zeros that pad it included, and the same map without its padding."""
        if self.transposed:
            return self, x
        x = self._padded(x) - centre.reshape(1, -1, *(1 for _ in self.stride))
        none = tuple(0 for _ in self.stride)
        return replace(self, padding=none, extra_padding=(), input_shape=tuple(x.shape)), x

    def output_sums(self, t: Tensor) -> Tensor:
        """The sum over all that belongs to an output channel."""
        return t.flatten(2).sum(2).sum(0, dtype=torch.float64)

    def input_sums(self, x: Tensor, z: Tensor) -> Tensor:
        """The sum of the inputs that each weight of one output channel meets."""
        rows = (self.weight_shape[0], 1) if self.transposed else (self.groups, self.weight_shape[1])
        f = replace(self, weight_shape=(*rows, *self.weight_shape[2:])).of_samples(1)
        return f.weight_pullback(x.sum(0, keepdim=True), z.new_ones(1, self.groups, *z.shape[2:]))

    def weight_pullbacks(self, x: Tensor, several: Sequence[Tensor]) -> Sequence[Tensor]:
        """The ``weight_pullback`` of several ``s``, in one pass where possible."""
        if self.transposed or self.groups > 1:
            return [self.weight_pullback(x, s) for s in several]
        if x.device.type == "cpu" and set(self.stride) == {1} and min(self.weight_shape[:2]) >= 8:
            return self._products(x, several).chunk(len(several))
        f = replace(self, weight_shape=(len(several) * self.weight_shape[0], *self.weight_shape[1:]))
        return f.weight_pullback(x, torch.cat([*several], dim=1)).chunk(len(several))

    def _products(self, x: Tensor, several: Sequence[Tensor]) -> Tensor:
        """The ``weight_pullback`` with stride 1 by matrix products: of many channels faster than torch's on a CPU.

        In rows of one length, zeros after the outputs, an output and the input that a weight meets there are always
        the same number of elements apart.
        """
        x = self._padded(x).transpose(0, 1).contiguous()
        steps = [n * step for n, step in zip(self.dilation, x.stride()[2:], strict=True)]
        places = [sum(map(mul, at, steps)) for at in product(*map(range, self.weight_shape[2:]))]
        s = x.new_zeros(len(several) * self.weight_shape[0], *x.shape[1:])
        for zeros, one in zip(s.chunk(len(several)), several, strict=True):
            zeros[tuple(slice(n) for n in one.transpose(0, 1).shape)] = one.transpose(0, 1)
        x, s = x.flatten(1), s.flatten(1)[:, : x[0].numel() - places[-1]]
        w = torch.stack([s @ x[:, place : place + s.shape[1]].T for place in places], dim=-1)
        return w.view(*w.shape[:2], *self.weight_shape[2:])

    def for_all_outputs(self, t: Tensor) -> Tensor:
        """What is the same for all output channels of a group, so that it broadcasts to the weight."""
        if self.transposed or self.groups == 1:
            return t
        return t.repeat_interleave(self.weight_shape[0] // self.groups, dim=0)

    def neuron_sums(self, t: Tensor) -> Tensor:
        """The sum over the weights of each output channel."""
        if not self.transposed:
            return t.flatten(1).sum(1)
        return t.view(self.groups, -1, *t.shape[1:]).flatten(3).sum((1, 3)).flatten()

    def rows(self, w: Tensor) -> Tensor:
        """The weights of each output channel: (groups, outputs of a group, weights of an output)."""
        if not self.transposed:
            return w.reshape(self.groups, -1, w[0].numel())
        by_group = w.view(self.groups, -1, *w.shape[1:]).transpose(1, 2)
        return by_group.flatten(2)

    def patches(self, x: Tensor) -> Tensor:
        """The inputs that each output position meets, one by one: (groups, positions, weights of an output)."""
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


@dataclass(frozen=True, kw_only=True)
class Elementwise(LinearMap):
    """``z = x * w + b``, with w and b of a shape that broadcasts against x: a batch norm in eval mode."""

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        z = x if w is None else x * w
        return z if b is None else z + b

    def pullback(self, s: Tensor, w: Tensor) -> Tensor:
        return s if w is None else s * w

    def weight_pullback(self, x: Tensor, s: Tensor) -> Tensor:
        return x * s

    def lowest(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True, kw_only=True)
class Centred(LinearMap):
    """``z = (x - mean(x)) * w + b``: a layer norm or group norm, whose ``w`` holds the constant ``1 / deviation``.

    ``grouped`` is the shape in which the mean is taken over the last dimension.
    """

    grouped: tuple[int, ...]

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        z = self._centre(x) * w
        return z if b is None else z + b

    def pullback(self, s: Tensor, w: Tensor) -> Tensor:
        return self._centre(s * w)

    def weight_pullback(self, x: Tensor, s: Tensor) -> Tensor:
        return self._centre(x) * s

    def _centre(self, x: Tensor) -> Tensor:
        groups = x.reshape(self.grouped)
        return (groups - groups.mean(-1, keepdim=True)).reshape(self.input_shape)


@dataclass(frozen=True, kw_only=True)
class Fixed(LinearMap):
    """A linear function whose weights are its own: average pooling, mean, sum. ``w`` is a number that scales it."""

    function: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return self.function(x) * w

    def pullback(self, s: Tensor, w: Tensor) -> Tensor:
        return self._transpose(s) * w

    def forward_modified(self, x: Tensor, make: Make, w: Tensor, b: Tensor | None = None) -> Tensor:
        return self.function(x) if make is identity else self.forward(x, make(w), b)

    def pullback_modified(self, s: Tensor, make: Make, w: Tensor) -> Tensor:
        return self._transpose(s) if make is identity else self.pullback(s, make(w))

    def weight_pullback(self, x: Tensor, s: Tensor) -> Tensor:
        raise TypeError("a function without weights has no weight_pullback")

    def _transpose(self, s: Tensor) -> Tensor:
        pulled: Tensor = torch.func.vjp(self.function, s.new_zeros(self.input_shape))[1](s)[0]
        return pulled


@dataclass(frozen=True, kw_only=True)
class Product(LinearMap):
    """A function that is linear in each of two tensors, ``function(x, w)``, such as ``torch.matmul``."""

    function: Callable[[Tensor, Tensor], Tensor]
    weight_shape: tuple[int, ...]

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        z = self.function(x, w)
        return z if b is None else z + b

    def pullback(self, s: Tensor, w: Tensor) -> Tensor:
        zeros = s.new_zeros(self.input_shape)
        pulled: Tensor = torch.func.vjp(lambda x: self.function(x, w), zeros)[1](s)[0]
        return pulled

    def weight_pullback(self, x: Tensor, s: Tensor) -> Tensor:
        zeros = s.new_zeros(self.weight_shape)
        pulled: Tensor = torch.func.vjp(lambda w: self.function(x, w), zeros)[1](s)[0]
        return pulled


def same_padding(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What ``padding="same"`` pads: on both sides of each dimension, and on its far side besides."""
    total = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    return tuple(t // 2 for t in total), tuple(t % 2 for t in total)
