"""Norms as linear maps: merged with the layer before them, or with a deviation that is constant."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import reference


@dataclass(frozen=True)
class Norm:
    """A norm whose deviation is a constant, without its bias: ``diag(w) (I - 1/n)`` in each group."""

    grouped: tuple[int, ...]
    deviation: Tensor
    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, m: nn.Module, x: Tensor) -> Norm:
        """The norm at ``x``."""
        if isinstance(m, nn.LayerNorm):
            groups, like = x[0].numel() // m.weight.numel(), m.weight.shape
        else:
            groups = m.num_groups if isinstance(m, nn.GroupNorm) else x.shape[1]
            like = (-1, *[1] * (x.dim() - 2))
        grouped = (groups, x[0].numel() // groups)
        variance = x.reshape(len(x), *grouped).var(-1, unbiased=False, keepdim=True)
        return cls(grouped, (variance + m.eps).sqrt(), *(t.detach().reshape(like) for t in (m.weight, m.bias)))

    def __call__(self, x: Tensor) -> Tensor:
        groups = x.reshape(len(x), *self.grouped)
        centred = (groups - groups.mean(-1, keepdim=True)) / self.deviation
        return centred.reshape(x.shape) * self.weight

    def relevance(self, x: Tensor, R: Tensor, bias: str) -> Tensor:
        """In proportion to the contributions in one sample."""
        shape = x.shape[1:]
        W = reference.dense(self, shape)
        mask = reference.dense(lambda e: self._spread(e), shape)
        b = self.bias.expand(shape).flatten()
        found = reference.epsilon(W, b, x.flatten(), R.flatten(), epsilon=0.0, bias=bias, mask=mask)
        return found.reshape(x.shape)

    def _spread(self, x: Tensor) -> Tensor:
        groups = x.reshape(len(x), *self.grouped)
        return groups.sum(-1, keepdim=True).expand(groups.shape).reshape(x.shape)


def merged(layer: nn.Module, scale: Tensor, shift: Tensor) -> nn.Module:
    """The layer with a scale and a shift of each output channel put into its weight and bias."""
    twin = copy.deepcopy(layer)
    w, groups = layer.weight.detach(), getattr(layer, "groups", 1)
    if getattr(layer, "transposed", False):  # (in, out of a group, ...)
        w = w.reshape(groups, -1, *w.shape[1:]) * scale.reshape(groups, 1, -1, *[1] * (w.dim() - 2))
    else:
        w = w * scale.reshape(-1, *[1] * (w.dim() - 1))
    bias = torch.zeros_like(shift) if layer.bias is None else layer.bias.detach()
    twin.weight = nn.Parameter(w.reshape(layer.weight.shape), requires_grad=False)
    twin.bias = nn.Parameter(bias * scale + shift, requires_grad=False)
    return twin
