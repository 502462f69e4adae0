"""Rules of the library, and the dense formulas that they stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import lrp
from lrp.rules import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZPlus

from . import reference

Formula = Callable[..., Tensor]


@dataclass(frozen=True)
class Case:
    """A rule of the library, and the formulas that it stands for.

    Attributes:
        rule: stabilisers are 0, so that a sum of three is the same in one step and in two.
        conv, linear, first: the formula of each kind of layer; ``first`` that of layers that the data meets.
        absorbs: whether a constant term takes its share, or none.
        has_factor: whether an input that is zero gets no relevance; without it, pools share by their weights alone.
        exact: whether the rule is epsilon -> 0.
        bias: the policy for biases; by default as ``absorbs`` says.
    """

    rule: lrp.Rule
    conv: Formula
    linear: Formula
    first: Formula | None = None
    absorbs: bool = True
    has_factor: bool = True
    exact: bool = False
    bias: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bias", self.bias or ("absorb" if self.absorbs else "ignore"))

    @property
    def reaches_zeros(self) -> bool:
        """Whether an input that is zero may get relevance."""
        return not self.has_factor or self.bias == "distribute"

    def layer(self, module: nn.Module, x: Tensor, R: Tensor, is_first: bool) -> Tensor:
        formula = self.linear if isinstance(module, nn.Linear) else self.conv
        return (self.first if is_first and self.first is not None else formula)(module, x, R)


def formula(rule: reference.Rule, *boxes: float, **options: Any) -> Formula:
    return lambda module, x, R: reference.relevance(module, rule, x, R, *boxes, **options)


def generalized(
    W: Tensor, b: Tensor, x: Tensor, R: Tensor, gamma: float, *, epsilon: float, mask: Any = None
) -> Tensor:
    """The generalised gamma rule for every sample: what has the sign of the output is raised."""
    C = W * x
    positive = C.sum(1) + b >= 0
    C = C + gamma * torch.where(positive[:, None], C.clamp(min=0), C.clamp(max=0))
    b = b + gamma * torch.where(positive, b.clamp(min=0), b.clamp(max=0))
    return reference.share(C, b, R, epsilon, "absorb", mask)


def _uniform(rule: lrp.Rule, rule_formula: Formula, **settings: Any) -> Case:
    return Case(rule, rule_formula, rule_formula, **settings)


def _with_exact_sums(default: lrp.Rule) -> lrp.Composite:
    return lrp.Composite({family: Epsilon(0.0) for family in ("sum", "pool", "norm")}, default=default)


_EPSILON0 = formula(reference.epsilon, epsilon=0.0)
_ZPLUS = formula(reference.zplus, epsilon=0.0)
_FLAT = formula(reference.flat, epsilon=0.0)
_ALPHABETA = formula(reference.alphabeta, alpha=2, beta=1, bias="absorb", epsilon=0.0)

CASES: dict[str, Case] = {
    "epsilon 0": _uniform(Epsilon(0.0), _EPSILON0, exact=True),
    "zplus": _uniform(ZPlus(epsilon=0.0), _ZPLUS),
    "epsilon": _uniform(_with_exact_sums(Epsilon(0.1)), formula(reference.epsilon, epsilon=0.1)),
    "gamma": _uniform(Gamma(0.1, epsilon=0.0), formula(reference.gamma, gamma=0.1, epsilon=0.0)),
    "gamma+epsilon": _uniform(
        _with_exact_sums(Gamma(0.1, epsilon=0.1)), formula(reference.gamma, gamma=0.1, epsilon=0.1)
    ),
    "generalized": _uniform(
        Gamma(0.25, generalized=True, epsilon=0.0), formula(generalized, gamma=0.25, epsilon=0.0)
    ),
    "alpha1beta0": _uniform(
        AlphaBeta(1, 0, epsilon=0.0), formula(reference.alphabeta, alpha=1, beta=0, epsilon=0.0), absorbs=False
    ),
    "alpha2beta1": _uniform(
        AlphaBeta(2, 1, epsilon=0.0), formula(reference.alphabeta, alpha=2, beta=1, epsilon=0.0), absorbs=False
    ),
    "alpha2beta1 absorb": _uniform(AlphaBeta(2, 1, epsilon=0.0, bias="absorb"), _ALPHABETA),
    "ignore": _uniform(
        Epsilon(0.0, bias="ignore"), formula(reference.epsilon, epsilon=0.0, bias="ignore"), absorbs=False
    ),
    "distribute": _uniform(
        Epsilon(0.0, bias="distribute"), formula(reference.epsilon, epsilon=0.0, bias="distribute"), absorbs=False,
        bias="distribute",
    ),
    "wsquare": _uniform(WSquare(epsilon=0.0), formula(reference.wsquare, epsilon=0.0), has_factor=False),
    "flat": _uniform(Flat(epsilon=0.0), _FLAT, has_factor=False),
    "epsilon_plus": Case(lrp.composites.EpsilonPlus(0.0, 0.0), _ZPLUS, _EPSILON0),
    "epsilon_plus_flat": Case(lrp.composites.EpsilonPlusFlat(0.0, 0.0), _ZPLUS, _EPSILON0, _FLAT),
    "epsilon_alpha2_beta1_flat": Case(
        lrp.composites.EpsilonAlpha2Beta1Flat(0.0, 0.0), _ALPHABETA, _EPSILON0, _FLAT
    ),
    "epsilon_gamma_box": Case(
        lrp.composites.EpsilonGammaBox(-6.0, 6.0, epsilon=0.0, stabilizer=0.0),
        formula(generalized, gamma=0.25, epsilon=0.0), _EPSILON0, formula(reference.zbox, -6.0, 6.0, epsilon=0.0),
    ),
}  # fmt: skip
