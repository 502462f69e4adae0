"""Linear maps: a layer as data, ``z = f(x, w, b)``, with the three passes that rules are written in.

``forward`` is the layer; ``pullback`` its transpose, which is a layer's input gradient; ``weight_pullback`` its
weight gradient. A rule calls them with inputs and weights of its own making, so one definition of a rule
serves every layer, and one definition of a map serves every rule.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from .arithmetic import identity, mask_, mul_, negative, sum_up
from .weights import WHOLE, Made, Make, modified, modified_in_blocks

_PART = 2**20  # elements


@dataclass(frozen=True, kw_only=True)
class LinearMap(ABC):
    """One use of a layer that is linear in its input.

    Attributes:
        input_shape: shape of the input ``x``.
        signed: False where the input is known to be >= 0, so that rules can skip its negative part.
        made: where the modifications of the layer's weight are kept; None makes them each time.
        bare: the input, where a rule is asked for what it gives to each unit of it, in place of its relevance.
    """

    input_shape: tuple[int, ...]
    signed: bool = field(default=True, compare=False)
    made: Made | None = field(default=None, compare=False, repr=False)
    bare: Tensor | None = field(default=None, compare=False, repr=False)

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
        return self.forward(x, modified(make, w, self.made), b)

    def pullback_modified(self, s: Tensor, make: Make, w: Tensor) -> Tensor:
        """``make(w)^T s``, for an elementwise ``make``."""
        return self.pullback(s, modified(make, w, self.made))

    def weigh(self, x_p: Tensor, c: Tensor) -> Tensor:
        """``x_p * c`` for a part ``x_p`` of the input; of a bare map ``c``, where the input is in that part.

        Written over ``c`` where possible.
        """
        if self.bare is None:
            return mul_(c, x_p)
        return c if x_p is self.bare else mask_(c, x_p == 0)

    def per_output(self, b: Tensor) -> Tensor:
        """The bias ``b``, shaped to broadcast against the output."""
        return b

    def is_divisible(self) -> bool:
        """Whether each sample of the batch, which is dimension 0, goes through the map by itself."""
        return False

    def lowest(self, x: Tensor) -> Tensor:
        """The smallest input of each sample, shaped to broadcast against the output."""
        return x.amin(dim=tuple(range(1, x.dim())), keepdim=True) if x.dim() > 1 else x

    def forward_at(self, at: tuple[Tensor, ...], x: Tensor, make: Make, w: Tensor) -> Tensor:
        """``f(x, make(w))`` at a few outputs: ``at`` has their indices, one tensor for each dimension of the output."""
        return self.forward_modified(x, make, w)[at]

    def channels(self) -> tuple[int, ...] | None:
        """The dimensions of the output that count the neurons together, each from the last one (-1) back.

        None where the weights are not those of neurons.
        """
        return None

    def has_channels(self, z: Tensor) -> bool:
        """Whether dimension 1 of the output counts the neurons, as a batch norm that follows takes it."""
        return self.channels() == (1 - z.dim(),)

    def scale_channels(self, w: Tensor, scale: Tensor) -> Tensor:
        """The weight of the same map with each neuron's output multiplied by its ``scale``."""
        raise TypeError(f"{type(self).__name__} has no channels")

    def spread(self, share: Tensor, w: Tensor) -> Tensor:
        """Spread ``share``, of the shape of the output, evenly over the inputs that each output is connected to."""
        connections = self.forward_modified(share.new_ones(self.input_shape), torch.ones_like, w)
        return self.pullback_modified(share / connections.clamp(min=1), torch.ones_like, w)


class Sampled(LinearMap):
    """A map of neurons with weights of their own, which meet many samples: what patterns are fitted to.

    A neuron is an output channel; each position of it is a sample.
    """

    @abstractmethod
    def centre(self, x: Tensor) -> Tensor:
        """A mean of the inputs, in a shape that broadcasts to the weights of one neuron."""

    @abstractmethod
    def shifted(self, x: Tensor, centre: Tensor) -> tuple[Sampled, Tensor]:
        """``x - centre``, wherever a weight meets it, and the same map for it."""

    @abstractmethod
    def output_sums(self, t: Tensor) -> Tensor:
        """The sum over the samples of each neuron, of what has the shape of the output."""

    @abstractmethod
    def input_sums(self, x: Tensor, z: Tensor) -> Tensor:
        """The sum of the inputs that each weight of one neuron meets."""

    def weight_pullbacks(self, x: Tensor, several: Sequence[Tensor]) -> Sequence[Tensor]:
        """The ``weight_pullback`` of several ``s``, in one pass where possible."""
        return [self.weight_pullback(x, s) for s in several]

    def for_all_outputs(self, t: Tensor) -> Tensor:
        """What is the same for all neurons of a group, so that it broadcasts to the weight."""
        return t

    @abstractmethod
    def neuron_sums(self, t: Tensor) -> Tensor:
        """The sum over the weights of each neuron."""

    def of_samples(self, number: int) -> Sampled:
        """The same map for a batch of another size."""
        return self

    @abstractmethod
    def rows(self, w: Tensor) -> Tensor:
        """The weights of each neuron: (groups, neurons of a group, weights of a neuron)."""

    @abstractmethod
    def patches(self, x: Tensor) -> Tensor:
        """The inputs that the neurons of a group meet, one by one: (groups, samples, weights of a neuron)."""


@dataclass(frozen=True, kw_only=True)
class Linear(Sampled):
    """``torch.nn.functional.linear``: x ``(..., in)``, w ``(out, in)``, z ``(..., out)``."""

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return F.linear(x, w, b)

    def pullback(self, s: Tensor, w: Tensor) -> Tensor:
        return s @ w

    def weight_pullback(self, x: Tensor, s: Tensor) -> Tensor:
        return s.reshape(-1, s.shape[-1]).T @ x.reshape(-1, x.shape[-1])

    def forward_modified(self, x: Tensor, make: Make, w: Tensor, b: Tensor | None = None) -> Tensor:
        blocks = modified_in_blocks(make, w, self.made)
        z = [F.linear(x, block, None if b is None else b[rows]) for rows, block in blocks]
        return z[0] if len(z) == 1 else torch.cat(z, dim=-1)

    def pullback_modified(self, s: Tensor, make: Make, w: Tensor) -> Tensor:
        blocks = modified_in_blocks(make, w, self.made)
        return sum_up((s if rows is WHOLE else s[..., rows]) @ block for rows, block in blocks)

    def forward_at(self, at: tuple[Tensor, ...], x: Tensor, make: Make, w: Tensor) -> Tensor:
        def products(*at: Tensor) -> Tensor:
            return x[at[:-1]] * make(w[at[-1]])

        return summed_in_parts(products, at, x.shape[-1])

    def lowest(self, x: Tensor) -> Tensor:
        return x.amin(dim=-1, keepdim=True)

    def is_divisible(self) -> bool:
        return len(self.input_shape) > 1

    def channels(self) -> tuple[int, ...]:
        return (-1,)

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

    def neuron_sums(self, t: Tensor) -> Tensor:
        return t.sum(1)

    def rows(self, w: Tensor) -> Tensor:
        return w.unsqueeze(0)

    def patches(self, x: Tensor) -> Tensor:
        return x.reshape(1, -1, x.shape[-1])


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

    For a group of ``n`` this is the matrix ``diag(w) (I - 1/n)``: an output meets its own input with ``w (1 - 1/n)``
    and each other input of its group with ``-w / n``. These are the weights that rules modify.

    ``grouped`` is the shape of the input in which a group is the last dimension.
    """

    grouped: tuple[int, ...]

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        z = self._centre(x) * w
        return z if b is None else z + b

    def pullback(self, s: Tensor, w: Tensor) -> Tensor:
        return self._centre(s * w)

    def forward_modified(self, x: Tensor, make: Make, w: Tensor, b: Tensor | None = None) -> Tensor:
        if make is identity:
            return self.forward(x, w, b)
        own, other = self._entries(make, w)
        z = own * x + other * self._others(x)
        return z if b is None else z + b

    def pullback_modified(self, s: Tensor, make: Make, w: Tensor) -> Tensor:
        if make is identity:
            return self.pullback(s, w)
        own, other = self._entries(make, w)
        return own * s + self._others(other * s)

    def weight_pullback(self, x: Tensor, s: Tensor) -> Tensor:
        return self._centre(x) * s

    def lowest(self, x: Tensor) -> Tensor:
        groups = x.reshape(self.grouped)
        return groups.amin(-1, keepdim=True).expand(groups.shape).reshape(self.input_shape)

    def _centre(self, x: Tensor) -> Tensor:
        groups = x.reshape(self.grouped)
        return (groups - groups.mean(-1, keepdim=True)).reshape(self.input_shape)

    def _entries(self, make: Make, w: Tensor) -> tuple[Tensor, Tensor]:
        """What each output meets its own input with, and the others of its group."""
        n = self.grouped[-1]
        return make(w * (1 - 1 / n)), make(w / -n)

    def _others(self, t: Tensor) -> Tensor:
        """The sum over the rest of the group, for each element: a difference would lose it beside a large one."""
        groups = t.reshape(self.grouped)
        before = F.pad(groups[..., :-1].cumsum(-1), (1, 0))
        after = F.pad(groups[..., 1:].flip(-1).cumsum(-1), (1, 0)).flip(-1)
        return (before + after).reshape(self.input_shape)


@dataclass(frozen=True, kw_only=True)
class Fixed(LinearMap):
    """A linear function whose weights are its own, as average pooling, mean, sum: ``z = function(x * w) + b``.

    ``w`` is 1, as a tensor without dimensions, or one number for each input; the function's weights are not negative,
    or what rules modify is ``w`` alone. ``b`` has the shape of the output.
    """

    function: Callable[[Tensor], Tensor]

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return self.forward_modified(x, identity, w, b)

    def pullback(self, s: Tensor, w: Tensor) -> Tensor:
        return self.pullback_modified(s, identity, w)

    def forward_modified(self, x: Tensor, make: Make, w: Tensor, b: Tensor | None = None) -> Tensor:
        z = self.function(x if make is identity and w.dim() == 0 else x * make(w))
        return z if b is None else z + b

    def pullback_modified(self, s: Tensor, make: Make, w: Tensor) -> Tensor:
        pulled = self._transpose(s)
        return pulled if make is identity and w.dim() == 0 else pulled * make(w)

    def weight_pullback(self, x: Tensor, s: Tensor) -> Tensor:
        raise TypeError("a function without weights has no weight_pullback")

    def lowest(self, x: Tensor) -> Tensor:
        """Below zero where an input of the output is."""
        return self.function(negative(x))

    def _transpose(self, s: Tensor) -> Tensor:
        pulled: Tensor = torch.func.vjp(self.function, s.new_zeros(self.input_shape))[1](s)[0]
        return pulled


def summed_in_parts(products: Callable[..., Tensor], at: Sequence[Tensor], number: int) -> Tensor:
    """The sum of the ``number`` products of each output, a part of the outputs at a time to spare memory."""
    size = max(1, _PART // max(1, number))
    parts = zip(*(torch.split(index, size) for index in at), strict=True)
    return torch.cat([products(*part).flatten(1).sum(1) for part in parts])
