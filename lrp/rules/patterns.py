"""The rules that need patterns: what of a layer's input varies with its output, told apart from distractors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..maps import LinearMap
from .place import Family
from .rule import Gradient, Rule


@dataclass(frozen=True, eq=False, repr=False)
class PatternNet(Rule):
    """``A^T R``: the signal that the pattern ``A`` finds; activations pass their gradient.

    Args:
        pattern: a tensor of the shape of the layer's weight. None (default) takes it from ``pattern=`` of the
            forward.
        normalize: whether to divide what a layer passes on by its largest absolute value in each sample, as TorchLRP
            and iNNvestigate do. Default False.

    Source: Kindermans et al. 2017 (arXiv 1705.05598), section 4.

    >>> PatternNet()
    PatternNet(pattern=None)
    """

    pattern: Tensor | None = None
    normalize: bool = field(default=False, kw_only=True)

    def redistribute(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, R: Tensor) -> Tensor:
        return self._passed(f.pullback(R, self._fitting(w)))

    def needs_output(self, f: LinearMap) -> bool:
        return False

    def is_divisible(self, x: Tensor) -> bool:
        return True

    def counts_zeros(self) -> bool:
        return self.normalize

    @property
    def needs_pattern(self) -> bool:
        return self.pattern is None

    def with_pattern(self, pattern: Tensor) -> PatternNet:
        return replace(self, pattern=pattern)

    def scaled(self, f: LinearMap, scale: Tensor) -> PatternNet:
        if self.pattern is None:
            return self
        # y' = scale * y: the signal is a y = (a / scale) y'
        inverse = torch.where(scale == 0, 0.0, 1 / scale)
        return self.with_pattern(f.scale_channels(self.pattern.to(scale), inverse))

    def companion(self, family: Family) -> Rule:
        return self if family in ("linear", "conv") else Gradient()

    def _passed(self, R: Tensor) -> Tensor:
        if not self.normalize:
            return R
        largest = R.abs().amax(tuple(range(1, R.dim())), keepdim=True) if R.dim() > 1 else R.abs().max()
        return R / largest.masked_fill(largest == 0, 1.0)

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
        pattern, normalize: as for :class:`PatternNet`.

    Source: Kindermans et al. 2017 (arXiv 1705.05598), section 4.

    >>> PatternAttribution()
    PatternAttribution(pattern=None)
    """

    def redistribute(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, R: Tensor) -> Tensor:
        return self._passed(f.pullback(R, self._fitting(w) * w))

    needs_output, is_divisible = PatternNet.needs_output, PatternNet.is_divisible
    counts_zeros = PatternNet.counts_zeros
