"""A map merged with what scales each of its neurons."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .linear_maps import LinearMap
from .records import changed


@dataclass(frozen=True, kw_only=True)
class Scaled(LinearMap):
    """``z = scale f(x, w) + b``, where nobody asks what the merged weights are: the outputs are fewer than these.

    Attributes:
        f: the map.
        scale: one number for each of its neurons.
    """

    f: LinearMap
    scale: Tensor

    @classmethod
    def of(cls, f: LinearMap, scale: Tensor) -> Scaled:
        """``f``, merged with a scale."""
        return cls(f=f, scale=scale, input_shape=f.input_shape, signed=f.signed, made=f.made)

    def forward(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        z = self._f.forward(x, w) * self.f.per_output(self.scale)
        return z if b is None else z + self.f.per_output(b)

    def pullback(self, s: Tensor, w: Tensor) -> Tensor:
        return self._f.pullback(s * self.f.per_output(self.scale), w)

    def weight_pullback(self, x: Tensor, s: Tensor) -> Tensor:
        return self._f.weight_pullback(x, s * self.f.per_output(self.scale))

    def per_output(self, b: Tensor) -> Tensor:
        return self.f.per_output(b)

    def spread(self, share: Tensor, w: Tensor) -> Tensor:
        return self._f.spread(share, w)

    def is_divisible(self) -> bool:
        return self.f.is_divisible()

    @property
    def _f(self) -> LinearMap:
        """The map, for as many samples as this is for."""
        return changed(self.f, input_shape=self.input_shape, made=self.made)
