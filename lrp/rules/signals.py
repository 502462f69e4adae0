"""Rules that pass a signal on as the methods before LRP do, and look at no contributions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..maps import LinearMap
from ..maps.arithmetic import positive
from .rule import Rule


@dataclass(frozen=True, eq=False, repr=False)
class Guided(Rule):
    """For activations: the gradient of what is positive, ``slope * R+``; guided backpropagation.

    Source: Springenberg et al. 2015 (arXiv 1412.6806), section 3.4.

    >>> Guided()
    Guided()
    """

    def redistribute(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, R: Tensor) -> Tensor:
        return f.pullback(positive(R), w)

    def needs_output(self, f: LinearMap) -> bool:
        return False


@dataclass(frozen=True, eq=False, repr=False)
class Deconvnet(Rule):
    """For activations: what is positive, ``R+``, whatever the activation's input was.

    Source: Zeiler and Fergus 2014 (arXiv 1311.2901), section 2.1.

    >>> Deconvnet()
    Deconvnet()
    """

    def redistribute(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, R: Tensor) -> Tensor:
        return positive(R)

    def needs_output(self, f: LinearMap) -> bool:
        return False
