"""Division that never blows up, and in-place arithmetic where autograd allows it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor


def stabilize(z: Tensor, epsilon: float | Tensor) -> Tensor:
    """Move ``z`` away from zero: ``z + epsilon * sign(z)``, with ``sign(0) = +1``.

    Args:
        z: the denominators, any shape.
        epsilon: distance by which each of them moves, in the unit of ``z``; a tensor broadcasts to it.

    Returns:
        A new tensor of the shape of ``z``.

    Source: Bach et al. 2015 (PLoS ONE 10(7):e0130140), equation 58.

    >>> stabilize(torch.tensor([2.0, 0.0, -2.0]), 0.5)
    tensor([ 2.5000,  0.5000, -2.5000])
    """
    # copysign is one pass where where() takes three. It differs from sign() at -0.0 alone, and a sum is
    # -0.0 only if each of its terms is zero: then so is every share, whatever the denominator's sign.
    # The number stands on the CPU, which costs a GPU no kernel; the meta device alone wants it at home.
    if isinstance(epsilon, Tensor):
        return z + torch.copysign(epsilon, z.detach())
    distance = torch.full((), epsilon, dtype=z.dtype, device=z.device if z.is_meta else "cpu")
    return add_(torch.copysign(distance, z.detach()), z)


def divide(R: Tensor, z: Tensor, epsilon: float | Tensor, sign: int = 0) -> Tensor:
    """``s = R / stabilize(z, epsilon)``; where that is zero, for ``epsilon`` is, so is ``s``.

    A ``sign`` of +1 or -1 says that every ``z`` is zero or of that sign, and that it may be overwritten.
    """
    if isinstance(epsilon, Tensor):
        return _divide_exactly(R, stabilize(z, epsilon), 1)
    if epsilon == 0:
        return _divide_exactly(R, z, sign)
    if sign == 0:
        return _divide_into(R, stabilize(z, epsilon))
    return _divide_into(R, _push(z, sign, epsilon))


def damp(g: Tensor, z: Tensor, epsilon: float | Tensor) -> Tensor:
    """``g * |z| / (|z| + epsilon)``, which is ``z g / stabilize(z, epsilon)``."""
    if isinstance(epsilon, Tensor):
        return _divide_exactly(g * z.abs(), z.abs() + epsilon, 1)
    if epsilon == 0:
        return g
    return torch.addcdiv(g, g, z.abs().add_(epsilon), value=-epsilon)  # the quotient takes a pass more


def deviation(t: Tensor) -> Tensor:
    """The standard deviation of each sample, uncorrected, over all dimensions but the first; of a vector that of all.

    It broadcasts to ``t``.
    """
    dims = tuple(range(1, t.dim())) or None
    centred = t - t.mean(dims, keepdim=True)  # var() takes ten times as long
    variance = centred.square().mean(dims, keepdim=True)
    is_flat = variance == 0  # where the derivative of a root is infinite
    return variance.masked_fill(is_flat, 1.0).sqrt().masked_fill(is_flat, 0.0)


def positive(t: Tensor) -> Tensor:
    """``t+ = max(t, 0)``."""
    return t.clamp(min=0)


def negative(t: Tensor) -> Tensor:
    """``t- = min(t, 0)``."""
    return t.clamp(max=0)


def identity(t: Tensor) -> Tensor:
    """``t`` itself."""
    return t


def broadcasts(t: Tensor, to: Tensor) -> bool:
    """Whether ``t`` broadcasts to the shape of ``to``."""
    sizes = zip(reversed(t.shape), reversed(to.shape), strict=False)
    return t.dim() <= to.dim() and all(size in (1, target) for size, target in sizes)


# The functions below are for tensors that the caller has made and nobody else holds. On a CPU a new tensor
# costs more than the arithmetic that fills it, so writing over an old one is what keeps a rule cheap.


def add_(target: Tensor, other: Tensor, alpha: float = 1.0) -> Tensor:
    """``target + alpha * other``, in place where possible."""
    if _overwritable(target, other):
        return target.add_(other, alpha=alpha)
    return target.add(other, alpha=alpha)


def mul_(target: Tensor, other: Tensor) -> Tensor:
    """``target * other``, in place where possible."""
    return target.mul_(other) if _overwritable(target, other) else target * other


def mask_(target: Tensor, mask: Tensor) -> Tensor:
    """``target``, and zero where the mask is True, in place where possible."""
    if torch.is_grad_enabled() or is_vmapped(mask) or _is_expanded(target):
        return target.masked_fill(mask, 0.0)
    return target.masked_fill_(mask, 0.0)


def sum_up(terms: Iterable[Tensor]) -> Tensor:
    """The sum of all terms, written over the first where possible."""
    return reduce(add_, terms)


def lerp_(start: Tensor, end: Tensor, weight: float) -> Tensor:
    """``start + weight * (end - start)``, in place where possible."""
    return start.lerp_(end, weight) if _overwritable(start, end) else torch.lerp(start, end, weight)


def _push(z: Tensor, sign: int, epsilon: float) -> Tensor:
    """``z`` on the side of ``sign``, whatever rounding did, and ``epsilon`` away from zero."""
    low, high = (epsilon, None) if sign > 0 else (None, -epsilon)
    if torch.is_grad_enabled():
        return (z + sign * epsilon).clamp(low, high)
    return z.add_(sign * epsilon).clamp_(low, high)


def _divide_exactly(R: Tensor, z: Tensor, sign: int) -> Tensor:
    """``R / z``, and zero where ``z`` is: a neuron without contributions has nobody to give to."""
    is_zero = z == 0
    if torch.is_grad_enabled():  # the derivative of R / 0 is NaN, even where it does not count
        return (R / z.masked_fill(is_zero, 1.0)).masked_fill(is_zero, 0.0)
    s = _divide_into(R, z) if sign else R / z
    return s.masked_fill_(is_zero, 0.0)


def _divide_into(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, written over the denominator where possible."""
    if _overwritable(denominator, numerator):
        return torch.div(numerator, denominator, out=denominator)
    return numerator / denominator


def _overwritable(target: Tensor, other: Tensor) -> bool:
    """Whether ``target`` can take the result: nobody differentiates, and it has room for each element of its own."""
    if torch.is_grad_enabled() or other.dtype != target.dtype or not broadcasts(other, target):
        return False
    return not (is_vmapped(other) or _is_expanded(target))


def _is_expanded(t: Tensor) -> bool:
    """Whether elements of ``t`` share memory, as in the gradient of a sum."""
    return any(stride == 0 and size > 1 for stride, size in zip(t.stride(), t.shape, strict=True))


def is_vmapped(t: Tensor) -> bool:
    """Whether vmap runs over ``t``: it stands for a batch of tensors, more than its shape says."""
    return torch._C._functorch.is_batchedtensor(t) or torch._C._functorch.is_legacy_batchedtensor(t)


def is_readable(t: Tensor) -> bool:
    """Whether a branch may look at ``t``: its values are precise, no device is to be waited for, nobody traces."""
    exact = t.dtype in (torch.float32, torch.float64) and t.device.type == "cpu" and type(t) is Tensor
    traced = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    return exact and not traced and not torch._C._functorch.is_functorch_wrapped_tensor(t)
