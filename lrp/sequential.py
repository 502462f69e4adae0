"""A sequence of layers, explained as a whole."""

from __future__ import annotations

from torch import nn

from . import layers
from .layers import Explainable, Self, twin


class Sequential(Explainable, nn.Sequential):
    """:class:`torch.nn.Sequential` whose forward can be explained.

    Any torch module may stand in it: drop-in layers, torch's own, nested sequences, modules of your own.

    >>> import torch, lrp
    >>> model = lrp.Sequential(lrp.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> x = torch.rand(5, 4, requires_grad=True)
    >>> y = model(x, explain=True, rule="alpha2beta1")
    >>> y[torch.arange(len(x)), y.argmax(1)].sum().backward()
    >>> x.grad.shape
    torch.Size([5, 4])
    """

    @classmethod
    def from_torch(cls: type[Self], module: nn.Module) -> Self:
        """The twin of a ``torch.nn.Sequential``, with drop-in twins of the layers in it.

        Args:
            module: a ``torch.nn.Sequential``. It stays as it was; parameters and buffers are shared.

        Raises:
            TypeError: for any other object.

        >>> import torch, lrp
        >>> lrp.Sequential.from_torch(torch.nn.Sequential(torch.nn.Linear(3, 2)))
        Sequential(
          (0): Linear(in_features=3, out_features=2, bias=True)
        )
        """
        sequence = super().from_torch(module)
        _twin_children(sequence, {})
        return sequence


_DROP_INS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Sequential: Sequential,
    **{cls.__mro__[2]: cls for cls in vars(layers).values() if isinstance(cls, type) and issubclass(cls, Explainable)},
}


def _twin_children(parent: nn.Module, twins: dict[nn.Module, nn.Module]) -> None:
    """Put twins in the place of all descendants, so that a change of mode here does not reach the originals."""
    for name, child in parent._modules.items():
        if child is None:
            continue
        if child not in twins:
            twins[child] = twin(child, _DROP_INS.get(type(child), type(child)))
            _twin_children(twins[child], twins)
        parent._modules[name] = twins[child]
