"""The rules that divide: relevance in proportion to contributions, each with contributions of its own.

``t+ = max(t, 0)`` and ``t- = min(t, 0)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..maps import LinearMap
from ..maps.arithmetic import add_, broadcasts, deviation, lerp_, negative, positive
from .accounts import weighed
from .contributions import (
    Favour,
    Power,
    agreeing_parts,
    of_bias,
    ones_like_input,
    opposing_parts,
    opposing_total,
    signed_parts,
)
from .numbers import check_number, number
from .place import Family
from .rule import Bias, Proportional, Rule, brief


@dataclass(frozen=True, eq=False, repr=False)
class Epsilon(Proportional):
    """``R_in = x * W^T (R / stabilize(z, epsilon))``: for the upper layers, and for sums and means.

    Args:
        epsilon: default 0.1. As it grows, weak and contradicting contributions are absorbed.
        exponent: a positive integer p; contributions are then ``x^p w^p``, without bias unless p = 1.
        relative: whether epsilon is in units of the standard deviation of the layer's outputs, a batch norm after it
            included, over all dimensions of each sample. Default False.
        bias: as for all dividing rules, default ``"absorb"``.

    Raises:
        ValueError: for an epsilon below 0, an exponent that is no positive integer, or not 1 where epsilon is relative,
            an unknown bias policy.

    Source: Bach et al. 2015, equation 58; Montavon et al. 2019 (LRP: an overview), section 10.2.1; the exponent:
    Boehle et al. 2019 (Frontiers in Aging Neuroscience 11:194).

    >>> Epsilon()
    Epsilon(epsilon=0.1, exponent=1)
    """

    epsilon: float = 0.1
    exponent: int = 1
    relative: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        exponent = number(self.exponent)
        if not isinstance(exponent, int) or exponent < 1:
            raise ValueError(f"exponent={self.exponent!r}: must be a positive integer")
        object.__setattr__(self, "exponent", exponent)
        if not isinstance(self.relative, bool):
            raise ValueError(f"relative={self.relative!r}: must be True or False")
        if self.relative and exponent != 1:
            raise ValueError(f"exponent={exponent}: must be 1 with relative=True, whose unit is that of the outputs")

    def redistribute(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, R: Tensor) -> Tensor:
        if self.exponent > 1:
            return self.share(f, [(x**self.exponent, Power(self.exponent))], w, None, R)
        return super().redistribute(f, x, w, b, z, R)

    def stabiliser(self, z: Tensor) -> float | Tensor:
        return self.epsilon * deviation(z) if self.relative and self.epsilon else self.epsilon

    @property
    def has_gradient_form(self) -> bool:
        return self.exponent == 1 and super().has_gradient_form

    def is_plain(self) -> bool:
        return type(self) is Epsilon and self.exponent == 1

    @property
    def is_local(self) -> bool:
        return not self.relative

    is_divisible, counts_zeros = Proportional.is_divisible, Proportional.counts_zeros
    gradient_form, needs_input = Proportional.gradient_form, Proportional.needs_input
    is_gradient, damps = Proportional.is_gradient, Proportional.damps


@dataclass(frozen=True, eq=False, repr=False)
class Gamma(Proportional):
    """Favours what agrees with the output's sign, for lower and middle layers.

    Where no input of the sample is negative, contributions are ``x (w + gamma w+)`` and the bias is ``b + gamma b+``.
    Otherwise the generalised rule: an output ``z >= 0`` has the contributions ``x+ (w + gamma w+) + x- (w + gamma w-)``
    and the bias ``b + gamma b+``; an output ``z < 0`` has ``x+ (w + gamma w-) + x- (w + gamma w+)`` and
    ``b + gamma b-``. An ignored bias does not count in the sign of ``z`` either.

    Args:
        gamma: 0 (the epsilon rule) or more; infinity would be zplus. Default 0.1.
        generalized: True takes the generalised rule for every sample, as zennit does. It differs only for outputs
            ``z < 0`` that have relevance, as in a residual sum or a layer without activation: there the classical
            denominator ``z + gamma z+`` crosses zero, and relevance can blow up. Default False.
        epsilon: stabiliser, default 1e-6.
        bias: as for all dividing rules, default ``"absorb"``.

    Raises:
        ValueError: for a gamma or epsilon below 0, an unknown bias policy.

    Source: Montavon et al. 2019 (LRP: an overview), section 10.2.1; for signed inputs Andeol et al. 2021
    (arXiv 2106.04923).

    >>> Gamma(0.25)
    Gamma(gamma=0.25)
    """

    gamma: float = 0.1
    generalized: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "gamma", at_least=0)

    def redistribute(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, R: Tensor) -> Tensor:
        up, down = Favour(positive, self.gamma), Favour(negative, self.gamma)
        if not (f.signed or self.generalized):
            return self.share(f, [(x, up)], w, of_bias(b, up), R)
        agreeing, z = self.total(f, agreeing_parts(f, x), w, of_bias(b, positive)), self.counted(f, x, w, b, z)
        mirrored = z < 0 if self.generalized else (z < 0) & (f.lowest(x) < 0)
        # z - agreeing is the opposing total, and precise where z < 0: there its two terms have one sign
        bias = None if b is None else torch.where(mirrored, f.per_output(down(b)), f.per_output(up(b)))
        s = self.divided(R, z + self.gamma * torch.where(mirrored, z - agreeing, agreeing), self.epsilon, bias)
        relevance = self.pull(f, signed_parts(f, x, up, down), w, of_bias(b, up), s.masked_fill(mirrored, 0.0))
        parts = signed_parts(f, x, down, up)
        return add_(relevance, self.pull(f, parts, w, of_bias(b, down), s.masked_fill(~mirrored, 0.0)))

    def needs_output(self, f: LinearMap) -> bool:
        return f.signed or self.generalized

    is_divisible, counts_zeros = Proportional.is_divisible, Proportional.counts_zeros
    gradient_form, is_local = Proportional.gradient_form, Proportional.is_local


@dataclass(frozen=True, eq=False, repr=False)
class AlphaBeta(Proportional):
    """Positive contributions with weight alpha against negative ones with weight beta; ``alpha - beta = 1``.

    ``R_in = alpha * share of (x+ w+ + x- w-) - beta * share of (x+ w- + x- w+)``.

    Args:
        alpha: 1 or more.
        beta: ``alpha - 1``.
        conserve: if True, an output that has contributions of one sign only keeps all its relevance on that sign.
            If False (default) it passes on alpha times that, or -beta times it.
        epsilon: stabiliser, default 1e-6.
        bias: default ``"ignore"``; ``"absorb"`` puts b+ in the positive and b- in the negative denominator.

    Raises:
        ValueError: for alpha - beta other than 1, a beta or epsilon below 0, an unknown bias policy.

    Source: Bach et al. 2015, equation 60; ``conserve``: Boehle et al. 2019 (Frontiers in Aging Neuroscience 11:194).

    >>> AlphaBeta(2, 1)
    AlphaBeta(alpha=2, beta=1, conserve=False)
    """

    alpha: float
    beta: float
    conserve: bool = False
    bias: Bias = field(default="ignore", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self, "alpha", at_least=1)
        check_number(self, "beta", at_least=0)
        if not math.isclose(self.alpha - self.beta, 1, abs_tol=min(1e-9 * self.alpha, 1e-3)):
            raise ValueError(
                f"alpha={self.alpha}, beta={self.beta}: alpha - beta must be 1, so beta={self.alpha - 1:g} here"
            )

    def redistribute(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, R: Tensor) -> Tensor:
        plus, minus = agreeing_parts(f, x), opposing_parts(f, x)
        b_plus, b_minus = of_bias(b, positive), of_bias(b, negative)
        if not self.needs_output(f):
            return self.share(f, plus, w, b_plus, R, sign=+1)
        z_plus = self.total(f, plus, w, b_plus)
        if self.conserve:
            z_minus = self.total(f, minus, w, b_minus)  # exactly zero where nothing is negative
            # what has no contributions gets nothing, not even to lose; where there are none at all, the positive side
            R_plus = torch.where(z_minus == 0, R, (self.alpha * R).masked_fill(z_plus == 0, 0.0))
            R_minus = torch.where(z_plus == 0, R, -self.beta * R).masked_fill(z_minus == 0, 0.0)
            shares = self.share(f, plus, w, b_plus, R_plus, z_plus, sign=+1)
            return add_(shares, self.share(f, minus, w, b_minus, R_minus, z_minus, sign=-1))
        z_minus = opposing_total(self, f, x, w, b, z, z_plus)
        with weighed(self.alpha):
            shares = self.share(f, plus, w, b_plus, R, z_plus, sign=+1)
        with weighed(-self.beta):
            opposed = self.share(f, minus, w, b_minus, R, z_minus, sign=-1)
        return lerp_(shares, opposed, -self.beta)  # alpha P - beta N = P + beta (P - N), in one pass

    def needs_output(self, f: LinearMap) -> bool:
        return self.beta > 0 or self.conserve

    is_divisible, counts_zeros = Proportional.is_divisible, Proportional.counts_zeros
    gradient_form, is_local = Proportional.gradient_form, Proportional.is_local


@dataclass(frozen=True, eq=False, repr=False)
class ZPlus(Proportional):
    """``R_in`` in proportion to ``x+ w+ + x- w-``, the contributions that are positive; b+ is absorbed.

    Args:
        epsilon: stabiliser, default 1e-6.
        bias: as for all dividing rules, default ``"absorb"``.

    Raises:
        ValueError: for a negative epsilon and an unknown bias policy.

    Source: Montavon et al. 2017 (deep Taylor decomposition, Pattern Recognition 65), the z+ rule.

    >>> ZPlus()
    ZPlus()
    """

    def redistribute(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, R: Tensor) -> Tensor:
        return self.share(f, agreeing_parts(f, x), w, of_bias(b, positive), R, sign=+1)

    def needs_output(self, f: LinearMap) -> bool:
        return False

    is_divisible, counts_zeros = Proportional.is_divisible, Proportional.counts_zeros
    gradient_form, is_local = Proportional.gradient_form, Proportional.is_local


@dataclass(frozen=True, eq=False, repr=False)
class ZBox(Proportional):
    """For inputs with bounds, such as pixels: ``R_in`` in proportion to ``x w - low w+ - high w-``.

    Args:
        low: smallest value that an input can have: a number, or a tensor that broadcasts to the input, such as
            ``(C, 1, 1)`` for one bound a channel. In the unit of the input.
        high: largest value, alike.
        epsilon: stabiliser, default 1e-6.
        bias: accepted as for all dividing rules; this rule leaves the bias out whatever it says.

    Raises:
        ValueError: for low > high, bounds that are not finite or do not broadcast to the input, a negative epsilon.
        TypeError: for bounds that are neither numbers nor tensors.

    Source: Montavon et al. 2017 (deep Taylor decomposition, Pattern Recognition 65), the z^B rule.

    >>> ZBox(-1.0, 1.0)
    ZBox(low=-1.0, high=1.0)
    """

    low: float | Tensor
    high: float | Tensor

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("low", "high"):
            _check_bound(self, name)
        low, high = _bound(self.low), _bound(self.high)
        if not (broadcasts(low, high) or broadcasts(high, low)):
            raise ValueError(f"low of shape {tuple(low.shape)} and high of shape {tuple(high.shape)}: must broadcast")
        if not bool((low <= high).all()):
            raise ValueError(f"low={brief(self.low)}, high={brief(self.high)}: low must not be above high")

    def redistribute(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, R: Tensor) -> Tensor:
        low, high = _fit("low", self.low, x), _fit("high", self.high, x)
        # x w - low w+ - high w-, grouped so that a pixel on its bound contributes an exact zero
        return self.share(f, [(x - low, positive), (x - high, negative)], w, None, R)

    def is_divisible(self, x: Tensor) -> bool:
        bounds = _bound(self.low), _bound(self.high)
        return all(bound.dim() < x.dim() or len(bound) == 1 for bound in bounds)

    def needs_output(self, f: LinearMap) -> bool:
        return False


@dataclass(frozen=True, eq=False, repr=False)
class WSquare(Proportional):
    """``R_in`` in proportion to ``w^2``, whatever the input; b^2 is absorbed. For a first layer without bounds.

    Args:
        epsilon: stabiliser, default 1e-6.
        bias: as for all dividing rules, default ``"absorb"``.

    Raises:
        ValueError: for a negative epsilon and an unknown bias policy.

    Source: Montavon et al. 2017 (deep Taylor decomposition, Pattern Recognition 65), the w^2 rule.

    >>> WSquare()
    WSquare()
    """

    def redistribute(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, R: Tensor) -> Tensor:
        return self.share(f, [(ones_like_input(f, x), torch.square)], w, of_bias(b, torch.square), R)

    def needs_output(self, f: LinearMap) -> bool:
        return False

    is_divisible = Proportional.is_divisible

    def companion(self, family: Family) -> Rule:
        return Flat(epsilon=self.epsilon) if family == "pool" else super().companion(family)


@dataclass(frozen=True, eq=False, repr=False)
class Flat(Proportional):
    """``R_in`` in equal parts for all the inputs that an output is connected to. For a first layer; for pools too.

    Args:
        epsilon: stabiliser, default 1e-6.
        bias: accepted as for all dividing rules; this rule leaves the bias out whatever it says.

    Raises:
        ValueError: for a negative epsilon and an unknown bias policy.

    Source: Lapuschkin et al. 2019 (Nature Communications 10:1096), the flat rule.

    >>> Flat()
    Flat()
    """

    def redistribute(self, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, R: Tensor) -> Tensor:
        return self.share(f, [(ones_like_input(f, x), torch.ones_like)], w, None, R)

    def needs_output(self, f: LinearMap) -> bool:
        return False

    is_divisible = Proportional.is_divisible

    def companion(self, family: Family) -> Rule:
        return self if family == "pool" else super().companion(family)


def _check_bound(rule: ZBox, name: str) -> None:
    value = getattr(rule, name)
    if isinstance(value, Tensor):
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name}={brief(value)}: must be finite")
    elif number(value) is None:
        raise TypeError(f"{name}={value!r}: must be a number or a tensor; torch.as_tensor() makes one of an array")
    else:
        check_number(rule, name)


def _bound(value: float | Tensor) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64, device="cpu")


def _fit(name: str, value: float | Tensor, x: Tensor) -> Tensor:
    """The bound, in the dtype and on the device of ``x``."""
    bound = _bound(value).to(x)
    if not broadcasts(bound, x):
        raise ValueError(
            f"{name}: shape {tuple(bound.shape)} does not broadcast to the input's, {tuple(x.shape)}; "
            "where padding_mode pads the input first, give a number or one bound a channel"
        )
    return bound
