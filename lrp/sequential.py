"""A sequence of layers, explained as a whole."""

from __future__ import annotations

from torch import nn

from . import layers
from .layers import Explainable, Self
from .twins import twin_children


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
        twin_children(sequence, {module: sequence}, _DROP_INS)
        return sequence


_DROP_INS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Sequential: Sequential,
    **{cls.__mro__[2]: cls for cls in vars(layers).values() if isinstance(cls, type) and issubclass(cls, Explainable)},
}
