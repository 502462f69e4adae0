"""The totals that rules divide by: a pass of the map for each, or the difference of two that are there already.

A difference costs no pass, but where it is small beside what it is a difference of, it is made of their rounding
errors. There it is made again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..maps import LinearMap
from ..maps.arithmetic import add_, is_readable, sum_up
from ..maps.weights import Make

Parts = Sequence[tuple[Tensor, Make]]

SMALL = 1e-3  # a difference that is not smaller keeps all but three digits
_MANY = 1 / 200  # of the outputs: more than these cost as much as a pass of all


def total(f: LinearMap, parts: Parts, w: Tensor, b: Tensor | None) -> Tensor:
    """The sum of the contributions ``x_p w_p`` of all parts, and the bias ``b``."""
    biases = [b, *(None for _ in parts[1:])]
    return sum_up(f.forward_modified(x, make, w, bias) for (x, make), bias in zip(parts, biases, strict=True))


def difference(
    f: LinearMap, parts: Parts, w: Tensor, b: Tensor | None, z: Tensor, others: Sequence[Tensor], epsilon: float
) -> Tensor:
    """``total(f, parts, w, b)``, as what is left of the output ``z`` without ``others``.

    Args:
        z: the map's output.
        others: what else is in ``z``: tensors that broadcast to it.
        epsilon: the stabiliser that is added to the total; an error that is small beside it does not matter.

    Returns:
        A new tensor. Its relative error is at most ``1 / SMALL`` times that of a sum in the precision of ``z``.
    """
    if not is_readable(z):  # on a GPU z may have been computed in TF32, and looking would wait for it
        return total(f, parts, w, b)
    rest = z - others[0]
    for other in others[1:]:
        rest = add_(rest, other, -1.0)
    margin = _margin(rest, others)
    if margin.numel() == 0 or bool(margin.amin() >= -epsilon):
        return rest
    return _remade(f, parts, w, b, rest, margin < -epsilon)


def _margin(rest: Tensor, others: Sequence[Tensor]) -> Tensor:
    """By how much ``|rest|`` is above what is small beside the others."""
    margin = rest.detach().abs()
    for other in others:
        margin.sub_(other.detach().abs(), alpha=SMALL)
    return margin


def _remade(f: LinearMap, parts: Parts, w: Tensor, b: Tensor | None, rest: Tensor, lost: Tensor) -> Tensor:
    """The total made again where it is lost; at all outputs, if these are many."""
    at = lost.nonzero(as_tuple=True)
    if len(at[0]) > _MANY * lost.numel():
        return total(f, parts, w, b)
    if len(at[0]) == 0:  # NaN is not below any number
        return rest
    made = sum_up(f.forward_at(at, x, make, w) for x, make in parts)
    if b is not None:
        made = made + f.per_output(b).expand_as(rest)[at]
    return rest.index_put(at, made) if torch.is_grad_enabled() else rest.index_put_(at, made)
