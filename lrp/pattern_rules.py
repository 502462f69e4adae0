"""The rules that need patterns: what of a layer's input varies with its output, told apart from distractors."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from .linear_maps import LinearMap
from .rule import Family, Gradient, Rule


@dataclass(frozen=True, eq=False, repr=False)
class PatternNet(Rule):
    """``A^T R``: the signal that the pattern ``A`` finds; activations pass their gradient.

    Args:
        pattern: a tensor of the shape of the layer's weight. None (default) takes it from ``pattern=`` of the
            forward.

    Source: Kindermans et al. 2017 (arXiv 1705.05598), section 4.

    >>> PatternNet()
    PatternNet(pattern=None)
    """

    pattern: Tensor | None = None

    def redistribute(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, R: Tensor) -> Tensor:
        return f.pullback(R, self._fitting(w))

    def needs_output(self, f: LinearMap) -> bool:
        return False

    def is_divisible(self, x: Tensor) -> bool:
        return True

    @property
    def needs_pattern(self) -> bool:
        return self.pattern is None

    def with_pattern(self, pattern: Tensor) -> PatternNet:
        return replace(self, pattern=pattern)

    def companion(self, family: Family) -> Rule:
        return self if family in ("linear", "conv") else Gradient()

    def _fitting(self, w: Tensor) -> Tensor:
        if self.pattern is None:
            raise ValueError(
                f"{type(self).__name__} needs pattern=: a list of fitted patterns, or a dict by layer name"
            )
        if self.pattern.shape != w.shape:
            raise ValueError(f"pattern of shape {tuple(self.pattern.shape)}: the weight's shape is {tuple(w.shape)}")
        return self.pattern.to(w)


@dataclass(frozen=True, eq=False, repr=False)
class PatternAttribution(PatternNet):
    """``(A * w)^T R``: the share of the output that each input's signal brings; activations pass their gradient.

    Args:
        pattern: as for :class:`PatternNet`.

    Source: Kindermans et al. 2017 (arXiv 1705.05598), section 4.

    >>> PatternAttribution()
    PatternAttribution(pattern=None)
    """

    def redistribute(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, R: Tensor) -> Tensor:
        return f.pullback(R, self._fitting(w) * w)
