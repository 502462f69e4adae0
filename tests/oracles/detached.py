"""Networks whose gradient * input is the relevance: the table's conventions, written with ``.detach()``.

An activation passes relevance unchanged: ``x * (f(x) / x).detach()``. A gate gets none: it is detached. In a layer norm
the deviation is constant: it is detached. All else is linear, or its gradient is the relevance.
"""

from collections.abc import Callable
from copy import deepcopy

from torch import Tensor, nn

_GATES = (nn.Sigmoid, nn.Hardsigmoid)
_ACTIVATIONS = (nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU, nn.ELU, nn.Mish, nn.Tanh, nn.LeakyReLU, nn.Softplus)


def detached(model: nn.Module) -> nn.Module:
    """A copy of the model whose gradient * input is its relevance by the epsilon rule, epsilon -> 0."""
    copy = deepcopy(model)
    for module in copy.modules():
        if isinstance(module, _GATES):
            module.forward = _gate(module.forward)
        elif isinstance(module, _ACTIVATIONS):
            module.inplace = False
            module.forward = _activation(module.forward)
        elif isinstance(module, nn.LayerNorm):
            module.forward = _layer_norm(module)
        elif isinstance(module, nn.GroupNorm):
            module.forward = _group_norm(module)
    return copy


def _gate(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: forward(x).detach()


def _activation(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def passed(x: Tensor) -> Tensor:
        assert bool((x != 0).all())
        return x * (forward(x) / x).detach()

    return passed


def _layer_norm(norm: nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    """torchvision's ConvNeXt has a subclass whose channels come first."""
    channels_first = type(norm) is not nn.LayerNorm

    def forward(x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1) if channels_first else x
        centred = x - x.mean(-1, keepdim=True)
        deviation = (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt().detach()
        z = centred / deviation * norm.weight + norm.bias
        return z.permute(0, 3, 1, 2) if channels_first else z

    return forward


def _group_norm(norm: nn.GroupNorm) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        groups = x.unflatten(1, (norm.num_groups, -1)).flatten(2)
        deviation = (groups.var(-1, correction=0, keepdim=True) + norm.eps).sqrt().detach()
        z = ((groups - groups.mean(-1, keepdim=True)) / deviation).view_as(x)
        channels = (-1, *(1 for _ in x.shape[2:]))
        return z * norm.weight.view(channels) + norm.bias.view(channels)

    return forward
