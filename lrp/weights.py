"""Modified weights, such as ``w+``, kept while the caller says that the weights stand still.

>>> import torch, lrp
>>> model = lrp.Sequential(lrp.Linear(4, 3), torch.nn.ReLU(), lrp.Linear(3, 2))
>>> with lrp.weights.frozen(model):
...     for images in torch.rand(10, 5, 4, requires_grad=True):
...         y = model(images, explain=True, rule="zplus")
...         (relevance,) = torch.autograd.grad(y.sum(), images)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from .maps.weights import forget, keep


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within this context, the caller says, nobody changes the parameters of ``model``.

    What rules make of a weight, such as ``w+``, is then made once, and not once for every explained forward. A change
    that torch counts, such as ``load_state_dict`` or a step of most optimizers, is seen all the same: the weight's
    modifications are made again. What torch does not count (its fused optimizers, numpy, ``.data``, other processes)
    is not seen, and the maps are wrong until :func:`forget` is called.

    Contexts may be nested, and run in several threads. Up to four modifications of a weight are kept, the latest, and
    one of a weight with more than 8 million elements. They are freed when the context ends.

    Args:
        model: a module, converted or not; the parameters and buffers that it has when the context begins.

    Raises:
        TypeError: for what is no module.

    >>> import torch
    >>> layer = torch.nn.Linear(3, 2)
    >>> with frozen(layer):
    ...     pass
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"frozen(): takes a torch.nn.Module, not {type(model).__name__}")
    with keep([*model.parameters(), *model.buffers()]):
        yield


__all__ = ["forget", "frozen"]
