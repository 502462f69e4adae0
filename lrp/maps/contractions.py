"""Products of a tensor with a constant one, summed over some of their dimensions, as linear maps."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .linear_maps import Sampled


@dataclass(frozen=True, kw_only=True)
class Contraction(Sampled):
    """``torch.einsum(f"{x},{w}->{z}", x, w)``, with a letter for each dimension of the tensors.

    What the weight shares with the output tells neurons apart; what it shares with the input alone are a neuron's
    weights; the other dimensions of the output are its samples.
    """

    x: str
    w: str
    z: str
    weight_shape: tuple[int, ...]

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        z = torch.einsum(f"{self.x},{self.w}->{self.z}", x, w)
        return z if b is None else z + self.per_output(b)

    def pullback(self, s: Tensor, w: Tensor) -> Tensor:
        return _product(s, self.z, w, self.w, self.x).expand(self.input_shape)

    def weight_pullback(self, x: Tensor, s: Tensor) -> Tensor:
        return _product(x, self.x, s, self.z, self.w)

    def per_output(self, b: Tensor) -> Tensor:
        return _aligned(self._of_neurons(b), self._neurons, self.z)

    def is_divisible(self) -> bool:
        return self.x[:1] == self.z[:1] != "" and self.x[0] not in self.w

    def lowest(self, x: Tensor) -> Tensor:
        inner = [i for i, letter in enumerate(self.x) if letter not in self.z]
        return _aligned(x.amin(inner) if inner else x, _shared(self.x, self.z), self.z)

    def channels(self) -> tuple[int, ...]:
        return tuple(self.z.index(letter) - len(self.z) for letter in self._neurons)

    def scale_channels(self, w: Tensor, scale: Tensor) -> Tensor:
        return w * _aligned(self._of_neurons(scale), self._neurons, self.w)

    def centre(self, x: Tensor) -> Tensor:
        samples = math.prod(n for letter, n in zip(self.x, x.shape, strict=True) if letter in self._samples)
        return self.input_sums(x, x) / samples

    def shifted(self, x: Tensor, centre: Tensor) -> tuple[Contraction, Tensor]:
        letters = _shared(self.x, self.w + self.z)
        x = _aligned(x, self.x, letters)  # what is summed over a dimension of its own is one input
        return replace(self, x=letters, input_shape=tuple(x.shape)), x - _aligned(centre, self.w, letters)

    def output_sums(self, t: Tensor) -> Tensor:
        return _grouped(t, self.z, self._neurons, self._samples).sum(1, dtype=torch.float64)

    def input_sums(self, x: Tensor, z: Tensor) -> Tensor:
        return _aligned(x.double(), self.x, self.w)

    def neuron_sums(self, t: Tensor) -> Tensor:
        return _grouped(t, self.w, self._neurons, self._inputs).sum(1)

    def rows(self, w: Tensor) -> Tensor:
        return _grouped(w, self.w, self._groups, self._outputs, self._inputs)

    def patches(self, x: Tensor) -> Tensor:
        return _grouped(x, self.x, self._groups, self._samples, self._inputs)

    @property
    def _groups(self) -> str:
        return _shared(_shared(self.w, self.z), self.x)

    @property
    def _outputs(self) -> str:
        return _without(_shared(self.w, self.z), self.x)

    @property
    def _neurons(self) -> str:
        return self._groups + self._outputs

    @property
    def _inputs(self) -> str:
        return _without(_shared(self.w, self.x), self.z)

    @property
    def _samples(self) -> str:
        return _without(self.z, self.w)

    def _of_neurons(self, t: Tensor) -> Tensor:
        """One number for each neuron, in the dimensions that tell neurons apart."""
        sizes = dict(zip(self.w, self.weight_shape, strict=True))
        return t.reshape([sizes[letter] for letter in self._neurons])


def _shared(letters: str, others: str) -> str:
    return "".join(letter for letter in letters if letter in others)


def _without(letters: str, others: str) -> str:
    return "".join(letter for letter in letters if letter not in others)


def _aligned(t: Tensor, letters: str, target: str) -> Tensor:
    """A tensor with the dimensions ``letters``, summed and permuted so that it broadcasts to ``target``."""
    t = torch.einsum(f"{letters}->{_shared(target, letters)}", t)
    return t[tuple(slice(None) if letter in letters else None for letter in target)]


def _grouped(t: Tensor, letters: str, *groups: str) -> Tensor:
    """A tensor with the dimensions ``letters``, summed and permuted to have one dimension for each group of them."""
    sizes = dict(zip(letters, t.shape, strict=True))
    t = torch.einsum(f"{letters}->{''.join(groups)}", t)
    return t.reshape([math.prod(sizes[letter] for letter in group) for group in groups])


def _product(t: Tensor, letters: str, other: Tensor, others: str, target: str) -> Tensor:
    """``torch.einsum``, broadcast to the dimensions of ``target`` that neither tensor has."""
    found = _shared(target, letters + others)
    return _aligned(torch.einsum(f"{letters},{others}->{found}", t, other), found, target)
