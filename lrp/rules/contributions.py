"""The contributions that rules weigh against each other: those that agree with an output's growth, and the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..maps import LinearMap
from ..maps.arithmetic import negative, positive
from ..maps.weights import Make
from .rule import Proportional
from .totals import Parts, difference


@dataclass(frozen=True)
class Favour:
    """``w + gamma w+``, or with the negative ``part`` ``w + gamma w-``."""

    part: Make
    gamma: float

    def __call__(self, w: Tensor) -> Tensor:
        return torch.add(w, self.part(w), alpha=self.gamma)


@dataclass(frozen=True)
class Power:
    """``w^p``."""

    exponent: int

    def __call__(self, w: Tensor) -> Tensor:
        return torch.pow(w, self.exponent)


def of_bias(b: Tensor | None, make: Make) -> Tensor | None:
    """The modified bias, if there is one."""
    return None if b is None else make(b)


def signed_parts(f: LinearMap, x: Tensor, up: Make, down: Make) -> Parts:
    """Positive inputs that meet ``up(w)``, and negative ones that meet ``down(w)``."""
    return [(positive(x), up), (negative(x), down)] if f.signed else [(x, up)]


def agreeing_parts(f: LinearMap, x: Tensor) -> Parts:
    """The parts whose contributions are positive."""
    return signed_parts(f, x, positive, negative)


def opposing_parts(f: LinearMap, x: Tensor) -> Parts:
    """The parts whose contributions are negative."""
    return signed_parts(f, x, negative, positive)


def opposing_total(
    rule: Proportional, f: LinearMap, x: Tensor, w: Tensor, b: Tensor | None, z: Tensor, agreeing: Tensor
) -> Tensor:
    """What the output ``z`` is besides its agreeing total."""
    others = [agreeing]
    if b is not None and rule.bias == "ignore":
        others, b = [agreeing, f.per_output(b)], None
    return difference(f, opposing_parts(f, x), w, of_bias(b, negative), z, others, rule.epsilon)


def ones_like_input(f: LinearMap, x: Tensor) -> Tensor:
    """Ones in place of the input, for rules that do not look at it: those of one sample where they do for all."""
    return x.new_ones((1, *x.shape[1:]) if f.is_divisible() else x.shape)
