"""Functions explained in one spelling and in another, which must give one map."""

from collections.abc import Callable

import networks
import torch
from torch import Tensor, nn

import lrp
from lrp.rules import Rule

Function = Callable[[Tensor], Tensor]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def explained(f: Callable[..., Tensor], x: Tensor, rule: Rule | str, **settings: object) -> Tensor:
    """The relevance of ``x``, started from the output."""
    x = x.detach().clone().requires_grad_()
    y = lrp.convert(f)(x, explain=True, rule=rule, strict=True, **settings)
    assert torch.equal(y, f(x))
    return torch.autograd.grad(y, x, y.detach())[0]


def normalised() -> tuple[nn.Conv2d, nn.BatchNorm2d, Tensor, Tensor, Tensor]:
    """A convolution, a batch norm, its scale and shift, and images."""
    conv, norm = networks.randomize(nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)))
    conv.requires_grad_(False)
    norm.requires_grad_(False)
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return conv, norm, scale, norm.bias - norm.running_mean * scale, draw(2, 2, 6, 6)


CONV, NORM, SCALE, SHIFT, IMAGES = normalised()
